"""What heads do to an answer, by layer and head, and where that and what they look at part."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp.lens.attribution import toward_answer
from interp.metrics import Answers
from interp.model import HookedGPT
from interp.results import Result, as_tokens, labelled


@torch.no_grad()
def direct_effects(
    model: HookedGPT,
    prompts: Any,
    answer: Answers,
    wrong: Answers | None = None,
    *,
    pos: int = -1,
    attention_mask: Tensor | None = None,
) -> Result:
    """What each head adds to the logit of `answer` by what it writes at `pos`, [layer head prompt].

    With `wrong`, to that less the logit of `wrong`. These are the heads' parts of `lens.direct_logit_attribution`, in
    one pass that keeps what they need alone.
    """
    tokens, mask = as_tokens(model, prompts, attention_mask)
    n_layers = model.cfg.n_layers
    names = [f"blocks.{layer}.attn.hook_z" for layer in range(n_layers)]
    names += [name for name in model.hook_dict if name.endswith(("_post.hook_scale", "ln_final.hook_scale"))]
    _, cache = model.run_with_cache(
        tokens, None, attention_mask=mask, names_filter=[*names, f"blocks.{n_layers - 1}.hook_resid_post"]
    )
    places = torch.arange(tokens.shape[1], device=tokens.device).expand(tokens.shape)
    last = places.amax(1) if mask is None else (places * mask).amax(1)
    at = torch.full_like(last, pos) if pos >= 0 else last + 1 + pos
    rows = torch.arange(len(tokens), device=tokens.device)
    found = [
        (cache["z", layer][rows, at].double() * toward_answer(model, cache, layer, answer, wrong, pos)).sum(-1).T
        for layer in range(n_layers)
    ]
    axes = {"layer": range(n_layers), "head": range(model.cfg.n_heads), "prompt": range(len(tokens))}
    of = "logit" if wrong is None else "logit difference"
    return labelled(
        torch.stack(found), axes, "contribution", {"method": "direct effect", "of": of, "model": model.fingerprint()}
    )


def disagreement(score: Result, effect: Result) -> Result:
    """How much higher a head ranks by a score than by the size of its effect, from -1 to 1, [layer head].

    Near 1: it looks like a head of that kind, and nothing hangs on it here. Near -1: much hangs on it, and the score
    does not say why. Prompts are averaged over first; equal numbers share a rank; NaN where either is not known.
    """
    one, other = (each.mean("prompt") if "prompt" in each.dims else each for each in (score, abs(effect)))
    if set(one.dims) != {"layer", "head"} or set(other.dims) != {"layer", "head"}:
        raise ValueError(f"score and effect are [layer head], not {list(one.dims)} and {list(other.dims)}")
    one, other = one.transpose("layer", "head"), other.transpose("layer", "head")
    known = np.isfinite(one.to_numpy()) & np.isfinite(other.to_numpy())
    difference = np.full(known.shape, np.nan)
    difference[known] = _share_below(one.to_numpy()[known]) - _share_below(other.to_numpy()[known])
    about = {"method": "disagreement", "model": score.attrs.get("model", "")}
    axes = {name: one[name].values.tolist() for name in ("layer", "head")}
    return labelled(torch.from_numpy(difference), axes, "disagreement", about)


def _share_below(values: np.ndarray) -> Float[np.ndarray, " place"]:
    """The share of the others that each is above; half of those that it equals count."""
    ordered = np.sort(values)
    below = (np.searchsorted(ordered, values, "left") + np.searchsorted(ordered, values, "right") - 1) / 2
    return below / max(1, len(values) - 1)
