"""Activation patching: what of one run, put into another, brings its behaviour along."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from interp.interventions import Patch
from interp.metrics import AnyMetric
from interp.model import HookedGPT
from interp.patching.engine import Base, Row
from interp.patching.sites import By, Sites, sites_of
from interp.patching.sweep import Progress, Sweep
from interp.results import Result, as_tokens, labelled, provenance

Direction = Literal["denoise", "noise"]


def activation_patching(
    model: HookedGPT,
    clean: Any,
    corrupted: Any,
    site: Sites,
    metric: AnyMetric,
    *,
    by: By | Sequence[By] | None = None,
    direction: Direction = "denoise",
    layers: Sequence[int] | None = None,
    attention_mask: Tensor | None = None,
    memory: int | None = None,
    file: str | os.PathLike[str] | None = None,
    progress: Progress = True,
) -> Result:
    """The metric of each run with one part of the other run in it, exactly.

    "denoise" puts parts of the clean run into the corrupted one, "noise" parts of the corrupted run into the clean one.
    `site` is the last part of a hook's name ("resid_pre", "z", "pattern" …), patched in each layer by `by`: positions,
    heads, neurons, or several of them; or a list of `Site`s, or of groups of them that are patched together.
    `memory` (bytes) bounds what the sweep takes; with `file`, a sweep that was stopped goes on from there.
    `progress` may be a function: it is told how many runs are done, and of how many.
    """
    runs = pair_of_runs(model, clean, corrupted, direction, attention_mask)
    axes, groups = sites_of(model, site, by, layers, runs.own)
    names = sorted({each.point(model).name for group in groups for each in group})
    base = Base(model, runs.own, runs.mask, other=runs.other, names=names)
    starts = first_difference(runs.own, runs.other)
    rows = [
        Row(prompt, tuple(Patch(each, base.cache[each.point(model).name]) for each in group), start)
        for group in groups
        for prompt, start in enumerate(starts)
    ]
    sweep = Sweep(base, metric, memory, progress, file)
    values = sweep.values(rows).view(*map(len, axes.values()), len(runs.own))
    about = provenance(model, metric, runs.own, "activation patching")
    about |= {"site": site if isinstance(site, str) else "given", "direction": direction, **sweep.work}
    return labelled(values, {**axes, "prompt": range(len(runs.own))}, "metric", about, sweep.base_values())


@dataclass(frozen=True)
class Pair:
    """The run that is stayed in, and the one that parts come from."""

    own: Int[Tensor, "prompt pos"]
    other: Int[Tensor, "prompt pos"]
    mask: Bool[Tensor, "prompt pos"] | None

    def of(self, prompts: list[int]) -> "Pair":
        """The runs of some of the prompts."""
        return Pair(self.own[prompts], self.other[prompts], None if self.mask is None else self.mask[prompts])


def pair_of_runs(
    model: HookedGPT, clean: Any, corrupted: Any, direction: Direction, attention_mask: Tensor | None
) -> Pair:
    """Prompts as the model reads them; raise if they cannot be put into each other position for position."""
    if direction not in ("denoise", "noise"):
        raise ValueError(f"direction={direction!r}; allowed: 'denoise', 'noise'")
    clean_tokens, mask = as_tokens(model, clean, attention_mask)
    corrupted_tokens, corrupted_mask = as_tokens(model, corrupted, attention_mask)
    _check_alike(clean_tokens, corrupted_tokens, mask, corrupted_mask)
    if direction == "noise":
        return Pair(clean_tokens, corrupted_tokens, mask)
    return Pair(corrupted_tokens, clean_tokens, mask)


def first_difference(one: Int[Tensor, "prompt pos"], other: Int[Tensor, "prompt pos"]) -> list[int]:
    """The first position at which each pair differs; before it, so far, the runs are the same."""
    differs = one != other
    first = differs.long().argmax(1)
    return torch.where(differs.any(1), first, one.shape[1]).tolist()


def _check_alike(clean: Tensor, corrupted: Tensor, mask: Tensor | None, corrupted_mask: Tensor | None) -> None:
    if clean.shape != corrupted.shape:
        raise ValueError(
            f"clean has {list(clean.shape)} tokens and corrupted {list(corrupted.shape)}: patching puts position for "
            "position, so both need as many"
        )
    every = torch.ones_like(clean, dtype=torch.bool)
    is_alike = torch.equal(every if mask is None else mask, every if corrupted_mask is None else corrupted_mask)
    if not is_alike:
        raise ValueError("clean and corrupted prompts are padded differently: position for position, tokens must align")
