"""What other queries and keys make of attention: its softmax computed anew, where its slope would say nothing.

1. Other queries, or other keys at all positions together: each query's softmax anew, over all scores.
2. Another key at position t alone, for every t at once: of a query's scores one changes, from s to s'. With e the
   logsumexp of its other scores, and m the mean of the pattern's gradient g over its other keys, the weight at t is
   σ(s - e), and what the key does is (σ(s' - e) - σ(s - e)) · (g_t - m). Of the key that has most of the weight, e and
   m are summed without it: a difference from 1 would lose them.

AtP*: Kramár et al., 2024, https://arxiv.org/abs/2403.00745.
"""

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from interp.hooks import is_touched, silence
from interp.model import HookedGPT
from interp.model.attention import Heads, KVHeads, Pattern
from interp.model.inputs import positions
from interp.model.norms import exact

Effect = Callable[[Pattern], Tensor]  # of the metric's gradient at the pattern
_BETWEEN = ("attn_scores", "pattern", "rot_q", "rot_k", "scale", "normalized")


class Recomputed:
    """A layer's attention in a run whose queries, keys (before they are normed and turned) and scores are known."""

    def __init__(
        self, model: HookedGPT, layer: int, q: Heads, k: KVHeads, scores: Pattern, mask: Tensor | None
    ) -> None:
        self.attn = model.blocks[layer].attn
        self.name = self.attn.hook_pattern.name
        start = f"blocks.{layer}.attn."
        points = [point for name, point in model.hook_dict.items() if name.startswith(start)]
        if missed := [p.name for p in points if p.name.endswith(_BETWEEN) and is_touched(p)]:
            raise ValueError(
                f"atp* computes attention anew from queries and keys, and would miss the hooks at {missed}"
            )
        with silence():
            self.this = model.pass_over(positions(mask, 0, q.shape[1], q.device), mask)
        self.raw: dict[str, Tensor] = {"q": q, "k": k}
        self.q, self.k = self.met({})
        self.scores = exact(scores)
        self.pattern = self.scores.softmax(-1)

    @torch.no_grad()
    def met(self, new: Mapping[str, Tensor]) -> tuple[Heads, KVHeads]:
        """Queries and keys as they meet: as they are, but for what is new of "q", "k", "rot_q", "rot_k"."""
        if twice := [name for name in ("q", "k") if {name, f"rot_{name}"} <= new.keys()]:
            raise ValueError(f"{twice[0]} and rot_{twice[0]} of one layer are two names for one thing: give one")
        with silence():
            of = self.raw | dict(new)
            q, k = self.attn.rotate(self.attn.q_norm(of["q"]), self.attn.k_norm(of["k"]), self.this)
        return new.get("rot_q", q), new.get("rot_k", k)

    def with_rows(self, q: Heads, k: KVHeads) -> Effect:
        """What these queries and keys, as they meet, do together: [batch head query_pos]."""
        change = self._scores(q, k).softmax(-1) - self.pattern
        return lambda g: (change * exact(g)).sum(-1)

    def with_each_key(self, k: KVHeads) -> Effect:
        """What each of these keys, as it is met, does where all others stay: [batch kv_head key_pos]."""
        s, p, new = self.scores, self.pattern, self._scores(self.q, k)
        first = s.argmax(-1, keepdim=True)
        is_first = torch.zeros_like(s, dtype=torch.bool).scatter(-1, first, True)
        behind = s.masked_fill(is_first, -torch.inf)
        e = torch.where(is_first, behind.logsumexp(-1, keepdim=True), s.logsumexp(-1, keepdim=True) + (-p).log1p())
        low, high = torch.minimum(s, new) - e, torch.maximum(s, new) - e
        moved = (new - s).sign() * high.sigmoid() * (-low).sigmoid() * -(-(new - s).abs()).expm1()
        moved = moved.masked_fill(s.isinf() | e.isinf(), 0)  # not looked at; or nothing else is
        of_others = behind.softmax(-1).nan_to_num(0)

        def effect(g: Pattern) -> Float[Tensor, "batch kv_head key_pos"]:
            weighted = p * exact(g)
            without = (weighted.sum(-1, keepdim=True) - weighted) / (1 - p)
            mean = torch.where(is_first, (of_others * exact(g)).sum(-1, keepdim=True), without)
            return self.by_kv_head((moved * (exact(g) - mean)).sum(-2))

        return effect

    def by_kv_head(self, x: Float[Tensor, "*batch head pos"]) -> Float[Tensor, "*batch kv_head pos"]:
        """Summed over the query heads that share a key head."""
        return x.unflatten(-2, (self.attn.cfg.n_key_value_heads, -1)).sum(-2)

    def _scores(self, q: Heads, k: KVHeads) -> Pattern:
        group = self.attn.cfg.n_heads // self.attn.cfg.n_key_value_heads
        new = self.attn.scores(q.transpose(1, 2), k.transpose(1, 2).repeat_interleave(group, 1))
        if (lean := self.attn.lean(self.this.distance, new.dtype)) is not None:
            new = new + lean
        return exact(new).masked_fill(self.scores.isneginf(), -torch.inf)
