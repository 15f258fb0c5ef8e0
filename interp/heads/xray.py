"""One edge of attention taken apart: from what a query and a key have in common to what that does to a logit.

1. q · k / attn_scale, dimension by dimension after any rotation; their sum, capped where the model does so: the score.
2. The softmax over all keys that the query sees: exp(score - log of the sum of exp(scores)), the weight.
3. The weight times the value, through W_O and the norms behind it with the scales of this run frozen, along the
   answer's direction in the unembedding: what the edge adds to the logit directly, at the query's own position.
4. The logit again in a run without the edge: the weight set to 0 and all others as they were, or knocked out before
   the softmax, so that the other keys share what it had. Both count what later layers make of it too.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp import metrics
from interp.cache import ActivationCache
from interp.heads.patterns import Patterns, patterns
from interp.interventions import Ablate, Site
from interp.lens.attribution import toward_answer
from interp.metrics import Answers
from interp.model import HookedGPT
from interp.patching.engine import Base, Row
from interp.patching.sweep import Sweep
from interp.results import token_labels, token_texts
from interp.weights import ov_top_tokens
from interp.weights.stream import checked_index

if TYPE_CHECKING:
    from xarray import Dataset
else:
    Dataset = Any


@dataclass(frozen=True, eq=False)
class EdgeXrays:
    """What the x-rays of one prompt's edges share; each then takes little: `EdgeXrays.of(patterns(model, prompt))`."""

    patterns: Patterns
    base: Base

    @classmethod
    def of(cls, found: Patterns) -> "EdgeXrays":
        """Those of the heads whose patterns these are."""
        if len(found.tokens) != 1:
            raise ValueError(f"{len(found.tokens)} prompts were given; an edge is of one")
        model = found.model
        scales = [name for name in model.hook_dict if name.endswith(("_post.hook_scale", "ln_final.hook_scale"))]
        names = [*scales, f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"]
        return cls(found, Base(model, found.tokens, names=names))

    def nbytes(self) -> int:
        """The memory that is held."""
        held = [*self.base.resid, *self.base.cache.values()]
        return 2 * self.patterns.nbytes() + sum(x.nbytes for x in held)  # keys and values are in the base run too

    @torch.no_grad()
    def __call__(
        self, layer: int, head: int, query: int, key: int, answer: Answers, wrong: Answers | None = None
    ) -> Dataset:
        """See `edge_xray`."""
        from xarray import Dataset

        found, model = self.patterns, self.patterns.model
        layer, head = checked_index(model, "layer", layer), checked_index(model, "head", head)
        n_pos = found.tokens.shape[1]
        if not (0 <= query < n_pos and 0 <= key < n_pos):
            raise ValueError(f"query={query}, key={key}; the prompt has the positions 0 to {n_pos - 1}")
        scores = found.scores(layer, head)[0, query].double()
        if not scores[key].isfinite():
            raise ValueError(f"L{layer}H{head}: query {query} does not see key {key}")
        weights, values = scores.softmax(-1), found.values(layer, head)[0]
        cache = ActivationCache(self.base.cache, model)
        toward = toward_answer(model, cache, layer, answer, wrong, pos=query)[0, head]
        terms = found.terms(layer, head, query, key)[0].double()
        cap, before_cap = model.cfg.attn_scores_soft_cap, scores[key]
        if (lean := found.lean(layer, head)) is not None:
            before_cap = before_cap - lean[0, query, key]
        if cap is not None:
            before_cap = cap * torch.atanh(before_cap / cap)
        base, zeroed, knocked_out = self._without(layer, head, query, key, answer, wrong, scores)
        row = {"score": scores, "weight": weights, "direct": weights * (values.double() @ toward.double())}
        of_edge = {
            "before_cap": before_cap,
            "remainder": before_cap - terms.sum(),
            "value_norm": (values[key] @ model.blocks[layer].attn.W_O[head]).norm(),
            "base": base,
            "zeroed": zeroed,
            "knocked_out": knocked_out,
        }
        made: dict[str, Any] = {"term": ("dim", terms.cpu().numpy())}
        made |= {name: ("key_pos", x.cpu().numpy()) for name, x in row.items()}
        made |= {name: float(x) for name, x in of_edge.items()}
        made["effect"] = ("way", [float(row["direct"][key]), base - zeroed, base - knocked_out])
        about = {"method": "edge x-ray", "of": "logit" if wrong is None else "logit difference"}
        about |= {"edge": f"L{layer}H{head} {query}->{key}", "layer": layer, "head": head, "query": query, "key": key}
        about |= {"model": model.fingerprint()}
        coords = {"dim": range(len(terms)), "key_pos": token_labels(model, found.tokens)}
        coords["way"] = ["adds directly", "lost: zeroed", "lost: knocked out"]
        return Dataset(made, coords=coords, attrs=about)

    @torch.no_grad()
    def writes(self, layer: int, head: int, query: int, key: int, k: int = 8) -> Dataset:
        """See `edge_writes`."""
        from xarray import Dataset

        found, model = self.patterns, self.patterns.model
        layer, head = checked_index(model, "layer", layer), checked_index(model, "head", head)
        source = int(found.tokens[0, key])
        best = ov_top_tokens(model, [source], k, layers=[layer], heads=[head], progress=False)[0, 0, 0]
        written = found[layer, head][0, query, key] * found.values(layer, head)[0, key]
        cache, ids = ActivationCache(self.base.cache, model), best.token.to_numpy()
        toward = [toward_answer(model, cache, layer, token, pos=query)[0, head] for token in ids.tolist()]
        here = torch.stack(toward).double() @ written.double()
        made = {"token": token_texts(model, torch.tensor(ids)), "token_id": ids}
        made |= {"logit": best.to_numpy(), "here": here.cpu().numpy()}
        about = {"method": "what an edge writes", "edge": f"L{layer}H{head} {query}->{key}", "source": source}
        about |= {"model": model.fingerprint()}
        return Dataset({name: ("rank", x) for name, x in made.items()}, {"rank": range(k)}, about)

    def _without(
        self,
        layer: int,
        head: int,
        query: int,
        key: int,
        answer: Answers,
        wrong: Answers | None,
        scores: Tensor,
    ) -> tuple[float, float, float]:
        """The logit at the query as it is, with the edge's weight set to 0, and with the edge knocked out."""
        model = self.patterns.model
        if wrong is None:
            metric = metrics.logit(model, answer, pos=query)
        else:
            metric = metrics.logit_diff(model, answer, wrong, pos=query)
        sites = [Site(name, layer, head=head, pos=query, neuron=key) for name in ("pattern", "attn_scores")]
        rows = [Row(0, (Ablate(sites[0]),)), Row(0, (Ablate(sites[1], "value", torch.tensor(-torch.inf)),))]
        sees_others = int(scores.isfinite().sum()) > 1
        sweep = Sweep(self.base, metric, progress=False)
        without = [*map(float, sweep.values(rows if sees_others else rows[:1])), float("nan")]
        return float(sweep.base_values()[0]), without[0], without[1]


def edge_xray(
    model: HookedGPT,
    prompt: Any,
    layer: int,
    head: int,
    query: int,
    key: int,
    answer: Answers,
    wrong: Answers | None = None,
) -> Dataset:
    """An edge of one prompt, from scores to the logit of `answer`, or to that less the logit of `wrong`.

    An `xarray.Dataset`. Along `dim`: `term`, which sum to `before_cap` up to `remainder`. Along `key_pos`, for the
    query with every key: `score`, `weight` and `direct`, what the head adds to the logit from there; -inf and 0 where
    the query sees nothing. Of the edge: `value_norm`, the length of what the value writes at a weight of 1; `base`, the
    logit at the query's position; `zeroed` and `knocked_out`, the same without the edge, the latter NaN where the query
    sees nothing else. `effect` is what the edge is to the logit in each `way`: directly, and `base` less each of these.
    """
    found = patterns(model, prompt, [checked_index(model, "layer", layer)], [checked_index(model, "head", head)])
    return EdgeXrays.of(found)(layer, head, query, key, answer, wrong)


def edge_writes(model: HookedGPT, prompt: Any, layer: int, head: int, query: int, key: int, k: int = 8) -> Dataset:
    """The k tokens whose logits a head's OV circuit raises most for the token at the key: an `xarray.Dataset` [rank].

    `logit` is what attending to that token by itself does, by the weights alone (`weights.ov_top_tokens`); `here`, what
    the edge adds to the token's logit in this prompt: its weight times the value at the key, which the layers before
    have made, through the norms behind it with the scales of this run frozen.
    """
    found = patterns(model, prompt, [checked_index(model, "layer", layer)], [checked_index(model, "head", head)])
    return EdgeXrays.of(found).writes(layer, head, query, key, k)
