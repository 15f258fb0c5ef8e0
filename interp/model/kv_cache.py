"""Keys and values of the tokens read so far, so that the next ones need not read them again."""

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Heads = Float[Tensor, "batch pos kv_head d_head"]
Past = Float[Tensor, "batch kv_head key_pos d_head"]


@runtime_checkable
class Earlier(Protocol):
    """What attention looks at before the tokens of a pass."""

    def append(self, layer: int, k: Heads, v: Heads) -> tuple[Past, Past]:
        """All keys and values of a layer, these new ones last."""
        ...


class KVCache:
    """Pass one to `model(tokens, past_kv_cache=cache)`: it holds what was read, and the next call goes on from there.

    Keys are kept rotated; where angles depend on the length, as that of the input so far has them. Room doubles when it
    runs out; given as `room` (in tokens), nothing is ever copied.
    A pass that fails leaves the cache as it was.
    """

    def __init__(self, room: int = 0) -> None:
        self.room = room
        self.length = 0
        self.attention_mask: Bool[Tensor, "batch pos"] | None = None  # None: no padding so far
        self.turned_for: Int[Tensor, ""] | None = None  # the length whose angles keys have, where it matters
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    def append(self, layer: int, k: Heads, v: Heads) -> tuple[Past, Past]:
        """All keys and values of a layer, these new ones included; `commit` makes them part of the past."""
        start, end = self.length, self.length + k.shape[1]
        keys, values = self._with_room(layer, k, end)
        new_k, new_v = k.transpose(1, 2), v.transpose(1, 2)
        if torch.is_grad_enabled():  # the graph must not hold a buffer that later calls write to
            all_k, all_v = (
                torch.cat((keys[:, :, :start], new_k), 2),
                torch.cat((values[:, :, :start], new_v), 2),
            )
        else:
            all_k, all_v = keys[:, :, :end], values[:, :, :end]
        keys[:, :, start:end] = new_k.detach()
        values[:, :, start:end] = new_v.detach()
        return all_k, all_v

    def commit(self, n_new: int, attention_mask: Bool[Tensor, "batch pos"] | None) -> None:
        """Count the last `n_new` positions, whose full mask is given, as read."""
        self.length += n_new
        self.attention_mask = attention_mask

    def select(self, rows: Int[Tensor, " row"]) -> None:
        """Keep these rows, in this order; one may come several times."""
        self._layers = {layer: (keys[rows], values[rows]) for layer, (keys, values) in self._layers.items()}
        if self.attention_mask is not None:
            self.attention_mask = self.attention_mask[rows]

    def of(self, layer: int) -> tuple[Past, Past]:
        """The keys and values that a layer has read."""
        keys, values = self._layers[layer]
        return keys[:, :, : self.length], values[:, :, : self.length]

    @property
    def batch_size(self) -> int | None:
        """The number of rows, once something was read."""
        return next((keys.shape[0] for keys, _ in self._layers.values()), None) if self.length else None

    def _with_room(self, layer: int, k: Heads, end: int) -> tuple[Tensor, Tensor]:
        batch, _, kv_head, d_head = k.shape
        old = self._layers.get(layer)
        if self.length and (old is None or old[0].shape[::3] != (batch, d_head) or old[0].shape[1] != kv_head):
            raise ValueError(
                f"this KVCache holds other rows or another model's keys: layer {layer} was given "
                f"[batch kv_head d_head] = {[batch, kv_head, d_head]}, it holds {old and [*old[0].shape]}"
            )
        if self.length and old is not None and old[0].dtype != k.dtype:
            raise ValueError(f"this KVCache holds {old[0].dtype}; the model now computes in {k.dtype}")
        is_sealed = old is not None and old[0].is_inference() and not torch.is_inference_mode_enabled()
        if old is None or not self.length or old[0].shape[2] < end or is_sealed:
            self.room = self.room if self.room >= end else 2 * end
            fresh = k.new_empty(2, batch, kv_head, self.room, d_head)
            if old is not None and self.length:
                fresh[0, :, :, : self.length] = old[0][:, :, : self.length]
                fresh[1, :, :, : self.length] = old[1][:, :, : self.length]
            self._layers[layer] = (fresh[0], fresh[1])
        return self._layers[layer]
