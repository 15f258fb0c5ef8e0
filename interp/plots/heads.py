"""Heads compared: their scores on a grid, and how far back they look."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from xarray import DataArray, Dataset

from interp.plots.heatmap import heatmap
from interp.plots.results import labels
from interp.plots.theme import Theme, about, framed, in_words, palette, plain

_AXES = ("score", "layer", "head")
_PANELS, _LINES, _FEW = 12, 8, 16
_CORNER = 0.36  # how far from the middle of its cell a dot is: it hides no number
_BESIDE = ("low", "high", "threshold", "n")
_DASHES = ("solid", "dash", "dot", "dashdot")


def head_scores(
    scores: DataArray, score: str | None = None, *, title: str | None = None, theme: Theme = "light"
) -> go.Figure:
    """A map of layers and heads for each score, or for the one asked for; heads above its threshold have a dot.

    `scores` are [score layer head]. Coordinates `low` and `high` are the ends of an interval around each, `threshold`
    and `n` are of each score or of each head; those there are appear on hovering.
    """
    if set(scores.dims) - {"prompt"} != set(_AXES):
        raise ValueError(f"the scores have the axes {in_words(scores.dims)}; a grid is of {in_words(_AXES)}")
    mean = scores.mean("prompt", keep_attrs=True) if "prompt" in scores.dims else scores
    mean = mean.transpose(*_AXES)
    names = [str(name) for name in mean["score"].values] if "score" in mean.coords else list(map(str, range(len(mean))))
    if score is not None and score not in names:
        raise ValueError(f"score={score!r}; there are {names}")
    if score is None and len(names) > _PANELS:
        raise ValueError(
            f"{len(names)} scores; {_PANELS} fit a figure: select some, or ask for one, score={names[0]!r}"
        )
    shown = [names.index(score)] if score is not None else list(range(len(names)))
    of_each = [mean.isel(score=i) for i in shown]
    above = [_above(of_one) for of_one in of_each]
    dots = "dot: above the threshold" if any("threshold" in of_one.coords for of_one in of_each) else ""
    counted = f"{dots} ({sum(int(found.sum()) for found in above)})" if dots else ""
    drawn = of_each[0] if len(shown) == 1 else mean
    kind = " · ".join(filter(None, [str(scores.attrs.get("kind", "")), counted]))
    heading = title or (f"Heads: {score}" if score is not None else None)
    drawn = drawn.rename(names[shown[0]] if len(shown) == 1 else "score")
    figure = heatmap(drawn.assign_attrs(kind=kind), x="head", y="layer", title=heading, theme=theme)
    _add_words(figure, of_each, [names[i] for i in shown])
    for note, name in zip(figure.layout.annotations, names, strict=len(shown) > 1):  # type: ignore[arg-type]
        note.text = plain(name)
    for i, found in enumerate(above):
        _add_dots(figure, found, i, len(above), theme)
    n_layers, n_heads = above[0].shape
    figure.update_xaxes(range=[-0.5, n_heads - 0.5])
    figure.update_yaxes(range=[n_layers - 0.5, -0.5], autorange=None)
    return figure


def corpus_offsets(
    statistics: Dataset,
    heads: Sequence[tuple[int, int]] | None = None,
    *,
    title: str | None = None,
    theme: Theme = "light",
) -> go.Figure:
    """Attention by how far back it goes, a line for each head asked for, or for those with the highest peaks.

    `statistics` have `by_offset`, [layer head offset]; offset 0, a token itself, stands before 1 on the axis.
    """
    axes = ("layer", "head", "offset")
    if "by_offset" not in statistics or set(statistics["by_offset"].dims) != set(axes):
        raise ValueError(f"the statistics have {list(statistics.data_vars)}; curves need `by_offset`, {in_words(axes)}")
    by_offset = statistics["by_offset"].transpose(*axes).astype(float)
    values = by_offset.to_numpy()
    if not np.isfinite(values).any():
        raise ValueError("no number of by_offset is finite: there is nothing to draw")
    layers, head_names = (_places(by_offset, axis) for axis in axes[:2])
    peaks = np.nan_to_num(values).max(-1)
    if heads is None:
        highest = np.argsort(-peaks, axis=None, kind="stable")[:_LINES]
        at = [(int(i), int(j)) for i, j in zip(*np.unravel_index(highest, peaks.shape), strict=True)]
    else:
        if unknown := [head for head in heads if head[0] not in layers or head[1] not in head_names]:
            raise ValueError(f"no such heads: {unknown}; layers are {layers}, heads {head_names}")
        at = [(layers.index(layer), head_names.index(head)) for layer, head in heads]
    offsets = np.array(_places(by_offset, "offset"))
    colours = palette(theme)
    figure = go.Figure()
    for k, (i, j) in enumerate(at):
        name = f"L{layers[i]}H{head_names[j]}"
        figure.add_scatter(
            x=np.where(offsets == 0, 0.5, offsets),
            y=values[i, j],
            mode="lines",
            line={
                "color": colours.categories[k % len(colours.categories)],
                "width": 1.8,
                "dash": _DASHES[k // len(colours.categories) % len(_DASHES)],
            },
            name=name,
            customdata=offsets,
            hovertemplate=f"{name}<br>offset %{{customdata}}<br>attention %{{y:.4g}}<extra></extra>",
        )
    powers = [10**i for i in range(int(np.log10(max(float(offsets.max()), 1))) + 1)]
    zero = [0.5] if (offsets == 0).any() else []
    figure.update_xaxes(
        type="log",
        range=np.log10([0.45 if zero else max(float(offsets.min()), 1) * 0.9, float(offsets.max()) * 1.1]).tolist(),
        tickmode="array",
        tickvals=[*zero, *powers],
        ticktext=[*(["0"] * len(zero)), *(f"{power:,}" for power in powers)],
        title_text="offset: tokens back (log)",
    )
    figure.update_yaxes(title_text="mean attention", rangemode="tozero", zeroline=False)
    figure.update_layout(hovermode="closest", showlegend=True)
    few = (
        f"the {len(at)} heads with the highest peaks, of {peaks.size}" if heads is None and len(at) < peaks.size else ""
    )
    heading = title or "Attention by offset"
    return framed(figure, theme, heading, about(statistics.attrs, few))


def _places(of: DataArray, axis: str) -> list[int]:
    return [int(i) for i in of[axis].values] if axis in of.coords else list(range(of.sizes[axis]))


def _above(of_one: DataArray) -> np.ndarray:
    """[layer head]: whether a head's score is above the threshold, with its interval, and beyond mere distance."""
    if "threshold" not in of_one.coords:
        return np.zeros(of_one.shape, bool)
    least = of_one["low"] if "low" in of_one.coords else of_one
    is_above = least > of_one["threshold"]
    if "by_distance" in of_one.coords and "null" in of_one.coords:
        is_above &= least - of_one["by_distance"] > of_one["null"]
    return is_above.to_numpy()


