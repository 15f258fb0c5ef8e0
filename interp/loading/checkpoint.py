"""A checkpoint: its config, its tokenizer, and where each of our parameters comes from."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from interp.config import GPTConfig
from interp.loading.files import TensorFiles
from interp.tokenization import Tokenizer


def same(tensor: Tensor) -> Tensor:
    return tensor


@dataclass(frozen=True)
class Piece:
    """A tensor of a checkpoint, and how it lies in ours: what is copied of it, and how it is made of that again."""

    name: str
    view: Callable[[Tensor], Tensor] = same
    back: Callable[[Tensor], Tensor] = same  # the tensor; where several pieces name it, its next part
    rows: int | None = None  # of ours; None: all


Sources = dict[str, list[Piece]]  # our parameter -> the pieces that make its rows, in order


@dataclass(frozen=True)
class Checkpoint:
    """What `HookedGPT.from_pretrained` builds a model from."""

    where: str
    cfg: GPTConfig
    tokenizer: Tokenizer | None
    tensors: TensorFiles
    sources: Sources
    ignored: Callable[[str], bool] = lambda _: False
    keeps_dtypes: bool = False  # each weight comes back in its own precision, unless another is asked for

    def check(self, model: nn.Module) -> None:
        """Raise if a tensor is missing, left over, or of another shape: all of them in one error."""
        ours = dict(model.named_parameters())
        asked = {piece.name for name, pieces in self.sources.items() if name in ours for piece in pieces}
        missing = sorted((asked - set(self.tensors)) | (set(ours) - set(self.sources)))
        left = sorted(name for name in set(self.tensors) - asked if not self.ignored(name))
        wrong = []
        for name, pieces in () if missing or left else self.sources.items():
            if (found := self._shape(pieces)) != list(ours[name].shape):
                wrong.append(f"{[piece.name for piece in pieces]} make {found}; {name} is {list(ours[name].shape)}")
        if missing or left or wrong:
            faults = {"missing": missing, "left over": left, "of another shape": wrong}
            told = "; ".join(f"{fault}: {names[:8]} ({len(names)})" for fault, names in faults.items() if names)
            raise ValueError(f"{self.where} does not fit its config: {told}")

    @torch.no_grad()
    def fill(self, model: nn.Module, device: torch.device | str, dtype: torch.dtype | None = None) -> None:
        """Give a model on the meta device its weights: one at a time, in one pass over the files."""
        for name, empty in list(model.named_parameters()):
            is_kept = self.keeps_dtypes and dtype is None
            stored = self.tensors[self.sources[name][0].name].dtype if is_kept else empty.dtype
            weight = torch.empty(empty.shape, dtype=stored, device=device)
            row = 0
            for piece in self.sources[name]:
                tensor = piece.view(self.tensors[piece.name])
                weight[row : row + len(tensor)].copy_(tensor)
                row += len(tensor)
            owner, _, last = name.rpartition(".")
            setattr(model.get_submodule(owner), last, nn.Parameter(weight))

    def _shape(self, pieces: list[Piece]) -> list[int]:
        try:
            shapes = [self.tensors.shape(piece.name) for piece in pieces]
            views = [piece.view(torch.empty(s, device="meta")) for piece, s in zip(pieces, shapes, strict=True)]
        except (RuntimeError, IndexError) as error:
            raise ValueError(f"{self.where}: {[p.name for p in pieces]} have shapes that do not fit: {error}") from None
        widths = {tuple(view.shape[1:]) for view in views}
        if len(widths) > 1 or any(view.ndim == 0 for view in views):
            raise ValueError(f"{self.where}: {[p.name for p in pieces]} do not fit together: {widths}")
        return [sum(len(view) for view in views), *widths.pop()]


def special_token(value: Any) -> str | None:
    """A special token's text, which may be wrapped in an object."""
    found = value.get("content") if isinstance(value, dict) else value
    return found if isinstance(found, str) else None
