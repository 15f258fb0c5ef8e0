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

from interp.hooks import HookPoint, Span, spanning
from interp.interventions import Patch, Site
from interp.interventions.edits import Acts
from interp.metrics import Answers, AnyMetric, answer_ids, check_known
from interp.model import HookedGPT
from interp.patching.activation import Pair, activation_patching, pair_of_runs
from interp.recording import positions
from interp.results import Result, labelled

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
    """A fitted subspace: its site, with it; the loss of each step; and the runs that it took, of one prompt each."""

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
    the site on are run again: `work` counts runs of one prompt up to its layer, from there on, and back.
    """
    swap = _Swap.of(model, base, source, site, attention_mask)
    n_dims, n = swap.change.shape[-1], len(swap.pair.own)
    if not 1 <= dim <= n_dims or steps < 1 or batch < 1 or not lr > 0:
        raise ValueError(f"dim={dim}, steps={steps}, batch={batch}, lr={lr}; dim is 1 to {n_dims}, the others above 0")
    ids, at = _asked(model, answers, n).to(model.device), swap.where(pos)
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
            logits = swap.logits(swap.within(torch.linalg.qr(weight).Q, chosen[step]), chosen[step], at)
            loss = -logits.log_softmax(-1).gather(1, ids[chosen[step]]).logsumexp(1).mean()
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
    pos = fitted.choices["pos"]
    site, draw = replace(fitted.site, subspace=None), torch.Generator().manual_seed(seed)
    sets = {"fitted on": (base, source, answers, attention_mask)}
    sets |= {} if held_out is None else {"held out": (*held_out, None)}
    fresh = HookedGPT(replace(model.cfg, seed=seed + 1), model.tokenizer).to(model.device, model.dtype).eval()
    choices: dict[str, Any] = fitted.choices | {"attention_mask": attention_mask, "seed": seed, "progress": progress}
    about = {"method": "controls of a subspace", "model": model.fingerprint(), "draws": draws, **fitted.choices}
    refitted, values = dict[str, Subspace](), list[list[float]]()
    for name, (one, other, said, mask) in sets.items():
        swap, swap_of_fresh = (_Swap.of(of, one, other, site, mask) for of in (model, fresh))
        asked = _asked(model, said, len(swap.pair.own))
        kinds, counts = asked.unique(dim=0, return_counts=True)
        if len(kinds) < 2:
            raise ValueError(f"{name}: all answers are the same: then arbitrary labels are right, too")
        about[f"commonest answer, {name}"] = counts.max().item() / len(asked)
        labels = asked[torch.randperm(len(asked), generator=draw)]
        if not refitted:
            refitted["labels"] = fit_subspace(model, one, other, site, labels, **choices)
            refitted["fresh"] = fit_subspace(fresh, one, other, site, asked, **choices)
        own = swap.within(fitted.basis)
        random = [swap.within(_random_basis(fitted.basis, draw)) for _ in range(draws)]
        right = [swap.accuracy(each * _as_long(own, each), asked, pos) for each in random]
        values.append(
            [
                swap.accuracy(own, asked, pos),
                sum(right) / draws,
                swap.accuracy(swap.within(refitted["labels"].basis), labels, pos),
                swap_of_fresh.accuracy(swap_of_fresh.within(refitted["fresh"].basis), asked, pos),
            ]
        )
    axes = {"control": ["fitted", "random", "arbitrary labels", "fresh weights"], "prompts": list(sets)}
    return labelled(torch.tensor(values).double().T, axes, "accuracy", about)


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

    def where(self, pos: int) -> Int[Tensor, " prompt"]:
        """The column that `pos` is in each prompt."""
        n, n_pos = self.pair.own.shape
        found = positions([pos], n_pos, self.pair.mask)
        assert found is not None
        assert isinstance(found.index, Tensor)
        return found.index.to(self.resid.device).expand(n, 1)[:, 0]

    def logits(
        self, change: Float[Tensor, "chosen ..."], chosen: Int[Tensor, " chosen"], at: Int[Tensor, " prompt"]
    ) -> Float[Tensor, "chosen d_vocab_out"]:
        """Of some of the base runs, so changed, where they are read."""
        mask, model = None if self.pair.mask is None else self.pair.mask[chosen], self.model
        with model.hooks([(self.point.name, lambda x, hook: x + change)]):  # noqa: ARG005
            final = model(
                self.resid[chosen],
                start_at_layer=self.point.layer(),
                stop_at_layer=model.cfg.n_layers,
                attention_mask=mask,
            )
        self.work["runs from the layer"] += len(chosen)
        self.work["backward passes"] += len(chosen) if torch.is_grad_enabled() else 0
        read = final[torch.arange(len(chosen), device=final.device), at[chosen]]
        logits = model.read_off(model.ln_final(read[:, None]))[:, 0]
        return logits.float() if logits.dtype.itemsize == 2 else logits

    @torch.no_grad()
    def accuracy(self, change: Float[Tensor, "prompt ..."], asked: Int[Tensor, "prompt answer"], pos: int) -> float:
        """How often the likeliest token is what is asked for, of all of them."""
        at, right = self.where(pos), list[Tensor]()
        for some in torch.arange(len(change), device=change.device).split(_AT_ONCE):
            best = self.logits(change[some], some, at).argmax(-1, keepdim=True)
            right.append((best == asked.to(best.device)[some]).any(1))
        return torch.cat(right).double().mean().item()


def _asked(model: HookedGPT, answers: Answers, n: int) -> Int[Tensor, "prompt answer"]:
    """Each pair's answers."""
    ids = answer_ids(model, answers)
    check_known(ids, model.cfg.d_vocab_out)
    if len(ids) not in (1, n):
        raise ValueError(f"answers: {len(ids)} were given for {n} pairs; give one, or as many")
    return ids.expand(n, -1)


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
