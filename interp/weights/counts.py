"""How many weights a model has, and where."""

from dataclasses import dataclass

from interp.model import HookedGPT


@dataclass(frozen=True)
class Weight:
    """A weight as it is stored: its shape, how many numbers it has, and its length as one vector."""

    name: str
    shape: tuple[int, ...]
    count: int
    norm: float


def stored(model: HookedGPT) -> list[Weight]:
    """Every weight of the model, once."""
    return [
        Weight(name, tuple(weight.shape), weight.numel(), float(weight.detach().double().norm()))
        for name, weight in model.named_parameters()
    ]


def parameter_counts(model: HookedGPT) -> dict[str, int]:
    """The number of weights by part: embeddings, attention, MLPs, norms, unembedding. They sum to all there are."""
    parts = {"embedding": 0, "positions": 0, "attention": 0, "MLPs": 0, "norms": 0, "unembedding": 0}
    for name, weight in model.named_parameters():
        parts[_part(name)] += weight.numel()
    return {part: count for part, count in parts.items() if count}


def _part(name: str) -> str:
    words = name.split(".")
    if any(word.startswith("ln") or word.endswith("_norm") for word in words):
        return "norms"
    kinds = {"embed": "embedding", "pos_embed": "positions", "unembed": "unembedding"}
    return kinds.get(words[0]) or ("attention" if "attn" in words else "MLPs")
