"""Twins of a model: what a score comes to where there is nothing to find."""

from collections.abc import Iterator

import torch
from torch import Tensor

from interp.model import HookedGPT
from interp.weights.folding import like

ATTENTION = ("W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V", "b_O")
MLP = ("W_in", "W_gate", "W_out", "b_in", "b_out")


@torch.no_grad()
def shuffled(model: HookedGPT, seed: int = 0) -> HookedGPT:
    """A twin with the entries of every matrix, and of every bias, in random order; the model itself stays as it is.

    Each layer's W_Q is shuffled within itself, across heads, and so is W_K, W_V …: all keep their sizes and the spread
    of their entries, and no circuit is left. Norms stay as they are, and tied embeddings tied.
    """
    twin = like(model, {name: weight.clone() for name, weight in model.state_dict().items()})
    generator = torch.Generator().manual_seed(seed)
    for weight in _named_weights(twin):
        order = torch.randperm(weight.numel(), generator=generator).to(weight.device)
        weight.copy_(weight.flatten()[order].view(weight.shape))
    return twin


def _named_weights(model: HookedGPT) -> Iterator[Tensor]:
    """All weights by their names in the theory, each once, as views that can be written."""
    ends = [(model.embed, "W_E"), (model.pos_embed, "W_pos"), (model.unembed, "b_U")]
    if not model.cfg.tie_word_embeddings:
        ends.append((model.unembed, "W_U"))
    each = [(block.attn, name) for block in model.blocks for name in ATTENTION]
    if not model.cfg.attn_only:
        each += [(block.mlp, name) for block in model.blocks for name in MLP]
    for module, name in [*ends, *each]:
        if (weight := getattr(module, name, None)) is not None:
            yield weight
