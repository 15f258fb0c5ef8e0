"""Interchange interventions: a part of a site's space taken from another run; and which part carries a variable.

1. `interchange`: a base run goes on with the coordinates in a subspace that its source run has at the site.
2. `fit_subspace` (distributed alignment search): the first columns of a rotation, so trained through the frozen model
   that with their coordinates from the source the model says what the source's value of the variable would make it say.
3. `subspace_controls`: what it is worth. A random subspace, one fitted to arbitrary labels, and one fitted in a model
   with fresh weights must fail; on templates it was not fitted on it must hold.
4. `null_space_check`: a direction may work by moving what nothing reads, and with it what is otherwise idle. Then it
   does nothing once it is projected on what the next matrix reads.

Geiger et al. 2021, https://arxiv.org/abs/2106.02997; 2023, https://arxiv.org/abs/2303.02536; the illusion: Makelov et
al. 2023, https://arxiv.org/abs/2311.17030.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import isfinite
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from interp import metrics
from interp.hooks import HookPoint, Span, spanning
from interp.interventions import Patch, Site
from interp.interventions.edits import Acts
from interp.metrics import Answers, AnyMetric, Metric, Rows, answer_ids, at_positions, values_of
from interp.model import HookedGPT
from interp.patching.activation import Pair, activation_patching, pair_of_runs
from interp.results import Result, labelled, provenance

Basis = Float[Tensor, "coordinate basis"]
_SMALL = 1e-5  # of a direction's length: nothing
_AT_ONCE = 256  # pairs


def interchange(
    model: HookedGPT,
    base: Any,
    source: Any,
    site: Site,
    subspace: Basis | Mapping[str, Basis] | None,
    metric: AnyMetric,
    *,
    attention_mask: Tensor | None = None,
    memory: int | None = None,
    progress: bool = True,
) -> Result:
    """The metric of each base run with the part of a site that lies in a subspace from its source run: [prompt].

    `subspace` has orthonormal columns, [coordinate basis]; None is the whole space. Of several by name, [subspace
    prompt]. With `metrics.accuracy` of what the source's value of a variable would make the model say, the mean is the
    interchange intervention accuracy. `base` is a coordinate: the metric with nothing changed.
    """
    _check_whole(site)
    named = dict(subspace) if isinstance(subspace, Mapping) else {"": subspace}
    if not named:
        raise ValueError("subspace: none are given; None is the whole space")
    sites = [replace(site, subspace=each) for each in named.values()]
    found = activation_patching(
        model, source, base, sites, metric, attention_mask=attention_mask, memory=memory, progress=progress
    )
    about = found.attrs | {"method": "interchange intervention", "site": sites[0].point(model).name}
    found = found.rename(site="subspace").assign_coords(subspace=list(named)).assign_attrs(about)
    return found if isinstance(subspace, Mapping) else found.isel(subspace=0, drop=True)


@dataclass(frozen=True, eq=False)
class Subspace:
    """A fitted subspace: its site, with it; the loss of each step; and the passes that it took, of one prompt each."""

    site: Site
    losses: list[float]
    work: dict[str, int]
    choices: dict[str, Any]  # how it was fitted

    @property
    def basis(self) -> Basis:
        """Orthonormal columns."""
        assert self.site.subspace is not None
        return self.site.subspace


def fit_subspace(
    model: HookedGPT,
    base: Any,
    source: Any,
    site: Site,
    answers: Answers,
    *,
    dim: int = 1,
    steps: int = 200,
    batch: int = 64,
    lr: float = 0.05,
    pos: int = -1,
    seed: int = 0,
    attention_mask: Tensor | None = None,
    progress: bool = True,
) -> Subspace:
    """The subspace of a site, of `dim` dimensions, whose coordinates from the source make the model say `answers`.

    An answer for each pair: what it would say if the variable had the value that it has in the source, all else as in
    the base. Its log-probability at `pos` is what the steps (of Adam, over `batch` pairs) raise. Only the layers from
    the site on are run again. `work` counts passes of one prompt: whole ones, and those from the site's layer on.
    """
    swap = _Swap.of(model, base, source, site, attention_mask)
    metric, n_dims, n = metrics.log_prob(model, answers, pos=pos), swap.change.shape[-1], len(swap.pair.own)
    if not 1 <= dim <= n_dims or steps < 1 or batch < 1 or not lr > 0:
        raise ValueError(f"dim={dim}, steps={steps}, batch={batch}, lr={lr}; dim is 1 to {n_dims}, the others above 0")
    if torch.is_inference_mode_enabled():
        raise ValueError("fitting needs gradients, and torch.inference_mode allows none; leave it, or use no_grad")
    device, draw = model.device, torch.Generator().manual_seed(seed)
    exact = torch.float64 if model.dtype == torch.float64 else torch.float32
    start = torch.linalg.qr(torch.randn(n_dims, dim, generator=draw, dtype=torch.float64)).Q
    weight = start.to(device, exact).requires_grad_()
    optimizer, losses = torch.optim.Adam([weight], lr), list[Tensor]()
    each = min(batch, n)
    rounds = torch.cat([torch.randperm(n, generator=draw) for _ in range(-(-steps * each // n))])
    chosen = rounds[: steps * each].view(steps, each).to(device)
    for step in tqdm(range(steps), desc="fitting", unit=" steps", delay=1.0, disable=not progress):
        with torch.enable_grad():
            change = swap.within(torch.linalg.qr(weight).Q, chosen[step])
            loss = -swap.values(metric, change, chosen[step]).mean()
        (weight.grad,) = torch.autograd.grad(loss, [weight])
        optimizer.step()
        losses.append(loss.detach())
    said = torch.stack(losses).tolist()
    if bad := [loss for loss in said if not isfinite(loss)]:
        raise ValueError(f"the loss, minus the log-probability of the answers, is {bad[0]}: nothing to fit by")
    basis = torch.linalg.qr(weight.detach()).Q.to(exact)
    choices = {"dim": dim, "steps": steps, "batch": batch, "lr": lr, "pos": pos}
    return Subspace(replace(site, subspace=basis), said, dict(swap.work), choices)


def subspace_controls(
    model: HookedGPT,
    fitted: Subspace,
    base: Any,
    source: Any,
    answers: Answers,
    *,
    held_out: tuple[Any, Any, Answers] | None = None,
    draws: int = 5,
    seed: int = 0,
    attention_mask: Tensor | None = None,
    progress: bool = True,
) -> Result:
    """The interchange accuracy of a fitted subspace, and of what should have none: [control prompts].

    "random": the mean of `draws` random subspaces, what each moves made as long as what the fitted one moves.
    "arbitrary labels": fitted to the answers shuffled among the pairs, and asked for those. "fresh weights": fitted in
    a model of the same kind that knows nothing. Of the pairs that it was "fitted on", and of those "held out", (base,
    source, answers), such as prompts of another template. `attrs` have how often the commonest answer is right.
    """
    if draws < 1:
        raise ValueError(f"draws={draws}; at least one random subspace is drawn")
    site, pos = replace(fitted.site, subspace=None), fitted.choices["pos"]
    sets = {"fitted on": (base, source, answers)} | ({} if held_out is None else {"held out": held_out})
    about = provenance(model, metrics.accuracy(model, answers), _pairs(model, *sets["fitted on"][:2]).own, "controls")
    asked, labels, values = dict[str, Tensor](), dict[str, Tensor](), list[list[float]]()
    draw = torch.Generator().manual_seed(seed)
    for name, (one, other, said) in sets.items():
        n = len(_pairs(model, one, other).own)
        ids = answer_ids(model, said)
        asked[name] = ids.expand(n, -1) if len(ids) == 1 else ids
        if len(asked[name].unique(dim=0)) < 2:
            raise ValueError(f"{name}: all answers are the same, so that any subspace, and arbitrary labels, are right")
        labels[name] = asked[name][torch.randperm(n, generator=draw)]
        about[f"commonest answer, {name}"] = asked[name].unique(dim=0, return_counts=True)[1].max().item() / n
    fresh = HookedGPT(replace(model.cfg, seed=seed + 1), model.tokenizer).to(model.device, model.dtype).eval()
    choices: dict[str, Any] = fitted.choices | {"attention_mask": attention_mask, "seed": seed, "progress": progress}
    on_labels = fit_subspace(model, base, source, site, labels["fitted on"], **choices)
    on_fresh = fit_subspace(fresh, base, source, site, asked["fitted on"], **choices)
    for name, (one, other, _) in sets.items():
        mask = attention_mask if name == "fitted on" else None
        right = metrics.accuracy(model, asked[name], pos=pos)
        swap = _Swap.of(model, one, other, site, mask)
        own = swap.within(fitted.basis)
        random = [swap.within(_random_basis(fitted.basis, draw)) for _ in range(draws)]
        rescaled = [each * _as_long(own, each) for each in random]
        values.append(
            [
                swap.measured(right, own).mean().item(),
                torch.stack([swap.measured(right, each).mean() for each in rescaled]).mean().item(),
                swap.measured(metrics.accuracy(model, labels[name], pos=pos), swap.within(on_labels.basis))
                .mean()
                .item(),
            ]
        )
        swap = _Swap.of(fresh, one, other, site, mask)
        values[-1].append(swap.measured(right, swap.within(on_fresh.basis)).mean().item())
    axes = {"control": ["fitted", "random", "arbitrary labels", "fresh weights"], "prompts": list(sets)}
    return labelled(torch.tensor(values).double().T, axes, "accuracy", about | {"draws": draws, **fitted.choices})


def null_space_check(
    model: HookedGPT,
    site: Site,
    base: Any,
    source: Any,
    metric: AnyMetric,
    *,
    attention_mask: Tensor | None = None,
    progress: bool = True,
) -> Result:
    """Whether a subspace works by what is read of it: its interchange, and those of its two projections: [part prompt].

    Of neurons ("post") or of one head's mix of values ("z"), which one matrix reads, W_out or W_O. "read" is the
    subspace projected on what that matrix reads, "unread" on what it does not. If "subspace" moves the metric and
    "read" does not, it is an illusion. `attrs["unread"]` is how much of the subspace is not read, between 0 and 1.
    """
    if site.subspace is None:
        raise ValueError("the site has no subspace to check: give Site(…, subspace=basis)")
    point, basis = site.point(model), site.subspace.double()
    block = model.blocks[point.layer()] if point.name.startswith("blocks.") else None
    if block is not None and point.name.endswith(".mlp.hook_post"):
        W = block.mlp.W_out
    elif block is not None and point.name.endswith(".attn.hook_z") and isinstance(site.head, int):
        W = block.attn.W_O[site.head]
    else:
        raise ValueError(
            f"{point.name}: one matrix reads 'post', and 'z' of one head, Site('z', layer, head=0); give one"
        )
    left, sizes, _ = torch.linalg.svd(W.detach().double(), full_matrices=False)
    read = left[:, sizes > _SMALL * sizes.max().clamp(min=torch.finfo(torch.float64).tiny)].to(basis.device)
    inside = read @ (read.T @ basis)
    parts = {"subspace": basis, "read": _spanned(inside), "unread": _spanned(basis - inside)}
    whole = replace(site, subspace=None)
    found = interchange(model, base, source, whole, parts, metric, attention_mask=attention_mask, progress=progress)
    unread = ((basis - inside).square().sum() / basis.shape[1]).item()
    return found.rename(subspace="part").assign_attrs(unread=unread, method="null-space check")


@dataclass(frozen=True, eq=False)
class _Swap:
    """Pairs of runs up to the layer of a site, and how its value would change if all of it came from the source."""

    model: HookedGPT
    point: HookPoint
    pair: Pair
    resid: Float[Tensor, "prompt pos d_model"]  # of the base, before the layer
    change: Float[Tensor, "prompt ..."]
    work: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, model: HookedGPT, base: Any, source: Any, site: Site, mask: Tensor | None) -> "_Swap":
        """Of these pairs."""
        _check_whole(site)
        pair, point = pair_of_runs(model, source, base, "denoise", mask), site.point(model)
        if not point.name.startswith("blocks."):
            raise ValueError(f"a subspace is of a value in a layer: not {point.name}, but resid_pre or resid_post")
        stream = f"blocks.{point.layer()}.hook_resid_pre"
        choices: dict[str, Any] = {"names_filter": [stream, point.name], "attention_mask": pair.mask}
        with torch.no_grad(), spanning(Span(mask=pair.mask)):
            (_, own), (_, other) = (
                model.run_with_cache(each, None, stop_at_layer=point.layer() + 1, **choices)
                for each in (pair.own, pair.other)
            )
            whole = Acts(Patch(site, other[point.name]))(own[point.name], point)
        change = (whole - own[point.name]).masked_fill(whole == own[point.name], 0)
        swap = cls(model, point, pair, own[stream], change)
        swap.work["runs up to the layer"] += 2 * len(pair.own)
        return swap

    def within(self, basis: Basis, chosen: Int[Tensor, " chosen"] | None = None) -> Float[Tensor, "chosen ..."]:
        """The part of the change that lies in a subspace, of some of the pairs."""
        if len(basis) != self.change.shape[-1]:
            n = self.change.shape[-1]
            raise ValueError(f"the subspace's basis has {len(basis)} coordinates; {self.point.name} has {n}")
        change = self.change if chosen is None else self.change[chosen]
        basis = basis.to(change)
        return change @ basis @ basis.T

    def values(
        self, metric: Metric, change: Float[Tensor, "chosen ..."], chosen: Int[Tensor, " chosen"]
    ) -> Float[Tensor, " chosen"]:
        """The metric of some of the base runs, so changed."""
        mask, model = None if self.pair.mask is None else self.pair.mask[chosen], self.model
        with model.hooks([(self.point.name, lambda x, hook: x + change)]):  # noqa: ARG005
            final = model(
                self.resid[chosen],
                start_at_layer=self.point.layer(),
                stop_at_layer=model.cfg.n_layers,
                attention_mask=mask,
            )
        logits = model.read_off(model.ln_final(at_positions(final, metric, mask)))
        self.work["runs from the layer"] += len(chosen)
        self.work["backward passes"] += len(chosen) if torch.is_grad_enabled() else 0
        return values_of(metric, logits, Rows(self.pair.own[chosen], chosen, len(self.pair.own), mask))

    @torch.no_grad()
    def measured(self, metric: Metric, change: Float[Tensor, "prompt ..."]) -> Float[Tensor, " prompt"]:
        """The metric of all of them."""
        every = torch.arange(len(change), device=change.device).split(_AT_ONCE)
        return torch.cat([self.values(metric, change[some], some) for some in every])


def _pairs(model: HookedGPT, base: Any, source: Any) -> Pair:
    return pair_of_runs(model, source, base, "denoise", None)


def _check_whole(site: Site) -> None:
    """Raise if a site is part of a space already."""
    if site.subspace is not None or site.neuron is not None:
        raise ValueError("site: give it without subspace= and neuron=; the subspace is of its whole last axis")


def _random_basis(like: Basis, draw: torch.Generator) -> Basis:
    drawn = torch.randn(like.shape, generator=draw, dtype=torch.float64)
    return torch.linalg.qr(drawn).Q.to(like)


def _as_long(wanted: Tensor, given: Tensor) -> Tensor:
    """What each token's change is multiplied by to be as long as another; of no change, 0."""
    length = given.norm(dim=-1, keepdim=True)
    return wanted.norm(dim=-1, keepdim=True) / length.masked_fill(length == 0, torch.inf)


def _spanned(vectors: Basis) -> Float[Tensor, "coordinate spanned"]:
    """An orthonormal basis of what these span; of next to nothing, none."""
    left, sizes, _ = torch.linalg.svd(vectors, full_matrices=False)
    return left[:, sizes > _SMALL]
