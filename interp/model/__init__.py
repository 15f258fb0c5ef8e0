"""The transformer, from parts to whole."""

from interp.model.gpt import HookedGPT
from interp.model.kv_cache import KVCache

__all__ = ["HookedGPT", "KVCache"]
