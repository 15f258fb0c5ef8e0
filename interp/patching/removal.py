"""What takes named parts of a model away, as edits; and the metric with one set of edits in force after another."""

import os
import re
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
from interp.patching.sweep import Progress, Sweep
from interp.results import Result, as_tokens, labelled, provenance

How = Literal["zero", "mean", "resample", "uniform", "first"]
_NAME = re.compile(r"L?(?P<layer>\d{1,4})(?:(?P<kind>[HN.])(?P<index>\d{1,7})| ?(?P<whole>ATTN|MLP))?")


def parts_named(model: HookedGPT, names: str | Sequence[str]) -> dict[str, tuple[Site, ...]]:
    """The sites of heads (`L5H1`, or `5.1`), neurons (`L2N14`), and layers: `L7`, or one half, `L7 attn`, `L7 mlp`.

    Heads are taken at their `z`, neurons at `post`, MLPs at `mlp_out`. Raises for what is no such name or part.
    """
    given = [name.strip() for name in (names.split(",") if isinstance(names, str) else names)]
    found, wrong = dict[str, tuple[Site, ...]](), list[str]()
    cfg = model.cfg
    for name in filter(None, given):
        match = _NAME.fullmatch(name.upper())
        if match is None:
            wrong.append(f"{name[:20]!r} is no part: they are named L5H1, L2N14, L7, L7 attn, L7 mlp")
            continue
        layer, kind, whole = int(match["layer"]), match["kind"], match["whole"]
        if layer >= cfg.n_layers:
            wrong.append(f"{name}: there are {cfg.n_layers} layers")
        elif kind in ("H", "."):
            head = int(match["index"])
            found[f"L{layer}H{head}"] = (Site("z", layer, head=head),)
            if head >= cfg.n_heads:
                wrong.append(f"{name}: there are {cfg.n_heads} heads in a layer")
        elif cfg.attn_only and (kind == "N" or whole == "MLP"):
            wrong.append(f"{name}: the model has no MLPs")
        elif kind == "N":
            neuron = int(match["index"])
            found[f"L{layer}N{neuron}"] = (Site("post", layer, neuron=neuron),)
            if neuron >= cfg.d_mlp:
                wrong.append(f"{name}: there are {cfg.d_mlp} neurons in a layer")
        else:
            halves = {"ATTN": Site("z", layer), "MLP": Site("mlp_out", layer)}
            label = f"L{layer}" + (f" {whole.lower()}" if whole else "")
            found[label] = tuple(
                halves[each] for each in halves if whole in (None, each) and (each, cfg.attn_only) != ("MLP", True)
            )
    if wrong:
        raise ValueError("; ".join(wrong[:4]) + (f"; and {len(wrong) - 4} more" if len(wrong) > 4 else ""))
    return found


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
