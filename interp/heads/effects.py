"""What heads do to an answer, by layer and head, and where that and what they look at part."""

import numpy as np
import torch
from jaxtyping import Float

from interp.cache import ActivationCache
from interp.lens.attribution import toward_answer
from interp.lens.run import CachedRun
from interp.metrics import Answers
from interp.model import HookedGPT
from interp.results import Result, labelled


@torch.no_grad()
def direct_effects(
    model: HookedGPT, cache: ActivationCache, answer: Answers, wrong: Answers | None = None, pos: int = -1
) -> Result:
    """What each head adds to the logit of `answer` by what it writes at `pos`, [layer head prompt].

    With `wrong`, to that less the logit of `wrong`. These are the heads' parts of `lens.direct_logit_attribution`. The
    cache needs `effect_names(model)` alone.
    """
    z = [CachedRun.of(model, cache, pos).at(f"blocks.{layer}.attn.hook_z")[:, 0] for layer in range(model.cfg.n_layers)]
    found = [
        (each.double() * toward_answer(model, cache, layer, answer, wrong, pos)).sum(-1).T
        for layer, each in enumerate(z)
    ]
    axes = {"layer": range(len(z)), "head": range(model.cfg.n_heads), "prompt": range(len(z[0]))}
    of = "logit" if wrong is None else "logit difference"
    about = {"method": "direct effect", "of": of, "model": model.fingerprint()}
    return labelled(torch.stack(found), axes, "contribution", about)


def effect_names(model: HookedGPT) -> list[str]:
    """The hook points that `direct_effects` reads: much less than all."""
    ends = ("attn.hook_z", "_post.hook_scale", "ln_final.hook_scale", f"{model.cfg.n_layers - 1}.hook_resid_post")
    return [name for name in model.hook_dict if name.endswith(ends)]


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
