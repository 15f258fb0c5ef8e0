"""Pieces of random inputs. Whatever is drawn, is drawn for each row by itself."""

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from interp.zoo.planted.truth import Examples


def whole(n: int, low: int, high: int, generator: torch.Generator) -> Int[Tensor, "batch 1"]:
    """A whole number for each row, low and high included."""
    return torch.randint(low, high + 1, (n, 1), generator=generator)


def some(n: int, of: int, n_chosen: int, generator: torch.Generator) -> Int[Tensor, "batch n_chosen"]:
    """Different numbers below `of` for each row, in random order."""
    return torch.rand(n, of, generator=generator).argsort(-1)[:, :n_chosen]


def one_of(allowed: Bool[Tensor, "batch choice"], generator: torch.Generator) -> Int[Tensor, " batch"]:
    """One of the allowed choices for each row."""
    return torch.where(allowed, torch.rand(allowed.shape, generator=generator), -1.0).argmax(-1)


def turned(ids: Int[Tensor, "batch pos"], by: Int[Tensor, "batch 1"], n: int, first: int) -> Int[Tensor, "batch pos"]:
    """The ids from `first` on, n of them in a circle, moved on by so many; those before stay."""
    return torch.where(ids < first, ids, (ids - first + by) % n + first)


def at(pos: Int[Tensor, "batch n_chosen"], n_ctx: int) -> Bool[Tensor, "batch pos"]:
    """True at these positions of each row."""
    return torch.zeros(len(pos), n_ctx, dtype=torch.bool).scatter(-1, pos, True)


def asked_at_the_end(
    tokens: Int[Tensor, "batch pos"],
    answers: Int[Tensor, " batch"],
    corrupted: Int[Tensor, "batch pos"],
    wrong: Int[Tensor, " batch"],
    **places: Bool[Tensor, "batch pos"],
) -> Examples:
    """Examples with one question each, at the last position."""
    mask = torch.zeros_like(tokens, dtype=torch.bool)
    mask[:, -1] = True
    return Examples(
        tokens=tokens,
        mask=mask,
        answers=mask * answers[:, None],
        corrupted=corrupted,
        wrong=mask * wrong[:, None],
        places=places,
    )
