"""Mechanisms of one head: an average, a copy, a successor, a copy's opposite, and a skip-trigram."""

from typing import Unpack

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor, eye, ones

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
    moves, names = eye(1 + n_names + n_fillers), torch.arange(1, 1 + n_names)
    return _sought_at_the_end("copy", "mover", "is_name", names, names, moves, n_ctx, options)


def successor(
    n_lists: int = 2, n_items: int = 5, n_fillers: int = 3, n_ctx: int = 10, **options: Unpack[Options]
) -> Planted:
    """At the end, what comes after the item that occurred, as Tuesday after Monday (Gould et al., 2023).

    Tokens are END, then the items of one ordered list after another, as `successor_lists` has them, then fillers. No
    list's last item occurs: nothing comes after it.

    1. At END the head looks for items.
    2. It moves what comes after the item to "answer". (Fillers, did it look at them, it would copy.)
    """
    sizes = {"n_lists": (n_lists, 1), "n_items": (n_items, 3), "n_fillers": (n_fillers, 1)}
    check_sizes("successor", **sizes, n_ctx=(n_ctx, n_fillers + 3))
    lists = successor_lists(n_lists, n_items)
    moves = eye(1 + n_lists * n_items + n_fillers)
    moves[lists] = 0
    moves[lists[:, :-1], lists[:, 1:]] = 1
    occur = lists[:, :-1].flatten()
    return _sought_at_the_end("successor", "successor", "is_item", lists.flatten(), occur, moves, n_ctx, options)


def successor_lists(n_lists: int = 2, n_items: int = 5) -> Int[Tensor, "list item"]:
    """The tokens of each ordered list of a `successor` of these sizes."""
    return torch.arange(1, 1 + n_lists * n_items).view(n_lists, n_items)


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


def _sought_at_the_end(
    name: str,
    role: str,
    kind: str,
    sought: Int[Tensor, " word"],
    occur: Int[Tensor, " choice"],
    moves: Float[Tensor, "d_vocab d_vocab"],
    n_ctx: int,
    options: Options,
) -> Planted:
    """A head that looks from END for tokens of a kind, of which one occurs among fillers, and what it makes of it.

    Tokens are END, then those that are sought, then fillers.
    """
    d_vocab = len(moves)
    spaces = {"token": d_vocab, "end": 1, kind: 1, "answer": d_vocab}
    m = Build(name, d_vocab=d_vocab, n_ctx=n_ctx, spaces=spaces, **options)
    tokens = eye(d_vocab)
    m.embed(**{"token": tokens, "end": tokens[:, [END]], kind: tokens[:, sought].sum(1, keepdim=True)})
    m.head(role, 0, attends={("end", kind): SHARP}, moves={("token", "answer"): moves})
    m.unembed(answer=eye(d_vocab))

    def draw(n: int, generator: Generator) -> Examples:
        where = at(some(n, n_ctx - 1, 1, generator), n_ctx)
        fillers = torch.randint(1 + len(sought), d_vocab, (n, n_ctx), generator=generator)
        fillers[:, -1] = END
        words = occur[some(n, len(occur), 2, generator)]
        clean, corrupted = (torch.where(where, words[:, [i]], fillers) for i in range(2))
        right, wrong = moves[words].argmax(-1).unbind(1)
        return asked_at_the_end(clean, right, corrupted, wrong)

    always = f"embed->{role}.k embed->{role}.v {role}->logits"
    at_end = {role: "asked"}
    return m.planted(draw, zero=circuit(f"{always} embed->{role}.q", at_end), resample=circuit(always, at_end))
