"""Rotary positions (Su et al., 2021): pairs of coordinates of queries and keys turn by an angle that grows."""

from math import pi

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.config import GPTConfig, RopeScaling

Rotation = tuple[Float[Tensor, "#batch pos 1 pair"], Float[Tensor, "#batch pos 1 pair"]]
Heads = Float[Tensor, "batch pos head d_head"]


def rotation(cfg: GPTConfig, positions: Int[Tensor, "#batch pos"], dtype: torch.dtype) -> Rotation:
    """Cosine and sine of each pair's angle at each position, one for all heads."""
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    pair = torch.arange(0, cfg.rotary_dim, 2, dtype=exact, device=positions.device)
    frequency = cfg.rotary_base ** (-pair / cfg.rotary_dim)
    if cfg.rope_scaling is not None:
        frequency = scaled(frequency, cfg.rope_scaling)
    angle = positions[..., None, None] * frequency
    return angle.cos().to(dtype), angle.sin().to(dtype)


def scaled(frequency: Float[Tensor, " pair"], scaling: RopeScaling) -> Float[Tensor, " pair"]:
    """The frequencies as `scaling` slows them."""
    if scaling.kind == "linear":
        return frequency / scaling.factor
    turns = scaling.original_n_ctx * frequency / (2 * pi)  # over the original context
    kept = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    kept = kept.clamp(0, 1)
    return kept * frequency + (1 - kept) * frequency / scaling.factor


def rotate_halves(x: Heads, cos: Tensor, sin: Tensor) -> Heads:
    """Turn pairs (0, r/2), (1, r/2 + 1) … of the first r coordinates; the others stay."""
    n_pairs = cos.shape[-1]
    a, b, rest = x.split([n_pairs, n_pairs, x.shape[-1] - 2 * n_pairs], dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin, rest), dim=-1)


def rotate_pairs(x: Heads, cos: Tensor, sin: Tensor) -> Heads:
    """Turn pairs (0, 1), (2, 3) … of the first r coordinates; the others stay."""
    turning, rest = x.tensor_split([2 * cos.shape[-1]], dim=-1)
    a, b = turning[..., ::2], turning[..., 1::2]
    turned = torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(-2)
    return torch.cat((turned, rest), dim=-1)
