"""A model that knows facts, set by hand: of a subject of two tokens, an MLP says what a head asks for at the end."""

import torch
from torch import Tensor, eye, ones

from interp import HookedGPT
from interp.zoo.planted.build import SHARP, Build, back
from interp.zoo.planted.memories import FACTS, Fact

LENGTH, BEGINS, END, FILLER = 8, 2, 8, 9
PREVIOUS, MEMORY, MOVER = 0, 1, 2  # the layers of what it takes


# Two answers, and neither token of the subject alone tells which.
EITHER: tuple[Fact, ...] = ((0, 4, 0), (0, 5, 1), (1, 4, 1), (1, 5, 0), (2, 6, 0), (2, 7, 1), (3, 6, 1), (3, 7, 0))


def recalling(facts: tuple[Fact, ...] = FACTS, loudness: float = 8.0) -> tuple[HookedGPT, dict[str, slice]]:
    """The model, and the parts of its stream.

    Layer 0 moves a subject's first token to its second; there layer 1 looks the fact up; at END layer 2 moves it.
    """
    n = 10
    spaces = {"token": n, "pos": LENGTH, "end": 1, "previous": n, "fact": n, "answer": n}
    m = Build("recalling", d_vocab=n, n_ctx=LENGTH, spaces=spaces)
    a, b, c = torch.tensor(facts).T
    m.embed(token=eye(n), end=eye(n)[:, [END]])
    m.pos_embed(pos=eye(LENGTH))
    m.head("previous", PREVIOUS, attends={("pos", "pos"): SHARP * back(1, LENGTH)}, moves={("token", "previous"): 1})
    m.neurons(
        "memory",
        MEMORY,
        reads={"token": eye(n)[b], "previous": eye(n)[a]},
        writes={"fact": 2 * eye(n)[c]},
        bias=torch.full((len(facts),), -1.5),
    )
    m.head("mover", MOVER, attends={("end", "fact"): 20 * ones(1, n)}, moves={("fact", "answer"): loudness})
    m.unembed(answer=eye(n))
    return m.model(), m.spaces


def questions(facts: tuple[Fact, ...] = FACTS, filler: int = FILLER) -> tuple[Tensor, list[int]]:
    """All facts: fillers, the subject at positions BEGINS and the next, fillers, END; and the answers there."""
    tokens = torch.full((len(facts), LENGTH), filler)
    tokens[:, BEGINS : BEGINS + 2] = torch.tensor(facts)[:, :2]
    tokens[:, -1] = END
    return tokens, [c for _, _, c in facts]


def pairs(filler: int = FILLER) -> tuple[Tensor, Tensor, list[int]]:
    """Each question of `EITHER` with each other one as its source, whose answer is to be given."""
    tokens, answers = questions(EITHER, filler)
    i, j = torch.cartesian_prod(torch.arange(8), torch.arange(8)).T
    return tokens[i], tokens[j], [answers[k] for k in j.tolist()]
