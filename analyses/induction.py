"""Which heads look for what followed a token before, does the model need them, and when in training did they come?

1. Find: heads that on random tokens that repeat attend to what followed each token the last time, more than any head
   with shuffled weights (`heads.detect`). Those that put at least `least` of their attention there are strong.
2. Verify, on other random tokens: the score again; whether their OV circuits copy (eigenvalues); which heads compose
   with their keys by the weights (K-composition), and tell them something in runs (path patching).
3. Ablate: the gain, how much smaller the loss is when tokens come again, without the strong heads, and without as many
   others of the same layers, drawn at random; the same of strong previous-token heads.
4. The phase change: where in training the scores and the gain have gone half of their way.

Elhage et al. 2021, https://transformer-circuits.pub/2021/framework; Olsson et al. 2022, https://arxiv.org/abs/2209.11895.

Finding, of `stdlib-attn-2l`: every head of the second layer looks back so, five of them strongly. Without these five,
four fifths of the gain are lost; without the other three, a hundredth. It is one head of the first layer that tells
them, in their keys, which token came before.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from tqdm.auto import tqdm
from xarray import DataArray, Dataset

from analyses.output import Found, save, start, table
from interp import HookedGPT, heads, metrics, plots, zoo
from interp.heads import trials
from interp.interventions import Site
from interp.patching import path_patching, removals, with_edits
from interp.results import labelled
from interp.training import Run
from interp.training.measures import half_way, head_scores, is_repeat, repeat_losses
from interp.weights import composition_scores, copying_scores

Head = tuple[int, int]
Tokens = Int[Tensor, "row pos"]
How = Literal["mean", "zero", "resample"]
_INDUCTION, _PREVIOUS = "induction", "previous token"
_PATHS = 8  # rows that paths are patched in


def main(
    model: str = "stdlib-attn-2l",
    run: Path | None = None,
    how: How = "mean",
    least: float = 0.5,
    rows: int = 24,
    draws: int = 8,
    seed: int = 0,
    out: Path = Path("runs/induction"),
    png: bool = False,
) -> None:
    """Find, verify and ablate a model's induction heads, and tell when they came.

    Args:
        model: a bundled name, a folder, or a name on the hub.
        run: the folder of a training run: its last model is studied, and its log or its checkpoints tell when.
        how: what stands in for a head's output: its mean over all rows, zero, or what it is on one of them.
        least: the share of attention from which on a head is strong.
        rows: of random tokens.
        draws: of other heads.
        seed: of the tokens and the draws.
        out: where the results go. Sweeps that were stopped go on there.
        png: draw the figures as PNG, too.
    """
    studied = HookedGPT.from_pretrained(model) if run is None else Run(run).model()
    log = _trained(model) if run is None else _watched(Run(run), seed)
    choices: dict[str, Any] = {"how": how, "least": least, "rows": rows, "draws": draws, "seed": seed}
    found = study(studied, log, **choices, folder=out / "sweeps")
    name = model if run is None else str(run)
    save(found, out, "induction", config={"model": model, "run": run, **choices}, models={name: studied}, png=png)


def study(
    model: HookedGPT,
    log: Sequence[dict[str, Any]] = (),
    *,
    how: How = "mean",
    least: float = 0.5,
    rows: int = 24,
    draws: int = 8,
    seed: int = 0,
    folder: Path | None = None,
    progress: bool = True,
) -> Found:
    """All of it; `log` is what was measured along training: `step`, `head_scores` and `repeats`."""
    detected = heads.detect(model, trials.repeats(model, rows, seed=seed).tokens, seed=seed, progress=progress)
    strong, previous = (_strong(detected, name, least) for name in ("induction", "previous"))
    if not strong:
        best = float(detected.value.sel(score="induction").max())
        raise ValueError(f"no head attends at least {least:.0%} to what followed before; the most is {best:.0%}")
    tokens = trials.repeats(model, rows, seed=seed + 1).tokens
    sets = {_INDUCTION: strong, **_beside(_INDUCTION, strong, model.cfg.n_heads, draws, seed)}
    if previous:
        sets |= {_PREVIOUS: previous, **_beside(_PREVIOUS, previous, model.cfg.n_heads, draws, seed)}
    axes = ("layer", "head")
    result = Dataset(
        {
            "score": (("score", *axes), detected.value.sel(score=["induction", "previous"]).to_numpy()),
            "named": (("score", *axes), detected.named.sel(score=["induction", "previous"]).to_numpy().astype(int)),
            "on_other_tokens": (axes, head_scores(model, tokens)["induction"].numpy()),
            "copying": copying_scores(model, progress=progress),
            "composition": _composition(model, strong),
            "path": _paths(model, tokens[:_PATHS], strong, progress),
            "loss": _losses(model, tokens, sets, how, folder, progress),
            **_along(log),
        },
        coords={"score_name": ("score", ["induction", "previous"])},
        attrs={"method": "induction heads", "model": model.fingerprint(), "how": how},
    )
    findings = _findings(result, detected, strong, previous)
    return Found(result, _figures(result, findings), _table(result, findings), findings)


def _trained(model: str) -> list[dict[str, Any]]:
    """What was measured while a bundled model was trained, if that was."""
    rows = zoo.measures(model) if model in zoo.bundled() else []
    return [row for row in rows if "head_scores" in row and "repeats" in row]


def _watched(run: Run, seed: int) -> list[dict[str, Any]]:
    """The same of a run, from its log, or else from its checkpoints."""
    if logged := [row for row in run.log if "head_scores" in row and "repeats" in row]:
        return logged
    rows = list[dict[str, Any]]()
    for step in tqdm(run.steps, desc="checkpoints", delay=1.0):
        model = run.model(step)
        tokens = trials.repeats(model, seed=seed + 1).tokens
        scores = {name: each.tolist() for name, each in head_scores(model, tokens).items()}
        rows.append({"step": step, "head_scores": scores, "repeats": repeat_losses(model, tokens)})
    return rows


def _strong(detected: Dataset, score: str, least: float) -> list[Head]:
    """The heads that are named for a score and reach so much of it, the strongest first."""
    value, named = (detected[part].sel(score=score).to_numpy() for part in ("value", "named"))
    places = [(int(layer), int(head)) for layer, head in np.argwhere(named & (value >= least))]
    return sorted(places, key=lambda place: -value[place])


def _beside(kind: str, own: list[Head], n_heads: int, n_draws: int, seed: int) -> dict[str, list[Head]]:
    """Controls: others of the same layers, as many in each, drawn at random; where there are fewer, all of them, and so
    many of the strongest themselves."""
    draw, drawn = torch.Generator().manual_seed(seed), list[list[Head]]()
    layers = {layer: [head for at, head in own if at == layer] for layer, _ in own}
    others = {layer: [head for head in range(n_heads) if head not in mine] for layer, mine in layers.items()}
    for _ in range(n_draws):
        order = {layer: torch.randperm(len(rest), generator=draw).tolist() for layer, rest in others.items()}
        some = [(at, others[at][i]) for at, places in order.items() for i in places[: len(layers[at])]]
        drawn += [sorted(some)] if some and sorted(some) not in drawn else []
    fewer = [(layer, head) for layer, mine in layers.items() for head in mine[: len(others[layer])]]
    sets = {f"{len(fewer)} strongest {kind}": fewer} if 0 < len(fewer) < len(own) else {}
    return sets | {f"others for {kind} {i}": some for i, some in enumerate(drawn)}


def _composition(model: HookedGPT, strong: list[Head]) -> DataArray:
    """How much of what each head writes the keys of the strong heads read, [reader sender]."""
    scores, n_layers = composition_scores(model, "K", progress=False), max(layer for layer, _ in strong)
    found = [scores[:n_layers, :, layer, head].to_numpy().flatten() for layer, head in strong]
    axes = {"reader": list(map(_name, strong)), "sender": _senders(model, n_layers)}
    return labelled(torch.from_numpy(np.array(found)), axes, "composition", scores.attrs)


def _paths(model: HookedGPT, tokens: Tokens, strong: list[Head], progress: bool) -> DataArray:
    """By how much tokens that come again are lost on where a head tells the keys, queries or values of the strong heads
    what it would say of other tokens, [slot sender]."""
    n_layers, cfg = max(layer for layer, _ in strong), model.cfg
    senders = [Site("z", layer, head=head) for layer in range(n_layers) for head in range(cfg.n_heads)]
    shared = cfg.n_heads // cfg.n_key_value_heads
    into = {"keys": ("k", shared), "queries": ("q", 1), "values": ("v", shared)}
    hearing = [[Site(slot, layer, head=head // n) for layer, head in strong] for slot, n in into.values()]
    metric, others = metrics.loss(of=is_repeat(tokens)), trials.in_other_tokens(model, tokens)
    found = path_patching(model, tokens, others, senders, hearing, metric, progress=progress)
    change = (found - found.base).mean("prompt").to_numpy()
    axes = {"slot": list(into), "sender": _senders(model, n_layers)}
    return labelled(torch.from_numpy(change), axes, "change in loss", found.attrs | {"method": "path patching"})


def _losses(
    model: HookedGPT, tokens: Tokens, sets: dict[str, list[Head]], how: How, folder: Path | None, progress: bool
) -> DataArray:
    """The loss on tokens that come first, and again, without each set of heads, [of without prompt]."""
    parts = {name: [Site("z", layer, head=head) for layer, head in some] for name, some in sets.items()}
    edits, again, found = removals(model, parts, how, tokens), is_repeat(tokens), list[np.ndarray]()
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    kinds = {"first": ~again, "again": again}
    for name, of in kinds.items():
        file = None if folder is None else folder / f"{name}.jsonl"
        one = with_edits(model, tokens, edits, metrics.loss(of=of), file=file, progress=progress)
        found.append(np.concatenate([one.base.to_numpy()[None], one.to_numpy()]))
    axes = {"of": list(kinds), "without": ["nothing", *sets], "prompt": range(len(tokens))}
    return labelled(torch.from_numpy(np.stack(found)), axes, "loss", {"method": "ablation", "kind": how})


def _along(log: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The scores of the best heads, and the gain, along training."""
    if not log:
        return {}
    most = {f"trained_{name}": [np.max(row["head_scores"][name]) for row in log] for name in ("previous", "induction")}
    gain = [row["repeats"]["first"] - row["repeats"]["again"] for row in log]
    kinds = {"step": [row["step"] for row in log], **most, "trained_gain": gain}
    return {name: ("step", np.array(values)) for name, values in kinds.items()}


