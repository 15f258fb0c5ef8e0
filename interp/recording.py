"""Taking activations as they are computed: of each no more than was asked for."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.hooks import HookPoint

PosSlice = int | slice | tuple[int | None, ...] | list[int] | None


class Recording:
    """Takes activations as they are computed, and keeps of each no more than was asked for."""

    def __init__(
        self,
        positions: "Positions | None",
        device: torch.device | str | None,
        dtype: torch.dtype | None,
        keep_nodes: bool,
    ) -> None:
        self.taken: dict[str, Tensor] = {}
        self.positions = positions
        self.device = device
        self.dtype = dtype
        self.keep_nodes = keep_nodes
        self._nodes: dict[HookPoint, Tensor] = {}

    def take(self, x: Tensor, point: HookPoint) -> None:
        if self.keep_nodes:
            self._nodes[point] = x
        self.taken[point.name] = self._trimmed(x, point)

    def differentiate(self, loss: Float[Tensor, ""]) -> None:
        """Keep the loss's gradient at every activation taken."""
        nodes = list(self._nodes.values())
        grads = torch.autograd.grad(loss, nodes, allow_unused=True, materialize_grads=True)
        for point, grad in zip(self._nodes, grads, strict=True):
            self.taken[f"{point.name}_grad"] = self._trimmed(grad, point)

    def _trimmed(self, x: Tensor, point: HookPoint) -> Tensor:
        axes = point.axes.split()
        pos_axis = next((i for i, axis in enumerate(axes) if axis in ("pos", "query_pos")), None)
        if self.positions is not None and pos_axis is not None:
            x = self.positions.of(x, pos_axis)
        moved = x.to(device=self.device, dtype=self.dtype)
        is_part = moved.untyped_storage().nbytes() > moved.nbytes
        return moved.clone() if is_part and not (moved.requires_grad and self.positions is None) else moved


@dataclass(frozen=True)
class Positions:
    """Chosen positions of a batch: a slice, the same indices in every row, or indices for each row."""

    index: slice | Int[Tensor, " chosen"] | Int[Tensor, "batch chosen"]
    is_one: bool  # then the axis goes

    def of(self, x: Tensor, axis: int) -> Tensor:
        """What `x` has there."""
        if isinstance(self.index, slice):
            return x[(slice(None),) * axis + (self.index,)]
        index = self.index.to(x.device)
        if index.ndim == 1:
            chosen = x.index_select(axis, index)
        else:
            rows = torch.arange(len(x), device=x.device)[:, None]
            chosen = x.movedim(axis, 1)[rows, index].movedim(1, axis)
        return chosen.select(axis, 0) if self.is_one else chosen


def positions(pos_slice: PosSlice, n_pos: int, attention_mask: Tensor | None) -> Positions | None:
    """What `pos_slice` chooses among `n_pos` positions; None for all.

    An index drops the axis; a tuple means `slice(*tuple)`. A negative index counts from each row's last real token.
    """
    if pos_slice is None:
        return None
    if isinstance(pos_slice, slice | tuple):
        return Positions(pos_slice if isinstance(pos_slice, slice) else slice(*pos_slice), is_one=False)
    wanted = [pos_slice] if isinstance(pos_slice, int) else pos_slice
    if (
        isinstance(pos_slice, bool)
        or not isinstance(wanted, list)
        or not all(isinstance(i, int) for i in wanted)
        or not wanted
    ):
        raise TypeError(
            f"pos_slice={pos_slice!r}; it must be an index, a slice, a tuple (start, stop) or a list of indices"
        )
    first, last = 0, n_pos
    index = torch.tensor(wanted)
    if attention_mask is not None and min(wanted) < 0 and attention_mask.shape[-1] == n_pos:
        mask = attention_mask.cpu().bool()
        first = mask.long().argmax(1, keepdim=True)
        last = n_pos - mask.flip(1).long().argmax(1, keepdim=True)
        index = torch.where(index < 0, index + last, index + torch.zeros_like(last))
        is_inside = (index < n_pos) & ((index >= first) | (torch.tensor(wanted) >= 0))
    else:
        index = torch.where(index < 0, index + n_pos, index)
        is_inside = (index < n_pos) & (index >= 0)
    if not is_inside.all():
        real = "" if attention_mask is None else " (or row: a negative one counts its real tokens)"
        raise IndexError(f"pos_slice={pos_slice!r} is out of range: there are {n_pos} positions{real}")
    return Positions(index, is_one=isinstance(pos_slice, int))
