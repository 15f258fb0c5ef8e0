"""Attribution patching: every patch's effect at once, to first order (Nanda, 2023; Kramár et al., 2024).

1. Both runs are made; of the one that is stayed in, the metric's gradient at each value is kept.
2. Putting the other run's value in changes the metric by about gradient · (its value - own value), summed over a site.
3. "integrated" has the gradient's mean on the straight way from one run's embeddings to the other's, with all that
   follows from them (EAP-IG; Hanna et al., 2024).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from interp.hooks import HookPoint, Span, spanning
from interp.interventions import Patch, Site
from interp.interventions.edits import Acts, edits_in_force
from interp.metrics import AnyMetric, Rows, at_positions, name_of, narrowed, values_of
from interp.model import HookedGPT
from interp.patching.activation import Direction, Pair, first_difference, pair_of_runs
from interp.patching.engine import Base, Row
from interp.patching.memory import Chunks, Job
from interp.patching.sites import By, Sites, sites_of
from interp.patching.sweep import Sweep
from interp.results import Result, labelled, provenance

Method = Literal["gradient", "integrated"]
Group = tuple[Site, ...]
Effects = Float[Tensor, "cell prompt"]
_STREAM = "blocks.0.hook_resid_pre"
_AT_ONCE = 2**13  # tokens, where no budget is given


def attribution_patching(
    model: HookedGPT,
    clean: Any,
    corrupted: Any,
    site: Sites,
    metric: AnyMetric,
    *,
    by: By | Sequence[By] | None = None,
    direction: Direction = "denoise",
    layers: Sequence[int] | None = None,
    method: Method = "gradient",
    steps: int = 10,
    check: int = 0,
    seed: int = 0,
    attention_mask: Tensor | None = None,
    memory: int | None = None,
    progress: bool = True,
) -> Result:
    """What `activation_patching` would change in the metric, estimated: the patched run's minus that of the run as is.

    The gradient is that of the run which is stayed in, or with "integrated" its mean over `steps` points on the way to
    the other run. Where the metric has its minimum in the run as is, as a KL from that run has, the gradient is zero
    and says nothing: take the other direction, or "integrated".

    `attrs` have `base`, the mean metric of the run as is, and `completeness_error`: what the whole first stream is said
    to do, minus what it does, in the mean over prompts. With `check`, so many cells drawn at random are patched in
    truth, and `attrs` say how far the estimates are from that.
    """
    if torch.is_inference_mode_enabled():
        raise ValueError("attribution needs gradients, and torch.inference_mode allows none; leave it, or use no_grad")
    if method not in ("gradient", "integrated"):
        raise ValueError(f"method={method!r}; allowed: 'gradient', 'integrated'")
    if steps < 1 or check < 0:
        raise ValueError(f"steps={steps}, check={check}; steps must be at least 1, check at least 0")
    pair = pair_of_runs(model, clean, corrupted, direction, attention_mask)
    axes, groups = sites_of(model, site, by, layers, pair.own)
    is_integrated, n_prompts = method == "integrated", len(pair.own)
    names = _names(model, groups)

    def once(some: list[int]) -> Float[Tensor, "prompt number"]:
        """Of each prompt: the metric as is, that of the other run, the effect of the whole stream, and each cell's."""
        part = pair.of(some)
        rows = Rows(part.own, torch.tensor(some, device=model.device), n_prompts, part.mask)
        passes = _Passes(model, metric, rows, names)
        reached, other = passes.plain(part.other)
        base, own, slope = (
            _on_the_way(passes, part.own, other, steps, progress) if is_integrated else passes.steep(part.own)
        )
        whole = _of_each(model.hook_dict[_STREAM], [], own, other, slope)
        if isinstance(site, str):
            points = [Site(site, layer).point(model) for layer in axes["layer"]]
            effects = [_of_each(point, list(axes)[1:], own, other, slope) for point in points]
        else:
            effects = [_of_group(model, group, own, other, slope, part.mask, some)[None] for group in groups]
        return torch.cat([base[None], reached[None], whole, *effects]).T

    chunks, everyone = Chunks(model.device, memory), list(range(n_prompts))
    chunks.plan.largest = max(chunks.plan.largest, _AT_ONCE)
    if edits_in_force(model) != []:  # who listens may expect all prompts
        made = iter([(everyone, once(everyone))])
    else:
        jobs = [Job(prompt, "prompt", pair.own.shape[1]) for prompt in everyone]
        made = chunks.run(jobs, once, are_small=pair.own.numel() <= _AT_ONCE)
    parts = list(tqdm(made, desc="attribution", unit=" chunks", delay=1.0, disable=not progress or is_integrated))
    order = torch.tensor([prompt for some, _ in parts for prompt in some]).argsort()
    numbers = torch.cat([each for _, each in parts])[order]
    base, reached, whole, *_ = numbers.T
    found = numbers.T[3:]
    if found.isnan().any():
        raise ValueError(f"the gradient of {name_of(metric)} is NaN, where the metric itself is not")
    about = provenance(model, metric, pair.own, f"attribution patching, {method}")
    about |= {"site": site if isinstance(site, str) else "given", "direction": direction}
    about |= {"base": base.mean().item(), "note": "base + effect estimates what activation_patching gives"}
    about |= {"steps": steps if is_integrated else None}
    about |= {"completeness_error": (whole - (reached - base)).mean().item()}
    if check:
        about |= _compared(model, metric, pair, groups, found, check, seed, memory, progress)
    effects = found.view(*map(len, axes.values()), len(pair.own))
    return labelled(effects, {**axes, "prompt": range(len(pair.own))}, "effect", about)