def _findings(result: Dataset, detected: Dataset, strong: list[Head], previous: list[Head]) -> dict[str, Any]:
    """What was found, in numbers."""
    gains = (result.loss.sel(of="first") - result.loss.sel(of="again")).mean("prompt")
    whole = float(gains.sel(without="nothing"))
    kept = {str(name): float(gains.sel(without=name)) / whole for name in gains.without.values}
    named = [
        _name((layer, head)) for layer, head in np.argwhere(detected.named.sel(score="induction").to_numpy()).tolist()
    ]
    own = list(map(_name, strong))
    told = {str(slot): result.path.sel(slot=slot) / whole for slot in result.slot.values}
    best = {slot: int(of.to_numpy().argmax()) if of.size else None for slot, of in told.items()}
    return {
        "induction_heads": own,
        "weak_induction_heads": [name for name in named if name not in own],
        "previous_token_heads": list(map(_name, previous)),
        "threshold": float(detected.threshold.sel(score="induction")),
        "gain": whole,
        "gain_kept": kept,
        "told_most_by": {slot: str(result.sender.values[i]) for slot, i in best.items() if i is not None},
        "told_share": {slot: float(told[slot][i]) for slot, i in best.items() if i is not None},
        "half_way": {
            name: half_way(result.step.values.tolist(), result[f"trained_{name}"].values.tolist())
            for name in ("previous", "induction", "gain")
            if f"trained_{name}" in result
        },
    }


