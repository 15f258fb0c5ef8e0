"""Mechanisms of one head: an average, a copy, its opposite, and a skip-trigram."""

from typing import Unpack

import torch
from torch import Generator, eye, ones

from interp.zoo.planted.build import SHARP, Build, Options, check_sizes
from interp.zoo.planted.sampling import asked_at_the_end, at, some, turned, whole
from interp.zoo.planted.truth import Examples, Planted, circuit

BOS, END = 0, 0  # no model has both
CLEAR = 0.2  # of the distance between two parts: a share this near to one is asked about; the boundary is at a half


def fraction_of_previous_tokens(
    d_vocab: int = 4, n_ctx: int = 12, n_parts: int = 3, **options: Unpack[Options]
) -> Planted:
    """Which of 0, 1/n_parts … 1 is nearest to the share of token 0 so far, asked where that is clear.

    1. The head asks for nothing and attends to all positions alike.
    2. It moves "counted" from tokens 0 and "others" from the rest, so that the two arrive as a share f and 1 - f.
    3. The logit of c is 2cf - c² = f² - (f - c)², up to what is the same for all; the 1 that c² stands with is the sum
       of both shares.
    """
    check_sizes("fraction_of_previous_tokens", d_vocab=(d_vocab, 2), n_ctx=(n_ctx, 2), n_parts=(n_parts, 1))
    m = Build(
        "fraction_of_previous_tokens",
        d_vocab=d_vocab,
        n_ctx=n_ctx,
        spaces={"token": d_vocab, "counted": 1, "others": 1},
        **options,
    )
    is_counted = eye(d_vocab)[:, :1]
    m.embed(token=eye(d_vocab))
    loud = 4.0  # neighbouring parts are close: speak above what distractors may write
    m.head(
        "average",
        0,
        attends={},
        moves={("token", "counted"): loud * is_counted, ("token", "others"): loud * (1 - is_counted)},
    )
    parts = torch.linspace(0, 1, n_parts + 1)[None]
    m.unembed(counted=2 * parts - parts**2, others=-(parts**2))

    def draw(n: int, generator: Generator) -> Examples:
        counts = torch.rand(n, n_ctx, generator=generator) < torch.rand(n, 1, generator=generator)
        others = torch.randint(1, d_vocab, (n, n_ctx), generator=generator)
        share = n_parts * counts.cumsum(-1) / torch.arange(1, n_ctx + 1)
        answers, wrong = share.round().long(), n_parts - share.round().long()
        mask = ((share - answers).abs() <= CLEAR) & (answers != wrong)
        return Examples(
            tokens=torch.where(counts, 0, others),
            mask=mask,
            answers=answers * mask,
            corrupted=torch.where(counts, others, 0),
            wrong=wrong * mask,
        )

    truth = circuit("embed->average.v average->logits", {"average": "asked"})
    return m.planted(draw, zero=truth, resample=truth)


def copy(n_names: int = 5, n_fillers: int = 3, n_ctx: int = 10, **options: Unpack[Options]) -> Planted:
    """At the end, which name occurred: a name mover without competition (Wang et al., 2022).

    Tokens are END, then names, then fillers.

    1. At END the head looks for names.
    2. It copies what it finds, name or not, into "answer".
    """
    check_sizes("copy", n_names=(n_names, 2), n_fillers=(n_fillers, 1), n_ctx=(n_ctx, n_fillers + 3))
    d_vocab = 1 + n_names + n_fillers
    spaces = {"token": d_vocab, "end": 1, "is_name": 1, "answer": d_vocab}
    m = Build("copy", d_vocab=d_vocab, n_ctx=n_ctx, spaces=spaces, **options)
    tokens = eye(d_vocab)
    m.embed(token=tokens, end=tokens[:, [END]], is_name=tokens[:, 1 : 1 + n_names].sum(1, keepdim=True))
    m.head("mover", 0, attends={("end", "is_name"): SHARP}, moves={("token", "answer"): 1})
    m.unembed(answer=eye(d_vocab))

    def draw(n: int, generator: Generator) -> Examples:
        where = at(some(n, n_ctx - 1, 1, generator), n_ctx)
        fillers = torch.randint(1 + n_names, d_vocab, (n, n_ctx), generator=generator)
        fillers[:, -1] = END
        names = 1 + some(n, n_names, 2, generator)
        clean, corrupted = (torch.where(where, names[:, [i]], fillers) for i in range(2))
        return asked_at_the_end(clean, names[:, 0], corrupted, names[:, 1])

    always = "embed->mover.k embed->mover.v mover->logits"
    at_end = {"mover": "asked"}
    return m.planted(draw, zero=circuit(f"{always} embed->mover.q", at_end), resample=circuit(always, at_end))