@dataclass(frozen=True, eq=False)
class _Passes:
    """Passes of the same prompts, and what is kept of each: the metric, and values by name."""

    model: HookedGPT
    metric: AnyMetric
    rows: Rows  # of the run that is stayed in, whichever stream is put into it: a loss has that run's targets
    names: list[str]

    def plain(self, tokens: Tensor) -> tuple[Float[Tensor, " prompt"], Mapping[str, Tensor]]:
        """The metric and the values of a run."""
        with torch.no_grad():
            out, cache = self.model.run_with_cache(tokens, **self._choices)
            return self._measured(out).cpu().double(), cache

    def steep(
        self, input: Tensor, start_at_layer: int | None = None
    ) -> tuple[Float[Tensor, " prompt"], dict[str, Tensor], dict[str, Tensor]]:
        """The metric of a run, its values, and each prompt's gradient at them: rows do not see each other."""
        seen: list[Tensor] = []

        def loss_fn(out: Tensor) -> Tensor:
            seen.append(self._measured(out))
            if not seen[0].requires_grad:
                raise ValueError(f"{name_of(self.metric)} has no gradient; take a smooth metric, such as logit_diff")
            return seen[0].sum()

        _, cache = self.model.run_with_cache(
            input, incl_bwd=True, loss_fn=loss_fn, start_at_layer=start_at_layer, **self._choices
        )
        own = {name: cache[name].detach() for name in self.names}
        return seen[0].detach().cpu().double(), own, {name: cache[f"{name}_grad"] for name in self.names}

    @property
    def _ends_with_the_blocks(self) -> bool:
        return all(name.startswith("blocks.") for name in self.names)

    @property
    def _choices(self) -> dict[str, Any]:
        stop = self.model.cfg.n_layers if self._ends_with_the_blocks else None
        return {"names_filter": self.names, "attention_mask": self.rows.attention_mask, "stop_at_layer": stop}

    def _measured(self, out: Tensor) -> Float[Tensor, " prompt"]:
        metric, chosen = self.metric, at_positions(out, self.metric, self.rows.attention_mask)
        if self._ends_with_the_blocks:  # then it is the stream: only the logits that are read are computed
            tokens, metric = narrowed(metric, self.model.cfg.d_vocab_out)
            chosen = self.model.read_off(self.model.ln_final(chosen), tokens)
        values = values_of(metric, chosen, self.rows)
        if bad := (~values.isfinite()).nonzero().flatten().tolist():
            raise ValueError(f"{name_of(self.metric)} is NaN or infinite for prompts {bad}: nothing to attribute")
        return values


def _on_the_way(
    passes: _Passes, tokens: Tensor, other: Mapping[str, Tensor], steps: int, progress: bool
) -> tuple[Float[Tensor, " prompt"], Mapping[str, Tensor], dict[str, Tensor]]:
    """As `_Passes.steep`, with the gradient's mean between two runs' embeddings (midpoint rule)."""
    base, own = passes.plain(tokens)
    mean = {name: torch.zeros_like(_exact(own[name])) for name in passes.names}
    for k in tqdm(range(steps), desc="gradients", unit=" steps", delay=1.0, disable=not progress):
        stream = own[_STREAM].lerp(other[_STREAM], (k + 0.5) / steps)
        _, _, slope = passes.steep(stream, start_at_layer=0)
        for name, total in mean.items():
            total.add_(slope[name], alpha=1 / steps)
    return base, own, mean


