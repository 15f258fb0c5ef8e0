"""Ablation: what a model loses without a part, without two, and without more and more of them."""

import os
from collections.abc import Callable, Sequence
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from interp.interventions import Ablate, Edit, Patch, Site
from interp.metrics import AnyMetric
from interp.model import HookedGPT
from interp.patching.engine import Base, Row
from interp.patching.removal import removals
from interp.patching.sites import By, Sites, label, sites_of
from interp.patching.sweep import Progress, Sweep
from interp.results import Result, as_tokens, labelled, provenance

Kind = Literal["zero", "mean", "mean_per_position", "resample", "uniform", "first", "knockout"]
Mode = Literal["single", "pairs", "cumulative"]
Order = Literal["given", "greedy", "greedy_highest"]


def ablation(
    model: HookedGPT,
    tokens: Any,
    site: Sites,
    metric: AnyMetric,
    *,
    kind: Kind = "zero",
    reference: Any = None,
    by: By | Sequence[By] | None = None,
    layers: Sequence[int] | None = None,
    mode: Mode = "single",
    order: Order = "given",
    n_steps: int | None = None,
    seed: int = 0,
    attention_mask: Tensor | None = None,
    reference_mask: Tensor | None = None,
    memory: int | None = None,
    file: str | os.PathLike[str] | None = None,
    progress: Progress = True,
) -> Result:
    """The metric of each prompt without a part of the model, exactly.

    `site` and `by` are as for `activation_patching`. Means and other prompts' values are those of the prompts
    `reference`, the prompts themselves unless given; one prompt there serves all. Attention that is "uniform", or at
    the "first" token alone, is for heads. "knockout" is for `attn_scores`: a query (`by="pos"`) no longer sees a key
    (`by="neuron"`), and what it saw there goes to the others; a query always sees itself.

    `mode="pairs"` takes away every two sites together, [site, other, prompt] (see `interaction`); "cumulative" one
    more at each step, in the given order or, "greedy", each time the one without which the mean metric is lowest
    ("greedy_highest": highest). `file` is as for a sweep; of a greedy order each step has one of its own beside it.
    `progress` may be a function: it is told how many runs are done, and of how many.
    """
    for name, value, allowed in (("mode", mode, Mode), ("order", order, Order), ("kind", kind, Kind)):
        if value not in get_args(allowed):
            raise ValueError(f"{name}={value!r}; allowed: {', '.join(map(repr, get_args(allowed)))}")
    if n_steps is not None and n_steps < 1:
        raise ValueError(f"n_steps={n_steps}; take away at least 1")
    if mode != "cumulative" and (order != "given" or n_steps is not None):
        raise ValueError(f"order and n_steps are of mode='cumulative'; mode={mode!r}")
    prompts, mask = as_tokens(model, tokens, attention_mask)
    axes, groups = sites_of(model, site, by, layers, prompts)
    if kind == "knockout" and isinstance(site, str):
        axes, groups = _seen(axes, groups)
    without = _edits(model, groups, kind, (prompts, mask), reference, reference_mask, seed)
    sweep = Sweep(Base(model, prompts, mask), metric, memory, progress, file)

    def values(sets: Sequence[tuple[int, ...]], step: int | None = None) -> Float[Tensor, "set prompt"]:
        if file is not None and step is not None:
            sweep.file = Path(file).with_name(f"{Path(file).name}.step-{step}")
        rows = [
            Row(prompt, tuple(edit for i in chosen for edit in without[i]))
            for chosen in sets
            for prompt in range(len(prompts))
        ]
        return sweep.values(rows).view(len(sets), len(prompts))

    of_prompt = {"prompt": range(len(prompts))}
    labels = [" + ".join(map(label, group)) for group in groups]
    more: dict[str, Any] = {}
    if mode == "single":
        found = values([(i,) for i in range(len(groups))]).view(*map(len, axes.values()), len(prompts))
    elif mode == "pairs":
        pairs = list(combinations_with_replacement(range(len(groups)), 2))
        found = torch.empty(len(groups), len(groups), len(prompts), dtype=torch.float64)
        one, other = torch.tensor(pairs).T
        found[one, other] = found[other, one] = values([(i, j) if i != j else (i,) for i, j in pairs])
        axes = {"site": labels, "other": labels}
    else:
        taken, found = _cumulative(values, len(groups), order, n_steps)
        axes = {"step": range(1, len(taken) + 1)}
        more = {"site": ("step", [labels[i] for i in taken])}
    about = provenance(model, metric, prompts, "ablation")
    about |= {"kind": kind, "reference": "own" if reference is None else "given", "mode": mode, **sweep.work}
    return labelled(found, {**axes, **of_prompt}, "metric", about, sweep.base_values()).assign_coords(more)


