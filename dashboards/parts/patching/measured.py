"""What the page on patching shows: each number is computed by `interp`, and kept."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from xarray import DataArray, Dataset

from dashboards.parts.heads.measured import seconds_of
from dashboards.parts.jobs import Tell
from dashboards.parts.state import Chosen, cached
from interp import HookedGPT, metrics, patching
from interp.interventions import Patch, Site
from interp.metrics import AnyMetric, Rows, values_of
from interp.patching.activation import Direction
from interp.patching.attribution import Method
from interp.patching.sites import By
from interp.patching.sweep import Progress

AT_ONCE = 3.0  # seconds that a sweep may take without being asked for
DRAWS = 10  # of noise, where states are put back
STEPS = 60  # in which a direction is fitted
FASTER = 4  # times than a loop of whole runs: a sweep on long prompts, at least

METRICS = {
    "scaled": "logit difference, 0 corrupted to 1 clean",
    "log_prob": "log-probability of the target",
    "kl": "KL from the clean run",
}
DIRECTIONS = {"denoise": "clean into corrupted", "noise": "corrupted into clean"}


@dataclass(frozen=True)
class What:
    """A kind of place: a hook's name, and what it is taken apart by; `is_one_layer`, where all layers are too many."""

    site: str
    by: tuple[By, ...]
    is_one_layer: bool = False

    @property
    def n_axes(self) -> int:
        return len(self.by)


PLACES = {
    "Residual stream": What("resid_pre", ("pos",)),
    "Attention out": What("attn_out", ("pos",)),
    "MLP out": What("mlp_out", ("pos",)),
    "Heads": What("z", ("head",)),
    "Heads by position": What("z", ("head", "pos"), is_one_layer=True),
    "Queries": What("q", ("head",)),
    "Keys": What("k", ("head",)),
}
ESTIMATES: dict[Method, str] = {"gradient": "gradient", "integrated": "integrated gradients", "atp*": "AtP*"}


@dataclass(frozen=True)
class Asked:
    """What is patched from where into where, and how the outcome is measured; the clean run is the one on show."""

    other: tuple[int, ...]  # the corrupted prompt's tokens
    q: int
    target: int
    foil: int
    metric: str
    direction: Direction

    @property
    def corrupted(self) -> Int[Tensor, "1 pos"]:
        return torch.tensor([self.other])

    def metric_of(self, model: HookedGPT, tokens: Tensor) -> AnyMetric:
        """The metric, of the position that is read."""
        if self.metric == "kl":
            return metrics.kl(model, tokens, pos=self.q)
        if self.metric == "log_prob":
            return metrics.log_prob(model, self.target, pos=self.q)
        return metrics.logit_diff(model, self.target, self.foil, pos=self.q, clean=tokens, corrupted=self.corrupted)

    def code(self) -> str:
        """The same in the code of a figure, where `tokens` and `corrupted` are there."""
        if self.metric == "kl":
            return f"metric = metrics.kl(model, tokens, pos={self.q})\n"
        if self.metric == "log_prob":
            return f"metric = metrics.log_prob(model, {self.target}, pos={self.q})\n"
        return (
            f"metric = metrics.logit_diff(\n    model, {self.target}, {self.foil}, pos={self.q}, clean=tokens, "
            "corrupted=corrupted\n)\n"
        )


def places(model: HookedGPT) -> list[str]:
    """The kinds of places that this model has."""
    known = {name.rpartition(".hook_")[2] for name in model.hook_dict}
    return [name for name, what in PLACES.items() if what.site in known]


def metric_for(model: HookedGPT, tokens: Tensor, asked: Asked) -> AnyMetric:
    """For `cached`: the metric; to scale it, or to have what it is held against, takes runs of its own."""
    return asked.metric_of(model, tokens)


def both_of(model: HookedGPT, tokens: Tensor, asked: Asked) -> Float[Tensor, "run 1 d_vocab_out"]:
    """For `cached`: the logits of the clean run and of the corrupted one, where they are read."""
    return model(torch.cat((tokens, asked.corrupted.to(tokens))))[:, asked.q : asked.q + 1]


def ends(tokens: Tensor, asked: Asked) -> list[float]:
    """The metric of the clean run and that of the corrupted one."""
    rows = Rows.of(torch.cat((tokens, asked.corrupted.to(tokens))))
    return values_of(cached(metric_for, asked), cached(both_of, asked), rows).tolist()


