"""How memories compose (Geva et al., 2021): is a layer's prediction one memory's, and what becomes of the stream's?

A prediction is the token that has the largest logit. Streams, outputs and values are read alike: through the final
norm's gain and centring with its scale as it is (which changes no prediction), and without any bias of it or of the
unembedding. In this reading the stream behind a layer's MLP is the sum of what was before it and what it adds.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from interp.hooks import HookPoint
from interp.memories.triggers import Triggers, check_layers, check_of, n_bos_of
from interp.memories.values import least_active, read_off
from interp.model import HookedGPT
from interp.model.block import Block
from interp.passages import Corpus, Passage, passages
from interp.weights.stream import W_U, carried, exact, is_post, through

if TYPE_CHECKING:
    from xarray import Dataset
else:
    Dataset = Any

_AT_ONCE = 2**24  # logits that are held at once
_COUNTS = ("single", "residual", "ffn", "agreement", "composition", "active")


@torch.no_grad()
def composition(
    model: HookedGPT,
    corpus: Corpus,
    layer: int | Sequence[int] | None = None,
    *,
    found: Triggers | None = None,
    share: float = 0.1,
    n_ctx: int | None = None,
    batch_size: int = 8,
    max_tokens: int | None = None,
    progress: bool = True,
) -> Dataset:
    """At how many positions of a corpus a layer says what one of its memories says: an `xarray.Dataset` [layer].

    `single`: the prediction of the MLP's output is that of a memory that is active there. Each position is one of
    `residual` (the stream keeps its prediction, which is not the MLP's), `ffn` (it changes to the MLP's), `agreement`
    (all three are the same) and `composition` (it changes to a third). `active`: the mean number of active memories.
    `positions` is how many there are of all; the others but for `active` are counts too.

    A memory is active where its coefficient is above 0 (with ReLU), or its size above `share` of the key's largest,
    which `found`, a scan of these layers, tells; with a negative coefficient it says what its negated value says.
    """
    from xarray import Dataset

    layers = check_layers(model, layer)
    if found is not None:
        check_of(model, found)
        if absent := [each for each in layers if each not in found.layers]:
            raise ValueError(f"found has no triggers of layers {absent}; it has those of {found.layers}")
    least = least_active(model, found, share)
    rows = layers if found is None else [found.layers.index(each) for each in layers]
    each = [_Layer.of(model, index, least[row]) for index, row in zip(layers, rows, strict=True)]
    n_bos, n_positions = n_bos_of(model, corpus), 0
    read = passages(model, corpus, n_ctx, batch_size, max_tokens)
    with tqdm(total=max_tokens, desc="composition", unit=" tokens", delay=1.0, disable=not progress) as bar:
        for passage in read:
            n = _take(model, each, passage, n_bos)
            n_positions += n
            bar.update(n)
    arrays: dict[str, Any] = {name: ("layer", [one.counts[name] for one in each]) for name in _COUNTS}
    arrays["active"] = ("layer", [one.counts["active"] / n_positions for one in each])
    about = {"method": "composition of memories", "share": share, "positions": n_positions}
    return Dataset(arrays, {"layer": layers}, about | {"model": model.fingerprint()})


@dataclass(eq=False)
class _Layer:
    """What a layer's memories say, and what was counted."""

    model: HookedGPT
    index: int
    least: Float[Tensor, " neuron"]
    says: list[Tensor]  # the prediction of each value, and of each negated
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_COUNTS, 0))
    seen: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, model: HookedGPT, index: int, least: Float[Tensor, " neuron"]) -> "_Layer":
        says = [torch.cat([some.argmax(-1) for some in read_off(model, index, "gain", sign)]) for sign in (1, -1)]
        return cls(model, index, least.to(model.device), says)

    @property
    def points(self) -> list[str]:
        """What is to be recorded, the output of the MLP last."""
        is_serial = isinstance(self.model.blocks[self.index], Block)
        before = ["hook_resid_mid"] if is_serial else ["hook_resid_pre", "hook_attn_out"]
        return [f"blocks.{self.index}.{name}" for name in (*before, "mlp.hook_post", "hook_mlp_out")]

    def count(self, real: Tensor) -> None:
        """Count what was recorded of a pass, at real positions."""
        *before, post, ffn = (exact(self.seen.pop(name)[real]) for name in self.points)
        stream = sum(before[1:], before[0])
        unembed = W_U(self.model)
        for some in torch.arange(len(ffn), device=ffn.device).split(max(1, _AT_ONCE // unembed.shape[1])):
            said = [self._reads(x[some]) @ unembed for x in (stream, ffn)]
            before_it, own, after = (logits.argmax(-1) for logits in (*said, said[0] + said[1]))
            m = post[some]
            above, below = m > self.least, -m > self.least
            of_one = ((self.says[0] == own[:, None]) & above) | ((self.says[1] == own[:, None]) & below)
            is_kept, is_own = after == before_it, after == own
            found = {
                "single": of_one.any(1), "residual": is_kept & ~is_own, "ffn": is_own & ~is_kept,
                "agreement": is_kept & is_own, "composition": ~is_kept & ~is_own, "active": above | below,
            }  # fmt: skip
            for name, each in found.items():
                self.counts[name] += int(each.sum())

    def _reads(self, x: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_model"]:
        """What is in the stream at the layer's end, as the unembedding reads it."""
        block = self.model.blocks[self.index]
        own = through(block.ln2_post, x) if is_post(self.model) and isinstance(block, Block) else x
        return through(self.model.ln_final, carried(self.model, own, self.index + 1, self.model.cfg.n_layers))


def _take(model: HookedGPT, layers: list[_Layer], passage: Passage, n_bos: int) -> int:
    """Count what layers say in a passage; how many positions it has."""
    real = passage.mask.clone()
    real[:, :n_bos] = False
    here, by_point = real.to(model.device), {name: each for each in layers for name in each.points}

    def take(x: Tensor, point: HookPoint) -> None:
        each = by_point[point.name]
        each.seen[point.name] = x
        if point.name == each.points[-1]:
            each.count(here)

    with model.recording(list(by_point), take):
        model(
            passage.tokens.to(model.device),
            return_type=None,
            attention_mask=None if passage.mask.all() else passage.mask.to(model.device),
            stop_at_layer=max(each.index for each in layers) + 1,
        )
    return int(real.sum())
