"""Attribution patching: every patch's effect at once, to first order (Nanda, 2023; Kramár et al., 2024).

1. Both runs are made; of the one that is stayed in, the metric's gradient at each value is kept.
2. Putting the other run's value in changes the metric by about gradient · (its value - own value), summed over a site.
3. "integrated" has the gradient's mean on the straight way from one run's embeddings to the other's, with all that
   follows from them (EAP-IG; Hanna et al., 2024).
4. "atp*" computes the softmax anew where queries or keys are put in (`softmax.py`), and takes the gradient again for
   each layer with all that this layer writes left out: then it shows where two ways cancel (Kramár et al., 2024).
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
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
from interp.patching.softmax import Recomputed, exact
from interp.patching.sweep import Sweep
from interp.results import Result, labelled, provenance

Method = Literal["gradient", "integrated", "atp*"]
Group = tuple[Site, ...]
Effects = Float[Tensor, "slope cell prompt"]
_STREAM = "blocks.0.hook_resid_pre"
_MEETING = (".attn.hook_q", ".attn.hook_k", ".attn.hook_rot_q", ".attn.hook_rot_k")
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
    verify: int = 0,
    check: int = 0,
    seed: int = 0,
    attention_mask: Tensor | None = None,
    memory: int | None = None,
    progress: bool = True,
) -> Result:
    """What `activation_patching` would change in the metric, estimated: the patched run's minus that of the run as is.

    The gradient is that of the run which is stayed in, or with "integrated" its mean over `steps` points on the way to
    the other run. Where the metric has its minimum in the run as is, as a KL from that run has, the gradient is zero
    and says nothing: take the other direction, or "integrated". Where a head's softmax is saturated, queries and keys
    have no slope either: take "atp*". Its result has a coordinate `contribution`, too: the mean size of the effect when
    what one layer writes is left out, each in turn. It is large where ways that cancel hide a part; small where, in a
    model of few layers, all that a part does goes through one of them.

    With `verify`, so many cells, those whose mean contribution or mean size of effect is largest, are patched in truth,
    and have their effects exactly; `verified` says which. With `check`, so many drawn at random are, and `attrs` say
    how far the estimates are from that. `attrs` have `base`, the mean metric of the run as is; how many passes of one
    prompt were made, forward and backward; and `completeness_error`: what the whole first stream is said to do, minus
    what it does, in the mean over prompts.
    """
    if torch.is_inference_mode_enabled():
        raise ValueError("attribution needs gradients, and torch.inference_mode allows none; leave it, or use no_grad")
    if method not in ("gradient", "integrated", "atp*"):
        raise ValueError(f"method={method!r}; allowed: 'gradient', 'integrated', 'atp*'")
    if steps < 1 or check < 0 or verify < 0:
        raise ValueError(f"steps={steps}, check={check}, verify={verify}; steps must be at least 1, the others 0")
    pair = pair_of_runs(model, clean, corrupted, direction, attention_mask)
    axes, groups = sites_of(model, site, by, layers, pair.own)
    is_integrated, n_prompts = method == "integrated", len(pair.own)
    names, work = _names(model, groups, method), Counter[str]()
    dropped = range(model.cfg.n_layers if method == "atp*" and model.cfg.n_layers > 1 else 0)

    def once(some: list[int]) -> Float[Tensor, "prompt number"]:
        """Of each prompt: the metric as is, that of the other run, the effect of the whole stream, and each cell's.

        Then each cell's again with each layer left out.
        """
        part = pair.of(some)
        rows = Rows(part.own, torch.tensor(some, device=model.device), n_prompts, part.mask)
        passes = _Passes(model, metric, rows, names, work)
        reached, other = passes.plain(part.other)
        base, own, slopes = (
            _on_the_way(passes, part.own, other, steps, progress)
            if is_integrated
            else passes.steep(part.own, dropped=dropped)
        )
        kept = _Kept(model, own, other, slopes, part.mask, method == "atp*")
        whole = kept.of_each(model.hook_dict[_STREAM], [])[:1]
        if isinstance(site, str):
            points = [Site(site, layer).point(model) for layer in axes["layer"]]
            effects = [kept.of_each(point, list(axes)[1:]) for point in points]
        else:
            effects = [kept.of_group(group, some)[:, None] for group in groups]
        together = torch.cat(effects, 1) if effects else whole[:, :0]
        return torch.cat([base[None], reached[None], whole[0], *together]).T

    numbers = _in_chunks(model, pair, once, memory, is_shown=progress and not is_integrated)
    base, reached, whole, *_ = numbers.T
    if numbers.T[3:].isnan().any():
        raise ValueError(f"the gradient of {name_of(metric)} is NaN, where the metric itself is not")
    found, *without = numbers.T[3:].unflatten(0, (1 + len(dropped), -1))
    # A part of a layer that is left out has no way on: of so many layers, one says nothing.
    contribution = torch.stack(without).abs().sum(0) / (len(without) - 1) if without else found.abs()
    about = provenance(model, metric, pair.own, f"attribution patching, {method}")
    about |= {"site": site if isinstance(site, str) else "given", "direction": direction}
    about |= {"base": base.mean().item(), "note": "base + effect estimates what activation_patching gives"}
    about |= {"steps": steps if is_integrated else None}
    about |= {"completeness_error": (whole - (reached - base)).mean().item(), **work}
    in_truth = _InTruth(model, metric, pair, groups, memory, progress)
    if check:
        about |= _compared(in_truth, found, check, seed)
    size = torch.maximum(contribution.mean(1), found.abs().mean(1))
    top = size.argsort(descending=True, stable=True)[:verify].tolist()
    if top:
        found[top], done = in_truth.effects(top)
        about |= {f"verified {what}": n for what, n in done.items()}
    every = {**axes, "prompt": range(n_prompts)}
    shape = [*map(len, every.values())]
    beside = {"contribution": (list(every), contribution.view(shape).numpy())} if method == "atp*" else {}
    if verify:
        is_exact = torch.isin(torch.arange(len(groups)), torch.tensor(top, dtype=torch.long))
        beside["verified"] = (list(axes), is_exact.view(shape[:-1]).numpy())
    return labelled(found.view(shape), every, "effect", about).assign_coords(beside)


def _in_chunks(
    model: HookedGPT, pair: Pair, once: Callable[[list[int]], Tensor], memory: int | None, is_shown: bool
) -> Float[Tensor, "prompt number"]:
    """What `once` finds of each prompt, so many at a time as fit into memory."""
    chunks, everyone = Chunks(model.device, memory), list(range(len(pair.own)))
    chunks.plan.largest = max(chunks.plan.largest, _AT_ONCE)
    if edits_in_force(model) != []:  # who listens may expect all prompts
        return once(everyone)
    jobs = [Job(prompt, "prompt", pair.own.shape[1]) for prompt in everyone]
    made = chunks.run(jobs, once, are_small=pair.own.numel() <= _AT_ONCE)
    parts = list(tqdm(made, desc="attribution", unit=" chunks", delay=1.0, disable=not is_shown))
    order = torch.tensor([prompt for some, _ in parts for prompt in some]).argsort()
    return torch.cat([each for _, each in parts])[order]


@dataclass(frozen=True, eq=False)
class _Passes:
    """Passes of the same prompts, and what is kept of each: the metric, and values by name."""

    model: HookedGPT
    metric: AnyMetric
    rows: Rows  # of the run that is stayed in, whichever stream is put into it: a loss has that run's targets
    names: list[str]
    work: Counter[str]

    def plain(self, tokens: Tensor) -> tuple[Float[Tensor, " prompt"], Mapping[str, Tensor]]:
        """The metric and the values of a run."""
        self.work["forward passes"] += len(tokens)
        with torch.no_grad():
            out, cache = self.model.run_with_cache(tokens, names_filter=self.names, **self._choices)
            return self._measured(out).cpu().double(), cache

    def steep(
        self, input: Tensor, start_at_layer: int | None = None, dropped: Sequence[int] = ()
    ) -> tuple[Float[Tensor, " prompt"], dict[str, Tensor], list[Mapping[str, Tensor]]]:
        """The metric of a run, its values, and each prompt's gradient at them: rows do not see each other.

        Then, for each layer `dropped`, the gradient past what it writes.
        """
        nodes: dict[str, Tensor] = {}
        left_out: list[int] = []
        writes = [name for name in self.model.hook_dict if name.endswith((".hook_attn_out", ".hook_mlp_out"))]

        def cut(gradient: Tensor, hook: HookPoint) -> Tensor:
            return torch.zeros_like(gradient) if hook.layer() in left_out else gradient

        with (
            torch.enable_grad(),
            self.model.hooks(bwd_hooks=[(writes, cut)] if dropped else []),
            self.model.recording(self.names, lambda x, point: nodes.update({point.name: x}), starts_graph=True),
        ):
            values = self._measured(self.model(input, start_at_layer=start_at_layer, **self._choices))
            total = values.sum()
        if not values.requires_grad:
            raise ValueError(f"{name_of(self.metric)} has no gradient; take a smooth metric, such as logit_diff")
        slopes: list[Mapping[str, Tensor]] = []
        for layers in (every := [[], *([layer] for layer in dropped)]):
            left_out[:] = layers
            is_last = layers is every[-1]
            found = torch.autograd.grad(
                total, list(nodes.values()), retain_graph=not is_last, allow_unused=True, materialize_grads=True
            )
            slope = dict(zip(nodes, found, strict=True))
            is_cut = lambda name: name in writes and self.model.hook_dict[name].layer() in left_out
            slopes.append({name: torch.zeros_like(x) if is_cut(name) else x for name, x in slope.items()})
        self.work["forward passes"] += len(input)
        self.work["backward passes"] += len(input) * len(slopes)
        own = {name: x.detach() for name, x in nodes.items()}
        return values.detach().cpu().double(), own, slopes

    @property
    def _ends_with_the_blocks(self) -> bool:
        return all(name.startswith("blocks.") for name in self.names)

    @property
    def _choices(self) -> dict[str, Any]:
        stop = self.model.cfg.n_layers if self._ends_with_the_blocks else None
        return {"attention_mask": self.rows.attention_mask, "stop_at_layer": stop}

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
) -> tuple[Float[Tensor, " prompt"], Mapping[str, Tensor], list[Mapping[str, Tensor]]]:
    """As `_Passes.steep`, with the gradient's mean between two runs' embeddings (midpoint rule)."""
    base, own = passes.plain(tokens)
    mean = {name: torch.zeros_like(exact(own[name])) for name in passes.names}
    for k in tqdm(range(steps), desc="gradients", unit=" steps", delay=1.0, disable=not progress):
        stream = own[_STREAM].lerp(other[_STREAM], (k + 0.5) / steps)
        _, _, [slope] = passes.steep(stream, start_at_layer=0)
        for name, total in mean.items():
            total.add_(slope[name], alpha=1 / steps)
    return base, own, [mean]


def _names(model: HookedGPT, groups: Sequence[Group], method: Method) -> list[str]:
    """The hook points of all sites, and the first stream, at which the whole is measured."""
    names = {each.point(model).name for group in groups for each in group}
    if before := names & {"hook_embed", "hook_pos_embed"}:
        raise ValueError(f"patching changes the stream from its first block on: not {sorted(before)}, but resid_pre")
    if method == "atp*":
        starts = {name.rpartition("hook_")[0] for name in names if name.endswith(_MEETING)}
        names |= {f"{start}hook_{each}" for start in starts for each in ("q", "k", "attn_scores", "pattern")}
    return sorted(names | {_STREAM})


@dataclass(frozen=True, eq=False)
class _Kept:
    """What is kept of two runs of some prompts, and of gradients in the one that is stayed in."""

    model: HookedGPT
    own: Mapping[str, Tensor]
    other: Mapping[str, Tensor]
    slopes: Sequence[Mapping[str, Tensor]]
    mask: Tensor | None
    is_recomputed: bool  # the softmax, for queries and keys

    def of_each(self, point: HookPoint, inner: Sequence[str]) -> Effects:
        """The effects of one hook point's parts: what is not in `inner` is summed over."""
        if self.is_recomputed and point.name.endswith(_MEETING):
            return self._of_each_that_meets(point, inner)
        kinds, name = point.axes.split(), point.name
        of_axis = {"head": ("head", "kv_head"), "pos": ("pos", "query_pos"), "neuron": kinds[-1:]}
        kept = [next(i for i, kind in enumerate(kinds) if kind in of_axis[axis]) for axis in inner]
        all_axes = list(range(len(kinds)))
        change = _change(self.other[name], self.own[name])
        found = torch.stack(
            [
                torch.einsum(exact(slope[name]), all_axes, change, all_axes, [*kept, kinds.index("batch")])
                for slope in self.slopes
            ]
        )
        return found.flatten(1, -2).cpu().double() if kept else found[:, None].cpu().double()

    def _of_each_that_meets(self, point: HookPoint, inner: Sequence[str]) -> Effects:
        """The same for queries or keys, whose softmax is computed anew. Heads and positions go all at once; coordinates
        one after the other, as do heads that are normed together, each of which moves the scores of all."""
        of, own, other = self._attention(point.layer()), self.own[point.name], self.other[point.name]
        cfg, part = self.model.cfg, point.name.rpartition("hook_")[2]
        are_normed = cfg.use_qk_norm and cfg.qk_norm_over_width and "head" in inner and not part.startswith("rot")
        heads = [[head] for head in range(own.shape[2])] if are_normed else [slice(None)]
        neurons = [[neuron] for neuron in range(own.shape[3])] if "neuron" in inner else [slice(None)]
        is_each_key = part.endswith("k") and "pos" in inner
        found = list[Tensor]()
        for head, neuron in product(heads, neurons):
            new = own.clone()
            new[:, :, head, neuron] = other[:, :, head, neuron]
            q, k = of.met({part: new})
            effect = of.with_each_key(k) if is_each_key else of.with_rows(q, k)
            each = torch.stack([effect(slope[of.name]) for slope in self.slopes])
            found.append(of.by_kv_head(each) if part.endswith("k") and not is_each_key else each)
        cells = torch.stack(found, -1).unflatten(
            -1, (len(heads), len(neurons))
        )  # [slope prompt head pos by_head neuron]
        cells = cells.sum(2).movedim(-2, 2) if are_normed else cells[..., 0, :]
        gone = [i for i, axis in enumerate(("head", "pos", "neuron"), start=2) if axis not in inner]
        kept = cells.sum(gone) if gone else cells
        return kept.movedim(1, -1).reshape(len(self.slopes), -1, len(own)).cpu().double()

    def of_group(self, group: Group, prompts: list[int]) -> Float[Tensor, "slope prompt"]:
        """The effect of some sites together. At one hook point they act in their order: no part counts twice."""
        patched: dict[str, Tensor] = {}
        for site in group:
            point, pos = site.point(self.model), site.pos
            if isinstance(pos, Tensor) and pos.ndim == 2 and len(pos) > 1:
                site = replace(site, pos=pos[prompts])
            with torch.no_grad(), spanning(Span(mask=self.mask)):
                before = patched.get(point.name, self.own[point.name])
                patched[point.name] = Acts(Patch(site, self.other[point.name]))(before, point)
        total = torch.zeros(len(self.slopes), len(self.own[_STREAM]), dtype=torch.float64)
        meeting = [name for name in patched if self.is_recomputed and name.endswith(_MEETING)]
        for layer in sorted({self.model.hook_dict[name].layer() for name in meeting}):
            start = f"blocks.{layer}.attn.hook_"
            new = {name.removeprefix(start): patched[name] for name in meeting if name.startswith(start)}
            of = self._attention(layer)
            effect = of.with_rows(*of.met(new))
            total += torch.stack([effect(slope[of.name]).flatten(1).sum(1) for slope in self.slopes]).cpu()
        for name in patched.keys() - set(meeting):
            change = _change(patched[name], self.own[name])
            total += torch.stack([(exact(slope[name]) * change).flatten(1).sum(1) for slope in self.slopes]).cpu()
        return total

    def _attention(self, layer: int) -> Recomputed:
        q, k, scores = (self.own[f"blocks.{layer}.attn.hook_{name}"] for name in ("q", "k", "attn_scores"))
        return Recomputed(self.model, layer, q, k, scores, self.mask)


