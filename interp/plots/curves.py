"""Curves: what was logged while a model trained, step by step."""

import json
import os
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

import numpy as np
import plotly.graph_objects as go
from xarray import DataArray, Dataset

from interp.plots.heatmap import heatmap
from interp.plots.theme import Palette, Theme, framed, in_words, palette, plain
from interp.training.measures import as_numbers

AxisType = Literal["linear", "log"]
Step = int | float
_MOST = 2000  # points that a curve is drawn with
_FEW = 16  # points that are seen one by one
_COLUMNS = 400  # steps that a map is drawn with
_COLOURED = 8  # more lines than this: those that change most have colours, the others are thin
_Curves = dict[str, tuple[np.ndarray, np.ndarray]]
_DASHES = ("solid", "dash", "dot", "dashdot")


def training_curves(
    log: Any,
    series: str | Sequence[str] | None = None,
    *,
    steps: AxisType = "linear",
    values: AxisType = "linear",
    phases: Mapping[str, Step | tuple[Step, Step]] | None = None,
    title: str | None = None,
    theme: Theme = "light",
) -> go.Figure:
    """Lines over training steps: the losses, or the `series` asked for, by name or by pattern ("*.induction.*").

    `log` is what `Run(…).log` or `zoo.measures(…)` gives, a run's folder or its `log.jsonl`, an array or a dataset with
    an axis `step`, (steps, values), {step: number}, {step: {name: number}}, or {name: any of these}, several runs say.
    Numbers in lists are named by their places: `head_scores.induction.L1H3`. `phases` are steps, or spans of them. Of a
    curve with thousands of points every stretch is drawn by its least and its largest.
    """
    for name, kind in (("steps", steps), ("values", values)):
        if kind not in ("linear", "log"):
            raise ValueError(f"{name}={kind!r}; allowed: 'linear', 'log'")
    curves = {name: _thinned(*curve) for name, curve in _chosen(_curves(log), series).items()}
    if not any(np.isfinite(y).any() for _, y in curves.values()):
        raise ValueError("no logged number is finite: there is nothing to draw")
    if values == "log" and not all((y[np.isfinite(y)] > 0).all() for _, y in curves.values()):
        names = [name for name, (_, y) in curves.items() if (y[np.isfinite(y)] <= 0).any()]
        raise ValueError(f"values='log': these have numbers that are not above 0: {names[:5]}")
    colours = palette(theme)
    figure = go.Figure()
    coloured = sorted(curves, key=lambda name: -_range(curves[name][1]))[:_COLOURED]
    for name in [*(n for n in curves if n not in coloured), *(n for n in curves if n in coloured)]:
        figure.add_trace(_line(name, curves[name], list(curves), coloured, steps, colours))
    what = _shared(list(curves))
    figure.update_yaxes(type=values, title_text=plain(what) + (" (log)" if values == "log" else ""), zeroline=False)
    figure.update_yaxes(tickformat="~g" if values == "log" else None)
    _set_steps(figure, curves, steps)
    levels = {float(y) for _, of in curves.values() for y in of[np.isfinite(of)]}
    if values == "linear" and len(levels) == 1 and (level := levels.pop()):  # plotly would draw from -1 to 1
        figure.update_yaxes(range=sorted([0, 2 * level]))
    room = _mark(figure, phases or {}, steps, colours)
    legend = {"orientation": "v", "x": 1.01, "y": 1, "xanchor": "left", "yanchor": "top"}
    figure.update_layout(legend=legend, hovermode="closest", showlegend=len(curves) > 1)
    thin = f"{len(curves)} curves; named: the {_COLOURED} that change most" if len(curves) > _COLOURED else ""
    return framed(figure, theme, title or f"{plain(what)} over training".capitalize(), thin, room)


def training_map(
    result: DataArray,
    *,
    phases: Mapping[str, Step | tuple[Step, Step]] | None = None,
    title: str | None = None,
    theme: Theme = "light",
) -> go.Figure:
    """A measure that is a list of numbers, [step place], as a map: the steps at which it was taken across, places down.

    Steps stand side by side, however far apart they are; of thousands some are drawn.
    """
    if result.ndim != 2 or "step" not in result.dims or result.size == 0:
        raise ValueError(f"a map has an axis `step` and another; the result has {in_words(result.dims)}")
    found = result.sortby("step") if "step" in result.coords else result.assign_coords(step=range(result.sizes["step"]))
    n = found.sizes["step"]
    found = found.isel(step=np.unique(np.linspace(0, n - 1, min(n, _COLUMNS)).astype(int)))
    name = plain(str(result.name or "value").rsplit(".", 1)[-1]).replace("_", " ")
    title = title or f"{name} over training".capitalize()
    figure = heatmap(found.rename(name), x="step", title=title, theme=theme, text=False, max_labels=(12, 16))
    steps = found["step"].to_numpy().astype(float)
    column = lambda step: float(np.interp(step, steps, np.arange(len(steps))))
    spans = {name: at if isinstance(at, tuple) else (at, at) for name, at in (phases or {}).items()}
    places = {name: (column(a), column(b)) if a != b else column(a) for name, (a, b) in spans.items()}
    room = _mark(figure, places, "linear", palette(theme))
    return figure.update_layout(margin_t=(figure.layout.margin.t or 0) + room)


