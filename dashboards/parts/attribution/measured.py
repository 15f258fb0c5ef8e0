"""What the page on attribution shows, computed once for a model, a prompt and a question."""

from dataclasses import dataclass
from fnmatch import fnmatch

import torch
from torch import Tensor
from xarray import DataArray

from dashboards.parts.state import Chosen, kept, logits_at, run
from interp import ActivationCache, HookedGPT
from interp.lens import direct_logit_attribution
from interp.lens.attribution import By
from interp.model.norms import NoNorm

LARGEST_PATTERNS = 256 * 2**20  # bytes, of all heads
_NEEDED = ("hook_embed", "hook_pos_embed", "*_out", "*hook_z", "*mlp.hook_post", "*_post.hook_scale", "ln_final.*scale")


@dataclass(frozen=True)
class Attribution:
    """Contributions by component, head and neuron, each [component]; and what the model itself says."""

    by: dict[str, DataArray]
    own: float  # the logit difference of the model's output

    @property
    def parts(self) -> DataArray:
        return self.by["component"]

    @property
    def total(self) -> float:
        return float(self.parts.total)

    @property
    def error(self) -> float:
        """How far all parts together are from the whole."""
        return abs(float(self.parts.astype(float).sum()) - self.total)


def has_norm(model: HookedGPT) -> bool:
    """Whether a norm stands before the unembedding."""
    return not isinstance(model.ln_final, NoNorm)


def attribution(now: Chosen, frozen: bool) -> Attribution:
    """The parts of the logit difference at the position read; not `frozen`: of the stream's product with W_U's."""
    key = (now.q, now.target, now.foil, frozen)
    given = (now.model, run(now, *_names(now.model)), logits_at(now, now.q, now.q + 1)[0], *key)
    return kept(now.fingerprint, now.tokens, attribution_of, given, key)


def sources(now: Chosen, frozen: bool) -> DataArray | None:
    """The same by the position that heads look at, [component key_pos]; None where that takes too much memory."""
    cfg = now.model.cfg
    if cfg.n_layers * cfg.n_heads * len(now.labels) ** 2 * 4 > LARGEST_PATTERNS:
        return None
    key = (now.q, now.target, now.foil, frozen)
    return kept(now.fingerprint, now.tokens, sources_of, (now.model, now.tokens, *key), key)


def by_head(now: Chosen, found: Attribution) -> DataArray:
    """What each head adds, [layer head]."""
    heads = found.by["head"]
    values = heads[(heads.kind == "head").values].to_numpy()
    return DataArray(
        values.reshape(now.model.cfg.n_layers, now.model.cfg.n_heads),
        dims=("layer", "head"),
        name="contribution",
        attrs=heads.attrs,
    )


def attribution_of(
    model: HookedGPT, cache: ActivationCache, logits: Tensor, q: int, target: int, foil: int, frozen: bool
) -> Attribution:
    """For `kept`."""
    answer = _answer(model, target, foil, frozen)
    each: list[By] = ["component", "head"] if model.cfg.attn_only else ["component", "head", "neuron"]
    by = {each_by: direct_logit_attribution(model, cache, *answer, by=each_by, pos=q) for each_by in each}
    own = float(logits[target].double() - logits[foil].double())
    return Attribution({name: values.isel(prompt=0).drop_vars("prompt") for name, values in by.items()}, own)


def sources_of(model: HookedGPT, tokens: Tensor, q: int, target: int, foil: int, frozen: bool) -> DataArray:
    """For `kept`."""
    _, cache = model.run_with_cache(tokens, names_filter=_names(model, "*hook_v", "*hook_pattern"))
    found = direct_logit_attribution(model, cache, *_answer(model, target, foil, frozen), by="source_position", pos=q)
    return found.isel(prompt=0).drop_vars("prompt")


def _answer(model: HookedGPT, target: int, foil: int, frozen: bool) -> tuple[int, int] | tuple[Tensor]:
    """Two tokens; or the direction between them, which is read off the stream as it is."""
    if frozen:
        return target, foil
    exact = torch.promote_types(model.dtype, torch.float32)
    return ((model.W_U[:, target] - model.W_U[:, foil]).detach().to(exact),)


def _names(model: HookedGPT, *more: str) -> list[str]:
    wanted = (*_NEEDED, *more, f"blocks.{model.cfg.n_layers - 1}.hook_resid_post")
    return [name for name in model.hook_dict if any(fnmatch(name, each) for each in wanted)]
