"""What can be watched while a model trains: heads that look back, and losses, on random tokens that repeat."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.hooks import HookPoint
from interp.model import HookedGPT
from interp.results import Result

Scores = Float[Tensor, "layer head"]


def head_scores(model: HookedGPT, tokens: Int[Tensor, "batch pos"]) -> dict[str, Scores]:
    """How much each head attends to the previous token, and, where a token has occurred before, to what followed it.

    The second is the induction score (Olsson et al., 2022), summed over every earlier occurrence, which on random
    tokens repeated with random periods no head reaches by position alone.
    """
    tokens = tokens.to(model.device)
    match = (tokens[:, :, None] == tokens[:, None, :-1]).tril(-1)  # [batch query_pos key_pos - 1]
    follows = F.pad(match, (1, 0)).float()
    repeats = match.any(-1).float()
    scores = {name: torch.zeros(model.cfg.n_layers, model.cfg.n_heads) for name in ("previous", "induction")}

    def score(pattern: Tensor, hook: HookPoint) -> None:
        layer, exact = hook.layer(), pattern.float()
        found = torch.einsum("bhqk,bqk->bhq", exact, follows) * repeats[:, None]
        scores["induction"][layer] = (found.sum((0, 2)) / repeats.sum()).cpu()
        scores["previous"][layer] = exact.diagonal(-1, 2, 3).mean((0, 2)).cpu()

    with torch.no_grad(), model.hooks([("blocks.*.attn.hook_pattern", score)]):
        model(tokens, return_type=None)
    return scores


def repeat_losses(model: HookedGPT, tokens: Int[Tensor, "batch pos"]) -> dict[str, float]:
    """The mean loss on tokens that occur for the first time, and on those that have occurred before."""
    tokens = tokens.to(model.device)
    again = is_repeat(tokens)[:, 1:]
    with torch.no_grad():
        loss = model(tokens, "loss", loss_per_token=True).float()
    return {"first": loss[~again].mean().item(), "again": loss[again].mean().item()}


def is_repeat(tokens: Int[Tensor, "batch pos"]) -> Bool[Tensor, "batch pos"]:
    """Which tokens have occurred before in their row."""
    return (tokens[:, :, None] == tokens[:, None, :]).tril(-1).any(-1)


def half_way(steps: Sequence[int | float], values: Sequence[int | float]) -> float:
    """The step from which what was measured stays nearer to its last value than to its first, between two steps by
    their line."""
    begun, ended = values[0], values[-1]
    if begun == ended:
        raise ValueError(f"the first and the last of {len(values)} values are {begun:g}: there is no way between them")
    gone = [(value - begun) / (ended - begun) for value in values]
    last = max(i for i, share in enumerate(gone) if share < 0.5)
    return steps[last] + (0.5 - gone[last]) / (gone[last + 1] - gone[last]) * (steps[last + 1] - steps[last])


def fourier_power(model: HookedGPT, p: int) -> Float[Tensor, " frequency"]:
    """The share of the embedding's power at each frequency 1, 2, … of the first `p` tokens (Nanda et al., 2023)."""
    spectrum = torch.fft.rfft(model.W_E[:p].detach().double(), dim=0)[1:]
    power = spectrum.abs().square().sum(1)
    return (power / power.sum()).float()


def positional_or_induction(
    model: HookedGPT, trained: Int[Tensor, "batch pos"], others: Int[Tensor, "batch pos"]
) -> dict[str, list[str]]:
    """Which heads find the earlier occurrence on repeats as trained on: "induction" if they still do when the periods
    are others, "positional" if they merely look a fixed distance back."""
    here, there = head_scores(model, trained)["induction"], head_scores(model, others)["induction"]
    found: dict[str, list[str]] = {"induction": [], "positional": []}
    for layer, head in (here > 0.4).nonzero().tolist():
        kind = "induction" if there[layer, head] > 0.5 * here[layer, head] else "positional"
        found[kind].append(f"L{layer}H{head}")
    return found


def of_steps(log: Sequence[Mapping[str, Any]], name: str, place: str = "place", first: int = 0) -> Result:
    """A measure on a log, `head_scores.induction` say, at all steps at which it was taken.

    A number is [step], a list [step place], its places counted from `first`, and scores of heads [step layer head].
    """
    from xarray import DataArray

    found: dict[int, np.ndarray] = {}
    for row in log:
        value: Any = row
        for part in (name,) if name in row else name.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if (numbers := as_numbers(value)) is not None:
            found[row["step"]] = numbers
    if not found:
        known = sorted({key for row in log for key in row} - {"step"})
        raise KeyError(f"the log has no {name!r}; it has {known}")
    steps = sorted(found)
    shape = found[steps[-1]].shape
    if len(shape) > 2:
        raise ValueError(f"{name!r} has numbers of shape {list(shape)}; a measure has two axes at most")
    steps = [step for step in steps if found[step].shape == shape]
    axes = {0: [], 1: [place], 2: ["layer", "head"]}[len(shape)]
    places = {axis: range(first, first + n) if axis == place else range(n) for axis, n in zip(axes, shape, strict=True)}
    return DataArray(np.stack([found[step] for step in steps]), coords={"step": steps, **places}, name=name)


def as_numbers(value: Any) -> np.ndarray | None:
    """A logged value as an array, if it is a number, or numbers of one shape."""
    if value is None or isinstance(value, bool | str | Mapping):
        return None
    try:
        return np.asarray(value, dtype=float)
    except (ValueError, TypeError, OverflowError):
        return None


@dataclass(frozen=True)
class PhaseChange:
    """Between which two measured steps the strongest score crossed half of its final value, and whose it is then."""

    before: int
    step: int
    head: str
    final: float


def phase_change(scores: Result, least: float = 0.1) -> PhaseChange | None:
    """When heads learned what is scored, [step layer head]; None if they never did, or had it from the start.

    That is the first measured step from which on the strongest score of all heads stays at half of its final value or
    above. The strongest has to rise by `least` in all, for there is always a strongest.
    """
    of_heads = scores.transpose("step", "layer", "head").to_numpy()
    is_there = np.isfinite(of_heads).all((1, 2))
    steps, of_heads = scores["step"].to_numpy()[is_there], of_heads[is_there]
    if len(steps) < 2:
        return None
    strongest = of_heads.max((1, 2))
    below = np.flatnonzero(strongest < strongest[-1] / 2)
    if strongest[-1] - strongest[0] < least or not below.size:
        return None
    crossed, (layer, head) = int(below[-1]) + 1, np.unravel_index(of_heads[-1].argmax(), of_heads.shape[1:])
    return PhaseChange(int(steps[crossed - 1]), int(steps[crossed]), f"L{layer}H{head}", float(strongest[-1]))


def tokens_per_second(log: Sequence[Mapping[str, Any]]) -> tuple[list[int], list[float]]:
    """The steps of a log's training rows, and the targets that were learned from a second since the row before.

    A resumed run goes on with the seconds that it had at its checkpoint; other work between two rows counts as well.
    """
    rows = [row for row in log if {"loss", "targets", "seconds"} <= set(row)]
    steps, rates = [], []
    for before, row in pairwise(rows):
        seconds, n_steps = row["seconds"] - before["seconds"], row["step"] - before["step"]
        if seconds > 0 and n_steps > 0:
            steps.append(row["step"])
            rates.append(row["targets"] * n_steps / seconds)
    return steps, rates
