"""Mechanistic interpretability around a transformer that can be read, hooked and trained."""

from interp.cache import ActivationCache
from interp.config import GPTConfig
from interp.hooks import HookedModule, HookPoint
from interp.model import HookedGPT, KVCache

__all__ = ["ActivationCache", "GPTConfig", "HookPoint", "HookedGPT", "HookedModule", "KVCache"]
