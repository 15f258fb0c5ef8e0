"""How well attention fits a pattern that is expected of it, head by head.

`interp.heads.detect_pattern` does the same with what shuffled heads reach beside it.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.cache import ActivationCache
from interp.classic.utils import is_lower_triangular

HeadName = Literal["previous_token_head", "duplicate_token_head", "induction_head"]
ErrorMeasure = Literal["abs", "mul"]
HEAD_NAMES = list(get_args(HeadName))
Square = Float[Tensor, "pos pos"]


def detect_head(
    model: Any,
    seq: str | Sequence[str],
    detection_pattern: Tensor | HeadName,
    heads: Sequence[tuple[int, int]] | Mapping[int, Sequence[int]] | None = None,
    cache: ActivationCache | None = None,
    *,
    exclude_bos: bool = False,
    exclude_current_token: bool = False,
    error_measure: ErrorMeasure = "mul",
) -> Float[Tensor, "layer head"]:
    """The score of each head, of those that were not asked for -1; of several texts, the mean.

    "mul" is the share of attention that falls where the pattern is, "abs" 1 less the mean distance from it.
    """
    if error_measure not in get_args(ErrorMeasure):
        raise ValueError(f"Invalid error_measure={error_measure}; valid values are {get_args(ErrorMeasure)}")
    if isinstance(detection_pattern, str) and detection_pattern not in HEAD_NAMES:
        raise ValueError(f"detection_pattern must be a Tensor or one of head names: {HEAD_NAMES}")
    options: dict[str, Any] = {"exclude_bos": exclude_bos, "exclude_current_token": exclude_current_token}
    options["error_measure"] = error_measure
    if not isinstance(seq, str):
        if cache is not None:
            raise ValueError("a cache is of one text; leave it out where several are given")
        each = [detect_head(model, text, detection_pattern, heads, **options) for text in seq]
        return torch.stack(each).mean(0)
    tokens = model.to_tokens(seq)
    n_pos = tokens.shape[1]
    if not 1 < n_pos <= model.cfg.n_ctx:
        raise ValueError(f"a text of {n_pos} tokens; at least 2, and at most n_ctx={model.cfg.n_ctx}")
    wanted = _PATTERNS[detection_pattern](tokens) if isinstance(detection_pattern, str) else detection_pattern
    wanted = wanted.to(model.device)
    if not is_lower_triangular(wanted) or len(wanted) != n_pos:
        raise ValueError(f"the pattern must be lower triangular, [{n_pos} {n_pos}]; given: {list(wanted.shape)}")
    if cache is None:
        with torch.no_grad():
            cache = model.run_with_cache(tokens, names_filter=lambda name: name.endswith("hook_pattern"))[1]
    assert cache is not None
    scores = -torch.ones(model.cfg.n_layers, model.cfg.n_heads)
    for layer, chosen in _chosen(heads, model).items():
        pattern = cache["pattern", layer]
        pattern = pattern[0] if pattern.ndim == 4 else pattern
        for head in chosen:
            scores[layer, head] = compute_head_attention_similarity_score(pattern[head], wanted, **options)
    return scores


def get_previous_token_head_detection_pattern(tokens: Int[Tensor, "1 pos"]) -> Square:
    """Each position at the one before."""
    return torch.eye(tokens.shape[-1]).roll(-1, 1).tril()


def get_duplicate_token_head_detection_pattern(tokens: Int[Tensor, "1 pos"]) -> Square:
    """Each token at the same token before."""
    return (tokens[0, :, None] == tokens[0]).float().tril(-1).cpu()


def get_induction_head_detection_pattern(tokens: Int[Tensor, "1 pos"]) -> Square:
    """Each token at what followed the same token before."""
    return torch.nn.functional.pad(get_duplicate_token_head_detection_pattern(tokens), (1, 0))[:, :-1].tril()


_PATTERNS = {
    "previous_token_head": get_previous_token_head_detection_pattern,
    "duplicate_token_head": get_duplicate_token_head_detection_pattern,
    "induction_head": get_induction_head_detection_pattern,
}


def compute_head_attention_similarity_score(
    attention_pattern: Square,
    detection_pattern: Square,
    *,
    exclude_bos: bool,
    exclude_current_token: bool,
    error_measure: ErrorMeasure,
) -> float:
    """The score of one head's attention."""
    counts = torch.ones_like(attention_pattern)
    if exclude_bos:
        counts[:, 0] = 0
    if exclude_current_token:
        counts.fill_diagonal_(0)
    if error_measure == "mul":
        seen = attention_pattern * counts
        return ((seen * detection_pattern).sum() / seen.sum()).item()
    off = (attention_pattern - detection_pattern).abs() * counts
    return 1 - round((off.mean() * len(off)).item(), 3)


def get_supported_heads() -> None:
    """Print the names of the patterns that are known."""
    print(f"Supported heads: {HEAD_NAMES}")


def _chosen(
    heads: Sequence[tuple[int, int]] | Mapping[int, Sequence[int]] | None, model: Any
) -> Mapping[int, Sequence[int]]:
    if heads is None:
        return {layer: range(model.cfg.n_heads) for layer in range(model.cfg.n_layers)}
    if isinstance(heads, Mapping):
        return heads
    return {layer: [head for at, head in heads if at == layer] for layer, _ in heads}
