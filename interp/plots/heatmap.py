"""Maps: a number for each pair of places, in colour."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots
from xarray import DataArray

from interp.cache import ActivationCache
from interp.plots.attention import head_pattern
from interp.plots.cells import with_words
from interp.plots.results import is_signed, labels, of_prompts, prepared, quantity
from interp.plots.theme import LABEL, Palette, Theme, about, broken, framed, in_words, palette, ticks
from interp.results import token_texts

Scale = Literal["diverging", "sequential"]
TEXT_CELLS = 800  # more text makes a browser wait
_OWN_TEXT_CELLS, _OWN_TEXT_COLUMNS = 100, 16
_HOVER_CELLS = 20_000
_PANELS, _SLIDES = 12, 128
_TITLES = 54  # characters of the titles of panels side by side
_SLIDER = 72  # pixels


def heatmap(
    result: DataArray,
    x: str | None = None,
    y: str | None = None,
    *,
    title: str | None = None,
    effect: bool = False,
    scale: Scale | None = None,
    limit: int | float | None = None,
    text: bool | None = None,
    theme: Theme = "light",
    max_labels: tuple[int, int] = (24, 16),
) -> go.Figure:
    """A map of a result with two axes beside prompts, `y` down and `x` across; a third makes panels, or a slider.

    `effect` draws result - result.base. The scale is "diverging", 0 its middle, for effects, for what has negative
    values, and for metrics that are 0 where nothing is changed; else "sequential". `limit` is the number at its end.
    What is not finite is grey. Text stands in cells if asked for or if they are few; `max_labels` are for x and y.
    """
    mean, n_prompts = prepared(result, effect, (2, 3))
    mean, along = _arranged(mean, x, y)
    colours, name = palette(theme), quantity(result, effect)
    n_columns = _grid(mean.sizes[along])[1] if along is not None and mean.sizes[along] <= _PANELS else 1
    is_narrow = n_columns * mean.shape[-1] <= _OWN_TEXT_COLUMNS
    has_text = mean.size <= _OWN_TEXT_CELLS and is_narrow if text is None else text
    if has_text and mean.size > TEXT_CELLS:
        raise ValueError(f"text=True: {mean.size} cells; text is readable in {TEXT_CELLS} at most")
    signed = scale == "diverging" or (scale is None and is_signed(result, mean, effect))
    panels = _Panels(mean, colours, name, _colour_axis(mean.to_numpy(), signed, limit, colours), has_text)
    n_missing = int((~np.isfinite(mean.to_numpy())).sum())
    is_clipped = limit is not None and bool((abs(mean) > limit).any())
    clipped = f"colours end at {'±' if signed else ''}{limit:g}" if is_clipped else ""
    grey = f"grey ×: {n_missing} of {mean.size} cells not computed" if n_missing else ""
    under = about(result.attrs, of_prompts(n_prompts), clipped, grey)
    heading = title or str(result.attrs.get("method") or name).capitalize()
    across, down = mean.dims[-1], mean.dims[-2]
    x_ticks = ticks(labels(mean, across, LABEL), -(-max_labels[0] // n_columns)) | {
        "showgrid": False,
        "zeroline": False,
    }
    y_ticks = ticks(labels(mean, down, LABEL), max_labels[1]) | {"showgrid": False, "zeroline": False}
    if along is None:
        figure = go.Figure(panels.traces())
        framed(figure, theme, heading, under)
    elif mean.sizes[along] <= _PANELS:
        figure, n_lines = _side_by_side(panels, along)
        framed(figure, theme, heading, under, room=8 + 14 * n_lines)
    else:
        figure = _slides(panels, along)
        framed(figure, theme, heading, under, room=_SLIDER)
    figure.update_xaxes(x_ticks)
    figure.update_yaxes(y_ticks | {"autorange": "reversed"})
    _name_outer_axes(figure, str(across), str(down))
    return figure


def patterns(
    cache: ActivationCache,
    layer: int,
    head: int | Sequence[int] | None = None,
    *,
    prompt: int = 0,
    tokens: Sequence[str] | None = None,
    title: str | None = None,
    theme: Theme = "light",
) -> go.Figure:
    """Where the heads of a layer look in one prompt, [query_pos key_pos]: all of them, or those asked for.

    Positions, padding left out, are named by their tokens: `tokens`, or the cached ones as the cache's model spells
    them.
    """
    pattern = cache["pattern", layer].detach().float().cpu()
    pattern = pattern if cache.has_batch_dim else pattern[None]
    if not 0 <= prompt < len(pattern):
        raise ValueError(f"prompt={prompt}; the cache has {len(pattern)}, from 0")
    if pattern.ndim != 4 or pattern.shape[-2] != pattern.shape[-1]:
        raise ValueError(
            f"the pattern is {list(pattern.shape)}; it is drawn if it is of all positions of whole prompts"
        )
    of_one, ids = pattern[prompt], None if cache.tokens is None else torch.atleast_2d(cache.tokens)[prompt].cpu()
    if cache.attention_mask is not None:
        is_own = torch.atleast_2d(cache.attention_mask)[prompt].bool().cpu()
        of_one, ids = of_one[:, is_own][:, :, is_own], None if ids is None else ids[is_own]
    wanted = list(range(len(of_one))) if head is None else [head] if isinstance(head, int) else list(head)
    if unknown := [each for each in wanted if not 0 <= each < len(of_one)]:
        raise ValueError(f"head={unknown}; layer {layer} has {len(of_one)} heads, from 0")
    if tokens is None and ids is not None:
        tokens = [str(i) for i in ids.tolist()] if cache.model is None else token_texts(cache.model, ids).tolist()
    places = {axis: _named(axis, n, tokens) for axis, n in zip(("query_pos", "key_pos"), of_one.shape[1:], strict=True)}
    found = DataArray(of_one[wanted].numpy(), coords={"head": wanted, **places}, name="attention")
    heading = title or f"Attention patterns of layer {layer}" + ("" if len(wanted) > 1 else f", head {wanted[0]}")
    if len(wanted) == 1:
        return head_pattern(found[0], scale="linear", title=heading, theme=theme)
    return heatmap(found, title=heading, scale="sequential", limit=1, theme=theme)


def _named(axis: str, n: int, tokens: Sequence[str] | None) -> list[str] | list[int]:
    if tokens is None:
        return list(range(n))
    if len(tokens) != n:
        raise ValueError(f"{axis} has {n} places, and {len(tokens)} tokens are known: give `tokens`, one for each")
    return [f"{i} {token}" for i, token in enumerate(tokens)]


@dataclass(frozen=True)
class _ColourAxis:
    """What colour a number has, the same in all panels."""

    scale: list[list[Any]]
    low: float
    high: float
    is_signed: bool


@dataclass(frozen=True)
class _Panels:
    """Maps that share their axes and colours, one for each place along the first of three axes."""

    mean: DataArray
    colours: Palette
    name: str
    axis: _ColourAxis
    has_text: bool

    def traces(self, along: dict[str, int] | None = None, has_scale: bool = True) -> list[go.Heatmap]:
        """One map, and over it what is missing from it."""
        part = self.mean.isel(along or {})
        values = part.to_numpy()
        is_there = np.isfinite(values)
        hover = self._hover(part, along)
        common: dict[str, Any] = {"hoverongaps": False, "hovertemplate": "%{hovertext}<extra></extra>"}
        if hover is None:
            common["hovertemplate"] = f"{part.dims[0]} %{{y}}<br>{part.dims[1]} %{{x}}<br>%{{z:.4g}}<extra></extra>"
        gap = 1 if values.size <= TEXT_CELLS else 0
        bar = {
            "title": {"text": self.name, "side": "right", "font": {"size": 11}},
            "tickfont": {"size": 10},
            "thickness": 12,
            "outlinewidth": 0,
            "x": 1.01,
            "xpad": 4,
        }
        found = go.Heatmap(
            z=np.where(is_there, values, np.nan),
            colorscale=self.axis.scale,
            zmin=self.axis.low,
            zmax=self.axis.high,
            zmid=0 if self.axis.is_signed else None,
            showscale=has_scale,
            colorbar=bar,
            hovertext=hover,
            xgap=gap,
            ygap=gap,
            **common,
        )
        numbers = [["" if not math.isfinite(x) else f"{x:z.2f}" for x in row] for row in values.tolist()]
        maps = with_words(found, numbers, self.colours.missing) if self.has_text else [found]
        if is_there.all():
            return maps
        grey = self.colours.missing
        missing = go.Heatmap(
            z=np.where(is_there, np.nan, 0.0),
            colorscale=[[0, grey], [1, grey]],
            showscale=False,
            hovertext=hover,
            xgap=gap,
            ygap=gap,
            name="not computed",
            text=np.where(is_there, "", "×").tolist(),
            texttemplate="%{text}" if values.size <= TEXT_CELLS else None,
            **common | ({"hovertemplate": "not computed<extra></extra>"} if hover is None else {}),
        )
        return [*maps, missing]

    def _hover(self, part: DataArray, along: dict[str, int] | None) -> list[list[str]] | None:
        if self.mean.size > _HOVER_CELLS:
            return None
        down, across = part.dims
        head = "".join(f"{axis} {labels(self.mean, axis, 40)[i]}<br>" for axis, i in (along or {}).items())
        columns = [f"{across} {label}<br>" for label in labels(part, across, 40)]
        return [
            [f"{head}{down} {row}<br>{column}{self._said(x)}" for column, x in zip(columns, values, strict=True)]
            for row, values in zip(labels(part, down, 40), part.to_numpy().tolist(), strict=True)
        ]

    def _said(self, x: float) -> str:
        return "not computed" if math.isnan(x) else f"{self.name} {x:.4g}"


def _arranged(mean: DataArray, x: str | None, y: str | None) -> tuple[DataArray, str | None]:
    """With `y` and `x` as its last axes, and the one before them, if there is one."""
    axes = list(map(str, mean.dims))
    if unknown := [axis for axis in (x, y) if axis is not None and axis not in axes]:
        raise ValueError(f"no such axes: {unknown}; the result has {in_words(axes)}")
    if x is not None and x == y:
        raise ValueError(f"x and y are both {x!r}; the result has {in_words(axes)}")
    free = [axis for axis in axes if axis not in (x, y)]
    across = x or free.pop()
    down = y or free.pop()
    if free and mean.sizes[free[0]] > _SLIDES:
        raise ValueError(f"{free[0]} has {mean.sizes[free[0]]} places; a slider has {_SLIDES} at most: select some")
    return mean.transpose(*free, down, across), free[0] if free else None


def _colour_axis(values: np.ndarray, is_signed: bool, limit: int | float | None, colours: Palette) -> _ColourAxis:
    if limit is not None and limit <= 0:
        raise ValueError(f"limit={limit}; it is the number at the end of the scale, and above 0")
    finite = values[np.isfinite(values)]
    if is_signed:
        end = float(limit or np.abs(finite).max()) or 1.0
        return _ColourAxis(colours.scale(colours.diverging), -end, end, True)
    low, high = float(finite.min()), float(limit or finite.max())
    low = 0.0 if 0 <= low < 0.5 * high else low
    return _ColourAxis(colours.scale(colours.sequential), low, high if high > low else low + 1.0, False)


def _grid(n: int) -> tuple[int, int]:
    """Rows and columns of panels."""
    n_rows = math.ceil(n / 4) if n > 3 else 1
    return n_rows, math.ceil(n / n_rows)


def _side_by_side(panels: _Panels, along: str) -> tuple[go.Figure, int]:
    """The panels, and how many lines their titles have."""
    n = panels.mean.sizes[along]
    n_rows, n_columns = _grid(n)
    names = [broken(f"{along} {label}", _TITLES // n_columns) for label in labels(panels.mean, along)]
    figure = make_subplots(
        n_rows,
        n_columns,
        subplot_titles=names,
        shared_xaxes=True,
        shared_yaxes=True,
        horizontal_spacing=0.03,
        vertical_spacing=0.09 if n_rows > 1 else 0,
    )
    for i in range(n):
        for trace in panels.traces({along: i}, has_scale=i == 0):
            figure.add_trace(trace, i // n_columns + 1, i % n_columns + 1)
    figure.update_xaxes(matches="x")
    figure.update_yaxes(matches="y")
    figure.update_annotations(font_size=11)
    if n_rows > 1:
        figure.update_layout(height=110 + 250 * n_rows)
    return figure, max(name.count("<br>") for name in names) + 1


def _slides(panels: _Panels, along: str) -> go.Figure:
    slides = [panels.traces({along: i}) for i in range(panels.mean.sizes[along])]
    of = [i for i, slide in enumerate(slides) for _ in slide]
    figure = go.Figure([trace.update(visible=i == 0) for i, slide in enumerate(slides) for trace in slide])
    steps = [
        {"method": "restyle", "label": label, "args": [{"visible": [i == at for i in of]}]}
        for at, label in enumerate(labels(panels.mean, along))
    ]
    slider = {
        "steps": steps,
        "currentvalue": {"prefix": f"{along} ", "font": {"size": 12}},
        "y": 1,
        "yanchor": "bottom",
        "pad": {"t": 0, "b": 12},
        "font": {"size": 10, "color": panels.colours.faint_ink},
        "bgcolor": panels.colours.grid,
        "bordercolor": panels.colours.faint_ink,
    }
    return figure.update_layout(sliders=[slider])


def _name_outer_axes(figure: go.Figure, across: str, down: str) -> None:
    """Name the axes whose labels are shown."""
    figure.for_each_xaxis(lambda axis: axis.update(title_text=across) if axis.showticklabels is not False else None)
    figure.for_each_yaxis(lambda axis: axis.update(title_text=down) if axis.showticklabels is not False else None)
