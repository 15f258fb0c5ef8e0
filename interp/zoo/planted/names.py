"""Who is meant: indirect object identification in miniature, with a head that waits in reserve."""

from collections.abc import Callable
from typing import Unpack

import torch
from torch import Generator, eye, ones

from interp.zoo.planted.build import Build, Options, check_sizes
from interp.zoo.planted.repetition import another_of_the_same
from interp.zoo.planted.sampling import asked_at_the_end, at, some
from interp.zoo.planted.truth import Examples, Planted, circuit

BOS, END, FIRST_NAME = 0, 1, 2
# How far what a head looks for leads. Half of it leaves e^-6 for the rest; more would make much of noise in the marks.
SEEKING = 12.0


def indirect_object(n_names: int = 6, n_fillers: int = 3, n_ctx: int = 16, **options: Unpack[Options]) -> Planted:
    """At the end, which of two names stands there once, where the other, the subject, stands twice (Wang et al., 2022).

    Tokens are BOS, END, names, fillers. The subject may come first or second, and always third.

    1. The duplicate-token head marks a name that was here before, the second subject, as "duplicate".
    2. At END the inhibition head looks for what is so marked and moves the name there to "subject".
    3. At END the mover looks for names, less for the subject, and copies what it finds into "answer". It also leaves
       a mark that it has "moved" something.
    4. At END the backup mover does the same as the mover, unless it finds that mark: then it rests on BOS.

    Zeroed, the mover leaves no mark and the backup stands in; resampled, it leaves the mark beside a wrong answer.
    """
    check_sizes("indirect_object", n_names=(n_names, 2), n_fillers=(n_fillers, 1), n_ctx=(n_ctx, n_fillers + 7))
    d_vocab = FIRST_NAME + n_names + n_fillers
    m = Build(
        "indirect_object",
        d_vocab=d_vocab,
        n_ctx=n_ctx,
        spaces={"token": d_vocab, "name": n_names, "is_name": 1, "one": 1, "bos": 1, "end": 1, "pos": n_ctx}
        | {"duplicate": 1, "subject": n_names, "moved": 1, "answer": d_vocab},
        **options,
    )
    tokens = eye(d_vocab)
    names = tokens[:, FIRST_NAME : FIRST_NAME + n_names]
    m.embed(
        token=tokens,
        name=names,
        is_name=names.sum(1, keepdim=True),
        one=ones(d_vocab, 1),
        bos=tokens[:, [BOS]],
        end=tokens[:, [END]],
    )
    m.pos_embed(pos=eye(n_ctx))
    m.head(
        "duplicate",
        0,
        attends=another_of_the_same("name", n_ctx),
        moves={("name", "duplicate"): ones(n_names, 1)},
    )
    m.head("inhibition", 1, attends={("end", "duplicate"): SEEKING}, moves={("name", "subject"): 1})
    # Two subjects against one other name lose while inhibition is whole, 2 e^(-n_ctx/2) < 1; but they win when the head
    # that inhibits looks at all positions alike, two of them the subject's and one the other's, 2 e^(-1/2) > 1.
    looks = {("end", "is_name"): SEEKING, ("subject", "name"): -n_ctx / 2}
    copies = {("token", "answer"): torch.diag(1 - tokens[BOS])}  # of all tokens but BOS
    m.head("mover", 2, attends=looks, moves=copies | {("one", "moved"): 1})
    m.head(
        "backup",
        3,
        attends=looks | {("moved", "is_name"): -SEEKING, ("end", "bos"): SEEKING / 2},
        moves=copies,
    )
    m.unembed(answer=eye(d_vocab))

    resample = """
        embed->duplicate.q embed->duplicate.k embed->duplicate.v
        duplicate->inhibition.k embed->inhibition.v
        inhibition->mover.q embed->mover.k embed->mover.v mover->logits
    """
    zero = f"""{resample} pos_embed->duplicate.q pos_embed->duplicate.k embed->inhibition.q embed->mover.q
        embed->backup.q inhibition->backup.q embed->backup.k embed->backup.v backup->logits
    """
    at_end = {"inhibition": "asked", "mover": "asked", "backup": "asked"}
    return m.planted(
        _two_names(n_names, d_vocab, n_ctx),
        zero=circuit(zero, at_end | {"duplicate": "second_subject"}, redundant=("mover backup",)),
        resample=circuit(resample, at_end),
    )


def _two_names(n_names: int, d_vocab: int, n_ctx: int) -> Callable[[int, Generator], Examples]:
    """Draws fillers with two names among them, one of these again, and END; corrupted, the other one again."""

    def draw(n: int, generator: Generator) -> Examples:
        where = 1 + some(n, n_ctx - 2, 3, generator).sort(-1).values
        pair = FIRST_NAME + some(n, n_names, 2, generator)
        begun = torch.randint(FIRST_NAME + n_names, d_vocab, (n, n_ctx), generator=generator)
        begun[:, 0], begun[:, -1] = BOS, END
        begun = begun.scatter(-1, where[:, :2], pair)
        subject = torch.randint(2, (n, 1), generator=generator)
        (clean, wrong), (corrupted, answers) = (
            (begun.scatter(-1, where[:, 2:], again), again[:, 0])
            for again in (pair.gather(-1, subject), pair.gather(-1, 1 - subject))
        )
        return asked_at_the_end(clean, answers, corrupted, wrong, second_subject=at(where[:, 2:], n_ctx))

    return draw
