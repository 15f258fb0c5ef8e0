"""Memories rewritten in place, and taken back to the bit; what a rewriting did to prompts and to their neighbours."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from interp import metrics
from interp.model import HookedGPT
from interp.model.mlp import GatedMLP
from interp.results import as_tokens
from interp.weights.stream import checked_index

if TYPE_CHECKING:
    from xarray import Dataset
else:
    Dataset = Any


@dataclass(frozen=True)
class Part:
    """A weight of a layer's MLP, or what one memory has of it: its column of W_in or W_gate, its row of W_out."""

    layer: int
    name: str
    neuron: int | None = None

    def of(self, model: HookedGPT) -> Tensor:
        """The weight as it is, a view that can be written."""
        weight = getattr(model.blocks[self.layer].mlp, self.name)
        if self.neuron is None:
            return weight
        return weight[self.neuron] if self.name == "W_out" else weight[:, self.neuron]

    def __str__(self) -> str:
        return f"{self.name} of L{self.layer}" + ("" if self.neuron is None else f"N{self.neuron}")


@dataclass(eq=False)
class Rewrite:
    """Weights that were changed in place, with copies of what they were: `undo()` puts every bit of it back.

    As a context, it undoes itself at the end. The model's fingerprint is another one in between.
    """

    model: HookedGPT
    old: dict[Part, Tensor]
    new: dict[Part, Tensor]
    about: dict[str, Any] = field(default_factory=dict)
    is_undone: bool = False

    @classmethod
    @torch.no_grad()
    def of(cls, model: HookedGPT, values: Mapping[Part, Tensor], about: Mapping[str, Any]) -> "Rewrite":
        """Write these values: all of them, or after an error none."""
        old = {part: part.of(model).clone() for part in values}
        new = {part: value.detach().to(old[part]) for part, value in values.items()}
        for part, value in new.items():
            if value.shape != old[part].shape:
                raise ValueError(f"{part}: shape {list(value.shape)} was given; it is {list(old[part].shape)}")
            if not value.isfinite().all():
                raise ValueError(f"{part}: what was to be written is not finite")
        rewrite = cls(model, old, new, dict(about))
        rewrite._turn(new, back=old)
        return rewrite

    def undo(self) -> None:
        """Put back what was there. Refused where the same weights were written again since: undo that first."""
        if self.is_undone:
            raise ValueError("this was undone already")
        self._check_untouched()
        self._turn(self.old, back=self.new)
        self.is_undone = True

    @contextmanager
    def paused(self) -> Iterator[HookedGPT]:
        """Within this context the model is as it was before."""
        if self.is_undone:
            raise ValueError("this was undone already")
        self._check_untouched()
        self._turn(self.old, back=self.new)
        try:
            yield self.model
        finally:
            self._turn(self.new, back=self.old)

    def __enter__(self) -> "Rewrite":
        return self

    def __exit__(self, *_: object) -> None:
        if not self.is_undone:
            self.undo()

    @torch.no_grad()
    def _turn(self, values: Mapping[Part, Tensor], back: Mapping[Part, Tensor]) -> None:
        try:
            for part, value in values.items():
                part.of(self.model).copy_(value)
        except BaseException:
            for part, value in back.items():
                part.of(self.model).copy_(value)
            raise

    def _check_untouched(self) -> None:
        for part, value in self.new.items():
            here = part.of(self.model)
            if here.dtype != value.dtype or not torch.equal(here, value.to(here.device)):
                raise ValueError(f"{part} was written again since: undo what came later first")


def edit_memory(
    model: HookedGPT,
    layer: int,
    neuron: int,
    *,
    key: Float[Tensor, " d_model"] | None = None,
    gate: Float[Tensor, " d_model"] | None = None,
    value: Float[Tensor, " d_model"] | None = None,
    scale: float | int | None = None,
) -> Rewrite:
    """Give a memory another key or value, in place; `scale` multiplies the value that it has.

    The key is the neuron's column of W_in; in gated MLPs its column of W_gate, `gate`, is the other half of it.
    """
    layer = checked_mlp(model, layer)
    if not -model.cfg.d_mlp <= neuron < model.cfg.d_mlp:
        raise ValueError(f"neuron={neuron}; a layer has {model.cfg.d_mlp}: {-model.cfg.d_mlp} to {model.cfg.d_mlp - 1}")
    neuron %= model.cfg.d_mlp
    if gate is not None and not isinstance(model.blocks[layer].mlp, GatedMLP):
        raise ValueError("gate: this model's MLPs have no gate; key= is all of a memory's key")
    if value is not None and scale is not None:
        raise ValueError("a memory gets a new value=, or scale= times its own, not both")
    if scale is not None:
        value = scale * Part(layer, "W_out", neuron).of(model).detach()
    given = {"W_in": key, "W_gate": gate, "W_out": value}
    values = {Part(layer, name, neuron): each for name, each in given.items() if each is not None}
    if not values:
        raise ValueError("nothing to write: give key=, gate=, value= or scale=")
    return Rewrite.of(model, values, {"method": "edit_memory", "memory": f"L{layer}N{neuron}"})


@torch.no_grad()
def report(
    rewrite: Rewrite,
    prompts: Any,
    target: str | int,
    *,
    paraphrases: Any = None,
    neighbours: Any = None,
) -> Dataset:
    """What a rewriting that is in force did: an `xarray.Dataset` over `when`, "before" and "after".

    `probability` and `rank` (0: the most probable) of the target behind each of the `prompts`, the same for
    `paraphrases`, and the `neighbour_loss`, the mean next-token loss of each of the `neighbours`: texts, or tokens
    [batch pos], that should stay as they are.
    """
    from xarray import Dataset

    model, arrays = rewrite.model, dict[str, Any]()
    log_prob, rank, loss = metrics.log_prob(model, target), metrics.rank(model, target), metrics.loss()
    asked = [("prompt", "probability", prompts, log_prob), ("prompt", "rank", prompts, rank)]
    if paraphrases is not None:
        asked += [("paraphrase", "paraphrase_probability", paraphrases, log_prob)]
        asked += [("paraphrase", "paraphrase_rank", paraphrases, rank)]
    if neighbours is not None:
        asked += [("neighbour", "neighbour_loss", neighbours, loss)]

    def measured() -> list[Float[Tensor, " row"]]:
        found = []
        for _, name, texts, metric in asked:
            tokens, mask = as_tokens(model, texts, None)
            values = metrics.measured(model, tokens, metric, mask)
            found.append(values.double().exp() if name.endswith("probability") else values.double())
        return found

    after, fingerprint = measured(), model.fingerprint()
    with rewrite.paused():
        before, fingerprint_before = measured(), model.fingerprint()
    for (dim, name, _, _), *values in zip(asked, before, after, strict=True):
        arrays[name] = (("when", dim), torch.stack(values).cpu().numpy())
    about = {**rewrite.about, "model": fingerprint, "model_before": fingerprint_before, "target": str(target)}
    return Dataset(arrays, coords={"when": ["before", "after"]}, attrs=about)


def checked_mlp(model: HookedGPT, layer: int) -> int:
    """A layer's index, counted from the start; raise if it has no MLP."""
    if model.cfg.attn_only:
        raise ValueError("the model is attn_only, it has no MLP and so no memories")
    return checked_index(model, "layer", layer)