def _names(model: HookedGPT, groups: Sequence[Group]) -> list[str]:
    """The hook points of all sites, and the first stream, at which the whole is measured."""
    names = {each.point(model).name for group in groups for each in group}
    if before := names & {"hook_embed", "hook_pos_embed"}:
        raise ValueError(f"patching changes the stream from its first block on: not {sorted(before)}, but resid_pre")
    return sorted(names | {_STREAM})


def _of_each(
    point: HookPoint,
    inner: Sequence[str],
    own: Mapping[str, Tensor],
    other: Mapping[str, Tensor],
    slope: Mapping[str, Tensor],
) -> Effects:
    """The effects of one hook point's parts: what is not in `inner` is summed over."""
    kinds, name = point.axes.split(), point.name
    of_axis = {"head": ("head", "kv_head"), "pos": ("pos", "query_pos"), "neuron": kinds[-1:]}
    kept = [next(i for i, kind in enumerate(kinds) if kind in of_axis[axis]) for axis in inner]
    all_axes = list(range(len(kinds)))
    change = _change(other[name], own[name])
    found = torch.einsum(_exact(slope[name]), all_axes, change, all_axes, [*kept, kinds.index("batch")])
    return found.flatten(0, -2).cpu().double() if kept else found[None].cpu().double()


def _of_group(
    model: HookedGPT,
    group: Group,
    own: Mapping[str, Tensor],
    other: Mapping[str, Tensor],
    slope: Mapping[str, Tensor],
    mask: Tensor | None,
    prompts: list[int],
) -> Float[Tensor, " prompt"]:
    """The effect of some sites together. At one hook point the patches act in their order, so no part counts twice."""
    patched: dict[str, Tensor] = {}
    for site in group:
        point, pos = site.point(model), site.pos
        if isinstance(pos, Tensor) and pos.ndim == 2 and len(pos) > 1:
            site = replace(site, pos=pos[prompts])
        with torch.no_grad(), spanning(Span(mask=mask)):
            before = patched.get(point.name, own[point.name])
            patched[point.name] = Acts(Patch(site, other[point.name]))(before, point)
    total = torch.zeros(len(own[_STREAM]), dtype=torch.float64)
    for name, new in patched.items():
        total += (_exact(slope[name]) * _change(new, own[name])).flatten(1).sum(1).cpu().double()
    return total


def _change(new: Tensor, own: Tensor) -> Tensor:
    """The difference; none where both are -inf, as scores are that may not be looked at."""
    return (_exact(new) - _exact(own)).masked_fill(new == own, 0)


def _exact(x: Tensor) -> Tensor:
    return x.float() if x.dtype.itemsize == 2 else x


def _compared(
    model: HookedGPT,
    metric: AnyMetric,
    pair: Pair,
    groups: Sequence[Group],
    found: Effects,
    check: int,
    seed: int,
    memory: int | None,
    progress: bool,
) -> dict[str, Any]:
    """Some cells' estimates against their effects."""
    cells = torch.randperm(len(groups), generator=torch.Generator().manual_seed(seed))[:check].tolist()
    if not cells:
        return {"checked": 0}
    starts = first_difference(pair.own, pair.other)
    names = sorted({each.point(model).name for cell in cells for each in groups[cell]})
    base = Base(model, pair.own, pair.mask, other=pair.other, names=names)
    edits = [tuple(Patch(each, base.cache[each.point(model).name]) for each in groups[cell]) for cell in cells]
    rows = [Row(prompt, some, start) for some in edits for prompt, start in enumerate(starts)]
    sweep = Sweep(base, metric, memory, progress)
    exact = sweep.values(rows).view(len(cells), -1) - sweep.base_values().double().cpu()
    estimate = found[cells]
    both = torch.stack((exact.flatten(), estimate.flatten()))
    centred = both - both.mean(1, keepdim=True)
    lengths = centred.norm(dim=1)
    varies = bool((lengths > 1e-12 * both.norm(dim=1)).all())  # a constant correlates with nothing
    correlation = (centred[0] @ centred[1] / lengths.prod()).item() if varies else None
    error = (exact - estimate).abs().max().item()
    return {"checked": len(cells), "check_correlation": correlation, "check_max_error": error, **sweep.work}
