"""Into the stream and out of it: token embeddings, positions, unembedding."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from interp.config import GPTConfig
from interp.hooks import HookPoint, is_heard
from interp.model.linear import product
from interp.model.norms import norm

Stream = Float[Tensor, "batch pos d_model"]
Positions = Int[Tensor, "#batch pos"]


class Embed(nn.Module):
    """A row of W_E for each token, times a factor and past a norm where the configuration has them."""

    def __init__(self, cfg: GPTConfig) -> None:
        super().__init__()
        self.scale = cfg.embed_scale
        self.ln = norm(cfg, exists=cfg.embed_norm)
        self.W_E = nn.Parameter(torch.empty(cfg.d_vocab, cfg.d_model, dtype=cfg.dtype, device=cfg.device))

    def forward(self, tokens: Int[Tensor, "batch pos"]) -> Stream:
        rows = F.embedding(tokens, self.W_E)
        if self.scale != 1:
            rows = rows * torch.tensor(self.scale, dtype=rows.dtype)  # rounded as the weights are
        return self.ln(rows)


class LearnedPositions(nn.Module):
    """A row of W_pos for each position."""

    def __init__(self, cfg: GPTConfig) -> None:
        super().__init__()
        self.W_pos = nn.Parameter(torch.empty(cfg.n_ctx, cfg.d_model, dtype=cfg.dtype, device=cfg.device))

    def forward(self, positions: Positions, dtype: torch.dtype) -> Float[Tensor, "#batch pos d_model"]:
        return F.embedding(positions, self.W_pos)


class SinusoidalPositions(nn.Module):
    """Sines and cosines of wavelengths from 2π to 10,000 · 2π in turn (Vaswani et al., 2017)."""

    def __init__(self, cfg: GPTConfig) -> None:
        super().__init__()
        self.d_model = cfg.d_model

    def forward(self, positions: Positions, dtype: torch.dtype) -> Float[Tensor, "#batch pos d_model"]:
        exact = torch.float64 if dtype == torch.float64 else torch.float32
        pair = torch.arange(0, self.d_model, 2, dtype=exact, device=positions.device)
        angle = positions[..., None] * 10_000 ** (-pair / self.d_model)
        return torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(-2)[..., : self.d_model].to(dtype)


class Unembed(nn.Module):
    """Logits: x W_U + b_U. Tied, W_U is the embedding's W_E turned round, and no weight of its own."""

    def __init__(self, cfg: GPTConfig, embed: Embed) -> None:
        super().__init__()
        made = {"dtype": cfg.dtype, "device": cfg.device}
        self.weight = (
            None if cfg.tie_word_embeddings else nn.Parameter(torch.empty(cfg.d_vocab_out, cfg.d_model, **made))
        )
        self.bias = nn.Parameter(torch.empty(cfg.d_vocab_out, **made)) if cfg.bias_unembed else None
        self._embed = (embed,)  # in a tuple: read here, but not a part of this module
        self.hook_in = HookPoint("batch pos d_model", "the stream after the final norm")
        self.hook_out = HookPoint("batch pos d_vocab_out", "in W_U + b_U, the logits")

    def forward(self, x: Stream, tokens: Int[Tensor, " token"] | None = None) -> Float[Tensor, "batch pos d_vocab_out"]:
        """The logits of these tokens alone; None: of all."""
        x, rows = self.hook_in(x), self._rows()
        if tokens is None:
            return self.hook_out(product(x, rows, self.bias))
        if is_heard(self.hook_out):
            return self.hook_out(product(x, rows, self.bias))[..., tokens]
        return F.linear(x, rows[tokens], None if self.bias is None else self.bias[tokens])

    def _rows(self) -> Float[Tensor, "d_vocab_out d_model"]:
        return self._embed[0].W_E if self.weight is None else self.weight

    @property
    def W_U(self) -> Float[Tensor, "d_model d_vocab_out"]:
        return self._rows().T

    @property
    def b_U(self) -> Float[Tensor, " d_vocab_out"] | None:
        return self.bias