def _add_words(figure: go.Figure, of_each: list[DataArray], names: list[str]) -> None:
    """What hovering says of each head, in place of the map's own words."""
    panel = -1
    traces: Any = figure.data
    for trace in traces:
        if trace.hoverinfo == "skip":
            continue  # words in a map's cells, not the map
        panel += trace.name != "not computed"  # what is missing from a panel lies over it
        trace.hovertext = _hover(of_each[panel], names[panel])
        trace.hovertemplate = "%{hovertext}<extra></extra>"


def _hover(of_one: DataArray, name: str) -> list[list[str]]:
    layers, heads = labels(of_one, "layer"), labels(of_one, "head")
    beside = {key: of_one[key].broadcast_like(of_one).to_numpy() for key in _BESIDE if key in of_one.coords}

    def cell(i: int, j: int) -> str:
        value = float(of_one[i, j])
        lines = [
            f"L{layers[i]}H{heads[j]}",
            f"{plain(name)} " + (f"{value:.4g}" if np.isfinite(value) else "not computed"),
        ]
        if "low" in beside and "high" in beside:
            lines.append(f"interval {beside['low'][i, j]:.3g} to {beside['high'][i, j]:.3g}")
        lines += [f"{key} {beside[key][i, j]:.4g}" for key in ("threshold", "n") if key in beside]
        return "<br>".join(lines)

    return [[cell(i, j) for j in range(len(heads))] for i in range(len(layers))]


def _add_dots(figure: go.Figure, above: np.ndarray, panel: int, n_panels: int, theme: Theme) -> None:
    at, colours = np.argwhere(above), palette(theme)
    size = 7 - 1.5 * (n_panels > 1) - 1.5 * (max(above.shape) > _FEW)
    axis = "" if panel == 0 else str(panel + 1)
    look: dict[str, Any] = {"color": colours.categories[1], "line": {"width": size / 7, "color": colours.background}}
    figure.add_scatter(
        x=at[:, 1] + _CORNER,
        y=at[:, 0] - _CORNER,
        mode="markers",
        marker=look | {"size": size},
        xaxis=f"x{axis}",
        yaxis=f"y{axis}",
        hoverinfo="skip",
        name="above the threshold",
        showlegend=False,
    )
