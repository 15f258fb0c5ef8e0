"""Directions in the stream, from texts that differ in what they mean."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from interp.model import HookedGPT
from interp.recording import PosSlice, positions
from interp.results import as_tokens


@torch.no_grad()
def mean_difference(
    model: HookedGPT, toward: Any, away: Any, layer: int, pos: PosSlice = None
) -> Float[Tensor, " d_model"]:
    """The mean of the stream after a layer on the texts `toward`, less that on `away`, over their positions `pos`.

    A direction for `interventions.Steer`, as in Turner et al. 2023, https://arxiv.org/abs/2308.10248.
    """
    point = f"blocks.{layer}.hook_resid_post"
    if point not in model.hook_dict:
        raise ValueError(f"layer={layer}; there are {model.cfg.n_layers}")
    means = []
    for texts in (toward, away):
        tokens, mask = as_tokens(model, texts, None)
        _, cache = model.run_with_cache(tokens, names_filter=point, attention_mask=mask, return_type=None)
        real = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask
        chosen = positions(pos, tokens.shape[1], mask)
        stream = cache[point] if chosen is None else chosen.of(cache[point], 1).reshape(-1, model.cfg.d_model)
        means.append((stream[real] if chosen is None else stream).mean(0))
    return means[0] - means[1]


def random_directions(like: Float[Tensor, " d_model"], n: int, seed: int = 0) -> Float[Tensor, "direction d_model"]:
    """Directions drawn at random, as long as the one given: what any push of this size does."""
    drawn = torch.randn(n, len(like), generator=torch.Generator().manual_seed(seed)).to(like)
    return drawn * like.norm() / drawn.norm(dim=-1, keepdim=True)
