"""One edge of attention taken apart: from what a query and a key have in common to what that does to a logit.

1. q · k / attn_scale, dimension by dimension after any rotation; their sum, capped where the model does so: the score.
2. The softmax over all keys that the query sees: exp(score - log of the sum of exp(scores)), the weight.
3. The weight times the value, through W_O and the norms behind it with the scales of this run frozen, along the
   answer's direction in the unembedding: what the edge adds to the logit directly, at the query's own position.
4. The logit again in a run without the edge: the weight set to 0 and all others as they were, or knocked out before
   the softmax, so that the other keys share what it had. Both count what later layers make of it too.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp import metrics
from interp.heads.patterns import patterns
from interp.hooks import HookPoint
from interp.interventions import Site
from interp.lens.attribution import toward_answer
from interp.metrics import Answers
from interp.model import HookedGPT
from interp.patching import ablation
from interp.patching.ablation import Kind
from interp.results import as_tokens, token_labels
from interp.weights.stream import checked_index

if TYPE_CHECKING:
    from xarray import Dataset
else:
    Dataset = Any


@torch.no_grad()
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
    from xarray import Dataset

    layer, head = checked_index(model, "layer", layer), checked_index(model, "head", head)
    tokens, _ = as_tokens(model, prompt, None)
    n_pos = tokens.shape[1]
    if len(tokens) != 1:
        raise ValueError(f"{len(tokens)} prompts were given; an edge is of one")
    if not (0 <= query < n_pos and 0 <= key < n_pos):
        raise ValueError(f"query={query}, key={key}; the prompt has the positions 0 to {n_pos - 1}")
    rows = dict[str, Tensor]()

    def keep(x: Tensor, point: HookPoint) -> None:
        rows[point.name.rpartition("_")[2]] = x[0, head, query].double()

    of_layer = f"blocks.{layer}.attn"
    last = f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"
    scales = [name for name in model.hook_dict if name.endswith(("_post.hook_scale", "ln_final.hook_scale"))]
    with model.recording([f"{of_layer}.hook_attn_scores", f"{of_layer}.hook_pattern"], keep):
        _, cache = model.run_with_cache(tokens, None, names_filter=[last, f"{of_layer}.hook_v", *scales])
    scores, weights = rows["scores"], rows["pattern"]
    if not scores[key].isfinite():
        raise ValueError(f"L{layer}H{head}: query {query} does not see key {key}")
    values = cache["v", layer][0, :, head // (model.cfg.n_heads // model.cfg.n_key_value_heads)]
    toward = toward_answer(model, cache, layer, answer, wrong, pos=query)[0, head]
    terms = patterns(model, tokens, [layer], [head]).terms(layer, head, query, key)[0].double()
    cap, before_cap = model.cfg.attn_scores_soft_cap, scores[key]
    if cap is not None:
        before_cap = cap * torch.atanh(before_cap / cap)
    base, zeroed, knocked_out = _without(model, tokens, (layer, head, query, key), answer, wrong, scores)
    row = {"score": scores, "weight": weights, "direct": weights * (values.double() @ toward.double())}
    of_edge = {
        "before_cap": before_cap,
        "remainder": before_cap - terms.sum(),
        "value_norm": (values[key] @ model.blocks[layer].attn.W_O[head]).norm(),
        "base": base,
        "zeroed": zeroed,
        "knocked_out": knocked_out,
    }
    found: dict[str, Any] = {"term": ("dim", terms.cpu().numpy())}
    found |= {name: ("key_pos", x.cpu().numpy()) for name, x in row.items()}
    found |= {name: float(x) for name, x in of_edge.items()}
    effects = [float(row["direct"][key]), base - zeroed, base - knocked_out]
    found["effect"] = ("way", effects)
    about = {"method": "edge x-ray", "of": "logit" if wrong is None else "logit difference"}
    about |= {"edge": f"L{layer}H{head} {query}->{key}", "layer": layer, "head": head, "query": query, "key": key}
    about |= {"model": model.fingerprint()}
    coords = {"dim": range(len(terms)), "key_pos": token_labels(model, tokens)}
    coords["way"] = ["adds directly", "lost: zeroed", "lost: knocked out"]
    return Dataset(found, coords=coords, attrs=about)


def _without(
    model: HookedGPT,
    tokens: Tensor,
    edge: tuple[int, int, int, int],
    answer: Answers,
    wrong: Answers | None,
    scores: Tensor,
) -> tuple[float, float, float]:
    """The logit at the query as it is, with the edge's weight set to 0, and with the edge knocked out."""
    layer, head, query, key = edge
    if wrong is None:
        metric = metrics.logit(model, answer, pos=query)
    else:
        metric = metrics.logit_diff(model, answer, wrong, pos=query)

    def run(name: str, kind: Kind) -> tuple[float, float]:
        site = Site(name, layer, head=head, pos=query, neuron=key)
        found = ablation(model, tokens, [site], metric, kind=kind, progress=False)
        return float(found.base[0]), float(found[0, 0])

    base, zeroed = run("pattern", "zero")
    sees_others = int(scores.isfinite().sum()) > 1
    return base, zeroed, run("attn_scores", "knockout")[1] if sees_others else float("nan")