def differences(asked: Asked) -> list[float]:
    """The logit difference of both, as it is."""
    logits = cached(both_of, asked)[:, 0]
    return (logits[:, asked.target] - logits[:, asked.foil]).tolist()


def gradient_of(
    model: HookedGPT, tokens: Tensor, asked: Asked, place: str, layer: int | None, method: Method
) -> DataArray:
    """For `cached`: the estimate, what each patch would change."""
    what = PLACES[place]
    found = patching.attribution_patching(
        model,
        tokens,
        asked.corrupted,
        what.site,
        cached(metric_for, asked),
        by=what.by,
        direction=asked.direction,
        layers=None if layer is None else [layer],
        method=method,
        progress=False,
    )
    return found.isel(prompt=0, drop=True).drop_vars("contribution", errors="ignore")


def exact_of(
    model: HookedGPT,
    tokens: Tensor,
    asked: Asked,
    place: str,
    layers: tuple[int, ...] | None,
    progress: Progress = False,
    file: Path | None = None,
) -> DataArray:
    """For `cached`: what each patch changes."""
    what = PLACES[place]
    found = patching.activation_patching(
        model,
        tokens,
        asked.corrupted,
        what.site,
        asked.metric_of(model, tokens),
        by=what.by,
        direction=asked.direction,
        layers=layers,
        progress=progress,
        file=file,
    )
    one = found.isel(prompt=0)
    return (one - one.base).drop_vars(["prompt", "base"]).assign_attrs(found.attrs)


def exact_by_layer(model: HookedGPT, tokens: Tensor, asked: Asked, place: str, tell: Tell) -> dict[int, DataArray]:
    """A job: the same, a layer after the other, the last one first: its rows are done soonest."""
    found: dict[int, DataArray] = dict(tell.before or {})
    layers = range(model.cfg.n_layers)[::-1]
    for i, layer in enumerate(layers):
        if layer not in found:
            found[layer] = exact_of(
                model, tokens, asked, place, (layer,), progress=tell.part(i, len(layers)), file=tell.file(str(layer))
            )
        tell(i + 1, len(layers), dict(found))
    return found


def seconds_at_most(now: Chosen, place: str) -> float:
    """How long an exact sweep takes, by the time of a pass."""
    cfg, n_pos = now.model.cfg, len(now.labels)
    sizes = {"pos": n_pos, "head": cfg.n_heads, "layer": cfg.n_layers, "neuron": 0}
    n = 1 if PLACES[place].is_one_layer else cfg.n_layers
    for axis in PLACES[place].by:
        n *= sizes[axis]
    return n * cached(seconds_of) / FASTER


def runs_of_trace(now: Chosen, subject: str | tuple[int, ...]) -> int:
    """How many it takes to put back every state: from the subject on, where it is known."""
    n_pos = len(now.labels) if isinstance(subject, str) else len(now.labels) - min(subject)
    return DRAWS * now.model.cfg.n_layers * n_pos


def patched_of(
    model: HookedGPT, tokens: Tensor, asked: Asked, site: str, layer: int, head: int | None, pos: int | None
) -> Dataset:
    """For `cached`: a whole run with one patch: its likeliest tokens, with their probabilities in all three runs.

    `change` is what the patch does to the metric.
    """
    own, other = (asked.corrupted, tokens) if asked.direction == "denoise" else (tokens, asked.corrupted)
    where = Site(site, layer, head=head, pos=pos)
    name = where.point(model).name
    _, cache = model.run_with_cache(other, None, names_filter=[name])
    with model.edit([Patch(where, cache[name])]):
        logits = model(own)[:, asked.q : asked.q + 1]
    after = values_of(cached(metric_for, asked), logits, Rows.of(own)).item()
    before = ends(tokens, asked)[asked.direction == "denoise"]
    clean, corrupted, patched = torch.cat((cached(both_of, asked), logits))[:, 0].double().softmax(-1)
    top = patched.topk(min(10, len(patched))).indices
    runs = {"clean": clean[top], "corrupted": corrupted[top], "patched": patched[top]}
    made = {name: ("token_id", each.cpu().numpy()) for name, each in runs.items()}
    return Dataset(made, coords={"token_id": top.tolist()}, attrs={"change": after - before})


