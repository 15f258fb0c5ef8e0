"""What takes named parts of a model away, as edits; and the metric with one set of edits in force after another."""

import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Int
from torch import Tensor

from interp import corpus
from interp.interventions import Ablate, Attend, Edit, Patch, Site
from interp.metrics import AnyMetric
from interp.model import HookedGPT
from interp.patching.engine import Base, Row
from interp.patching.names import parts_named
from interp.patching.sweep import Progress, Sweep
from interp.results import Result, as_tokens, labelled, provenance

How = Literal["zero", "mean", "resample", "uniform", "first"]


def removals(
    model: HookedGPT,
    parts: Mapping[str, Sequence[Site]] | str,
    how: How = "zero",
    reference: Int[Tensor, "prompt pos"] | None = None,
    row: int = 0,
) -> dict[str, list[Edit]]:
    """The edits that take each part away, by its name.

    "zero"; "mean" over all tokens of `reference`; "resample", the value at the same position of one `row` of it; for
    heads, attention that is "uniform", or at the "first" token alone. `sample` makes a reference.
    """
    named = parts_named(model, parts) if isinstance(parts, str) else parts
    if how not in ("zero", "mean", "resample", "uniform", "first"):
        raise ValueError(f"how={how!r}; allowed: 'zero', 'mean', 'resample', 'uniform', 'first'")
    if how == "zero":
        return {name: [Ablate(site) for site in sites] for name, sites in named.items()}
    if how in ("uniform", "first"):
        if no_heads := [name for name, sites in named.items() if any(site.name != "z" for site in sites)]:
            raise ValueError(f"attention can be set for heads, and not for {', '.join(no_heads[:4])}")
        return {
            name: [Attend(Site("pattern", site.layer, head=site.head), how) for site in sites]
            for name, sites in named.items()
        }
    if reference is None:
        raise ValueError(f"how={how!r} needs reference=, tokens whose activations stand in; `sample` makes some")
    chosen = reference if how == "mean" else reference[row % len(reference)][None]
    points = sorted({site.point(model).name for sites in named.values() for site in sites})
    with torch.no_grad():
        _, cache = model.run_with_cache(chosen, names_filter=points, return_type=None)
    means = {name: cache[name].flatten(0, 1).mean(0) for name in points} if how == "mean" else {}

    def edit(site: Site) -> Edit:
        name = site.point(model).name
        return Ablate(site, "mean", means[name]) if how == "mean" else Patch(site, cache[name])

    return {name: [edit(site) for site in sites] for name, sites in named.items()}


def sample(model: HookedGPT, n_rows: int = 16, n_pos: int = 64, seed: int = 0) -> Int[Tensor, "prompt pos"]:
    """Rows of text, of Python's standard library; of random tokens, where the model has no tokenizer."""
    n_pos = min(n_pos, model.cfg.n_ctx)
    if model.tokenizer is None:
        draw = torch.Generator().manual_seed(seed)
        return torch.randint(min(model.cfg.d_vocab, model.cfg.d_vocab_out), (n_rows, n_pos), generator=draw)
    bos, rows = model.bos_tokens(model.cfg.default_prepend_bos), list[list[int]]()
    for text in corpus.standard_library("held_out", seed):
        ids = model.tokenizer.encode(text[: 32 * n_pos])[: n_pos - len(bos)]
        rows += [bos + ids] if len(ids) == n_pos - len(bos) else []
        if len(rows) == n_rows:
            return torch.tensor(rows)
    raise ValueError(f"no {n_rows} texts have {n_pos} tokens: ask for shorter rows")


def with_edits(
    model: HookedGPT,
    tokens: Any,
    sets: Mapping[str, Sequence[Edit]],
    metric: AnyMetric,
    *,
    attention_mask: Tensor | None = None,
    memory: int | None = None,
    file: str | os.PathLike[str] | None = None,
    progress: Progress = True,
) -> Result:
    """The metric of each prompt with one set of edits in force, then with the next: [edits prompt]."""
    prompts, mask = as_tokens(model, tokens, attention_mask)
    sweep = Sweep(Base(model, prompts, mask), metric, memory, progress, file)
    rows = [Row(prompt, tuple(edits)) for edits in sets.values() for prompt in range(len(prompts))]
    values = sweep.values(rows).view(len(sets), len(prompts))
    axes = {"edits": list(sets), "prompt": range(len(prompts))}
    about = provenance(model, metric, prompts, "with edits") | sweep.work
    return labelled(values, axes, "metric", about, sweep.base_values())
