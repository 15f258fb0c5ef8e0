"""Checks at the model's door: what may be read, with which mask, after which past."""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.config import GPTConfig
from interp.model.kv_cache import KVCache

ReturnType = Literal["logits", "loss", "both"] | None
Mask = Bool[Tensor, "batch key_pos"]  # True where a token is real; keys are those of the past and the new ones


def checked_tokens(tokens: object, device: torch.device) -> Int[Tensor, "batch pos"]:
    """Token ids on the model's device; a single sequence becomes a batch of one."""
    if not isinstance(tokens, Tensor):
        raise TypeError(f"input must be token ids as a tensor [batch pos] or [pos], not a {type(tokens).__name__}")
    if tokens.is_floating_point() or tokens.is_complex() or tokens.dtype == torch.bool:
        raise TypeError(
            f"input must be integer token ids, not {tokens.dtype}; a residual stream goes in with start_at_layer="
        )
    if tokens.ndim not in (1, 2):
        raise ValueError(f"input has shape {list(tokens.shape)}; it must be [batch pos] or [pos]")
    if tokens.numel() == 0:
        raise ValueError(f"input is empty: shape {list(tokens.shape)}; give at least one token")
    return torch.atleast_2d(tokens.long()).to(device)


def check_range(tokens: Tensor, cfg: GPTConfig) -> None:
    """Raise if a token has no row in the embedding. Called when a look-up failed: until then, the look-up checks."""
    if tokens.device.type != "cpu" or tokens.is_floating_point():
        return  # a GPU that has met such a token answers nothing any more
    low, high = (int(bound) for bound in tokens.aminmax())
    if low < 0 or high >= cfg.d_vocab:
        culprit = low if low < 0 else high
        raise ValueError(f"token id {culprit} is out of range: d_vocab={cfg.d_vocab} allows 0 to {cfg.d_vocab - 1}")


def checked_resid(resid: object, cfg: GPTConfig, device: torch.device) -> Float[Tensor, "batch pos d_model"]:
    """A residual stream to start from."""
    if not isinstance(resid, Tensor) or not resid.is_floating_point():
        given = resid.dtype if isinstance(resid, Tensor) else type(resid).__name__
        raise TypeError(f"start_at_layer takes a residual stream [batch pos d_model] of floats, not {given}")
    if resid.ndim != 3 or resid.shape[-1] != cfg.d_model or resid.numel() == 0:
        raise ValueError(f"the residual stream has shape {list(resid.shape)}; it must be [batch pos {cfg.d_model}]")
    return resid.to(device)


def checked_layers(start: int | None, stop: int | None, n_layers: int) -> tuple[int, int]:
    """The blocks to run, as a range."""
    for name, layer in (("start_at_layer", start), ("stop_at_layer", stop)):
        if layer is not None and (not isinstance(layer, int) or isinstance(layer, bool)):
            raise TypeError(f"{name}={layer!r}; it must be an int")
        if layer is not None and not -n_layers <= layer <= n_layers:
            raise ValueError(f"{name}={layer}; allowed: {-n_layers} to {n_layers}")
    first = (start or 0) % n_layers if start != n_layers else n_layers
    last = n_layers if stop is None or stop == n_layers else stop % n_layers
    if first > last:
        raise ValueError(f"start_at_layer={start} lies behind stop_at_layer={stop}")
    return first, last


def checked_mask(
    mask: Tensor | None, n_rows: int, n_new: int, past: KVCache | None, device: torch.device
) -> Mask | None:
    """True where a token is real, past and new; None where nothing is padding."""
    if mask is not None:
        if not isinstance(mask, Tensor):
            raise TypeError(f"attention_mask is a tensor [batch pos], not a {type(mask).__name__}")
        if mask.ndim != 2 or mask.shape[1] != n_new or mask.shape[0] != n_rows:
            raise ValueError(
                f"attention_mask has shape {list(mask.shape)}; it must be that of the tokens given, [{n_rows}, {n_new}]"
                + (" (the past's mask is in the KV cache)" if past is not None else "")
            )
        mask = mask.to(device).bool()
        if device.type == "cpu" and mask.all():
            mask = None
    if past is None or past.length == 0:
        return mask
    if past.batch_size != n_rows:
        raise ValueError(f"past_kv_cache holds {past.batch_size} rows; the input has {n_rows}")
    if mask is None and past.attention_mask is None:
        return None
    before = torch.ones(n_rows, past.length, dtype=torch.bool, device=device)
    now = torch.ones(n_rows, n_new, dtype=torch.bool, device=device)
    return torch.cat((before if past.attention_mask is None else past.attention_mask, now if mask is None else mask), 1)


def positions(mask: Mask | None, n_past: int, n_new: int, device: torch.device) -> Int[Tensor, "#batch pos"]:
    """Where each new token stands, counted from the first real one."""
    if mask is None:
        return torch.arange(n_past, n_past + n_new, device=device)[None]
    return (mask.long().cumsum(1) - 1).clamp(min=0)[:, n_past:]


def distance(
    query_pos: Int[Tensor, "#batch query_pos"], key_pos: Int[Tensor, "#batch key_pos"]
) -> Int[Tensor, "#batch 1 query_pos key_pos"]:
    """How far each key stands before the query."""
    return (query_pos[:, :, None] - key_pos[:, None, :])[:, None]


def allowed_attention(
    mask: Mask | None, n_past: int, n_new: int, is_causal: bool, window: int | None, device: torch.device
) -> Bool[Tensor, "#batch 1 query_pos key_pos"] | None:
    """Who may look where; None where the attention kernel's own causal mask, or none, says it all.

    A padded query looks at itself alone, so that everything stays finite. A window counts the query's own position.
    """
    has_window = window is not None and n_past + n_new > window
    if mask is None and not has_window and (n_past == 0 or n_new == 1 or not is_causal):
        return None
    query = torch.arange(n_past, n_past + n_new, device=device)[:, None]
    key = torch.arange(n_past + n_new, device=device)
    allowed = (key <= query)[None, None] if is_causal else None
    if allowed is not None and window is not None:
        allowed = allowed & (query - key < window)
    if mask is None:
        return allowed
    real = mask[:, None, None, :]
    seen = (real if allowed is None else real & allowed) & mask[:, None, n_past:, None]
    return seen | (key == query)


def next_token_loss(
    logits: Float[Tensor, "batch pos d_vocab_out"],
    tokens: Int[Tensor, "batch pos"],
    mask: Bool[Tensor, "batch pos"] | None,
    per_token: bool,
) -> Float[Tensor, ""] | Float[Tensor, "batch pos-1"]:
    """Cross-entropy of each next token, where both it and the token it follows are real."""
    exact = logits.float() if logits.dtype.itemsize == 2 else logits
    loss = F.cross_entropy(exact[:, :-1].flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
    loss = loss.unflatten(0, (len(tokens), -1))
    if mask is None:
        return loss if per_token else loss.mean()
    counts = mask[:, 1:] & mask[:, :-1]
    loss = loss * counts
    return loss if per_token else loss.sum() / counts.sum().clamp(min=1)
