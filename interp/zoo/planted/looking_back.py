"""Heads that look where position alone says: a fixed distance back, here, at the first token; two that can stand in for
each other, an OR; two that cannot, an AND."""

from collections.abc import Callable
from functools import partial
from typing import Unpack

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor, eye

from interp.zoo.planted.build import SHARP, Build, Options, back, check_sizes
from interp.zoo.planted.sampling import turned, whole
from interp.zoo.planted.truth import Examples, Planted, circuit

Looks = Callable[[int], Float[Tensor, "query_pos key_pos"]]  # given n_ctx, 1 where a query finds its key


def previous_token(d_vocab: int = 8, n_ctx: int = 10, **options: Unpack[Options]) -> Planted:
    """Which token stands before this one.

    1. The head looks one position back.
    2. It moves the token there to "previous", where the logits are read.
    """
    return _one_head("previous_token", "previous", partial(back, 1), "previous", d_vocab, n_ctx, options)


def k_back(distance: int = 3, d_vocab: int = 8, n_ctx: int = 10, **options: Unpack[Options]) -> Planted:
    """Which token stands `distance` positions before this one.

    1. The head looks so many positions back.
    2. It moves the token there to "back", where the logits are read.
    """
    check_sizes("k_back", distance=(distance, 1), d_vocab=(d_vocab, 3), n_ctx=(n_ctx, max(distance + 1, 4)))
    return _one_head("k_back", "back", partial(back, distance), "back", d_vocab, n_ctx, options)


def current_token(d_vocab: int = 8, n_ctx: int = 10, **options: Unpack[Options]) -> Planted:
    """Which token stands here.

    1. The head looks at its own position.
    2. It moves the token there to "answer", where alone the logits are read: the embedding does not reach them.
    """
    return _one_head("current_token", "current", partial(back, 0), "answer", d_vocab, n_ctx, options)


def first_token(d_vocab: int = 8, n_ctx: int = 10, **options: Unpack[Options]) -> Planted:
    """Which token stood first. It is a random one like all others, no BOS.

    1. From everywhere the head looks at position 0.
    2. It moves the token there to "answer", where the logits are read.
    """
    return _one_head("first_token", "first", _at_the_first, "answer", d_vocab, n_ctx, options)


def either(d_vocab: int = 8, n_ctx: int = 10, **options: Unpack[Options]) -> Planted:
    """Which token stands before this one, told twice.

    1. Two heads look one position back, each for itself.
    2. Both move the token there to "previous".

    If one is silent, the other suffices: zeroed, they are redundant. If one says something wrong, the other can no more
    than draw level: resampled, each is necessary.
    """
    one_back = partial(back, 1)
    m = _build("either", d_vocab, n_ctx, {"one": (one_back, "previous"), "other": (one_back, "previous")}, options)
    m.unembed(previous=eye(d_vocab))
    draw = _random_tokens(d_vocab, torch.arange(n_ctx) >= 1, lambda tokens: tokens.roll(1, -1))
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
    m = _build(
        "both", d_vocab, n_ctx, {"first": (partial(back, 2), "first"), "second": (partial(back, 1), "second")}, options
    )
    m.unembed(first=eye(d_vocab).repeat_interleave(d_vocab, dim=1), second=eye(d_vocab).repeat(1, d_vocab))
    draw = _random_tokens(
        d_vocab, torch.arange(n_ctx) >= 2, lambda tokens: d_vocab * tokens.roll(2, -1) + tokens.roll(1, -1)
    )
    moving = "embed->first.v first->logits embed->second.v second->logits"
    looking = "pos_embed->first.q pos_embed->first.k pos_embed->second.q pos_embed->second.k"
    asked = {"first": "asked", "second": "asked"}
    return m.planted(draw, zero=circuit(f"{moving} {looking}", asked), resample=circuit(moving, asked))


def _at_the_first(n_ctx: int) -> Float[Tensor, "query_pos key_pos"]:
    """1 where a query that could look elsewhere finds position 0."""
    where = torch.zeros(n_ctx, n_ctx)
    where[1:, 0] = 1
    return where


def _one_head(name: str, role: str, looks: Looks, space: str, d_vocab: int, n_ctx: int, options: Options) -> Planted:
    """Which token stands where the head looks; asked wherever it looks somewhere."""
    m = _build(name, d_vocab, n_ctx, {role: (looks, space)}, options)
    m.unembed(**{space: eye(d_vocab)})
    where = looks(n_ctx)
    seen = where.any(0)
    draw = _random_tokens(d_vocab, where.any(1), lambda tokens: tokens[:, where.argmax(1)], seen=seen)
    moving, looking = f"embed->{role}.v {role}->logits", f"pos_embed->{role}.q pos_embed->{role}.k"
    places = {role: "asked", "embed": "seen"}
    return m.planted(draw, zero=circuit(f"{moving} {looking}", places), resample=circuit(moving, places))


def _build(name: str, d_vocab: int, n_ctx: int, heads: dict[str, tuple[Looks, str]], options: Options) -> Build:
    """A layer of heads: role -> where it looks, and where it puts the token that it finds there."""
    check_sizes(name, d_vocab=(d_vocab, 3), n_ctx=(n_ctx, 4))
    answers = {space: d_vocab for _, space in heads.values()}
    m = Build(name, d_vocab=d_vocab, n_ctx=n_ctx, spaces={"token": d_vocab, "pos": n_ctx} | answers, **options)
    m.embed(token=eye(d_vocab))
    m.pos_embed(pos=eye(n_ctx))
    for role, (looks, space) in heads.items():
        m.head(role, 0, attends={("pos", "pos"): SHARP * looks(n_ctx)}, moves={("token", space): 1})
    return m


def _random_tokens(
    d_vocab: int, asked: Bool[Tensor, " pos"], answer: Callable[[Tensor], Tensor], **places: Bool[Tensor, " pos"]
) -> Callable[[int, Generator], Examples]:
    """Draws random tokens with a question at these positions; corrupted, every token is another."""

    def draw(n: int, generator: Generator) -> Examples:
        tokens: Int[Tensor, "batch pos"] = torch.randint(d_vocab, (n, len(asked)), generator=generator)
        corrupted = turned(tokens, whole(n, 1, d_vocab - 1, generator), d_vocab, first=0)
        mask = asked.expand(n, -1)
        return Examples(
            tokens=tokens,
            mask=mask,
            answers=answer(tokens) * mask,
            corrupted=corrupted,
            wrong=answer(corrupted) * mask,
            places={place: where.expand(n, -1) for place, where in places.items()},
        )

    return draw
