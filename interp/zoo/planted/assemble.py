"""Puts hand-set parts together into a `HookedGPT`, whose other weights are all zero.

Parts know the width of the named subspaces only. A norm needs more: it divides by the length of the stream, which
differs from place to place. So every token carries a ballast beside which the rest is short, and the norm's gain undoes
the division. More ballast comes from layer 0's b_O, which belongs to no node: so beyond that layer, cutting an edge
from `embed` leaves the length nearly as it was. For LayerNorm's sake the ballast comes with its opposite, and one more
coordinate keeps the sum of all that is written at zero.
"""

from collections.abc import Mapping
from math import sqrt
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from interp.config import GPTConfig, Normalization
from interp.model import HookedGPT
from interp.model.norms import LayerNorm

Place = tuple[int, int]  # layer, and which head or neuron of it

BALLAST = 100.0  # beside a stream of length 2 or 3: the norm then varies by a few parts in ten thousand
MORE_BALLAST = 400.0  # from layer 0 on


class Ends(NamedTuple):
    """What goes into the stream, and what is read off its end."""

    W_E: Float[Tensor, "d_vocab width"]
    W_pos: Float[Tensor, "n_ctx width"] | None
    W_U: Float[Tensor, "width d_vocab_out"]


class Head(NamedTuple):
    W_Q: Float[Tensor, "width d_qk"]
    W_K: Float[Tensor, "width d_qk"]
    W_V: Float[Tensor, "width d_ov"]
    W_O: Float[Tensor, "d_ov width"]

    def d_head(self) -> int:
        return max(self.W_Q.shape[1], self.W_V.shape[1])


class Neuron(NamedTuple):
    w_in: Float[Tensor, " width"]
    w_out: Float[Tensor, " width"]
    b_in: float


def assembled(
    ends: Ends,
    heads: Mapping[Place, Head],
    neurons: Mapping[Place, Neuron],
    *,
    n_ctx: int,
    norm: Normalization | None,
    **config: Any,
) -> HookedGPT:
    """The model with these parts. `config` goes to `GPTConfig` as it is."""
    d_vocab, width = ends.W_E.shape
    n_heads, d_mlp = (1 + max((slot for _, slot in places), default=-1) for places in (heads, neurons))
    has_bias = any(neuron.b_in for neuron in neurons.values())
    with_mlp: dict[str, Any] = {"d_mlp": d_mlp, "act_fn": "relu", "bias_mlp": has_bias} if d_mlp else {}
    cfg = GPTConfig(
        n_layers=1 + max(layer for layer, _ in (*heads, *neurons)),
        d_model=width + (3 if norm else 0),
        n_heads=max(n_heads, 1),
        d_head=max((head.d_head() for head in heads.values()), default=1),
        n_ctx=n_ctx,
        d_vocab=d_vocab,
        d_vocab_out=ends.W_U.shape[1],
        attn_scale=1.0,
        positional_embedding_type=None if ends.W_pos is None else "standard",
        bias_qkv=False,
        bias_attn_out=norm is not None,
        attn_only=not d_mlp,
        normalization_type=norm,
        bias_norm=False,
        **(with_mlp | config),
    )
    model = HookedGPT(cfg).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        _set_norms(model)
        model.W_E.copy_(_written(ends.W_E, norm, BALLAST))
        if ends.W_pos is not None:
            model.W_pos.copy_(_written(ends.W_pos, norm))
        model.W_U[:width] = ends.W_U
        for (layer, slot), head in heads.items():
            attn = model.blocks[layer].attn
            attn.W_Q[slot, :width, : head.W_Q.shape[1]] = head.W_Q
            attn.W_K[slot, :width, : head.W_K.shape[1]] = head.W_K
            attn.W_V[slot, :width, : head.W_V.shape[1]] = head.W_V
            attn.W_O[slot, : head.W_O.shape[0]] = _written(head.W_O, norm)
        for (layer, slot), neuron in neurons.items():
            mlp = model.blocks[layer].mlp
            mlp.W_in[:width, slot] = neuron.w_in
            mlp.W_out[slot] = _written(neuron.w_out, norm)
            if mlp.b_in is not None:
                mlp.b_in[slot] = neuron.b_in
    return model


def _written(
    x: Float[Tensor, "*row width"], norm: Normalization | None, ballast: float = 0.0
) -> Float[Tensor, "*row d_model"]:
    """What goes into the stream; before a norm with ballast, its opposite, and what makes the sum zero."""
    if norm is None:
        return x
    ballasts = torch.tensor([ballast, -ballast]).expand(*x.shape[:-1], 2)
    return torch.cat((x, ballasts, -x.sum(-1, keepdim=True)), dim=-1)


def _set_norms(model: HookedGPT) -> None:
    """Gains that undo the division by what the ballast makes of the scale."""
    for name, module in model.named_modules():
        if isinstance(module, LayerNorm) and module.w is not None:
            ballast = BALLAST if name == "blocks.0.ln1" else BALLAST + MORE_BALLAST
            module.w.fill_(ballast * sqrt(2 / model.cfg.d_model))
    if (b_O := model.blocks[0].attn.b_O) is not None:
        b_O[-3:-1] = torch.tensor([MORE_BALLAST, -MORE_BALLAST])
