"""Heads that look a fixed distance back: one; two that can stand in for each other, an OR; two that cannot, an AND."""

from collections.abc import Callable
from typing import Unpack

import torch
from jaxtyping import Int
from torch import Generator, Tensor, eye

from interp.zoo.planted.build import SHARP, Build, Options, back, check_sizes
from interp.zoo.planted.sampling import turned, whole
from interp.zoo.planted.truth import Examples, Planted, circuit


def previous_token(d_vocab: int = 8, n_ctx: int = 10, **options: Unpack[Options]) -> Planted:
    """Which token stands before this one.

    1. The head looks one position back.
    2. It moves the token there to "previous", where the logits are read.
    """
    m = _build("previous_token", d_vocab, n_ctx, {"previous": (1, "previous")}, options)
    m.unembed(previous=eye(d_vocab))
    draw = _random_tokens(d_vocab, n_ctx, 1, lambda tokens: tokens.roll(1, -1))
    moving, looking = "embed->previous.v previous->logits", "pos_embed->previous.q pos_embed->previous.k"
    asked = {"previous": "asked"}
    return m.planted(draw, zero=circuit(f"{moving} {looking}", asked), resample=circuit(moving, asked))


def either(d_vocab: int = 8, n_ctx: int = 10, **options: Unpack[Options]) -> Planted:
    """Which token stands before this one, told twice.

    1. Two heads look one position back, each for itself.
    2. Both move the token there to "previous".

    If one is silent, the other suffices: zeroed, they are redundant. If one says something wrong, the other can no more
    than draw level: resampled, each is necessary.
    """
    m = _build("either", d_vocab, n_ctx, {"one": (1, "previous"), "other": (1, "previous")}, options)
    m.unembed(previous=eye(d_vocab))
    draw = _random_tokens(d_vocab, n_ctx, 1, lambda tokens: tokens.roll(1, -1))
    moving = "embed->one.v one->logits embed->other.v other->logits"
    looking = "pos_embed->one.q pos_embed->one.k pos_embed->other.q pos_embed->other.k"
    asked = {"one": "asked", "other": "asked"}
    zero = circuit(f"{moving} {looking}", asked, redundant=("one other",))
    return m.planted(draw, zero=zero, resample=circuit(moving, asked))


def both(d_vocab: int = 4, n_ctx: int = 10, **options: Unpack[Options]) -> Planted:
    """Which two tokens stand before this one; the pair (first, second) is number first · d_vocab + second.

    1. One head moves the token two positions back to "first".
    2. Another moves the token one position back to "second".
    3. A pair's logit is the sum of two: only when both heads have spoken does one pair stand out.
    """
    m = _build("both", d_vocab, n_ctx, {"first": (2, "first"), "second": (1, "second")}, options)
    m.unembed(first=eye(d_vocab).repeat_interleave(d_vocab, dim=1), second=eye(d_vocab).repeat(1, d_vocab))
    draw = _random_tokens(d_vocab, n_ctx, 2, lambda tokens: d_vocab * tokens.roll(2, -1) + tokens.roll(1, -1))
    moving = "embed->first.v first->logits embed->second.v second->logits"
    looking = "pos_embed->first.q pos_embed->first.k pos_embed->second.q pos_embed->second.k"
    asked = {"first": "asked", "second": "asked"}
    return m.planted(draw, zero=circuit(f"{moving} {looking}", asked), resample=circuit(moving, asked))


def _build(name: str, d_vocab: int, n_ctx: int, heads: dict[str, tuple[int, str]], options: Options) -> Build:
    """A layer of heads: role -> how far it looks back, and where it puts the token that it finds there."""
    check_sizes(name, d_vocab=(d_vocab, 3), n_ctx=(n_ctx, 4))
    answers = {space: d_vocab for _, space in heads.values()}
    m = Build(name, d_vocab=d_vocab, n_ctx=n_ctx, spaces={"token": d_vocab, "pos": n_ctx} | answers, **options)
    m.embed(token=eye(d_vocab))
    m.pos_embed(pos=eye(n_ctx))
    for role, (distance, space) in heads.items():
        m.head(role, 0, attends={("pos", "pos"): SHARP * back(distance, n_ctx)}, moves={("token", space): 1})
    return m


def _random_tokens(
    d_vocab: int, n_ctx: int, first_asked: int, answer: Callable[[Tensor], Tensor]
) -> Callable[[int, Generator], Examples]:
    """Draws random tokens with a question at every position but the first; corrupted, every token is another."""

    def draw(n: int, generator: Generator) -> Examples:
        tokens: Int[Tensor, "batch pos"] = torch.randint(d_vocab, (n, n_ctx), generator=generator)
        corrupted = turned(tokens, whole(n, 1, d_vocab - 1, generator), d_vocab, first=0)
        mask = (torch.arange(n_ctx) >= first_asked).expand(n, n_ctx)
        answers, wrong = answer(tokens) * mask, answer(corrupted) * mask
        return Examples(tokens=tokens, mask=mask, answers=answers, corrupted=corrupted, wrong=wrong)

    return draw
