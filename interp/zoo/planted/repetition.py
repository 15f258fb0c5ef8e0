"""Mechanisms that notice repetition: has this token been here, and what followed it then?"""

from typing import Unpack

import torch
from jaxtyping import Bool, Int
from torch import Generator, Tensor, eye, ones

from interp.zoo.planted.build import SHARP, Blocks, Build, Options, back, check_sizes
from interp.zoo.planted.sampling import one_of, some, turned, whole
from interp.zoo.planted.truth import Examples, Planted, circuit

BOS = 0


def another_of_the_same(what: str, n_ctx: int) -> Blocks:
    """A head's QK that looks for `what` the query has, at another position; without both, it rests on BOS.

    Reads "pos", "one" (in every token) and "bos" beside. A match counts 1, another position 1, and BOS between the two.
    """
    elsewhere = 1 - eye(n_ctx)
    elsewhere[:, 0] = 0
    return {
        (what, what): SHARP,
        ("pos", "pos"): SHARP * elsewhere,
        ("one", "bos"): 1.5 * SHARP,
    }


def duplicate_token(d_vocab: int = 16, n_ctx: int = 12, **options: Unpack[Options]) -> Planted:
    """Whether this token has occurred before: 1 for yes, 0 for no. BOS = 0 comes first.

    1. The head looks for the same token at another position, or else at BOS.
    2. It moves "no" from BOS and "yes" from all other tokens.
    """
    check_sizes("duplicate_token", n_ctx=(n_ctx, 3), d_vocab=(d_vocab, n_ctx))
    spaces = {"token": d_vocab, "one": 1, "bos": 1, "pos": n_ctx, "answer": 2}
    m = Build("duplicate_token", d_vocab=d_vocab, n_ctx=n_ctx, spaces=spaces, **options)
    tokens = eye(d_vocab)
    is_bos = tokens[:, [BOS]]
    m.embed(token=tokens, one=ones(d_vocab, 1), bos=is_bos)
    m.pos_embed(pos=eye(n_ctx))
    m.head(
        "duplicate",
        0,
        attends=another_of_the_same("token", n_ctx),
        moves={("token", "answer"): torch.cat((is_bos, 1 - is_bos), dim=1)},
    )
    m.unembed(answer=eye(2))

    def draw(n: int, generator: Generator) -> Examples:
        asked = torch.arange(n_ctx) > 1
        repeats = (torch.rand(n, n_ctx, generator=generator) < 0.5) & asked
        opposite = ~repeats & asked
        return Examples(
            tokens=_with_repeats(repeats, d_vocab, generator),
            mask=asked.expand(n, n_ctx),
            answers=repeats.long(),
            corrupted=_with_repeats(opposite, d_vocab, generator),
            wrong=opposite.long(),
        )

    always = "embed->duplicate.q embed->duplicate.k duplicate->logits"  # its values are the same in every input
    zero = f"{always} embed->duplicate.v pos_embed->duplicate.q pos_embed->duplicate.k"
    at_questions = {"duplicate": "asked"}
    return m.planted(draw, zero=circuit(zero, at_questions), resample=circuit(always, at_questions))


def induction(
    d_vocab: int = 12,
    n_ctx: int = 20,
    periods: tuple[int, int] = (3, 6),
    max_phase: int = 3,
    bos: bool = True,
    **options: Unpack[Options],
) -> Planted:
    """Which token followed this one before, where tokens repeat themselves (Elhage et al., 2021; Olsson et al., 2022).

    BOS = 0 comes first, then up to `max_phase` other tokens, then a period of random tokens over and over.

    1. A head of layer 0 looks one position back and moves the token there to "previous".
    2. A head of layer 1 looks for positions whose "previous" is the present token (K-composition).
    3. It moves the tokens found there to "answer".

    Without BOS, position 0 has itself as its previous token, so no question is asked about its token.
    """
    shortest, longest = periods
    n_different = bos + max_phase + longest
    check_sizes(
        "induction",
        shortest_period=(shortest, 2),
        longest_period=(longest, shortest),
        max_phase=(max_phase, 0),
        d_vocab=(d_vocab, n_different),
        n_ctx=(n_ctx, n_different + 1),
    )
    m = Build(
        "induction",
        d_vocab=d_vocab,
        n_ctx=n_ctx,
        spaces={"token": d_vocab, "pos": n_ctx, "previous": d_vocab, "answer": d_vocab},
        **options,
    )
    m.embed(token=eye(d_vocab))
    m.pos_embed(pos=eye(n_ctx))
    m.head("previous", 0, attends={("pos", "pos"): SHARP * back(1, n_ctx)}, moves={("token", "previous"): 1})
    m.head("induction", 1, attends={("token", "previous"): SHARP}, moves={("token", "answer"): 1})
    m.unembed(answer=eye(d_vocab))

    def draw(n: int, generator: Generator) -> Examples:
        period, phase = whole(n, shortest, longest, generator), whole(n, 0, max_phase, generator)
        step = torch.arange(n_ctx + 1 - bos)
        step = torch.where(step < phase, step, phase + (step - phase) % period)
        tokens = (bos + some(n, d_vocab - bos, d_vocab - bos, generator)).gather(-1, step)
        if bos:
            tokens = torch.cat((torch.full((n, 1), BOS), tokens), dim=-1)
        mask = torch.arange(n_ctx) >= bos + phase + period
        mask &= tokens[:, :-1] != tokens[:, :1]
        corrupted = turned(tokens, whole(n, 1, d_vocab - bos - 1, generator), d_vocab - bos, first=int(bos))
        return Examples(
            tokens=tokens[:, :-1],
            mask=mask,
            answers=tokens[:, 1:] * mask,
            corrupted=corrupted[:, :-1],
            wrong=corrupted[:, 1:] * mask,
        )

    always = """
        embed->previous.v previous->induction.k
        embed->induction.q embed->induction.v induction->logits
    """
    zero = f"{always} pos_embed->previous.q pos_embed->previous.k"
    at_questions = {"induction": "asked"}
    return m.planted(draw, zero=circuit(zero, at_questions), resample=circuit(always, at_questions))


def _with_repeats(repeats: Bool[Tensor, "batch pos"], d_vocab: int, generator: Generator) -> Int[Tensor, "batch pos"]:
    """BOS, then random tokens: one that was here where `repeats`, a new one elsewhere."""
    tokens = torch.full(repeats.shape, BOS)
    seen = torch.zeros(len(repeats), d_vocab - 1, dtype=torch.bool)
    for pos in range(1, repeats.shape[1]):
        token = one_of(seen == repeats[:, [pos]], generator)
        seen[torch.arange(len(seen)), token] = True
        tokens[:, pos] = 1 + token
    return tokens