def paths_of(
    model: HookedGPT, tokens: Tensor, asked: Asked, sender: tuple[int, int], receiver: tuple[int, int] | None
) -> DataArray:
    """For `cached`: what the receiver's hearing the other run from the sender alone changes, by what it reads.

    Without a receiver, the logits hear it.
    """
    from_site = Site("z", sender[0], head=sender[1])
    receivers: list[Any] = ["logits"]
    if receiver is not None:
        layer, head = receiver
        kv = head // (model.cfg.n_heads // model.cfg.n_key_value_heads)
        q, k, v = Site("q", layer, head=head), Site("k", layer, head=kv), Site("v", layer, head=kv)
        receivers = [[q], [k], [v], [q, k, v]]
    found = patching.path_patching(
        model,
        tokens,
        asked.corrupted,
        [from_site],
        receivers,
        cached(metric_for, asked),
        direction=asked.direction,
        progress=False,
    )
    one = found.isel(prompt=0, site=0)
    return (one - one.base).drop_vars(["prompt", "base", "site"]).assign_attrs(found.attrs)


def lost_of(tokens: Tensor, asked: Asked) -> tuple[int, ...]:
    """The positions at which the two prompts differ."""
    return tuple((tokens[0].cpu() != torch.tensor(asked.other)).nonzero().flatten().tolist())


def window_of(model: HookedGPT, site: str) -> int:
    """In how many layers something is put back at once: of what is added, in a quarter of them."""
    return 1 if site == "resid_post" else max(1, model.cfg.n_layers // 4)


def trace_of(
    model: HookedGPT,
    tokens: Tensor,
    asked: Asked,
    site: str,
    subject: str | tuple[int, ...],
    progress: Progress = False,
) -> DataArray:
    """For `cached`: what each state gives back of the metric, where noise has taken the subject."""
    found = patching.causal_tracing(
        model,
        tokens,
        subject,
        asked.metric_of(model, tokens),
        samples=DRAWS,
        site=site,
        window=window_of(model, site),
        progress=progress,
    ).isel(prompt=0)
    about = found.attrs | {"base": found.base.item(), "clean": found.clean.item()}
    return (found - found.base).drop_vars(["prompt", "base", "clean"]).assign_attrs(about)


def traced(model: HookedGPT, tokens: Tensor, asked: Asked, site: str, subject: Any, tell: Tell) -> DataArray:
    """A job: the same."""
    found = trace_of(model, tokens, asked, site, subject, progress=tell.part(0, 1))
    tell(1, 1, found)
    return found


def shares_of(
    model: HookedGPT, tokens: Tensor, asked: Asked, site: str, layer: int, head: int | None, pos: int | None, fits: bool
) -> DataArray:
    """For `cached`: what the patch changes if only a part of the space comes from the other run.

    Of the site's space, as the logits read it: the direction from the foil to the target, all that is orthogonal to it,
    one random direction, and, if asked for, one fitted so that the model says what the other run does. `along` is how
    much of each lies along the first.
    """
    own, other = (asked.corrupted, tokens) if asked.direction == "denoise" else (tokens, asked.corrupted)
    where = Site(site, layer, head=head, pos=pos)
    toward = (model.W_U[:, asked.target] - model.W_U[:, asked.foil]).detach()
    if head is not None:
        toward = model.blocks[layer].attn.W_O[head].detach() @ toward
    turned = torch.linalg.qr(torch.cat([toward[:, None], torch.eye(len(toward)).to(toward)], 1)).Q
    random = torch.randn(len(toward), 1, generator=torch.Generator().manual_seed(0)).to(toward)
    parts = {"all of it": torch.eye(len(toward)).to(toward), "toward the target": turned[:, :1]}
    parts |= {"all but that": turned[:, 1:], "a random direction": random / random.norm()}
    if fits:
        answer = asked.target if asked.direction == "denoise" else asked.foil
        fitted = patching.fit_subspace(model, own, other, where, answer, steps=STEPS, pos=asked.q, progress=False)
        parts["a fitted direction"] = fitted.basis.to(toward)
    found = patching.interchange(model, own, other, where, parts, asked.metric_of(model, tokens), progress=False).isel(
        prompt=0
    )
    along = [float((turned[:, 0] @ each).norm()) for each in parts.values()]
    change = (found - found.base).drop_vars(["prompt", "base"]).assign_attrs(found.attrs)
    return change.assign_coords(along=("subspace", along))