def _kept(findings: dict[str, Any], kind: str) -> list[float]:
    """The share of the gain that each draw of others leaves."""
    return [share for name, share in findings["gain_kept"].items() if name.startswith(f"others for {kind} ")]


def _table(result: Dataset, findings: dict[str, Any]) -> str:
    """What is printed."""
    rows = []
    for name in findings["induction_heads"]:
        layer, head = map(int, name[1:].split("H"))
        of_keys = result.composition.sel(reader=name)
        best = (
            f"{of_keys.sender.values[of_keys.to_numpy().argmax()]} {float(of_keys.max()):.3f}" if of_keys.size else "-"
        )
        own = [result.score[0, layer, head], result.on_other_tokens[layer, head], result.copying[layer, head]]
        rows.append([name, *(f"{float(each):.3f}" for each in own), best])
    heads_said = table(["head", "induction", "other tokens", "copying", "its keys compose most with"], rows)
    loss, lines = result.loss.mean("prompt"), list[list[object]]()
    for name in result.without.values.tolist():
        if not name.startswith("others for"):
            both = [f"{float(loss.sel(of=of, without=name)):.3f}" for of in ("first", "again")]
            lines.append([name, *both, f"{findings['gain_kept'][name]:.1%}"])
    for kind in (_INDUCTION, _PREVIOUS):
        if shares := _kept(findings, kind):
            n = "one draw" if len(shares) == 1 else f"mean of {len(shares)} draws"
            lines.append([f"others for {kind}, {n}", "", "", f"{np.mean(shares):.1%} (least {min(shares):.1%})"])
    ablated = table(["without heads", "loss first", "again", "of the gain kept"], lines)
    told = [f"{slot} by {by}, {findings['told_share'][slot]:.1%}" for slot, by in findings["told_most_by"].items()]
    said = [f"Threshold {findings['threshold']:.3f}; above it, but weak: {findings['weak_induction_heads'] or 'none'}"]
    said += [f"Of the gain, lost when told of other tokens: {'; '.join(told)}"] if told else []
    if half := findings["half_way"]:
        said.append("Half of the way at step: " + ", ".join(f"{name} {step:,.0f}" for name, step in half.items()))
    return "\n\n".join([heads_said, ablated, "\n".join(said)])


