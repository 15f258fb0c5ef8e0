"""What the page on the lens shows, computed once for a model and a prompt."""

import numpy as np
import torch
from xarray import Dataset

from dashboards.parts.lens.tuned import Tuned
from dashboards.parts.state import Chosen, kept, logits_at, run
from interp import ActivationCache, HookedGPT
from interp.lens import TunedLens, logit_lens, stream_statistics
from interp.model.norms import NoNorm

TOP = 10  # tokens told of each reading
FAR = 3  # times: from here on a difference of scales is a reason to doubt


def has_halves(model: HookedGPT) -> bool:
    """Whether there is a stream between attention and MLP."""
    return "blocks.0.hook_resid_mid" in model.hook_dict


def lens(now: Chosen, is_next: bool, halves: bool, first: int, last: int, tuned: Tuned | None = None) -> Dataset:
    """What each reading says at these positions, of the target or of the token that follows: [layer pos]."""
    key = (now.target, now.foil, is_next, halves, first, last)
    translate, digest = (None, "") if tuned is None else (tuned.lens, tuned.digest)
    return kept(now.fingerprint, now.tokens, lens_of, (now.model, _cache(now), *key, translate), (*key, digest))


def ends(now: Chosen, is_next: bool) -> Dataset:
    """What the model says in the end at every position, [pos]."""
    key = (now.target, now.foil, is_next)
    return kept(now.fingerprint, now.tokens, ends_of, (now.model, _cache(now), *key), key)


def ends_of(model: HookedGPT, cache: ActivationCache, target: int, foil: int, is_next: bool) -> Dataset:
    """For `kept`."""
    of = "next" if is_next else target
    found = logit_lens(model, cache, of, foil, k=1, layers=[model.cfg.n_layers], progress=False)
    return found.isel(prompt=0, layer=0, drop=True)


def output_error(now: Chosen, found: Dataset, first: int, last: int) -> float:
    """How far the last reading's probabilities are from those of the model's own logits."""
    own = logits_at(now, first, last).double().softmax(-1)
    end = found.isel(layer=-1)
    said = torch.tensor(end.probability.to_numpy()).double()
    return float((own.gather(-1, torch.tensor(end.token_id.to_numpy())) - said).abs().max())


def scales(now: Chosen) -> Dataset:
    """The stream's statistics, [component pos]."""
    return kept(now.fingerprint, now.tokens, statistics_of, (now.model, _cache(now)), ())


def scale_by_layer(now: Chosen) -> np.ndarray | None:
    """What the final norm divides each layer's stream by, the median of all positions but the first; None without."""
    if isinstance(now.model.ln_final, NoNorm):
        return None
    found = scales(now).final_scale
    streams = found[(found.kind == "stream").values]
    streams = streams.isel(pos=slice(1, None)) if streams.sizes["pos"] > 1 else streams
    return streams.median("pos").to_numpy()


def lens_of(
    model: HookedGPT,
    cache: ActivationCache,
    target: int,
    foil: int,
    is_next: bool,
    halves: bool,
    first: int,
    last: int,
    translate: TunedLens | None,
) -> Dataset:
    """For `kept`."""
    found = logit_lens(
        model,
        cache,
        "next" if is_next else target,
        foil,
        k=min(TOP, model.cfg.d_vocab_out),
        pos=slice(first, last),
        halves=halves,
        ranks_before=True,
        translate=translate,
        progress=False,
    )
    return found.isel(prompt=0, drop=True)


def statistics_of(model: HookedGPT, cache: ActivationCache) -> Dataset:
    """For `kept`."""
    return stream_statistics(model, cache).isel(prompt=0, drop=True)


def _cache(now: Chosen) -> ActivationCache:
    return run(now, *_names(now.model))


def _names(model: HookedGPT) -> tuple[str, ...]:
    wanted = ("hook_embed", "hook_pos_embed", "hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_attn_out")
    return tuple(name for name in model.hook_dict if name.endswith((*wanted, "hook_mlp_out")))
