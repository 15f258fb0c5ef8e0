"""Activation patching: what of one run, put into another, brings its behaviour along."""

from collections.abc import Sequence
from itertools import product
from typing import Any, Literal

import torch
from jaxtyping import Int
from torch import Tensor

from interp.interventions import Patch, Site
from interp.metrics import AnyMetric
from interp.model import HookedGPT
from interp.patching.engine import Base, Row
from interp.patching.results import Result, as_tokens, labelled, provenance, token_labels
from interp.patching.sweep import Sweep

By = Literal["layer", "pos", "head", "neuron"]
Sites = str | Sequence[Site] | Sequence[Sequence[Site]]


def activation_patching(
    model: HookedGPT,
    clean: Any,
    corrupted: Any,
    site: Sites,
    metric: AnyMetric,
    *,
    by: By | Sequence[By] | None = None,
    direction: Literal["denoise", "noise"] = "denoise",
    layers: Sequence[int] | None = None,
    attention_mask: Tensor | None = None,
    memory: int | None = None,
    progress: bool = True,
) -> Result:
    """The metric of each run with one part of the other run in it, exactly.

    "denoise" puts parts of the clean run into the corrupted one, "noise" parts of the corrupted run into the clean one.
    `site` is the last part of a hook's name ("resid_pre", "z", "pattern" …), patched in each layer by `by`: positions,
    heads, neurons, or several of them; or a list of `Site`s, or of groups of them that are patched together.
    """
    if direction not in ("denoise", "noise"):
        raise ValueError(f"direction={direction!r}; allowed: 'denoise', 'noise'")
    clean_tokens, mask = as_tokens(model, clean, attention_mask)
    corrupted_tokens, corrupted_mask = as_tokens(model, corrupted, attention_mask)
    _check_alike(clean_tokens, corrupted_tokens, mask, corrupted_mask)
    pair = (clean_tokens, corrupted_tokens)
    source_tokens, tokens = pair if direction == "denoise" else pair[::-1]
    axes, groups = _sites(model, site, by, layers, tokens)
    names = sorted({each.point(model).name for group in groups for each in group})
    with torch.no_grad():
        _, cache = model.run_with_cache(source_tokens, None, attention_mask=mask, names_filter=names)
    starts = _first_difference(tokens, source_tokens)
    rows = [
        Row(prompt, tuple(Patch(each, cache[each.point(model).name]) for each in group), start)
        for group in groups
        for prompt, start in enumerate(starts)
    ]
    sweep = Sweep(Base(model, tokens, mask), metric, memory, progress=progress)
    values = sweep.values(rows).view(*map(len, axes.values()), len(tokens))
    about = provenance(model, metric, clean_tokens, "activation patching")
    about |= {"site": site if isinstance(site, str) else "given", "direction": direction, **sweep.work}
    return labelled(values, {**axes, "prompt": range(len(tokens))}, "metric", about)


def _sites(
    model: HookedGPT, site: Sites, by: By | Sequence[By] | None, layers: Sequence[int] | None, tokens: Tensor
) -> tuple[dict[str, Sequence[Any]], list[tuple[Site, ...]]]:
    """The axes of a result, and the sites along them."""
    if not isinstance(site, str):
        groups = [(each,) if isinstance(each, Site) else tuple(each) for each in site]
        return {"site": [" + ".join(map(_label, group)) for group in groups]}, groups
    chosen = range(model.cfg.n_layers) if layers is None else [layer % model.cfg.n_layers for layer in layers]
    kinds = Site(site, layer=chosen[0]).point(model).axes.split()
    has_heads = bool({"head", "kv_head"} & set(kinds))
    wanted = ("head" if has_heads else "pos",) if by is None else (by,) if isinstance(by, str) else tuple(by)
    n_heads = model.cfg.n_heads if "head" in kinds else model.cfg.n_key_value_heads
    last = {"d_mlp": model.cfg.d_mlp, "d_model": model.cfg.d_model, "d_head": model.cfg.d_head}
    ranges: dict[str, Sequence[Any]] = {"head": range(n_heads), "pos": range(tokens.shape[1])}
    ranges["neuron"] = range(last.get(kinds[-1], 0))
    known = ["layer", *(["head"] if has_heads else []), "pos", *(["neuron"] if kinds[-1] in last else [])]
    if unknown := [each for each in wanted if each not in known]:
        raise ValueError(f"by={unknown}; {site} [{' '.join(kinds)}] can be patched by {known}")
    inner = [each for each in ("head", "pos", "neuron") if each in wanted]
    groups = [
        (Site(site, layer, **dict(zip(inner, each, strict=True))),)
        for layer in chosen
        for each in product(*(ranges[axis] for axis in inner))
    ]
    labels = {**ranges, "pos": token_labels(model, tokens)}
    return {"layer": list(chosen), **{axis: labels[axis] for axis in inner}}, groups


def _label(site: Site) -> str:
    parts = {"layer": site.layer, "head": site.head, "pos": site.pos, "neuron": site.neuron}
    return f"{site.name} " + " ".join(
        f"{k} {v}" for k, v in parts.items() if v is not None and not isinstance(v, Tensor)
    )


def _check_alike(clean: Tensor, corrupted: Tensor, mask: Tensor | None, corrupted_mask: Tensor | None) -> None:
    if clean.shape != corrupted.shape:
        raise ValueError(
            f"clean has {list(clean.shape)} tokens and corrupted {list(corrupted.shape)}: patching puts position for "
            "position, so both need as many"
        )
    if mask is not None and (corrupted_mask is None or not torch.equal(mask, corrupted_mask)):
        raise ValueError("clean and corrupted prompts are padded differently: position for position, tokens must align")


def _first_difference(one: Int[Tensor, "prompt pos"], other: Int[Tensor, "prompt pos"]) -> list[int]:
    """The first position at which each pair differs; before it, so far, the runs are the same."""
    differs = one != other
    first = differs.long().argmax(1)
    return torch.where(differs.any(1), first, one.shape[1]).tolist()