def _figures(result: Dataset, findings: dict[str, Any]) -> dict[str, Any]:
    """Where the heads are, what composes, what is lost, and when it came."""
    score = result.score.assign_coords(score=result.score_name.values).assign_attrs(result.attrs)
    gains = (result.loss.sel(of="first") - result.loss.sel(of="again")).rename("gain").assign_attrs(result.loss.attrs)
    figures: dict[str, Any] = {
        "heads": plots.head_scores(score, title="Attention on random tokens that repeat"),
        "ablation": plots.bars(gains, title="How much smaller the loss is when tokens come again"),
    }
    if result.sender.size:
        figures["composition"] = plots.heatmap(result.composition, title="What the keys of induction heads read")
        figures["paths"] = plots.heatmap(result.path, title="Loss on tokens that come again, told of others")
    if "step" in result:
        kinds = {"induction": "induction score", "previous": "previous-token score", "gain": "gain, by its last"}
        last = {"gain": float(result.trained_gain[-1])}
        curves = {
            label: (result.step.values.tolist(), (result[f"trained_{name}"] / last.get(name, 1.0)).values.tolist())
            for name, label in kinds.items()
        }
        phases = {"half of the gain": findings["half_way"]["gain"]}
        figures["training"] = plots.training_curves(curves, steps="log", phases=phases, title="When they came")
    return figures


def _senders(model: HookedGPT, n_layers: int) -> list[str]:
    return [_name((layer, head)) for layer in range(n_layers) for head in range(model.cfg.n_heads)]


def _name(place: Sequence[int]) -> str:
    return f"L{place[0]}H{place[1]}"


if __name__ == "__main__":
    start(main, __doc__)
