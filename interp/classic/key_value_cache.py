"""The classic cache of keys and values: a `KVCache` that can be frozen, and read layer by layer."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.model import KVCache


@dataclass(frozen=True)
class TransformerLensKeyValueCacheEntry:
    """The keys and values that a layer has read."""

    past_keys: Float[Tensor, "batch pos kv_head d_head"]
    past_values: Float[Tensor, "batch pos kv_head d_head"]


class TransformerLensKeyValueCache(KVCache):
    """Pass one as `past_kv_cache`. Frozen, it serves many calls after the same beginning."""

    def __init__(self, cfg: Any, batch_size: int = 1) -> None:
        super().__init__()
        self.cfg, self.n_rows, self.frozen = cfg, batch_size, False

    @classmethod
    def init_cache(
        cls,
        cfg: Any,
        device: torch.device | str | None = None,  # noqa: ARG003
        batch_size: int = 1,
    ) -> "TransformerLensKeyValueCache":
        """One that has read nothing. It lies where the model is."""
        return cls(cfg, batch_size)

    def freeze(self) -> None:
        """Take up nothing more."""
        self.frozen = True

    def unfreeze(self) -> None:
        """Take up what is read from now on."""
        self.frozen = False

    def commit(self, n_new: int, attention_mask: Tensor | None) -> None:
        """Count the last `n_new` positions as read, unless it is frozen."""
        if not self.frozen:
            super().commit(n_new, attention_mask)

    @property
    def previous_attention_mask(self) -> Int[Tensor, "batch pos"]:
        """1 where a token that was read is real."""
        if self.attention_mask is not None:
            return self.attention_mask.int()
        return torch.ones(self.n_rows if self.batch_size is None else self.batch_size, self.length, dtype=torch.int)

    @property
    def entries(self) -> list[TransformerLensKeyValueCacheEntry]:
        return list(self)

    def __iter__(self) -> Iterator[TransformerLensKeyValueCacheEntry]:
        return (self[layer] for layer in range(self.cfg.n_layers))

    def __getitem__(self, layer: int) -> TransformerLensKeyValueCacheEntry:
        if not self.length:
            nothing = torch.empty(self.n_rows, 0, self.cfg.n_key_value_heads, self.cfg.d_head, dtype=self.cfg.dtype)
            return TransformerLensKeyValueCacheEntry(nothing, nothing)
        keys, values = self.of(range(self.cfg.n_layers)[layer])
        return TransformerLensKeyValueCacheEntry(keys.transpose(1, 2), values.transpose(1, 2))
