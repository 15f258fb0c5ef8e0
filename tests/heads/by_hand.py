"""Statistics of patterns by a loop over rows, heads, queries and keys."""

from math import log
from typing import Any

import torch

from interp import HookedGPT
from interp.heads import TokenClasses


@torch.no_grad()
def loop(model: HookedGPT, rows: list[torch.Tensor]) -> dict[str, Any]:
    """The means that `corpus_statistics` promises, as nested dictionaries of (total, count) made into means."""
    classes, cfg = TokenClasses(model), model.cfg
    totals: dict[Any, float] = {}
    counts: dict[Any, int] = {}

    def add(key: Any, value: float) -> None:
        totals[key] = totals.get(key, 0.0) + value
        counts[key] = counts.get(key, 0) + 1

    for row in rows:
        _, cache = model.run_with_cache(row[None])
        kind = classes(row).tolist()
        for layer in range(cfg.n_layers):
            for head in range(cfg.n_heads):
                pattern = cache["pattern", layer][0, head].double()
                scores = cache["attn_scores", layer][0, head]
                for query in range(len(row)):
                    reach = [key for key in range(len(row)) if scores[query, key] > -torch.inf]
                    at = (layer, head)
                    p = {key: float(pattern[query, key]) for key in reach}
                    entropy = -sum(x * log(x) for x in p.values() if x > 0)
                    add(("entropy", *at), entropy)
                    if len(reach) > 1:
                        add(("relative_entropy", *at), entropy / log(len(reach)))
                    if 0 in reach:
                        add(("first", *at), p[0])
                    for key in reach:
                        add(("by_offset", *at, query - key), p[key])
                    for c in range(len(classes.names)):
                        mass = sum(p[key] for key in reach if kind[key] == c)
                        share = sum(kind[key] == c for key in reach) / len(reach)
                        add(("by_class", *at, c), mass)
                        add(("by_query_class", *at, kind[query], c), mass)
                        add(("class_share", layer, c), share)
                        add(("class_share_by_query", layer, kind[query], c), share)
    return {key: (totals[key] / counts[key], counts[key]) for key in totals}
