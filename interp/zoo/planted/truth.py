"""A model set by hand, what is true of it, and inputs to check that on.

What counts as part of a mechanism depends on how one ablates, so there are two truths. A component's output is replaced

- "zero": by zeros. Position embeddings and constant components are then part of a mechanism that rests on them.
- "resample": by what it is on another input, drawn independently from `sample`, at the same positions. What is the same
  in every input is then no part.

Nodes are `embed`, `pos_embed`, heads `L0H1`, neurons `L0N17`, whole layers `MLP0`, and `logits`, the end of the stream.
An edge is what a sender writes, as one receiver reads it: `L0H1->L1H0.k`, `embed->MLP0`, `L1H0->logits`.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.hooks import HookFn, Names
from interp.model import HookedGPT


@dataclass(frozen=True, eq=False, kw_only=True)
class Examples:
    """Inputs of a task, where an answer is asked, and which one is right."""

    tokens: Int[Tensor, "batch pos"]
    mask: Bool[Tensor, "batch pos"]  # where an answer is asked
    answers: Int[Tensor, "batch pos"]  # the right output there; 0 elsewhere
    corrupted: Int[Tensor, "batch pos"]  # inputs of the same kind that have another right answer wherever one is asked
    wrong: Int[Tensor, "batch pos"]  # which is this one, for logit differences
    places: dict[str, Bool[Tensor, "batch pos"]] = field(default_factory=dict)  # what `Truth.positions` refers to

    def __post_init__(self) -> None:
        everywhere = torch.ones_like(self.mask)
        object.__setattr__(self, "places", {"every": everywhere, "asked": self.mask, **self.places})

    def accuracy(self, logits: Float[Tensor, "batch pos d_vocab_out"]) -> float:
        """The share of questions where the right answer's logit exceeds every other; a tie is wrong."""
        right = logits.gather(-1, self.answers[..., None])
        others = logits.scatter(-1, self.answers[..., None], -torch.inf)
        return (right > others).all(-1)[self.mask].float().mean().item()


@dataclass(frozen=True)
class Truth:
    """The circuit, under one kind of ablation.

    Ablating any one of the nodes breaks the behaviour, except where several do the same: a set in `redundant` breaks it
    when all its nodes go, and no fewer. Cutting any one of the edges breaks it too; an edge from or to a redundant node
    does so at the latest when the other nodes of its set are gone. Ablating everything else at once, all other nodes or
    all other edges, changes no answer, nor does it when of a redundant set one node alone is left.
    """

    nodes: frozenset[str]
    edges: frozenset[str]
    positions: dict[str, str]  # node -> the key of `Examples.places` outside of which its output does not matter
    redundant: tuple[frozenset[str], ...] = ()

    def renamed(self, names: dict[str, str]) -> "Truth":
        """The same circuit with other names for its nodes."""

        def edge(old: str) -> str:
            sender, receiver = old.split("->")
            node, *slot = receiver.split(".")
            return f"{names.get(sender, sender)}->{'.'.join([names.get(node, node), *slot])}"

        def nodes(old: Iterable[str]) -> frozenset[str]:
            return frozenset(names.get(node, node) for node in old)

        return Truth(
            nodes(self.nodes),
            frozenset(map(edge, self.edges)),
            {names.get(node, node): place for node, place in self.positions.items()},
            tuple(map(nodes, self.redundant)),
        )


def circuit(edges: str, positions: dict[str, str] | None = None, redundant: tuple[str, ...] = ()) -> Truth:
    """The truth made of these edges and the nodes at their ends: `circuit("embed->L0H1.v L0H1->logits")`.

    Positions not given are "every"; those of nodes that are not here are left out.
    """
    listed = frozenset(edges.split())
    ends = (end.split(".")[0] for edge in listed for end in edge.split("->"))
    nodes = frozenset(ends) - {"logits"}
    where = {node: (positions or {}).get(node, "every") for node in sorted(nodes)}
    return Truth(nodes, listed, where, tuple(frozenset(group.split()) for group in redundant))


@dataclass(frozen=True, eq=False, kw_only=True)
class Planted:
    """A model with weights set by hand, and what is true of it."""

    name: str
    model: HookedGPT
    truth: dict[str, Truth]  # by kind of ablation: "zero", "resample"
    roles: dict[str, str]  # what a node is for -> its name: {"previous": "L0H2", …}
    distractors: tuple[str, ...]  # heads and neurons with random weights
    spaces: dict[str, slice]  # the named parts of the residual stream
    draw: Callable[[int, torch.Generator], Examples]

    def sample(self, n: int, seed: int = 0) -> Examples:
        """Fresh examples of the task, all of the same length."""
        return self.draw(n, torch.Generator().manual_seed(seed))

    @torch.no_grad()
    def accuracy(self, examples: Examples, fwd_hooks: Iterable[tuple[Names, HookFn]] = ()) -> float:
        """The share of questions that the model, run with these hooks, answers right."""
        return examples.accuracy(self.model.run_with_hooks(examples.tokens, fwd_hooks=fwd_hooks))
