"""Slice: which entries of an axis are meant, in any of the classic ways to say it."""

from typing import Literal

import numpy as np
import torch
from torch import Tensor

SliceInput = int | tuple[int | None, ...] | list[int] | Tensor | np.ndarray | slice | None


class Slice:
    """None means all, a number one entry (its axis goes), a tuple `slice(*tuple)`, and several numbers these."""

    def __init__(self, input_slice: SliceInput = None) -> None:
        if isinstance(input_slice, tuple):
            input_slice = slice(*input_slice)
        if input_slice is None:
            input_slice = slice(None)
        self.slice: slice | int | Tensor
        self.mode: Literal["slice", "int", "array", "identity"]
        if isinstance(input_slice, slice):
            self.slice, self.mode = input_slice, "identity" if input_slice == slice(None) else "slice"
        elif isinstance(input_slice, int):
            self.slice, self.mode = input_slice, "int"
        elif isinstance(input_slice, list | Tensor | np.ndarray):
            self.slice, self.mode = torch.as_tensor(input_slice), "array"
        else:
            raise ValueError(f"Invalid input_slice {input_slice!r}: a number, a tuple, a slice, numbers, or None")

    @classmethod
    def of(cls, given: "Slice | SliceInput") -> "Slice":
        """What is one already, or one made of it."""
        return given if isinstance(given, Slice) else cls(given)

    def apply(self, tensor: Tensor, dim: int = 0) -> Tensor:
        """What a tensor has there along an axis."""
        if self.mode == "identity":
            return tensor
        index = self.slice.to(tensor.device) if isinstance(self.slice, Tensor) else self.slice
        return tensor[(slice(None),) * (dim % tensor.ndim) + (index,)]

    def indices(self, max_ctx: int | None = None) -> np.ndarray | int | np.int64:
        """The numbers of the entries, of an axis of this length."""
        if self.mode == "int":
            return np.array([self.slice], dtype=np.int64)
        if max_ctx is None and self.mode != "array":
            raise ValueError("max_ctx must be given, for a slice says nothing of the length of the axis")
        return self.apply(torch.arange(max_ctx)).numpy() if max_ctx is not None else np.asarray(self.slice)

    def native(self) -> int | slice | list[int] | None:
        """As the rest of `interp` takes it."""
        if self.mode == "identity":
            return None
        return self.slice.tolist() if isinstance(self.slice, Tensor) else self.slice

    def __repr__(self) -> str:
        return f"Slice: {self.slice} Mode: {self.mode} "
