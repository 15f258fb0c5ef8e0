"""One pass over a prompt, kept at one layer and one position, and how a quantity is read off it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.cache import ActivationCache
from interp.heads import Patterns, patterns
from interp.model import HookedGPT
from interp.results import as_tokens
from interp.weights.stream import checked_index

if TYPE_CHECKING:
    from xarray import Dataset
else:
    Dataset = Any

STRONGEST = 5  # keys of which a head's weighted values are told apart


@dataclass(frozen=True, eq=False)
class Quantity:
    """One quantity of a stage: the axes and sizes of all of it, and its numbers at the position walked along."""

    name: str
    formula: str
    axes: tuple[str, ...]
    shape: tuple[int, ...]
    values: Float[Tensor, " place"]
    code: str  # Python that gives `values`, of the model and of what `Walk.code` makes first
    hook: str | None = None  # the hook point that has it

    @property
    def along(self) -> str:
        """What the numbers run along."""
        return self.axes[-1]


@dataclass(frozen=True, eq=False)
class Walk:
    """One pass over a prompt, kept at one layer and one position: `quantities` reads the stages off it."""

    model: HookedGPT
    tokens: Int[Tensor, "1 pos"]
    layer: int
    pos: int
    cache: ActivationCache  # at this position alone
    patterns: Patterns  # of this layer
    logits: Float[Tensor, " d_vocab_out"]

    def code(self, quantities: Sequence[Quantity], head: int) -> str:
        """Python that makes `numbers`, these quantities by their names, of `model` and `tokens`."""
        first, said = [], " ".join(each.code for each in quantities)
        if hooks := list(dict.fromkeys(re.findall(r"cache\['([^']+)'\]", said))):
            first.append(f"_, cache = model.run_with_cache(tokens, names_filter={hooks})")
        if re.search(r"\b(found|steps)\b", said):
            first.append(f"found = heads.patterns(model, tokens, [{self.layer}], [{head}])")
        if re.search(r"\bsteps\b", said):
            first.append(f"steps = found.steps({self.layer}, {head}, queries=slice({self.pos}, {self.pos + 1}))")
        numbers = "".join(f"    {each.name!r}: {each.code},\n" for each in quantities)
        return "\n".join([*first, f"numbers = {{\n{numbers}}}"]) + "\n"

    def steps(self, head: int) -> Dataset:
        """From q · k to weights, of the query at this position: see `heads.Patterns.steps`."""
        return self.patterns.steps(self.layer, head, slice(self.pos, self.pos + 1))

    def strongest(self, head: int, n: int = STRONGEST) -> list[int]:
        """The keys that the query here weighs most, in their order in the prompt."""
        weight = torch.from_numpy(self.steps(head).weight.to_numpy()[0])
        return sorted(weight.topk(min(n, int((weight > 0).sum()))).indices.tolist())

    def nbytes(self) -> int:
        """The memory that is held."""
        return self.patterns.nbytes() + sum(x.nbytes for x in self.cache.values()) + self.logits.nbytes

    @property
    def end(self) -> str:
        """The hook point at the end of the stream."""
        return f"blocks.{self.model.cfg.n_layers - 1}.hook_resid_post"

    def at(self, name: str) -> str:
        """A hook point or a module of the layer, by its whole name."""
        return f"blocks.{self.layer}.{name}"

    def has(self, name: str) -> bool:
        """Whether the model has this hook point."""
        return name in self.model.hook_dict

    def hooked(self, name: str, hook: str, head: int | None = None) -> Quantity:
        """What a hook point has here; with a head, that head's part."""
        point, x = self.model.hook_dict[hook], self.cache[hook][0, 0]
        which = () if head is None else (head,)
        axes = [axis for axis in point.axes.split()[1:] if head is None or axis not in ("head", "kv_head")]
        where = ", ".join(map(str, (0, self.pos, *which)))
        shape = (self.tokens.shape[1], *x.shape[len(which) :])
        return Quantity(name, point.formula, tuple(axes), shape, x[which], f"cache[{hook!r}][{where}]", hook)

    def made(self, name: str, formula: str, of: Quantity, values: Tensor, code: str) -> Quantity:
        """What is made of a quantity, with the same axes."""
        return Quantity(name, formula, of.axes, of.shape, values, code)

    def through(self, module: str, name: str) -> list[Quantity]:
        """A norm: what it divides by, what is left, and that with gain and bias."""
        scale = self.hooked("divided by", f"{module}.hook_scale")
        normalized = self.hooked("normed", f"{module}.hook_normalized")
        norm: Any = self.model.get_submodule(module)
        with_gain = "normed × gain" + ("" if norm.b is None else " + bias")
        if norm.w is None:
            with_gain = "the same: this norm has no gain"
        code = f"model.{indexed(module)}.affine({normalized.code})"
        return [scale, normalized, self.made(name, with_gain, normalized, norm.affine(normalized.values), code)]


@torch.no_grad()
def walk(model: HookedGPT, prompt: Any, layer: int, pos: int) -> Walk:
    """The way of the token at `pos` of a prompt, a text or tokens, with what happens to it in one layer."""
    tokens, _ = as_tokens(model, prompt, None)
    layer = checked_index(model, "layer", layer)
    if tokens.shape[0] != 1 or not 0 <= pos < tokens.shape[1]:
        raise ValueError(f"pos={pos}, and tokens {list(tokens.shape)}: a walk is of one prompt, along a token of it")
    wanted = ("hook_embed", "hook_pos_embed", "blocks.0.hook_resid_pre", "ln_final.hook_")
    names = [name for name in model.hook_dict if name.startswith((*wanted, f"blocks.{layer}."))]
    names = [name for name in names if not model.hook_dict[name].on_demand]
    end = f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"
    _, cache = model.run_with_cache(
        tokens, None, names_filter=list(dict.fromkeys([*names, end])), pos_slice=slice(pos, pos + 1)
    )
    logits = model.read_off(model.ln_final(cache[end]))[0, 0]
    return Walk(model, tokens, layer, pos, cache, patterns(model, tokens, [layer]), logits)


def indexed(module: str) -> str:
    """A module's name as Python says it."""
    return re.sub(r"\.(\d+)", r"[\1]", module)
