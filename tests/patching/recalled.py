"""A model that knows facts, set by hand: of a subject of two tokens, an MLP says what a head asks for at the end."""

import torch
from torch import Tensor, eye, ones

from interp import HookedGPT
from interp.zoo.planted.build import SHARP, Build, back
from interp.zoo.planted.memories import FACTS

LENGTH, BEGINS, END, FILLER = 8, 2, 8, 9
PREVIOUS, MEMORY, MOVER = 0, 1, 2  # the layers of what it takes


def recalling() -> HookedGPT:
    """Layer 0 moves a subject's first token to its second; there layer 1 looks the fact up; at END layer 2 moves it."""
    n = 10
    spaces = {"token": n, "pos": LENGTH, "end": 1, "previous": n, "fact": n, "answer": n}
    m = Build("recalling", d_vocab=n, n_ctx=LENGTH, spaces=spaces)
    a, b, c = torch.tensor(FACTS).T
    m.embed(token=eye(n), end=eye(n)[:, [END]])
    m.pos_embed(pos=eye(LENGTH))
    m.head("previous", PREVIOUS, attends={("pos", "pos"): SHARP * back(1, LENGTH)}, moves={("token", "previous"): 1})
    m.neurons(
        "memory",
        MEMORY,
        reads={"token": eye(n)[b], "previous": eye(n)[a]},
        writes={"fact": 2 * eye(n)[c]},
        bias=torch.full((len(FACTS),), -1.5),
    )
    m.head("mover", MOVER, attends={("end", "fact"): 20 * ones(1, n)}, moves={("fact", "answer"): 8})
    m.unembed(answer=eye(n))
    return m.model()


def questions(begins: int = BEGINS) -> tuple[Tensor, list[int]]:
    """All facts: fillers, the subject at positions `begins` and the next, fillers, END; and the answers there."""
    tokens = torch.full((len(FACTS), LENGTH), FILLER)
    tokens[:, begins : begins + 2] = torch.tensor(FACTS)[:, :2]
    tokens[:, -1] = END
    return tokens, [c for _, _, c in FACTS]
