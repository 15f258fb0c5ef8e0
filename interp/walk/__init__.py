"""A token's way through the model: what is there at each stage, in which shape, and its numbers at one position.

1. Token and position enter the stream.
2. Attention of one layer: the stream is normed; a head makes q, k and v of it; q · k is scaled, masked and made a
   weight by the softmax; the weighted values are joined over heads, and added to the stream.
3. Its MLP: the stream is normed, expanded, bent, contracted, and what comes out is added to the stream.
4. The end of the stream is normed, and read off as logits; temperature and filters make probabilities of them.
5. The next token: one query against all keys and values, which were kept.
"""

from interp.walk.choice import NextStep, choices, next_step, sampled
from interp.walk.stages import STAGES, quantities
from interp.walk.way import Quantity, Walk, walk

__all__ = ["STAGES", "NextStep", "Quantity", "Walk", "choices", "next_step", "quantities", "sampled", "walk"]
