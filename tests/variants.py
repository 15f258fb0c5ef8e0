"""Small models that between them use every choice of the configuration, with sizes that all differ."""

from collections.abc import Iterable
from typing import Any

import pytest
import torch

from interp import GPTConfig, HookedGPT
from interp.config import RopeScaling

SIZES: dict[str, Any] = {
    "n_layers": 2,
    "d_model": 14,
    "n_heads": 3,
    "d_head": 5,
    "d_mlp": 17,
    "n_ctx": 11,
    "d_vocab": 13,
}
GROUPED: dict[str, Any] = {"n_heads": 4, "n_key_value_heads": 2, "d_head": 6}
SOLU: dict[str, Any] = {"positional_embedding_type": "shortformer", "act_fn": "solu_ln"}
NO_BIAS: dict[str, Any] = {"bias_qkv": False, "bias_attn_out": False, "bias_mlp": False}
ROTARY: dict[str, Any] = {"positional_embedding_type": "rotary"}

VARIANTS: dict[str, dict[str, Any]] = {
    "gpt2": {"tie_word_embeddings": True},
    "sinusoidal": {
        "normalization_type": "LNPre",
        "positional_embedding_type": "sinusoidal",
        "act_fn": "gelu",
        "bias_unembed": True,
        "d_vocab_out": 19,
    },
    "llama": GROUPED | NO_BIAS | ROTARY | {"normalization_type": "RMS", "act_fn": "silu", "gated_mlp": True},
    "gptj": ROTARY
    | {
        "rotary_dim": 4,
        "rotary_adjacent_pairs": True,
        "parallel_attn_mlp": True,
        "parallel_shared_norm": True,
        "bias_qkv": False,
        "bias_unembed": True,
        "bias_attn_out": False,
    },
    "neox": ROTARY | {"rotary_dim": 2, "rotary_base": 500.0, "parallel_attn_mlp": True, "act_fn": "gelu"},
    "post": {"norm_position": "post", "act_fn": "relu", "positional_embedding_type": "sinusoidal"},
    "encoder": {"norm_position": "post", "attention_dir": "bidirectional", "act_fn": "gelu", "eps": 1e-3},
    "olmo2": GROUPED
    | NO_BIAS
    | ROTARY
    | {"normalization_type": "RMS", "norm_position": "output", "gated_mlp": True, "act_fn": "silu"},
    "sandwich": {"norm_position": "both", "n_heads": 4, "n_key_value_heads": 1, "d_head": 3, "gated_mlp": True}
    | ROTARY
    | {"rotary_dim": 2, "act_fn": "gelu_pytorch_tanh", "attn_scale": 3.5},
    "qwen3": GROUPED
    | NO_BIAS
    | ROTARY
    | {"normalization_type": "RMS", "use_qk_norm": True}
    | {"rope_scaling": RopeScaling(kind="linear", factor=2.5), "window_size": 3},
    "gemma2": GROUPED
    | NO_BIAS
    | ROTARY
    | {"normalization_type": "RMS", "norm_gain_from_one": True, "norm_position": "both", "gated_mlp": True}
    | {
        "local_rotary_base": 70.0,
        "embed_scale": 3.7,
        "window_size": 4,
        "attn_types": ("local", "global"),
        "attn_scores_soft_cap": 2.0,
    }
    | {"output_logits_soft_cap": 1.5, "rope_scaling": RopeScaling(kind="llama3", factor=8.0, original_n_ctx=9)},
    "width_norm": GROUPED | {"use_qk_norm": True, "qk_norm_over_width": True, "window_size": 5, "act_fn": "solu"},
    "output_ln": SOLU | {"norm_position": "output", "embed_norm": True, "use_qk_norm": True, "qk_layer_norm": True},
    "attn_only": {"attn_only": True, "normalization_type": None, "positional_embedding_type": None},
    "attn_only_post": {"attn_only": True, "norm_position": "post", "bias_norm": False},
    "relu2": NO_BIAS
    | {"normalization_type": "RMSPre", "positional_embedding_type": "alibi", "act_fn": "relu2", "qkv_clip": 1.5},
}


def config(name: str, **changes: Any) -> GPTConfig:
    sizes = {k: v for k, v in SIZES.items() if not (k == "d_mlp" and VARIANTS[name].get("attn_only"))}
    return GPTConfig(**sizes | {"seed": 0, "initializer_range": 0.3} | VARIANTS[name] | changes)


def variant(name: str, dtype: torch.dtype = torch.float32, **changes: Any) -> HookedGPT:
    """A model of this kind with no weight at a neutral value, so that a forgotten bias or gain shows."""
    model = HookedGPT(config(name, **changes)).eval()
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter += 0.3 * torch.randn(parameter.shape, generator=draw)
    return model.to(dtype)


def quick_of(values: Iterable[Any], *quick: Any) -> list[Any]:
    """Parameters of a test, all of them slow except these."""
    return [value if value in quick else pytest.param(value, marks=pytest.mark.slow) for value in values]


# Between them they have nearly all that the others have: these go through what every variant does, the others when
# there is time.
EACH = quick_of(VARIANTS, "gpt2", "llama", "gptj", "post", "gemma2")


def some_tokens(n_rows: int = 3, n_pos: int = 7, d_vocab: int = SIZES["d_vocab"]) -> torch.Tensor:
    return torch.randint(0, d_vocab, (n_rows, n_pos), generator=torch.Generator().manual_seed(2))
