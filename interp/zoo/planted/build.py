"""Sets the weights of a transformer in the words in which one would explain its mechanism.

The residual stream is a row of named subspaces: "token", "pos", "previous" … Then

1. `embed` and `pos_embed` say what a token and a position put into them;
2. `head` gives a head by its two circuits, block by block: `attends` (QK) says what of the query's position is compared
   with what of the key's, and how strongly; `moves` (OV) from where to where it carries what it finds;
3. `neurons` says what fires each neuron, and what it then writes;
4. `unembed` says how the logits are read off the end of the stream;
5. `planted` makes the model, `model` one that has no task. Only here do heads and neurons, known by their roles so far,
   get their indices.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from itertools import accumulate
from math import sqrt
from typing import Any, TypedDict

import torch
from jaxtyping import Float
from torch import Tensor

from interp.config import Normalization
from interp.model import HookedGPT
from interp.zoo.planted.assemble import Ends, Head, Neuron, Place, assembled
from interp.zoo.planted.truth import Examples, Planted, Truth

Blocks = Mapping[tuple[str, str], Tensor | float | int]  # (from, to) -> matrix; a number: that much of the identity
Features = Mapping[str, Tensor]  # subspace -> a matrix into or out of it

SHARP = 50.0  # a lead in attention score: e^-50, and e^-25 at half of it, is nothing to a float32 softmax

IDLE = 32  # room in the stream that no mechanism uses, so that not all that distractors write is noise to one


class Options(TypedDict, total=False):
    """What every planted model can be given beside its sizes."""

    norm: str | None  # "RMS", "LN"; None: there is none
    distractor_heads: int  # so many more in every layer, with random weights
    distractor_neurons: int  # likewise
    distractor_strength: float | int  # length of what all heads, or all neurons, add, by the length of what they read
    seed: int  # decides which head is which, and the distractors' weights


def check_sizes(name: str, **sizes: tuple[int, int]) -> None:
    """Raise unless each size is at least what the construction needs: `check_sizes("copy", n_ctx=(n_ctx, 6))`."""
    faults = [f"{size}={given}, at least {least}" for size, (given, least) in sizes.items() if given < least]
    if faults:
        raise ValueError(f"{name} cannot be built: {'; '.join(faults)}")


def back(distance: int, n_ctx: int) -> Float[Tensor, "query_pos key_pos"]:
    """1 where the key stands so many positions before the query."""
    return torch.ones(n_ctx, n_ctx).tril(-distance).triu(-distance)


class Build:
    """A model in the making."""

    def __init__(
        self,
        name: str,
        *,
        d_vocab: int,
        n_ctx: int,
        spaces: dict[str, int],
        norm: str | None = None,
        distractor_heads: int = 0,
        distractor_neurons: int = 0,
        distractor_strength: float | int = 0.15,
        seed: int = 0,
    ) -> None:
        if norm not in (None, "RMS", "LN"):
            raise ValueError(f"{name} cannot be built: norm={norm!r}; allowed: None, 'RMS', 'LN'")
        check_sizes(name, distractor_heads=(distractor_heads, 0), distractor_neurons=(distractor_neurons, 0))
        self.name, self.n_ctx = name, n_ctx
        self.norm: Normalization | None = norm
        self.n_more_heads, self.n_more_neurons = distractor_heads, distractor_neurons
        self.strength = distractor_strength
        self.generator = torch.Generator().manual_seed(seed)
        if distractor_heads or distractor_neurons:
            spaces = spaces | {"idle": IDLE}
        ends = list(accumulate(spaces.values()))
        self.spaces = {space: slice(end - size, end) for (space, size), end in zip(spaces.items(), ends, strict=True)}
        self.width = ends[-1]
        self.ends = Ends(torch.zeros(d_vocab, self.width), None, torch.zeros(self.width, d_vocab))
        self.heads: dict[str, tuple[int, Head]] = {}
        self.each_neuron: dict[str, tuple[int, Neuron]] = {}

    def embed(self, **features: Tensor) -> None:
        """What each token puts into each subspace: `[d_vocab, size]`."""
        self.ends = self.ends._replace(W_E=self._side_by_side(features, len(self.ends.W_E)))

    def pos_embed(self, **features: Tensor) -> None:
        """What each position puts into each subspace: `[n_ctx, size]`."""
        self.ends = self.ends._replace(W_pos=self._side_by_side(features, self.n_ctx))

    def unembed(self, **features: Tensor) -> None:
        """What each subspace adds to the logits: `[size, d_vocab_out]`."""
        d_vocab_out = next(iter(features.values())).shape[1]
        W_U = self._side_by_side({space: part.T for space, part in features.items()}, d_vocab_out).T
        self.ends = self.ends._replace(W_U=W_U)

    def head(self, role: str, layer: int, *, attends: Blocks, moves: Blocks) -> None:
        """A head whose attention scores are the sum, over blocks, of query's part · matrix · key's part."""
        W_Q, W_K_turned = _factors(self._circuit(attends))
        self.heads[role] = layer, Head(W_Q, W_K_turned.T, *_factors(self._circuit(moves)))

    def neurons(self, role: str, layer: int, *, reads: Features, writes: Features, bias: Tensor | None = None) -> None:
        """Neurons `role0`, `role1` …: relu(reads · stream + bias) · writes, both `[neuron, size]` in each subspace."""
        n = len(next(iter(reads.values())))
        each = zip(self._side_by_side(reads, n), self._side_by_side(writes, n), strict=True)
        biases = [0.0] * n if bias is None else bias.tolist()
        self.each_neuron |= {f"{role}{i}": (layer, Neuron(*sides, biases[i])) for i, sides in enumerate(each)}

    def planted(
        self, draw: Callable[[int, torch.Generator], Examples], *, zero: Truth, resample: Truth, **config: Any
    ) -> Planted:
        """The model, with the truths, in which nodes go by their roles. `config` goes to `GPTConfig` as it is."""
        model, roles, distractors = self._made(config)
        return Planted(
            name=self.name,
            model=model,
            truth={"zero": zero.renamed(roles), "resample": resample.renamed(roles)},
            roles=roles,
            distractors=distractors,
            spaces=self.spaces,
            draw=draw,
        )

    def model(self, **config: Any) -> HookedGPT:
        """The model alone, which has no task. `config` goes to `GPTConfig` as it is."""
        return self._made(config)[0]

    def _made(self, config: Mapping[str, Any]) -> tuple[HookedGPT, dict[str, str], tuple[str, ...]]:
        """The model, each role's node, and the distractors."""
        n_layers = 1 + max(layer for layer, _ in (*self.heads.values(), *self.each_neuron.values()))
        layers_of_heads = {role: layer for role, (layer, _) in self.heads.items()}
        layers_of_neurons = {role: layer for role, (layer, _) in self.each_neuron.items()}
        heads, more_heads = self._dealt(layers_of_heads, n_layers, self.n_more_heads)
        neurons, more_neurons = self._dealt(layers_of_neurons, n_layers, self.n_more_neurons)
        model = assembled(
            self.ends,
            {heads[role]: head for role, (_, head) in self.heads.items()} | self._random_heads(more_heads),
            {neurons[role]: neuron for role, (_, neuron) in self.each_neuron.items()}
            | self._random_neurons(more_neurons),
            n_ctx=self.n_ctx,
            norm=self.norm,
            **config,
        )
        roles = {role: f"L{layer}H{slot}" for role, (layer, slot) in heads.items()}
        roles |= {role: f"L{layer}N{slot}" for role, (layer, slot) in neurons.items()}
        distractors = [f"L{layer}H{slot}" for layer, slot in more_heads]
        distractors += [f"L{layer}N{slot}" for layer, slot in more_neurons]
        return model, roles, tuple(distractors)

    def _circuit(self, blocks: Blocks) -> Float[Tensor, "width width"]:
        circuit = torch.zeros(self.width, self.width)
        for (source, target), block in blocks.items():
            where = self.spaces[source], self.spaces[target]
            matrix = block if isinstance(block, Tensor) else block * torch.eye(circuit[where].shape[0])
            self._put(matrix, circuit, where, f"{source} to {target}")
        return circuit

    def _side_by_side(self, features: Features, n_rows: int) -> Float[Tensor, "row width"]:
        rows = torch.zeros(n_rows, self.width)
        for space, part in features.items():
            self._put(part, rows, (slice(None), self.spaces[space]), space)
        return rows

    def _put(self, part: Tensor, whole: Tensor, where: tuple[slice, slice], what: str) -> None:
        if part.shape != whole[where].shape:
            raise ValueError(f"{self.name}, {what}: {list(part.shape)} given, {list(whole[where].shape)} needed")
        whole[where] = part

    def _dealt(self, layers: Mapping[str, int], n_layers: int, n_more: int) -> tuple[dict[str, Place], list[Place]]:
        """A random place in its layer for each role, and the places left over for distractors."""
        n_slots = max(Counter(layers.values()).values(), default=0) + n_more
        free = [torch.randperm(n_slots, generator=self.generator).tolist() for _ in range(n_layers)]
        places = {role: (layer, free[layer].pop()) for role, layer in layers.items()}
        return places, [(layer, slot) for layer in range(n_layers) for slot in sorted(free[layer]) if n_more]

    def _random_heads(self, places: list[Place]) -> dict[Place, Head]:
        """Heads that read everything and write to everything, with scores as large as |query| |key|."""
        d_head = max((head.d_head() for _, head in self.heads.values()), default=1)
        scale = self.strength / sqrt(max(len(places), 1) * self.width)
        heads = {}
        for place in places:
            W_Q, W_K = (self._noise(self.width, d_head) / d_head**0.25 for _ in range(2))
            W_V = self._noise(self.width, d_head) / sqrt(d_head)
            heads[place] = Head(W_Q, W_K, W_V, self._noise(d_head, self.width) * scale)
        return heads

    def _random_neurons(self, places: list[Place]) -> dict[Place, Neuron]:
        """Neurons that read everything and write to everything."""
        scale = self.strength * sqrt(2 / (max(len(places), 1) * self.width))  # relu lets half of the squares through
        return {place: Neuron(self._noise(self.width), self._noise(self.width) * scale, 0.0) for place in places}

    def _noise(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator)


def _factors(circuit: Float[Tensor, "width width"]) -> tuple[Float[Tensor, "width n"], Float[Tensor, "n width"]]:
    """Two matrices with this product, through as few coordinates as it reads, or as it writes."""
    eye = torch.eye(len(circuit))
    rows, columns = circuit.any(1), circuit.any(0)
    return (eye[:, rows], circuit[rows]) if rows.sum() < columns.sum() else (circuit[:, columns], eye[columns])
