"""Curves: losses, heads as they form, and whatever else was measured on the way."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import streamlit as st
from xarray import DataArray

from dashboards.parts.figure import figure
from dashboards.parts.training.chosen import Look
from dashboards.parts.training.measured import Kind, Source, number_at, quantities, words
from dashboards.parts.words import plain
from interp import plots
from interp.training.measures import PhaseChange, of_steps, phase_change, tokens_per_second

LOSSES = ("loss", "held_out_loss")
MOST = 16  # figures beside those of losses and heads
RATE = "tokens per second"
NAMES = {
    "repeats": "Losses on tokens that repeat",
    "held_out_bits_per_byte": "Bits a byte, held out",
    "held_out_perplexity": "Perplexity, held out",
    "held_out_accuracy": "Accuracy, held out",
    "fourier_power": "Power at each frequency",
    "lr": "Learning rate",
    "grad_norm": "Norm of the gradient",
    RATE: "Tokens per second",
}
AS_LOSSES = ("repeats", "held_out_bits_per_byte", "held_out_perplexity")  # their axis is as that of losses
SAID = {
    "lr": "The learning rate of each step.",
    "grad_norm": "The norm of the whole gradient, before it is clipped.",
    RATE: "Targets learned from a second, evaluations and checkpoints counted in.",
    "held_out_accuracy": "The share of held-out tokens that are the likeliest.",
    "held_out_perplexity": "The exponential of the held-out loss.",
    "held_out_bits_per_byte": "The held-out loss in bits, for each byte of text.",
    "repeats": "The mean loss on tokens that occur for the first time in a row, and on those that have occurred.",
    "fourier_power": "The share of the embedding's power at each frequency of the numbers that are added.",
}
Phases = dict[str, int | tuple[int, int]]


def draw_curves(source: Source, look: Look) -> None:
    """All figures of a run, beside each other where there is room."""
    kinds = quantities(source.rows)
    change, phases = phases_of(source, kinds, look)
    says_now(source, kinds, look)
    heads = _heads(kinds)
    with st.container(horizontal=True, key="train_figures", gap="medium"):
        if any(kinds.get(name) == "number" for name in LOSSES):
            with _box("loss"):
                draw_losses(source, look, phases, [name for name in LOSSES if kinds.get(name) == "number"])
        for name in heads[:MOST]:
            with _box(name):
                draw_heads(source, name, look, phases, change if name == _changing(heads) else None)
        groups = groups_of(source, kinds)
        for name, group in list(groups.items())[:MOST]:
            with _box(name):
                group_kind = kinds.get(group[0], "number")
                draw_list(source, name, look, phases) if group_kind == "list" else draw_group(
                    source, name, group, look, phases
                )
    left = [*heads[MOST:], *list(groups)[MOST:]]
    if left:
        st.caption(f"Also on the log, and not drawn: {plain(', '.join(left))}.")
    draw_words(source, [name for name, kind in kinds.items() if kind == "words"])


def phases_of(source: Source, kinds: Mapping[str, Kind], look: Look) -> tuple[PhaseChange | None, Phases]:
    """The phase change of the scores that have one, and all that is marked."""
    name = _changing(_heads(kinds))
    change = None if name is None else phase_change(of_steps(source.rows, name))
    phases: Phases = {}
    if change is not None:
        phases["phase change"] = change.before, change.step
    if look.marked is not None and look.marked <= source.last:
        phases[f"step {look.marked:,}"] = look.marked
    return change, phases


def groups_of(source: Source, kinds: Mapping[str, Kind]) -> dict[str, list[str]]:
    """What else is on the log, by figure: numbers of one measure share theirs."""
    found: dict[str, list[str]] = defaultdict(list)
    for name, kind in kinds.items():
        if kind == "number" and name not in LOSSES:
            found[name.rsplit(".", 1)[0]].append(name)
        elif kind == "list":
            found[name].append(name)
    if tokens_per_second(source.rows)[0]:
        found[RATE].append(RATE)
    order = list(NAMES)
    return dict(sorted(found.items(), key=lambda each: order.index(each[0]) if each[0] in order else -1))


def draw_losses(source: Source, look: Look, phases: Phases, series: list[str]) -> None:
    """Losses on what is trained on, and on what is held out."""
    found = _numbers(source, series)
    said = (
        "The mean loss a token, in nats: `loss` on the batch of each step, `held_out_loss` on what is not trained on."
    )
    if series == ["held_out_loss"]:
        said = "The mean loss a token on what is not trained on, in nats."
    _draw(source, "loss", series, look, phases, found, said + _gaps(source, found), "Loss")


def draw_heads(source: Source, name: str, look: Look, phases: Phases, change: PhaseChange | None) -> None:
    """A score of all heads: a line each."""
    scores = of_steps(source.rows, name)
    short = name.rsplit(".", 1)[-1]
    said = f"A line for each of {scores.sizes['layer'] * scores.sizes['head']} heads."
    last = scores.isel(step=-1).to_numpy()
    if np.isfinite(last).any():
        layer, head = np.unravel_index(int(np.nanargmax(last)), last.shape)
        said += f" Strongest at the end: **L{layer}H{head}**, {last[layer, head]:.3g}."
    final = "its final value" if source.is_done else "its last value so far"
    if change is not None:
        said += (
            f" Phase change: from step {change.step:,} on (measured before at {change.before:,}) the strongest score "
            f"is at half of {final}, {change.final / 2:.3g}, or above."
        )
    elif short == "induction":
        why = f"it was at half of {final} from the start, or rose by less than 0.1"
        said += f" No phase change is marked: {why}."
    flat = scores.stack(at=("layer", "head")).to_numpy()
    columns = [f"L{i}H{j}" for i in range(scores.sizes["layer"]) for j in range(scores.sizes["head"])]
    data = pd.DataFrame(flat, columns=columns)
    data.insert(0, "step", scores["step"].to_numpy())
    title = f"Score of heads: {short}"
    _draw(source, name, [f"{name}.*"], replace(look, losses="linear"), phases, data, said, title)


def draw_group(source: Source, name: str, series: list[str], look: Look, phases: Phases) -> None:
    """Numbers that belong to one measure."""
    found = _numbers(source, series)
    said = SAID.get(name, f"{plain(name)}, as it was logged.") + _gaps(source, found)
    title = NAMES.get(name, name.replace("_", " ").capitalize())
    if name == RATE:
        steps, rates = tokens_per_second(source.rows)
        made = lambda: plots.training_curves(
            {RATE: (steps, rates)}, steps=look.steps, phases=phases, title=title, theme=look.theme
        )
        code = _code(source, {"interp.training.measures": {"tokens_per_second"}}) + (
            f"fig = plots.training_curves({{{RATE!r}: tokens_per_second(log)}}{_options(look, phases)})\n"
        )
        _put(source, name, made, look, phases, found, said, code, title)
        return
    look = look if name in AS_LOSSES else replace(look, losses="linear")
    _draw(source, name, series, look, phases, found, said, title)


def draw_list(source: Source, name: str, look: Look, phases: Phases) -> None:
    """A measure that is a list of numbers, as a map."""
    place, first = ("frequency", 1) if name == "fourier_power" else ("place", 0)
    found = of_steps(source.rows, name, place, first).transpose(place, "step")
    title = NAMES.get(name, name.replace("_", " ").capitalize())
    made = lambda: plots.training_map(found, phases=phases, title=title, theme=look.theme)
    code = _code(source, {"interp.training.measures": {"of_steps"}}) + (
        f"found = of_steps(log, {name!r}, {place!r}, {first}).transpose({place!r}, 'step')\n"
        f"fig = plots.training_map(found{f', phases={phases}' if phases else ''})\n"
    )
    said = SAID.get(name, f"{plain(name)}, place by place.") + " Steps stand side by side, however far apart."
    _put(source, name, made, look, phases, found, said, code, title)


def draw_words(source: Source, names: Sequence[str]) -> None:
    """What was named, from step to step, where it changed."""
    of = {name: pd.Series(dict(words(source.rows, name)), name=name) for name in names[:MOST]}
    if of:
        table = pd.concat(list(of.values()), axis=1).sort_index().ffill().fillna("")
        changed = (table != table.shift()).any(axis=1)
        st.markdown("**What was named, where it changed**")
        st.dataframe(table.loc[changed].rename_axis("step").reset_index(), key="train_words", hide_index=True)


def says_now(source: Source, kinds: Mapping[str, Kind], look: Look) -> None:
    """The numbers at the marked step, or at the last."""
    step = source.last if look.marked is None else look.marked
    said = []
    for name in LOSSES:
        if found := number_at(source.rows, name, step):
            said.append(
                f"{name.replace('_', ' ')} {found[1]:.4g}" + ("" if found[0] == step else f" (at {found[0]:,})")
            )
    for name in _heads(kinds)[:2]:
        scores = of_steps(source.rows, name)
        before = scores.sel(step=scores["step"] <= step)
        if before.sizes["step"] and np.isfinite(now := before.isel(step=-1).to_numpy()).any():
            layer, head = np.unravel_index(int(np.nanargmax(now)), now.shape)
            at = int(before["step"][-1])
            where = "" if at == step else f" (at {at:,})"
            said.append(f"strongest {plain(name.rsplit('.', 1)[-1])} L{layer}H{head} {now[layer, head]:.3g}{where}")
    if said:
        st.markdown(f"Step {step:,}: " + " · ".join(said))


def _heads(kinds: Mapping[str, Kind]) -> list[str]:
    """Scores of heads, those of induction first."""
    found = [name for name, kind in kinds.items() if kind == "heads"]
    return sorted(found, key=lambda name: name.rsplit(".", 1)[-1] != "induction")


def _changing(heads: Sequence[str]) -> str | None:
    """The scores whose phase change is marked."""
    return next((name for name in heads if name.rsplit(".", 1)[-1] == "induction"), None)


def _numbers(source: Source, series: Sequence[str]) -> pd.DataFrame:
    """What is drawn, a column each."""
    if list(series) == [RATE]:
        steps, rates = tokens_per_second(source.rows)
        return pd.DataFrame({"step": steps, RATE: rates})
    found = [of_steps(source.rows, name).to_series() for name in series]
    return pd.concat(found, axis=1).sort_index().reset_index(names="step")


def _gaps(source: Source, found: pd.DataFrame) -> str:
    """Where numbers are not finite."""
    said = ""
    for name in found.columns[1:]:
        rows = [row for row in source.rows if isinstance(row.get(name), float) and not np.isfinite(row[name])]
        if rows:
            said += f" {len(rows)} of {plain(str(name))} are not finite, first at step {rows[0]['step']:,}: gaps."
    return said


def _draw(
    source: Source,
    key: str,
    series: list[str],
    look: Look,
    phases: Phases,
    data: pd.DataFrame,
    said: str,
    title: str,
) -> None:
    if look.losses == "log" and not all((data[name].dropna() > 0).all() for name in data.columns[1:]):
        look, said = replace(look, losses="linear"), f"{said} It is not above 0 everywhere, so its axis is linear."
    options = {"steps": look.steps, "values": look.losses, "phases": phases, "title": title, "theme": look.theme}
    wanted: Any = series if len(series) > 1 else series[0]
    made = lambda: plots.training_curves(source.rows, wanted, **options)
    code = _code(source) + f"fig = plots.training_curves(log, {wanted!r}{_options(look, phases)})\n"
    _put(source, key, made, look, phases, data, said, code, title)


def _put(
    source: Source,
    key: str,
    made: Callable[[], go.Figure],
    look: Look,
    phases: Phases,
    data: pd.DataFrame | DataArray,
    said: str,
    code: str,
    title: str,
) -> None:
    """A figure, made anew where anything of it is another."""
    of, kept = st.session_state.get("_train_figures", ("", {}))
    if of != source.name:
        kept = {}
        st.session_state["_train_figures"] = source.name, kept
    known = (source.version, look, tuple(phases.items()))
    try:
        if key not in kept or kept[key][0] != known:
            kept[key] = known, made()
    except ValueError as error:  # nothing that can be drawn
        kept.pop(key, None)
        st.caption(f"{plain(title)}: {plain(str(error), 300)}.")
        return
    alt = f"{title} of {source.name} over {source.total:,} steps. {said}"
    slug = "train_" + "".join(char if char.isalnum() else "_" for char in key)[:60]
    more = {"run": source.name, "last step": source.last}
    figure(kept[key][1], key=slug, caption=said, code=code, data=data, alt=alt, height=340, more=more)


def _box(name: str) -> Any:
    slug = "".join(char if char.isalnum() else "_" for char in name)[:60]
    return st.container(width="stretch", key=f"train_{slug}_box")


def _options(look: Look, phases: Phases) -> str:
    said = "".join(f", {k}={v!r}" for k, v in (("steps", look.steps), ("values", look.losses)) if v != "linear")
    return said + (f", phases={phases!r}" if phases else "")


def _code(source: Source, more: Mapping[str, set[str]] | None = None) -> str:
    imports = {"interp": {"plots"} | source.imports.get("interp", set())}
    for module, of in [*source.imports.items(), *(more or {}).items()]:
        imports[module] = imports.get(module, set()) | of
    lines = [f"from {module} import {', '.join(sorted(of))}\n" for module, of in sorted(imports.items())]
    return "".join(lines) + "\n" + source.opening