def copy_suppression(d_vocab: int = 10, n_ctx: int = 10, **options: Unpack[Options]) -> Planted:
    """What follows the last token t: t + 1, or t + 2 if t + 1 has occurred already (in a circle, BOS = 0 left out).

    1. A token's embedding predicts t + 1 and, half as strongly, t + 2.
    2. The head looks for what the stream predicts; if t + 1 is not there, it rests on BOS.
    3. It lowers the prediction of what it finds (McDougall et al., 2023).
    """
    check_sizes("copy_suppression", d_vocab=(d_vocab, 5), n_ctx=(n_ctx, 4))
    spaces = {"token": d_vocab, "one": 1, "bos": 1, "predicted": d_vocab}
    m = Build("copy_suppression", d_vocab=d_vocab, n_ctx=n_ctx, spaces=spaces, **options)
    tokens, n_words = eye(d_vocab), d_vocab - 1
    bigrams = torch.zeros(d_vocab, d_vocab)
    bigrams[1:, 1:] = eye(n_words).roll(1, 1) + eye(n_words).roll(2, 1) / 2
    m.embed(token=tokens, one=ones(d_vocab, 1), bos=tokens[:, [BOS]], predicted=bigrams)
    between = 0.75  # t + 1 scores 1, t + 2 scores 1/2
    m.head(
        "suppressor",
        0,
        attends={("predicted", "token"): SHARP, ("one", "bos"): between * SHARP * ones(1, 1)},
        moves={("token", "predicted"): -torch.diag(1 - tokens[BOS])},
    )
    m.unembed(predicted=eye(d_vocab))

    def draw(n: int, generator: Generator) -> Examples:
        last = whole(n, 1, n_words, generator)
        first, second = (turned(last, torch.full((n, 1), i), n_words, first=1) for i in (1, 2))
        context = 1 + torch.randint(n_words, (n, n_ctx), generator=generator)
        without = torch.where(context == first, last, context)
        with_first = torch.where(at(1 + some(n, n_ctx - 2, 1, generator), n_ctx), first, without)
        for tokens in (without, with_first):
            tokens[:, :1], tokens[:, -1:] = BOS, last
        has_first = torch.rand(n, 1, generator=generator) < 0.5
        return asked_at_the_end(
            torch.where(has_first, with_first, without),
            torch.where(has_first, second, first)[:, 0],
            torch.where(has_first, without, with_first),
            torch.where(has_first, first, second)[:, 0],
        )

    truth = circuit(
        "embed->suppressor.q embed->suppressor.k embed->suppressor.v suppressor->logits embed->logits",
        {"suppressor": "asked"},
    )
    return m.planted(draw, zero=truth, resample=truth)


def skip_trigram(n_trigrams: int = 4, n_fillers: int = 3, n_ctx: int = 10, **options: Unpack[Options]) -> Planted:
    """What completes A … B: C, of several such trigrams (Elhage et al., 2021). Tokens are all A, all B, all C, fillers.

    1. From each B the head looks for its own A. (Another A is there too.)
    2. From each A it moves that A's C to "answer".
    """
    check_sizes("skip_trigram", n_trigrams=(n_trigrams, 2), n_fillers=(n_fillers, 1), n_ctx=(n_ctx, 3))
    d_vocab = 3 * n_trigrams + n_fillers
    spaces = {"token": d_vocab, "answer": d_vocab}
    m = Build("skip_trigram", d_vocab=d_vocab, n_ctx=n_ctx, spaces=spaces, **options)
    tokens = eye(d_vocab)
    a, b, c = tokens[: 3 * n_trigrams].split(n_trigrams)
    m.embed(token=tokens)
    m.head("trigrams", 0, attends={("token", "token"): SHARP * b.T @ a}, moves={("token", "answer"): a.T @ c})
    m.unembed(answer=eye(d_vocab))

    def draw(n: int, generator: Generator) -> Examples:
        which, where = some(n, n_trigrams, 2, generator), some(n, n_ctx - 1, 2, generator)
        begun = torch.randint(3 * n_trigrams, d_vocab, (n, n_ctx), generator=generator).scatter(-1, where, which)
        clean, corrupted = (torch.cat((begun[:, :-1], n_trigrams + which[:, [i]]), -1) for i in range(2))
        return asked_at_the_end(clean, 2 * n_trigrams + which[:, 0], corrupted, 2 * n_trigrams + which[:, 1])

    truth = circuit("embed->trigrams.q embed->trigrams.k embed->trigrams.v trigrams->logits", {"trigrams": "asked"})
    return m.planted(draw, zero=truth, resample=truth)
