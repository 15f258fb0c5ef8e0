"""Rotary positions (Su et al., 2021): pairs of coordinates of queries and keys turn by an angle that grows."""

from math import ceil, floor, log, pi

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.config import GPTConfig

Rotation = tuple[Float[Tensor, "#batch pos 1 pair"], Float[Tensor, "#batch pos 1 pair"]]
Heads = Float[Tensor, "batch pos head d_head"]


def rotations(
    cfg: GPTConfig, positions: Int[Tensor, "#batch pos"], dtype: torch.dtype, length: Int[Tensor, ""] | None = None
) -> dict[bool, Rotation]:
    """Cosine and sine of each pair's angle at each position, one for all heads: of global layers and (True) local ones.

    `length` is that of the whole input, where it goes on behind these positions.
    """
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    pair = torch.arange(0, cfg.rotary_dim, 2, dtype=exact, device=positions.device)

    def turned(frequency: Tensor, factor: float = 1.0) -> Rotation:
        angle = positions[..., None, None] * frequency
        return (factor * angle.cos()).to(dtype), (factor * angle.sin()).to(dtype)

    frequency, factor = cfg.rotary_base ** (-pair / cfg.rotary_dim), 1.0
    if cfg.rope_scaling is not None:
        length = positions.max() + 1 if length is None else length
        frequency, factor = scaled(frequency, cfg, length), cfg.rope_scaling.attention_factor
    found = turned(frequency, factor)
    if cfg.local_rotary_base is None:
        return {False: found, True: found}
    return {False: found, True: turned(cfg.local_rotary_base ** (-pair / cfg.rotary_dim))}


def scaled(frequency: Float[Tensor, " pair"], cfg: GPTConfig, length: Int[Tensor, ""]) -> Float[Tensor, " pair"]:
    """The frequencies as `cfg.rope_scaling` slows them in an input of this length."""
    scaling = cfg.rope_scaling
    assert scaling is not None
    low, high, factor = scaling.low_freq_factor, scaling.high_freq_factor, scaling.factor
    if scaling.kind == "linear":
        return frequency / factor
    if scaling.kind == "longrope":
        long, short = (frequency.new_tensor(each) for each in (scaling.long_factors, scaling.short_factors))
        return frequency / torch.where(length > scaling.original_n_ctx, long, short)
    pair = torch.arange(len(frequency), dtype=frequency.dtype, device=frequency.device)
    if scaling.kind == "dynamic":
        stretch = factor * (length / scaling.original_n_ctx).clamp(min=1) - (factor - 1)
        return frequency * stretch ** (-2 * pair / (cfg.rotary_dim - 2))
    if scaling.kind == "yarn":  # the pairs that make `high` and `low` turns over the original context
        turning = lambda turns: log(scaling.original_n_ctx / (2 * pi * turns)) / (2 * log(cfg.rotary_base))
        first = max(floor(cfg.rotary_dim * turning(high)), 0)
        last = min(ceil(cfg.rotary_dim * turning(low)), cfg.rotary_dim - 1)
        kept = 1 - (pair - first) / max(last - first, 0.001)
    else:
        turns = scaling.original_n_ctx * frequency / (2 * pi)  # over the original context
        kept = (turns - low) / (high - low)
    kept = kept.clamp(0, 1)
    return kept * frequency + (1 - kept) * frequency / factor


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
