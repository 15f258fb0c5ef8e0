"""A home for code written for HookedTransformer: `import interp.classic as transformer_lens`."""

from interp.classic.cache import ActivationCache
from interp.classic.config import HookedTransformerConfig
from interp.classic.factored import FactoredMatrix
from interp.classic.hook_points import HookedRootModule
from interp.classic.model import HookedTransformer

__all__ = ["ActivationCache", "FactoredMatrix", "HookedRootModule", "HookedTransformer", "HookedTransformerConfig"]
