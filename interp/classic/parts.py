"""Parts of a model that notebooks call on their own: `blocks[0](resid)`, `attn(x, x, x)`, `pos_embed(tokens)`.

Called by the model they are given what all blocks of a pass share; here they make it themselves.
"""

from functools import cache
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor, nn

from interp.config import GPTConfig
from interp.model import HookedGPT
from interp.model.attention import Attention, Pass
from interp.model.block import AttentionBlock
from interp.model.embed import LearnedPositions, SinusoidalPositions


class Lone(nn.Module):
    """A part with the classic arguments; its class is made of one below and of the part's own."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _unfilled, type(self).__bases__, self.__dict__


class LoneBlock(Lone):
    """The stream after a block, of the stream before it, and of the positions that a shortformer reads beside it."""

    def forward(
        self, resid_pre: Tensor, this: Pass | None = None, shortformer_pos_embed: Tensor | None = None
    ) -> Tensor:
        block, cfg = cast(Any, super()), cast(Any, self).attn.cfg
        if this is None and cfg.is_shortformer and shortformer_pos_embed is None:
            raise ValueError("queries and keys of this block read positions beside the stream: shortformer_pos_embed=")
        return block.forward(resid_pre, this or _pass(resid_pre, cfg, shortformer_pos_embed))


class LoneAttention(Lone):
    """What attention writes, of what its heads read, `[batch pos d_model]` or apart, `[batch pos head d_model]`."""

    def forward(self, query_input: Any, key_input: Any, value_input: Tensor | None = None) -> Tensor:
        attention = cast(Any, super())
        if isinstance(key_input, Pass):
            return attention.forward(query_input, key_input)
        cfg: GPTConfig = cast(Any, self).cfg
        if value_input is None:
            raise ValueError("attention reads query_input, key_input and value_input")
        n_heads = (cfg.n_heads, cfg.n_key_value_heads, cfg.n_key_value_heads)
        reads = tuple(
            each if each.ndim == 4 else each[..., None, :].expand(-1, -1, n, -1)
            for each, n in zip((query_input, key_input, value_input), n_heads, strict=True)
        )
        none = reads[2].new_zeros(1, reads[2].shape[1], cfg.d_model) if cfg.is_shortformer else None  # they are in
        return attention.forward(reads, _pass(query_input, cfg, none))


class LonePositions(Lone):
    """What positions add to the stream, for tokens `[batch pos]` of which so many came before."""

    def forward(self, tokens: Tensor, past_kv_pos_offset: int | torch.dtype = 0) -> Tensor:
        embedded = cast(Any, super())
        if isinstance(past_kv_pos_offset, torch.dtype):  # positions, and the stream's dtype
            return embedded.forward(tokens, past_kv_pos_offset)
        where = torch.arange(tokens.shape[1], device=tokens.device)[None] + past_kv_pos_offset
        weight = next(self.parameters(), None)
        dtype = torch.get_default_dtype() if weight is None else weight.dtype
        return embedded.forward(where, dtype).expand(len(tokens), -1, -1)


_LONE = {
    AttentionBlock: LoneBlock,
    Attention: LoneAttention,
    LearnedPositions: LonePositions,
    SinusoidalPositions: LonePositions,
}


def let_be_called_alone(model: nn.Module) -> None:
    """Let the parts of a model take the classic arguments too."""
    for module in model.modules():
        for kind, lone in _LONE.items():
            if isinstance(module, kind) and not isinstance(module, lone):
                module.__class__ = _joined(lone, type(module))


@cache
def _joined(lone: type, kind: type) -> type:
    return type(kind.__name__, (lone, kind), {})


def _unfilled(lone: type, kind: type) -> nn.Module:
    return object.__new__(_joined(lone, kind))


def _pass(x: Tensor, cfg: GPTConfig, beside: Tensor | None) -> Pass:
    """A pass over tokens from position 0 on, without padding."""
    where = torch.arange(x.shape[1], device=x.device)[None]
    of = SimpleNamespace(cfg=cfg, dtype=x.dtype, placed=lambda where, n_rows: beside)  # noqa: ARG005
    return HookedGPT.pass_over(cast(Any, of), where, None)
