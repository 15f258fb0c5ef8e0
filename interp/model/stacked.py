"""The weights under their names in the theory, stacked over layers, and their gradients."""

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp.config import GPTConfig
from interp.hooks import HookedModule
from interp.model.block import Block
from interp.model.embed import Embed, Unembed
from interp.model.mlp import GatedMLP


class StackedWeights(HookedModule):
    """`model.W_Q` and its kin: differentiable copies made on access, multiplied as `x @ W`.

    The writable views are the block's: `model.blocks[layer].attn.W_Q`. A bias that the model lacks is zeros here; a
    weight that it lacks is an AttributeError.
    """

    cfg: GPTConfig
    embed: Embed
    pos_embed: Any
    unembed: Unembed
    blocks: Sequence[Block]

    @property
    def device(self) -> torch.device:
        return self.embed.W_E.device

    @property
    def dtype(self) -> torch.dtype:
        return self.embed.W_E.dtype

    @property
    def W_E(self) -> Float[Tensor, "d_vocab d_model"]:
        return self.embed.W_E

    @property
    def W_pos(self) -> Float[Tensor, "n_ctx d_model"]:
        return self.pos_embed.W_pos

    @property
    def W_U(self) -> Float[Tensor, "d_model d_vocab_out"]:
        return self.unembed.W_U

    @property
    def b_U(self) -> Float[Tensor, " d_vocab_out"]:
        return self.W_U.new_zeros(self.cfg.d_vocab_out) if self.unembed.b_U is None else self.unembed.b_U

    @property
    def W_Q(self) -> Float[Tensor, "layer head d_model d_head"]:
        return self._stack(lambda block: block.attn.W_Q)

    @property
    def W_K(self) -> Float[Tensor, "layer kv_head d_model d_head"]:
        return self._stack(lambda block: block.attn.W_K)

    @property
    def W_V(self) -> Float[Tensor, "layer kv_head d_model d_head"]:
        return self._stack(lambda block: block.attn.W_V)

    @property
    def W_O(self) -> Float[Tensor, "layer head d_head d_model"]:
        return self._stack(lambda block: block.attn.W_O)

    @property
    def b_Q(self) -> Float[Tensor, "layer head d_head"]:
        return self._stack(lambda block: block.attn.b_Q, self.cfg.n_heads, self.cfg.d_head)

    @property
    def b_K(self) -> Float[Tensor, "layer kv_head d_head"]:
        return self._stack(lambda block: block.attn.b_K, self.cfg.n_key_value_heads, self.cfg.d_head)

    @property
    def b_V(self) -> Float[Tensor, "layer kv_head d_head"]:
        return self._stack(lambda block: block.attn.b_V, self.cfg.n_key_value_heads, self.cfg.d_head)

    @property
    def b_O(self) -> Float[Tensor, "layer d_model"]:
        return self._stack(lambda block: block.attn.b_O, self.cfg.d_model)

    @property
    def W_in(self) -> Float[Tensor, "layer d_model d_mlp"]:
        return self._stack(lambda block: block.mlp.W_in)

    @property
    def W_gate(self) -> Float[Tensor, "layer d_model d_mlp"]:
        return self._stack(lambda block: cast(GatedMLP, block.mlp).W_gate)

    @property
    def W_out(self) -> Float[Tensor, "layer d_mlp d_model"]:
        return self._stack(lambda block: block.mlp.W_out)

    @property
    def b_in(self) -> Float[Tensor, "layer d_mlp"]:
        return self._stack(lambda block: block.mlp.b_in, self.cfg.d_mlp)

    @property
    def b_out(self) -> Float[Tensor, "layer d_model"]:
        return self._stack(lambda block: block.mlp.b_out, self.cfg.d_model)

    def all_heads(self, by_kv_head: Float[Tensor, "layer kv_head ..."]) -> Float[Tensor, "layer head ..."]:
        """`W_K`, `W_V`, `b_K` or `b_V` repeated so that each head has its own, as the circuit tools need them."""
        return by_kv_head.repeat_interleave(self.cfg.n_heads // self.cfg.n_key_value_heads, dim=1)

    def grad(self, name: str, layer: int | None = None) -> Tensor | None:
        """The gradient of a weight by its name in the theory: `model.grad("W_Q", 3)`; None before any backward."""
        owners = [self] if layer is None else [self.blocks[layer].attn, getattr(self.blocks[layer], "mlp", None)]
        weight = next((found for owner in owners if (found := getattr(owner, name, None)) is not None), None)
        if not isinstance(weight, Tensor):
            raise KeyError(f"no weight {name!r} {'' if layer is None else f'in layer {layer} '}of this model")
        stored = weight if weight._base is None else weight._base
        if not isinstance(stored, nn.Parameter):
            raise KeyError(
                f"{name!r} is no parameter of the whole model: say which layer, as in model.grad({name!r}, 0)"
            )
        if (grad := stored.grad) is None:
            return None
        grad = grad.contiguous()  # as weights are stored
        start = grad.storage_offset() + weight.storage_offset() - stored.storage_offset()
        return grad.as_strided(weight.shape, weight.stride(), start)

    def _stack(self, view: Callable[[Block], Tensor | None], *zeros: int) -> Tensor:
        views = [view(block) for block in self.blocks]
        found = [self.W_E.new_zeros(zeros) if weight is None else weight for weight in views]
        return torch.stack(found)
