"""Patterns of many heads, one at a time, whatever they are kept in."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from xarray import DataArray

from interp.cache import ActivationCache
from interp.plots.theme import in_words

_AXES = ("layer", "head", "query_pos", "key_pos")


@dataclass(frozen=True)
class HeadPatterns:
    """Patterns of one prompt by layer and head, made one at a time; what is not finite is NaN."""

    layers: list[int]
    heads: list[int]
    n_prompts: int
    pattern: Callable[[int, int], np.ndarray]  # of places along the two axes


def head_patterns(patterns: Any, prompt: int) -> HeadPatterns:
    """Those of one prompt: of [layer head query_pos key_pos], of a cache, or of what makes them when asked."""
    if isinstance(patterns, ActivationCache):
        return _of_cache(patterns, prompt)
    if not isinstance(patterns, DataArray | np.ndarray | Tensor):
        layers, heads = list(patterns.layers), list(patterns.heads)
        n_prompts = len(patterns[layers[0], heads[0]])
        _check_prompt(prompt, n_prompts)
        own = _own(getattr(patterns, "attention_mask", None), prompt)
        return HeadPatterns(layers, heads, n_prompts, lambda i, j: _array(patterns[layers[i], heads[j]][prompt], own))
    n_prompts = patterns.sizes.get("prompt", 1) if isinstance(patterns, DataArray) else 1
    _check_prompt(prompt, n_prompts)
    layers, heads = None, None
    if isinstance(patterns, DataArray):
        of_one = patterns.isel(prompt=prompt) if "prompt" in patterns.dims else patterns
        if set(of_one.dims) != set(_AXES):
            raise ValueError(f"the patterns have the axes {in_words(of_one.dims)}; a mosaic is of {in_words(_AXES)}")
        of_one = of_one.transpose(*_AXES)
        layers, heads = ([int(i) for i in of_one[axis].values] for axis in _AXES[:2])
        patterns = of_one.to_numpy()
    if patterns.ndim != 4 or 0 in patterns.shape:
        raise ValueError(f"the patterns are {list(patterns.shape)}; a mosaic is of {in_words(_AXES)}")
    layers, heads = layers or list(range(patterns.shape[0])), heads or list(range(patterns.shape[1]))
    return HeadPatterns(layers, heads, n_prompts, lambda i, j: _array(patterns[i, j]))


def _of_cache(cache: ActivationCache, prompt: int) -> HeadPatterns:
    found = [re.fullmatch(r"blocks\.(\d+)\.attn\.hook_pattern", name) for name in cache]
    layers = [int(match[1]) for match in found if match]
    if not layers:
        raise ValueError("the cache has no patterns; run_with_cache(…, names_filter='*hook_pattern') keeps them")
    first = cache["pattern", layers[0]]
    n_prompts = len(first) if cache.has_batch_dim else 1
    _check_prompt(prompt, n_prompts)
    own = _own(cache.attention_mask, prompt)

    def pattern(i: int, j: int) -> np.ndarray:
        of_layer = cache["pattern", layers[i]]
        return _array((of_layer[prompt] if cache.has_batch_dim else of_layer)[j], own)

    return HeadPatterns(layers, list(range(first.shape[-3])), n_prompts, pattern)


def _check_prompt(prompt: int, n_prompts: int) -> None:
    if not 0 <= prompt < n_prompts:
        raise ValueError(f"prompt={prompt}; there are {n_prompts}, from 0")


def _own(mask: Tensor | None, prompt: int) -> np.ndarray | None:
    """Which places are the prompt's own, and not padding."""
    return None if mask is None else torch.atleast_2d(mask)[prompt].bool().cpu().numpy()


def _array(pattern: Tensor | np.ndarray, own: np.ndarray | None = None) -> np.ndarray:
    numbers = pattern.detach().float().cpu().numpy() if isinstance(pattern, Tensor) else np.asarray(pattern, np.float32)
    numbers = numbers if own is None else numbers[own][:, own]
    is_there = np.isfinite(numbers)
    return numbers if is_there.all() else np.where(is_there, numbers, np.nan)
