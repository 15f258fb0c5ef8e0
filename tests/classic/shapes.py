"""Configs in the classic names, one of each kind, and weights of all sizes for them."""

from typing import Any

import torch
from torch import Tensor

from interp.classic import HookedTransformer, HookedTransformerConfig

SIZES: dict[str, Any] = {
    "n_layers": 2,
    "d_model": 24,
    "n_heads": 3,
    "d_head": 8,
    "n_ctx": 16,
    "d_vocab": 29,
    "d_mlp": 40,
}
GATED: dict[str, Any] = {"act_fn": "silu", "gated_mlp": True, "normalization_type": "RMS"}
ROTARY: dict[str, Any] = {"positional_embedding_type": "rotary"}
KINDS: dict[str, dict[str, Any]] = {
    "gpt2": SIZES | {"act_fn": "gelu_new"},
    "llama": SIZES | GATED | ROTARY | {"n_heads": 4, "n_key_value_heads": 2, "d_head": 6, "rotary_dim": 6},
    "neox": SIZES | ROTARY | {"act_fn": "gelu", "parallel_attn_mlp": True, "rotary_dim": 4},
    "solu": SIZES | {"act_fn": "solu", "normalization_type": None},
    "solu_ln": SIZES | {"act_fn": "solu_ln"},
    "shortformer": SIZES | {"act_fn": "gelu_fast", "positional_embedding_type": "shortformer"},
    "attention": {k: v for k, v in SIZES.items() if k != "d_mlp"} | {"attn_only": True, "normalization_type": None},
}


def filled(kind: str, seed: int = 0) -> HookedTransformer:
    """A model with no weight at its first value. (Classic gated MLPs misplace b_in, which no checkpoint has: zeros.)"""
    model = HookedTransformer(HookedTransformerConfig(**KINDS[kind]))
    generator, weights = torch.Generator().manual_seed(seed), dict[str, Tensor]()
    for name, weight in model.state_dict().items():
        drawn = torch.randn(weight.shape, generator=generator) * (0.1 if name.endswith(".w") else 0.3)
        is_idle = name.endswith("b_in") and KINDS[kind].get("gated_mlp", False)
        weights[name] = torch.zeros_like(drawn) if is_idle else drawn + float(name.endswith(".w"))
    model.load_state_dict(weights)
    return model


def rows(n: int = 3, n_pos: int = 11, seed: int = 1) -> Tensor:
    """Random tokens."""
    return torch.randint(0, 29, (n, n_pos), generator=torch.Generator().manual_seed(seed))
