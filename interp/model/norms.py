"""LayerNorm and RMSNorm: one fused kernel while nobody listens, the paper's formula otherwise."""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from interp.config import GPTConfig
from interp.hooks import HookPoint, is_heard

Stream = Float[Tensor, "*batch pos width"]  # of d_model; in an MLP, of d_mlp


class LayerNorm(nn.Module):
    """(x - mean) / scale * w + b, scale = sqrt(variance + eps)."""

    WITH_GAIN = "LN"

    def __init__(self, cfg: GPTConfig, axis: Literal["d_model", "d_mlp"] = "d_model") -> None:
        super().__init__()
        has_gain = cfg.normalization_type == self.WITH_GAIN
        empty = torch.empty(getattr(cfg, axis), dtype=cfg.dtype, device=cfg.device)
        self.add_gain(empty if has_gain else None)
        self.b = nn.Parameter(empty.clone()) if cfg.bias_norm else None
        self.eps = cfg.eps
        self.hook_scale = HookPoint("batch pos 1", "sqrt(variance(x) + eps)")
        self.hook_normalized = HookPoint(f"batch pos {axis}", "(x - mean(x)) / scale, before gain and bias")

    def add_gain(self, empty: Tensor | None) -> None:
        self.w = None if empty is None else nn.Parameter(empty)

    def forward(self, x: Stream) -> Stream:
        if not is_heard(self.hook_scale, self.hook_normalized):
            return self.unheard(x)
        centred = self.centred(exact(x))
        scale = self.hook_scale((centred.square().mean(-1, keepdim=True) + self.eps).sqrt())
        normalized = self.hook_normalized((centred / scale).to(x.dtype))
        return self.affine(normalized)

    def unheard(self, x: Float[Tensor, "... width"]) -> Float[Tensor, "... width"]:
        """The norm of any input, past the hook points."""
        return F.layer_norm(x, x.shape[-1:], self.w, self.b, self.eps)

    def centred(self, x: Float[Tensor, "... width"]) -> Float[Tensor, "... width"]:
        return x - x.mean(-1, keepdim=True)

    def affine(self, normalized: Float[Tensor, "... width"]) -> Float[Tensor, "... width"]:
        scaled = normalized if self.w is None else normalized * self.w
        return scaled if self.b is None else scaled + self.b


class RMSNorm(LayerNorm):
    """x / scale * w, scale = sqrt(mean(x²) + eps)."""

    WITH_GAIN = "RMS"

    def __init__(self, cfg: GPTConfig) -> None:
        super().__init__(cfg)
        self.hook_scale.formula = "sqrt(mean(x²) + eps)"
        self.hook_normalized.formula = "x / scale, before the gain"

    def unheard(self, x: Float[Tensor, "... width"]) -> Float[Tensor, "... width"]:
        return F.rms_norm(x, x.shape[-1:], self.w, self.eps)

    def centred(self, x: Float[Tensor, "... width"]) -> Float[Tensor, "... width"]:
        return x


class GainFromOne(RMSNorm):
    """The same, its gain stored as what it has more than 1: so half precision keeps small differences."""

    def add_gain(self, empty: Tensor | None) -> None:
        assert empty is not None
        self.excess = nn.Parameter(empty)

    @property
    def w(self) -> Float[Tensor, " d_model"]:  # type: ignore[override]
        return 1 + exact(self.excess)

    def unheard(self, x: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        return F.rms_norm(exact(x), x.shape[-1:], self.w, self.eps).to(x.dtype)

    def affine(self, normalized: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        return (normalized * self.w).to(normalized.dtype)


def exact(x: Tensor) -> Tensor:
    """In single precision at least: half cannot hold a sum of squares."""
    return x.float() if x.dtype.itemsize == 2 else x


class HeadNorm(nn.Module):
    """The norm of queries or keys: in each head, or over all heads together."""

    def __init__(self, cfg: GPTConfig, n_heads: int, head_axis: str) -> None:
        super().__init__()
        shape = (n_heads, cfg.d_head) if cfg.qk_norm_over_width or cfg.qk_layer_norm else (cfg.d_head,)
        self.add_gain(torch.empty(shape, dtype=cfg.dtype, device=cfg.device))
        self.eps, self.is_centred = cfg.eps, cfg.qk_layer_norm
        self.over = (-2, -1) if cfg.qk_norm_over_width else (-1,)
        scale_axes = "batch pos 1 1" if cfg.qk_norm_over_width else f"batch pos {head_axis} 1"
        self.hook_scale = HookPoint(scale_axes, "sqrt(mean(x²) + eps)")
        self.hook_normalized = HookPoint(f"batch pos {head_axis} d_head", "x / scale, before the gain")
        if self.is_centred:
            self.hook_scale.formula = "sqrt(variance(x) + eps)"
            self.hook_normalized.formula = "(x - mean(x)) / scale, before the gain"

    def add_gain(self, empty: Tensor) -> None:
        self.w = nn.Parameter(empty)

    def forward(self, x: Float[Tensor, "batch pos head d_head"]) -> Float[Tensor, "batch pos head d_head"]:
        if not is_heard(self.hook_scale, self.hook_normalized):
            return self.unheard(x)
        centred = exact(x) - exact(x).mean(-1, keepdim=True) if self.is_centred else exact(x)
        scale = self.hook_scale((centred.square().mean(self.over, keepdim=True) + self.eps).sqrt())
        return (self.hook_normalized((centred / scale).to(x.dtype)) * self.w).to(x.dtype)

    def unheard(self, x: Float[Tensor, "batch pos head d_head"]) -> Float[Tensor, "batch pos head d_head"]:
        """The norm past the hook points."""
        if self.is_centred:
            return F.layer_norm(x, x.shape[-1:], eps=self.eps) * self.w
        return F.rms_norm(x, self.w.shape, self.w, self.eps)


class HeadGainFromOne(HeadNorm):
    """The same, its gain stored as what it has more than 1."""

    def add_gain(self, empty: Tensor) -> None:
        self.excess = nn.Parameter(empty)

    @property
    def w(self) -> Float[Tensor, "*head d_head"]:  # type: ignore[override]
        return 1 + exact(self.excess)

    def unheard(self, x: Float[Tensor, "batch pos head d_head"]) -> Float[Tensor, "batch pos head d_head"]:
        return super().unheard(exact(x)).to(x.dtype)


class NoNorm(nn.Identity):
    """Where the configuration has no norm."""

    def __call__(self, x: Tensor) -> Tensor:
        return x  # straight through, as at a hook point

    def unheard(self, x: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        return x


Norm = LayerNorm | NoNorm


def norm(cfg: GPTConfig, exists: bool = True) -> Norm:
    """A norm of the configured kind; the identity where there is none."""
    if not exists or cfg.normalization_type is None:
        return NoNorm()
    if cfg.norm_gain_from_one:
        return GainFromOne(cfg)
    return LayerNorm(cfg) if cfg.normalization_type.startswith("LN") else RMSNorm(cfg)


def head_norm(cfg: GPTConfig, n_heads: int, head_axis: str) -> HeadNorm | NoNorm:
    """The norm of queries or keys, which have so many heads; the identity where there is none."""
    if not cfg.use_qk_norm:
        return NoNorm()
    return (HeadGainFromOne if cfg.norm_gain_from_one else HeadNorm)(cfg, n_heads, head_axis)
