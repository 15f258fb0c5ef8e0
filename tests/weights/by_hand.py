"""Circuits written out with loops over heads and dense matrices, in float64, apart from `interp.weights`."""

import torch
from torch import Tensor, nn

from interp import HookedGPT


def linear_part(norm: nn.Module, d_model: int) -> Tensor:
    """The matrix N with which a norm is x N / divisor + bias."""
    N = torch.eye(d_model, dtype=torch.float64)
    kind = type(norm).__name__
    if kind == "LayerNorm":
        N = N - torch.full((d_model, d_model), 1 / d_model, dtype=torch.float64)
    if kind != "NoNorm" and norm.w is not None:
        N = N @ torch.diag(norm.w.detach().double())
    return N


def on_the_way(model: HookedGPT, start: int, stop: int) -> Tensor:
    """The matrix by which what enters the stream in one layer arrives before another."""
    d = model.cfg.d_model
    way = torch.eye(d, dtype=torch.float64)
    if model.cfg.norm_position == "post":
        for layer in range(start, stop):
            way = way @ linear_part(model.blocks[layer].ln1_post, d)
            if not model.cfg.attn_only:
                way = way @ linear_part(model.blocks[layer].ln2_post, d)
    return way


def ov(model: HookedGPT, layer: int, head: int) -> Tensor:
    block, d, group = model.blocks[layer], model.cfg.d_model, model.cfg.n_heads // model.cfg.n_key_value_heads
    product = block.attn.W_V[head // group].detach().double() @ block.attn.W_O[head].detach().double()
    product = linear_part(block.ln1, d) @ product
    return product if model.cfg.norm_position == "post" else product @ linear_part(block.ln1_post, d)


def qk(model: HookedGPT, layer: int, head: int) -> Tensor:
    block, d, group = model.blocks[layer], model.cfg.d_model, model.cfg.n_heads // model.cfg.n_key_value_heads
    N, n = linear_part(block.ln1, d), model.cfg.d_head
    gains = []
    for norm, which in ((block.attn.q_norm, head), (block.attn.k_norm, head // group)):
        gain = torch.ones(n, dtype=torch.float64)
        if model.cfg.use_qk_norm:
            gain = norm.w.detach().double()
            gain = gain[which] if gain.ndim == 2 else gain
        gains.append(torch.diag(gain))
    queries = N @ block.attn.W_Q[head].detach().double() @ gains[0]
    keys = N @ block.attn.W_K[head // group].detach().double() @ gains[1]
    return queries @ keys.T


def embedded(model: HookedGPT, layer: int) -> Tensor:
    rows = model.W_E.detach() * model.cfg.embed_scale
    return model.embed.ln.unheard(rows).detach().double() @ on_the_way(model, 0, layer)


def to_logits(model: HookedGPT, layer: int) -> Tensor:
    way = on_the_way(model, layer, model.cfg.n_layers) @ linear_part(model.ln_final, model.cfg.d_model)
    return way @ model.W_U.detach().double()