def interaction(pairs: Result) -> Result:
    """What two ablations do together beyond what each does alone: effect of both minus the sum of the effects.

    Of a result of `ablation(…, mode="pairs")`. Negative where two parts back each other up, if the metric falls only
    when both are gone; 0 where they act apart.
    """
    if tuple(pairs.dims[:2]) != ("site", "other"):
        raise ValueError(f"interaction takes the result of ablation(…, mode='pairs'); its axes are {list(pairs.dims)}")
    effect = pairs - pairs.base
    n = len(pairs.site)
    alone = torch.from_numpy(effect.to_numpy()).diagonal(dim1=0, dim2=1).T  # [site prompt]
    beyond = torch.from_numpy(effect.to_numpy()) - alone[:, None] - alone[None]
    beyond[torch.arange(n), torch.arange(n)] = 0.0
    return effect.copy(data=beyond.numpy()).rename("interaction").drop_vars("base")


def _cumulative(
    values: Callable[..., Float[Tensor, "set prompt"]],
    n_sites: int,
    order: Order,
    n_steps: int | None,
) -> tuple[list[int], Float[Tensor, "step prompt"]]:
    steps = n_sites if n_steps is None else min(n_steps, n_sites)
    if order == "given":
        return list(range(steps)), values([tuple(range(i + 1)) for i in range(steps)])
    taken, found = list[int](), list[Tensor]()
    while len(taken) < steps:
        left = [i for i in range(n_sites) if i not in taken]
        tried = values([(*taken, i) for i in left], len(taken) + 1)
        mean = tried.mean(1)
        best = int(mean.argmax() if order == "greedy_highest" else mean.argmin())
        taken.append(left[best])
        found.append(tried[best])
    return taken, torch.stack(found)


def _edits(
    model: HookedGPT,
    groups: list[tuple[Site, ...]],
    kind: Kind,
    own: tuple[Tensor, Tensor | None],
    reference: Any,
    reference_mask: Tensor | None,
    seed: int,
) -> list[tuple[Edit, ...]]:
    """What takes each group of sites away."""
    if kind in ("uniform", "first"):
        named = {" + ".join(map(label, group)): group for group in groups}
        return [tuple(edits) for edits in removals(model, named, kind).values()]
    if kind == "knockout":
        for site in (site for group in groups for site in group):
            if not site.point(model).name.endswith("hook_attn_scores"):
                raise ValueError(f"kind='knockout' is for attn_scores, not {site.point(model).name}")
        never = torch.tensor(-torch.inf)
        return [tuple(Ablate(site, "value", never) for site in group) for group in groups]
    if kind == "zero":
        return [tuple(Ablate(site) for site in group) for group in groups]
    prompts, mask = own if reference is None else as_tokens(model, reference, reference_mask)
    names = sorted({site.point(model).name for group in groups for site in group})
    with torch.no_grad():
        _, cache = model.run_with_cache(prompts, None, attention_mask=mask, names_filter=names)
    if kind == "resample" and reference is not None and len(prompts) == 1:
        return [tuple(Patch(site, cache[site.point(model).name]) for site in group) for group in groups]
    made: dict[str, Ablate] = {}  # the mean of a hook point is worked out once, whatever its sites
    for name in names:
        made[name] = Ablate.from_reference(Site(name), kind, cache[name], mask, seed)
    return [tuple(Ablate(site, kind, made[site.point(model).name].value) for site in group) for group in groups]


def _seen(
    axes: dict[str, Sequence[Any]], groups: list[tuple[Site, ...]]
) -> tuple[dict[str, Sequence[Any]], list[tuple[Site, ...]]]:
    """Keys by their place, as queries are. A query keeps itself, or its softmax would be over nothing."""
    named = {("key_pos" if axis == "neuron" else axis): of for axis, of in axes.items()}
    kept: list[tuple[Site, ...]] = []
    for (site,) in groups:
        if not isinstance(site.pos, int) or not isinstance(site.neuron, int):
            raise ValueError("kind='knockout' cuts one query from one key: by=('pos', 'neuron'), with heads or without")
        kept.append((site,) if site.neuron < site.pos else ())
    return named, kept
