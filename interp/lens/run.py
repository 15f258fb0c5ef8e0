"""A cached run, as the lenses read it."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.cache import ActivationCache
from interp.model import HookedGPT
from interp.model.norms import NoNorm, Norm
from interp.recording import Positions, PosSlice, positions

Direction = Float[Tensor, "#prompt #pos d_model"]


@dataclass(frozen=True)
class CachedRun:
    """A cached run, at the positions that are asked for."""

    model: HookedGPT
    cache: ActivationCache
    chosen: Positions | None
    n_prompts: int
    n_pos: int

    @classmethod
    def of(cls, model: HookedGPT, cache: ActivationCache, pos: PosSlice) -> "CachedRun":
        if cache.pos_slice is not None:
            raise ValueError(f"this cache holds the positions pos_slice={cache.pos_slice} alone; make one of all")
        last = f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"
        n_prompts, n_pos, _ = cache[last].shape if cache.has_batch_dim else (1, *cache[last].shape)
        return cls(model, cache, positions(pos, n_pos, cache.attention_mask), n_prompts, n_pos)

    @property
    def is_one(self) -> bool:
        return self.chosen is not None and self.chosen.is_one

    @property
    def columns(self) -> Sequence[int]:
        """The positions, or where they differ from prompt to prompt, their numbers."""
        own = self.own_columns
        return own[0].tolist() if (own == own[:1]).all() else range(own.shape[1])

    @property
    def own_columns(self) -> Int[Tensor, "prompt pos"]:
        """The position of each value in its prompt."""
        return self._cut(torch.arange(self.n_pos, device=self.model.device).expand(self.n_prompts, -1))

    def whole(self, name: str) -> Float[Tensor, "prompt ..."]:
        """A value of the run, computed with in single precision at least."""
        x = self.cache[name] if self.cache.has_batch_dim else self.cache[name][None]
        return x.float() if x.dtype.itemsize == 2 else x

    def at(self, name: str, axis: int = 1) -> Float[Tensor, "prompt ..."]:
        """The same, at the positions that are asked for."""
        return self._cut(self.whole(name), axis)

    def _cut(self, x: Tensor, axis: int = 1) -> Tensor:
        if self.chosen is None:
            return x
        found = self.chosen.of(x, axis)
        return found.unsqueeze(axis) if self.is_one else found

    def back(self, norm: Norm, name: str, direction: Direction) -> Direction:
        """A direction behind a norm as it lies before it, the scale frozen."""
        if isinstance(norm, NoNorm):
            return direction
        gained = direction if norm.w is None else direction * norm.w
        return norm.centred(gained) / self.at(f"{name}.hook_scale")
