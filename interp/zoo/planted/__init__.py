"""Models whose weights are set by hand, each with the truth about it.

`induction(n_ctx=24, norm="RMS", distractor_heads=3)` returns a `Planted`: the model, which of its nodes and edges are
the mechanism, and `sample(n, seed)` for inputs with answers. `uniform_head`, `sink_head` and `fixed_offset_head` return
the model alone: there is nothing in it to find.
"""

from interp.zoo.planted.arithmetic import greater_than, modular_addition
from interp.zoo.planted.brackets import balanced_brackets
from interp.zoo.planted.decoys import fixed_offset_head, sink_head, uniform_head
from interp.zoo.planted.looking_back import both, current_token, either, first_token, k_back, previous_token
from interp.zoo.planted.memories import memories
from interp.zoo.planted.names import indirect_object
from interp.zoo.planted.repetition import duplicate_token, induction
from interp.zoo.planted.single_heads import (
    copy,
    copy_suppression,
    fraction_of_previous_tokens,
    skip_trigram,
    successor,
    successor_lists,
)
from interp.zoo.planted.truth import Examples, Planted, Truth

__all__ = [
    "Examples",
    "Planted",
    "Truth",
    "balanced_brackets",
    "both",
    "copy",
    "copy_suppression",
    "current_token",
    "duplicate_token",
    "either",
    "first_token",
    "fixed_offset_head",
    "fraction_of_previous_tokens",
    "greater_than",
    "indirect_object",
    "induction",
    "k_back",
    "memories",
    "modular_addition",
    "previous_token",
    "sink_head",
    "skip_trigram",
    "successor",
    "successor_lists",
    "uniform_head",
]
