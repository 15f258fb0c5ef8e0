"""What edits do to what is on show: each number is computed by `interp`."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from xarray import DataArray

from dashboards.parts.ablation.wanted import Wanted, edits_of, made, removals_of
from dashboards.parts.heads.measured import seconds_of
from dashboards.parts.jobs import Tell
from dashboards.parts.state import Chosen, cached, kept
from interp import HookedGPT, heads, metrics, patching
from interp.generation import Generation

WAYS = {"alone": "each alone", "others": "all but each", "up to": "up to each"}


@dataclass(frozen=True)
class Outcome:
    """One run: the loss of each next token, and what is said at the position read."""

    loss: Tensor | None  # [pos]; None where a model does not predict tokens of its prompt
    log_probs: Tensor  # [d_vocab_out]
    difference: float  # of the logits of target and foil


@dataclass(frozen=True)
class How:
    """How a text is drawn."""

    n_new: int
    temperature: float
    seed: int


def outcomes(now: Chosen, wanted: Wanted) -> tuple[Outcome, Outcome]:
    """Without the edits, and with them."""
    what = (now.q, now.target, now.foil)
    before = cached(outcome, *what)
    with now.model.edit(made(now, wanted)):
        after = kept(now.fingerprint, now.tokens, outcome, (now.model, now.tokens, *what), (*what, wanted))
    return before, after


def outcome(model: HookedGPT, tokens: Tensor, q: int, target: int, foil: int) -> Outcome:
    """For `kept`: of the run with the edits that are in force."""
    logits = model(tokens)[0]
    loss = None
    if has_loss(model) and tokens.shape[1] > 1:
        loss = torch.nn.functional.cross_entropy(logits[:-1].float(), tokens[0, 1:].to(logits.device), reduction="none")
    own = logits[q].float()
    return Outcome(loss, own.log_softmax(-1), float(own[target].double() - own[foil].double()))


def has_loss(model: HookedGPT) -> bool:
    """Whether it predicts the next token of what it reads."""
    return model.cfg.d_vocab_out == model.cfg.d_vocab and model.cfg.attention_dir == "causal"


def losses(now: Chosen, before: Outcome, after: Outcome) -> DataArray:
    """[run pos], by the token that is predicted."""
    assert before.loss is not None
    assert after.loss is not None
    places = [f"{i} {label}" for i, label in enumerate(now.labels)][1:]
    values = torch.stack([before.loss, after.loss]).cpu().numpy()
    about = {"method": "loss of each token, before and after", "model": now.fingerprint}
    return DataArray(values, [("run", ["before", "after"]), ("pos", places)], name="loss", attrs=about)


def repair(now: Chosen, wanted: Wanted) -> DataArray:
    """How the direct effects change without the parts."""
    return cached(repair_of, wanted, now.q, now.target, now.foil).isel(prompt=0)


def repair_of(model: HookedGPT, tokens: Tensor, wanted: Wanted, q: int, target: int, foil: int) -> DataArray:
    """For `cached`."""
    parts = Wanted(wanted.parts, wanted.how, wanted.text)
    return heads.self_repair(model, tokens, edits_of(model, tokens, parts), target, foil, pos=q)


def texts(now: Chosen, wanted: Wanted, how: How) -> tuple[Generation, Generation]:
    """What the model writes without the edits, and with them, from one seed."""
    before = cached(written, how)
    with now.model.edit(made(now, wanted)):
        after = kept(now.fingerprint, now.tokens, written, (now.model, now.tokens, how), (how, wanted))
    return before, after


def written(model: HookedGPT, tokens: Tensor, how: How) -> Generation:
    """For `kept`."""
    return model.generate(
        tokens, how.n_new, temperature=how.temperature, seed=how.seed, return_type="full", on_overflow="slide"
    )


def curves(
    model: HookedGPT, tokens: Tensor, parts: tuple[str, ...], how: Any, text: int, q: int, target: int, foil: int,
    tell: Tell,
) -> DataArray:  # fmt: skip
    """A job: the logit difference without each part alone, without all others, and without all up to it: [way part]."""
    each = removals_of(model, tokens, Wanted(parts, how, text))
    names, metric = list(each), metrics.logit_diff(model, target, foil, pos=q)
    found = np.full((len(WAYS), len(names)), np.nan) if tell.before is None else tell.before.to_numpy().copy()
    about: dict[str, Any] = {"method": "without parts", "model": model.fingerprint()}
    ways = list(WAYS.values())

    def so_far() -> DataArray:
        axes = [("way", ways), ("part", names)]
        return DataArray(found.copy(), axes, name="logit difference", attrs=about)

    for i, way in enumerate(WAYS):
        if np.isnan(found[i]).any():
            sets = {
                name: [edit for k, other in enumerate(names) if _is_away(way, k, j) for edit in each[other]]
                for j, name in enumerate(names)
            }
            done = patching.with_edits(
                model, tokens, sets, metric, progress=tell.part(i, len(WAYS)), file=tell.file(way.replace(" ", "-"))
            )
            found[i], about["base"] = done[:, 0].to_numpy(), float(done.base[0])
        tell(i + 1, len(WAYS), so_far())
    return so_far()


def curves_code() -> str:
    """The same in Python, from `removals`, and `base`, `metric`."""
    return """names = list(removals)
sets = {
    "each alone": [[name] for name in names],
    "all but each": [[other for other in names if other != name] for name in names],
    "up to each": [names[: i + 1] for i in range(len(names))],
}
rows = []
for away in sets.values():
    each = {f"{i}": [edit for name in some for edit in removals[name]] for i, some in enumerate(away)}
    rows.append(patching.with_edits(model, tokens, each, metric, progress=False)[:, 0].values)
found = DataArray(rows, [("way", list(sets)), ("part", names)], name="logit difference")
"""


def seconds(n_parts: int) -> float:
    """How long the curves take, by the time of a pass."""
    return len(WAYS) * n_parts * cached(seconds_of)


def _is_away(way: str, other: int, own: int) -> bool:
    return {"alone": other == own, "others": other != own, "up to": other <= own}[way]