def _curves(log: Any) -> _Curves:
    """Every series of numbers in a log, by name."""
    if isinstance(log, str | os.PathLike):
        return _of_rows(_rows(Path(log).expanduser()))
    if isinstance(log, DataArray):
        return _of_array(log)
    if isinstance(log, Dataset):
        of_names = [_of_array(log[name]) for name in log.data_vars if "step" in log[name].dims]
        return {name: curve for of in of_names for name, curve in of.items()}
    if isinstance(log, Mapping):
        if all(isinstance(key, int | float | np.number) for key in log):
            rows = [{"step": key, **(x if isinstance(x, Mapping) else {"value": x})} for key, x in log.items()]
            return _of_rows(rows)
        inside = {str(name): _curves(of) for name, of in log.items()}
        return {_joined(name, inner): curve for name, of in inside.items() for inner, curve in of.items()}
    if isinstance(log, tuple) and len(log) == 2 and len(log[0]) == len(log[1]):
        return _of_rows([{"step": step, "value": x} for step, x in zip(*log, strict=True)])
    if isinstance(log, Sequence) and all(isinstance(row, Mapping) and "step" in row for row in log):
        return _of_rows(log)
    raise ValueError(
        f"a log of type {type(log).__name__} cannot be read; give a run's folder, its rows (each with `step`), an "
        "array with an axis `step`, (steps, values), {step: number}, or {name: any of these}"
    )


def _rows(path: Path) -> list[dict[str, Any]]:
    file = path / "log.jsonl" if path.is_dir() else path
    if not file.is_file():
        raise ValueError(f"{file} is no log; give a run's folder, or its log.jsonl")
    lines, rows = file.read_text().splitlines(), []
    for i, line in enumerate(lines):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            if i < len(lines) - 1:  # the last line of a run that goes on may be half written
                raise ValueError(f"{file}, line {i + 1} is no JSON: {line[:60]!r}") from error
    return rows


def _of_rows(rows: Sequence[Mapping[str, Any]]) -> _Curves:
    found: dict[str, tuple[list[Step], list[Step]]] = {}
    for row in rows:
        for key, value in row.items():
            if key == "step":
                continue
            for name, number in _numbers(key, value):
                steps, numbers = found.setdefault(name, ([], []))
                steps.append(row["step"])
                numbers.append(number)
    return {name: _sorted(steps, numbers) for name, (steps, numbers) in found.items()}


def _numbers(name: str, value: Any) -> list[tuple[str, float]]:
    """The numbers in a logged value, each with its name; names of heads, say, are none."""
    if isinstance(value, Mapping):
        return [pair for key, inner in value.items() for pair in _numbers(f"{name}.{key}", inner)]
    numbers = as_numbers(value)
    if numbers is None:
        return []
    if numbers.ndim == 2:
        return [(f"{name}.L{i}H{j}", float(x)) for (i, j), x in np.ndenumerate(numbers)]
    return [(".".join([name, *map(str, at)]), float(x)) for at, x in np.ndenumerate(numbers)]


def _of_array(array: DataArray) -> _Curves:
    if "step" not in array.dims:
        raise ValueError(f"an array of a log has an axis `step`; this one has {list(array.dims)}")
    mean = array.mean("prompt") if "prompt" in array.dims else array
    steps = mean["step"].values.tolist() if "step" in mean.coords else list(range(mean.sizes["step"]))
    others = [axis for axis in mean.dims if axis != "step"]
    is_head = set(others) == {"layer", "head"}
    others = ["layer", "head"] if is_head else others
    mean = mean.transpose(*others, "step")
    found, name = {}, str(array.name or "value")
    for at in np.ndindex(mean.shape[:-1]):
        of = [mean[axis].values[i] if axis in mean.coords else i for axis, i in zip(others, at, strict=True)]
        label = f".L{of[0]}H{of[1]}" if is_head else "".join(f".{each}" for each in of)
        found[name + label] = _sorted(steps, mean.to_numpy()[at].tolist())
    return found


def _sorted(steps: Sequence[Step], values: Sequence[Step]) -> tuple[np.ndarray, np.ndarray]:
    order = np.argsort(np.asarray(steps, dtype=float), kind="stable")
    return np.asarray(steps, dtype=float)[order], np.asarray(values, dtype=float)[order]


def _joined(name: str, inner: str) -> str:
    return name if inner == "value" else f"{name}: {inner}"


