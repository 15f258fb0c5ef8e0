"""The weights as the residual stream meets them: what lies linearly between it and a matrix belongs to the matrix.

A norm divides by a scale that depends on its input; the rest of it is linear, and is part of every matrix here: its
gain, and a LayerNorm's centring (the mean it subtracts). The divisor and all biases are left out.

- What is read is read through the norm that stands before it: ln1 before heads, ln_final before the unembedding.
- What a head writes passes the norm on outputs, where there is one.
- In a "post" model the stream itself passes norms between the sublayers; what is carried over layers passes them too.
- Queries and keys that are normed have that norm's gain in W_Q and W_K. Rotation is left out.
- With grouped queries each head has the key and value weights of its group.

Half precision is raised to float32.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.hooks import silence
from interp.model import HookedGPT
from interp.model.block import Block, ParallelBlock, SharedNormBlock
from interp.model.norms import LayerNorm, NoNorm, Norm, exact

Reads = Float[Tensor, "head d_model d_head"]
Writes = Float[Tensor, "head d_head d_model"]


def dtype_of(model: HookedGPT) -> torch.dtype:
    """That of the weights here."""
    return exact(model.W_E[:0]).dtype


def through(norm: Norm, rows: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
    """Rows past the linear part of a norm."""
    if not isinstance(norm, LayerNorm):
        return rows
    centred = norm.centred(rows)
    return centred if norm.w is None else centred * exact(norm.w)


def behind(norm: Norm, W: Float[Tensor, "... d_model n"]) -> Float[Tensor, "... d_model n"]:
    """A matrix that reads past a norm, with its linear part taken in: x @ behind(norm, W) = through(norm, x) @ W."""
    if not isinstance(norm, LayerNorm):
        return W
    scaled = W if norm.w is None else W * exact(norm.w)[:, None]
    return norm.centred(scaled.mT).mT


def W_Q(model: HookedGPT, layer: int, before: Norm | None = None) -> Reads:
    """Behind ln1, or another norm before it."""
    attn = model.blocks[layer].attn
    gain = 1 if isinstance(attn.q_norm, NoNorm) else exact(attn.q_norm.w).unsqueeze(-2)
    return behind(before or model.blocks[layer].ln1, exact(attn.W_Q)) * gain


def W_K(model: HookedGPT, layer: int, before: Norm | None = None) -> Reads:
    """Behind ln1, or another norm before it."""
    attn = model.blocks[layer].attn
    gain = 1 if isinstance(attn.k_norm, NoNorm) else exact(attn.k_norm.w).unsqueeze(-2)
    return for_each_head(model, behind(before or model.blocks[layer].ln1, exact(attn.W_K)) * gain)


def W_V(model: HookedGPT, layer: int) -> Reads:
    block = model.blocks[layer]
    return for_each_head(model, behind(block.ln1, exact(block.attn.W_V)))


def W_O(model: HookedGPT, layer: int) -> Writes:
    block, W = model.blocks[layer], exact(model.blocks[layer].attn.W_O)
    return W if is_post(model) else through(block.ln1_post, W)


def W_U(model: HookedGPT) -> Float[Tensor, "d_model d_vocab_out"]:
    """As it is; what is read off through the final norm has passed `read_off` first."""
    return exact(model.W_U)


def read_off(model: HookedGPT, rows: Float[Tensor, "... d_model"], layer: int) -> Float[Tensor, "... d_model"]:
    """What stands in the stream in a layer, as the unembedding reads it."""
    return through(model.ln_final, carried(model, rows, layer, model.cfg.n_layers))


def for_each_head(
    model: HookedGPT, by_kv_head: Float[Tensor, "kv_head d_model d_head"]
) -> Float[Tensor, "head d_model d_head"]:
    n_in_group = model.cfg.n_heads // model.cfg.n_key_value_heads
    return by_kv_head if n_in_group == 1 else by_kv_head.repeat_interleave(n_in_group, dim=0)


def is_post(model: HookedGPT) -> bool:
    return model.cfg.norm_position == "post" and model.cfg.normalization_type is not None


def carried(
    model: HookedGPT,
    rows: Float[Tensor, "... d_model"],
    start: int,
    stop: int,
    past: Callable[[Norm, Tensor], Tensor] = through,
) -> Float[Tensor, "... d_model"]:
    """What stands in the stream in layer `start`, as it stands before layer `stop`: in a "post" model, normed."""
    if is_post(model):
        for block in model.blocks[start:stop]:
            rows = past(block.ln1_post, rows)
            rows = past(block.ln2_post, rows) if isinstance(block, Block) else rows
    return rows


@dataclass(frozen=True)
class Embedded:
    """What tokens put into the stream, as each layer reads it."""

    model: HookedGPT
    plain: Float[Tensor, "token d_model"]
    effective: Float[Tensor, "token d_model"] | None

    @classmethod
    def of(cls, model: HookedGPT, effective: bool, tokens: Int[Tensor, " token"] | None = None) -> "Embedded":
        """The embeddings of these tokens (None: of all); if `effective`, with what MLP0 makes of them."""
        return cls(model, embeddings(model, tokens), effective_embedding(model, tokens) if effective else None)

    def at(self, layer: int) -> Float[Tensor, "token d_model"]:
        """Layer 0 stands before MLP0, and reads the plain embedding."""
        if self.effective is None or layer == 0:
            return carried(self.model, self.plain, 0, layer)
        return carried(self.model, self.effective, 1, layer)


@torch.no_grad()
def effective_embedding(
    model: HookedGPT, tokens: Int[Tensor, " token"] | None = None, *, chunk: int = 4096
) -> Float[Tensor, "token d_model"]:
    """What a token alone has put into the stream after the first MLP: its embedding and what MLP0 makes of that.

    Norms are whole here, divisors and biases with them; positions and attention are left out. In models whose
    embeddings are tied it tells more of a token than W_E, which serves the unembedding too. `chunk` tokens at once.
    """
    if model.cfg.attn_only:
        raise ValueError("attn_only=True: there is no MLP0, and the effective embedding would be W_E")
    embedded = embeddings(model, tokens).to(model.dtype)
    with silence():
        return torch.cat([exact(_past_mlp0(model, some)) for some in embedded.split(chunk)])


def _past_mlp0(model: HookedGPT, embed: Float[Tensor, "token d_model"]) -> Float[Tensor, "token d_model"]:
    block = model.blocks[0]
    mid = block.ln1_post.unheard(embed) if is_post(model) else embed
    before = block.ln1 if isinstance(block, SharedNormBlock) else block.ln2
    mlp = block.mlp(before.unheard(mid)[None])[0]
    if is_post(model):
        return block.ln2_post.unheard(mid + mlp)
    return mid + (mlp if isinstance(block, ParallelBlock) else block.ln2_post.unheard(mlp))


def embeddings(model: HookedGPT, tokens: Int[Tensor, " token"] | None = None) -> Float[Tensor, "token d_model"]:
    """What these tokens (None: all) put into the stream."""
    W_E = model.W_E if tokens is None else model.W_E[tokens]
    rows = W_E if model.cfg.embed_scale == 1 else exact(W_E) * model.cfg.embed_scale
    return exact(model.embed.ln.unheard(rows.to(W_E.dtype)) if model.cfg.embed_norm else rows)


def checked_index(model: HookedGPT, what: Literal["layer", "head"], index: int) -> int:
    """A layer's or head's index, counted from the start."""
    n = model.cfg.n_layers if what == "layer" else model.cfg.n_heads
    if not -n <= index < n:
        raise ValueError(f"{what}={index}; the model has {n}: {-n} to {n - 1}")
    return index % n
