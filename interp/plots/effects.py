"""What was taken away, and what that did, with how sure it is: of a summary over prompts (`patching.summary`)."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from xarray import DataArray, Dataset

from interp.plots.bars import Row, drawn, largest
from interp.plots.heatmap import heatmap
from interp.plots.theme import Theme, about, framed, palette, plain, ticks

_PART = re.compile(r"L(\d+)(?:(H\d+)|( attn| mlp))?")
_NEEDED = {"mean", "low", "high"}


def is_mapped(parts: Sequence[str]) -> bool:
    """Whether a map shows some of these parts: heads and halves of layers do, neurons and positions do not."""
    return any(map(_PART.fullmatch, parts))


def effect_map(summary: Dataset, *, title: str | None = None, theme: Theme = "light") -> go.Figure:
    """The effects of taking away heads, and halves of layers, by layer; what has no place on it is left out.

    `summary` is over an axis of parts by their names. A cell has its number where its interval leaves out 0.
    """
    axis = _axis(summary)
    places: dict[tuple[int, str], int] = {}
    for i, name in enumerate(map(str, summary[axis].values)):
        if match := _PART.fullmatch(name):
            places[int(match[1]), (match[2] or match[3] or " all").strip()] = i
    if not places:
        raise ValueError("there is neither a head nor a layer among the parts: effect_bars draws any")
    layers = sorted({layer for layer, _ in places})
    columns = sorted(
        {what for _, what in places}, key=lambda what: (what[0] != "H", what[0] == "H" and int(what[1:]), what)
    )
    at = np.array([[places.get((layer, what), -1) for what in columns] for layer in layers])
    mean, low, high = (np.where(at < 0, np.nan, summary[name].to_numpy()[at]) for name in ("mean", "low", "high"))
    found = DataArray(mean, coords=[("layer", layers), ("part", columns)], name="effect", attrs=summary.attrs)
    is_text = mean.size <= 400
    n_unsure = int(((low <= 0) & (high >= 0)).sum())
    figure = heatmap(found, title=title or "Without each part", text=is_text, max_labels=(40, 40), theme=theme)
    traces: list[Any] = list(figure.data)
    for trace in traces:
        if trace.text is not None and trace.name != "not computed":
            trace.text = np.where((low <= 0) & (high >= 0), "", np.array(trace.text)).tolist()
        if trace.hoverinfo != "skip" and trace.name != "not computed":
            trace.update(
                hovertext=_hover(summary, places, layers, columns), hovertemplate="%{hovertext}<extra></extra>"
            )
    note = f"no number: the interval includes 0 ({n_unsure})" if is_text and n_unsure else ""
    return framed(figure, theme, title or "Without each part", about(summary.attrs, _over(summary), note))


def effect_bars(
    summary: Dataset, *, top: int | None = 20, title: str | None = None, theme: Theme = "light"
) -> go.Figure:
    """The `top` effects farthest from 0, the largest first, each with its interval."""
    axis, mean = _axis(summary), summary["mean"].to_numpy()
    shown = largest(np.nan_to_num(mean), len(mean) if top is None else top)[0].tolist()
    names = [plain(str(name), 40) for name in summary[axis].values]
    figure = drawn([Row(names[i], float(mean[i])) for i in shown], theme, _what(summary), axis)
    low, high = (summary[name].to_numpy()[shown] for name in ("low", "high"))
    bars: Any = figure.data[0]
    bars.update(
        error_x={
            "type": "data", "array": high - mean[shown], "arrayminus": mean[shown] - low,
            "color": palette(theme).ink, "thickness": 1, "width": 3,
        },
        hovertext=[f"{axis} {names[i]}<br>{_said(summary, i)}" for i in shown],
    )  # fmt: skip
    part = f"the {len(shown)} largest of {len(mean)}" if len(shown) < len(mean) else ""
    return framed(figure, theme, title or "Without each part", about(summary.attrs, part, _over(summary)))


def effect_curve(
    summary: Dataset, removed: Sequence[str], *, title: str | None = None, theme: Theme = "light"
) -> go.Figure:
    """The effect of taking away one part more at each step, named by what is taken, between its intervals' ends."""
    axis, mean, colours = _axis(summary), summary["mean"].to_numpy(), palette(theme)
    if len(removed) != len(mean):
        raise ValueError(f"{len(removed)} parts are named, and there are {len(mean)} steps")
    names, x = [plain(name, 24) for name in removed], list(range(len(mean)))
    low, high = (summary[name].to_numpy() for name in ("low", "high"))
    figure = go.Figure()
    figure.add_scatter(
        x=[*x, *x[::-1]], y=[*high, *low[::-1]], fill="toself", mode="none", fillcolor=colours.missing, opacity=0.5,
        hoverinfo="skip", name="interval", showlegend=False,
    )  # fmt: skip
    hover = [f"{axis} {i + 1}, without {name}<br>{_said(summary, i)}" for i, name in enumerate(names)]
    figure.add_scatter(
        x=x, y=mean, mode="lines+markers", line={"color": colours.categories[0], "width": 2}, marker={"size": 5},
        hovertext=hover, hoverinfo="text", showlegend=False, name="effect",
    )  # fmt: skip
    figure.update_xaxes(ticks([f"+ {name}" for name in names], 24), title_text="taken away as well", zeroline=False)
    figure.update_yaxes(title_text=_what(summary), zeroline=True)
    return framed(figure, theme, title or "Without more and more parts", about(summary.attrs, _over(summary)))


def _axis(summary: Dataset) -> str:
    if missing := _NEEDED - set(map(str, summary.data_vars)):
        raise ValueError(f"this is no summary over prompts, it lacks {sorted(missing)}: see patching.summary")
    axes = list(map(str, summary["mean"].dims))
    if len(axes) != 1:
        raise ValueError(f"the summary has the axes {axes}; one is drawn, of parts or of steps: select some")
    return axes[0]


def _what(summary: Dataset) -> str:
    return plain(f"change in {summary.attrs.get('metric', 'metric')}", 36)


def _over(summary: Dataset) -> str:
    n, level = summary.attrs.get("n"), summary.attrs.get("level")
    return f"mean of {n} prompts, {float(level):.0%} interval" if n and level else ""


def _said(summary: Dataset, i: int) -> str:
    mean, low, high = (float(summary[name][i]) for name in ("mean", "low", "high"))
    return f"{_what(summary)} {mean:.4g}, {float(summary.attrs.get('level', 0.95)):.0%} from {low:.4g} to {high:.4g}"


def _hover(
    summary: Dataset, places: dict[tuple[int, str], int], layers: Sequence[int], columns: Sequence[str]
) -> list[list[Any]]:
    names = [plain(str(name)) for name in summary[_axis(summary)].values]
    cells = [[places.get((layer, what)) for what in columns] for layer in layers]
    return [["not computed" if i is None else f"{names[i]}<br>{_said(summary, i)}" for i in row] for row in cells]