def _thinned(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A long curve as the least and the largest value of each of its stretches, so that no peak is lost."""
    if len(steps) <= _MOST:
        return steps, values
    kept = {0, len(steps) - 1}
    for part in np.array_split(np.arange(len(steps)), _MOST // 2):
        of = values[part]
        if np.isfinite(of).any():
            kept |= {int(part[np.nanargmin(of)]), int(part[np.nanargmax(of)])}
        if not np.isfinite(of).all():
            kept.add(int(part[np.flatnonzero(~np.isfinite(of))[0]]))
    order = sorted(kept)
    return steps[order], values[order]


def _chosen(curves: _Curves, series: str | Sequence[str] | None) -> _Curves:
    if not curves:
        raise ValueError("the log is empty: it has no step with a number")
    if series is None:
        losses = {name: curve for name, curve in curves.items() if name.endswith("loss")}
        return losses or curves
    wanted = [series] if isinstance(series, str) else list(series)
    found: _Curves = {}
    for pattern in wanted:
        own = [n for n in curves if any(fnmatchcase(each, pattern) for each in (n, n.rsplit(": ", 1)[-1]))]
        if not own:
            raise ValueError(f"no series {pattern!r} on the log; it has {sorted(curves)[:40]}")
        found |= {name: curves[name] for name in own}
    return found


def _line(
    name: str,
    curve: tuple[np.ndarray, np.ndarray],
    names: list[str],
    coloured: list[str],
    kind: AxisType,
    colours: Palette,
) -> go.Scatter:
    steps, values = curve
    has_colour = name in coloured
    place = [each for each in names if each in coloured].index(name) if has_colour else 0
    line = {"color": colours.categories[place % len(colours.categories)], "width": 1.8, "dash": _DASHES[place % 4]}
    thin = {"color": colours.missing, "width": 0.8}
    return go.Scatter(
        x=np.where(steps == 0, 0.5, steps) if kind == "log" else steps,
        y=values,
        mode="markers" if len(steps) == 1 else "lines+markers" if len(steps) <= _FEW and has_colour else "lines",
        marker={"size": 4},
        line=line if has_colour else thin,
        name=plain(_short(name, names), 24),
        customdata=steps,
        hovertemplate=f"{plain(name, 60)}<br>step %{{customdata:,}}: %{{y:.4g}}<extra></extra>",
        showlegend=has_colour,
    )


def _set_steps(figure: go.Figure, curves: _Curves, kind: AxisType) -> None:
    figure.update_xaxes(type=kind, title_text="step (log)" if kind == "log" else "step", zeroline=False)
    if kind == "linear":
        return
    if any((x < 0).any() for x, _ in curves.values()):
        raise ValueError("steps='log': there are negative steps")
    last = max(float(x.max()) for x, _ in curves.values())
    powers = [10**i for i in range(int(np.log10(max(last, 1))) + 1)]
    has_zero = any((x == 0).any() for x, _ in curves.values())  # step 0 has no logarithm: it stands before step 1
    figure.update_xaxes(
        tickmode="array",
        tickvals=[*([0.5] if has_zero else []), *powers],
        ticktext=[*(["0"] if has_zero else []), *(f"{power:,}" for power in powers)],
    )


def _mark(figure: go.Figure, phases: Mapping[str, Step | tuple[Step, Step]], kind: AxisType, colours: Palette) -> int:
    """Draw the phases, and say how much room their names need above the curves."""
    for i, (name, at) in enumerate(phases.items()):
        ends = at if isinstance(at, tuple) else (at, at)
        first, last = (max(float(end), 0.5) if kind == "log" else float(end) for end in ends)
        if isinstance(at, tuple):
            figure.add_vrect(
                x0=first, x1=last, fillcolor=colours.categories[5], opacity=0.15, line_width=0, layer="below"
            )
        else:
            figure.add_vline(x=first, line={"color": colours.faint_ink, "width": 1, "dash": "dot"})
        figure.add_annotation(
            x=np.log10(first * last) / 2 if kind == "log" else (first + last) / 2,
            y=1,
            yref="paper",
            yanchor="bottom",
            yshift=2 + 13 * (i % 2),
            text=plain(name, 24),
            showarrow=False,
            font={"size": 10, "color": colours.faint_ink},
        )
    return 0 if not phases else 16 if len(phases) == 1 else 30


def _range(values: np.ndarray) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.max() - finite.min()) if finite.size else 0.0


def _shared(names: list[str]) -> str:
    """What all curves are of, for the axis and the title."""
    plain_names = [name.rsplit(": ", 1)[-1] for name in names]
    if len(set(plain_names)) == 1 and plain_names[0] != "value":
        return plain_names[0].replace("_", " ")
    if all(name.endswith("loss") for name in plain_names):
        return "loss"
    return " ".join(_shared_parts(plain_names)).replace("_", " ") or "value"


def _short(name: str, names: list[str]) -> str:
    """A name without what all names share."""
    runs = {each.rsplit(": ", 1)[0] for each in names if ": " in each}
    if len(runs) == len(names) > 1:  # the same of several runs
        return name.rsplit(": ", 1)[0]
    return ".".join(name.split(".")[len(_shared_parts(names)) :])


def _shared_parts(names: list[str]) -> list[str]:
    """The parts between dots with which all names begin, without any name's last."""
    found = []
    for parts in zip(*(name.split(".")[:-1] for name in names), strict=False):
        if len(set(parts)) > 1:
            break
        found.append(parts[0])
    return found