def _change(new: Tensor, own: Tensor) -> Tensor:
    """The difference; none where both are -inf, as scores are that may not be looked at."""
    return (exact(new) - exact(own)).masked_fill(new == own, 0)


@dataclass(frozen=True, eq=False)
class _InTruth:
    """How to patch some of the cells, rather than to estimate what that does."""

    model: HookedGPT
    metric: AnyMetric
    pair: Pair
    groups: Sequence[Group]
    memory: int | None
    progress: bool

    def effects(self, cells: list[int]) -> tuple[Float[Tensor, "cell prompt"], dict[str, int]]:
        """What each patch does, and what work that took."""
        starts = first_difference(self.pair.own, self.pair.other)
        names = sorted({each.point(self.model).name for cell in cells for each in self.groups[cell]})
        base = Base(self.model, self.pair.own, self.pair.mask, other=self.pair.other, names=names)
        edits = [
            tuple(Patch(each, base.cache[each.point(self.model).name]) for each in self.groups[cell]) for cell in cells
        ]
        rows = [Row(prompt, some, start) for some in edits for prompt, start in enumerate(starts)]
        sweep = Sweep(base, self.metric, self.memory, self.progress)
        return sweep.values(rows).view(len(cells), -1) - sweep.base_values().double().cpu(), sweep.work


def _compared(in_truth: _InTruth, found: Float[Tensor, "cell prompt"], check: int, seed: int) -> dict[str, Any]:
    """Some cells' estimates against their effects."""
    cells = torch.randperm(len(found), generator=torch.Generator().manual_seed(seed))[:check].tolist()
    if not cells:
        return {"checked": 0}
    effects, work = in_truth.effects(cells)
    estimate = found[cells]
    both = torch.stack((effects.flatten(), estimate.flatten()))
    centred = both - both.mean(1, keepdim=True)
    lengths = centred.norm(dim=1)
    varies = bool((lengths > 1e-12 * both.norm(dim=1)).all())  # a constant correlates with nothing
    correlation = (centred[0] @ centred[1] / lengths.prod()).item() if varies else None
    error = (effects - estimate).abs().max().item()
    return {"checked": len(cells), "check_correlation": correlation, "check_max_error": error, **work}
