"""One head's attention: its pattern over the tokens, and arcs over the text."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import plotly.graph_objects as go
from torch import Tensor
from xarray import DataArray

from interp.plots.results import labels
from interp.plots.theme import Palette, Theme, about, framed, in_words, palette, tick_texts, ticks

AttentionScale = Literal["sqrt", "linear"]
_PLACES = 1024  # more make a browser wait
_LABELS, _ARC_LABELS = (20, 14), 32
_NARROW, _WIDE, _TOKEN = 24, 120, 15  # so many tokens fit, up to so many have so many pixels each
_MOST_ARCS, _LEVEL = 400, 6  # so many tokens need not be turned


def head_pattern(
    pattern: Any,
    tokens: Sequence[str] | None = None,
    *,
    values: str = "attention",
    scale: AttentionScale = "sqrt",
    title: str | None = None,
    theme: Theme = "light",
) -> go.Figure:
    """A head's pattern [query_pos key_pos] over its tokens; hovering gives query, key, number, and the key's rank.

    `values` says what the numbers are. Colours go by the number's square root, or with "linear" by the number; where
    some are negative, 0 is the middle. What lies above the diagonal of a causal pattern is left blank.
    """
    if scale not in ("sqrt", "linear"):
        raise ValueError(f"scale={scale!r}; allowed: 'sqrt', 'linear'")
    numbers, names = _read(pattern, tokens)
    if max(numbers.shape) > _PLACES:
        raise ValueError(f"the pattern is {list(numbers.shape)}; {_PLACES} places can be drawn: select some")
    is_hidden = _is_hidden(numbers)
    is_there = np.isfinite(numbers) & ~is_hidden
    largest = float(np.abs(numbers[is_there]).max())
    colours, is_signed = palette(theme), bool((numbers[is_there] < 0).any())
    end = 1.0 if values == "attention" and largest <= 1.001 else largest or 1.0
    by_root = scale == "sqrt" and not is_signed
    bar: dict[str, Any] = {
        "title": {"text": values, "side": "right", "font": {"size": 11}},
        "tickfont": {"size": 10},
        "thickness": 12,
        "outlinewidth": 0,
        "x": 1.01,
        "xpad": 4,
    }
    said = "query %{y}<br>key %{x}<br>" + values + " %{z:.4g}<br>rank %{customdata}"
    found = go.Heatmap(
        z=np.where(is_there, numbers, np.nan),
        customdata=_ranks(np.where(is_there, numbers, -np.inf)),
        zmin=-end if is_signed else 0,
        zmax=end,
        colorscale=colours.scale(colours.diverging)
        if is_signed
        else colours.scale_by_root()
        if by_root
        else colours.scale(colours.sequential),
        colorbar=bar,
        hoverongaps=False,
        hovertemplate=said + "<extra></extra>",
        name=values,
    )
    figure = go.Figure(found)
    missing = ~is_there & ~is_hidden
    if missing.any():
        figure.add_heatmap(
            z=np.where(missing, 0.0, np.nan).astype(np.float32),
            colorscale=[[0, colours.missing], [1, colours.missing]],
            showscale=False,
            hoverongaps=False,
            hovertemplate="query %{y}<br>key %{x}<br>not finite<extra></extra>",
            name="not finite",
        )
    _name_places(figure, names)
    notes = [
        "colour by square root" if by_root else "",
        f"grey: {int(missing.sum())} places not finite" if missing.any() else "",
    ]
    heading = title or ("Attention pattern" if values == "attention" else values.capitalize())
    return framed(figure, theme, heading, about(getattr(pattern, "attrs", {}), *notes))


def attention_arcs(
    pattern: Any,
    tokens: Sequence[str] | None = None,
    *,
    query: int | None = None,
    top: int = 40,
    min_weight: int | float = 0.05,
    title: str | None = None,
    theme: Theme = "light",
) -> go.Figure:
    """The text as a row of tokens, and an arc from each query to each key it attends to, which has the dot.

    Drawn are the `top` largest weights of at least `min_weight`, of all queries or of one. Wider is stronger; hovering
    gives query, key, weight, and the key's rank. One query's weights stand beside its keys.
    """
    numbers, names = _read(pattern, tokens)
    n = len(numbers)
    if numbers.shape[0] != numbers.shape[1]:
        raise ValueError(f"the pattern is {list(numbers.shape)}; arcs need as many queries as keys")
    if query is not None and not 0 <= query < n:
        raise ValueError(f"query={query}; the pattern has {n} places, from 0")
    if not 1 <= top <= _MOST_ARCS:
        raise ValueError(f"top={top}; from 1 to {_MOST_ARCS}")
    if min_weight < 0:
        raise ValueError(f"min_weight={min_weight}; at least 0")
    weights = np.where(np.isfinite(numbers) & ~_is_hidden(numbers), numbers, -np.inf)
    ranks = _ranks(weights)
    if query is not None:
        weights = np.where(np.arange(n)[:, None] == query, weights, -np.inf)
    order = np.argsort(-weights, axis=None, kind="stable")[: min(top, weights.size)]
    arcs = [(int(i), int(j)) for i, j in zip(*np.unravel_index(order, weights.shape), strict=True)]
    arcs = [at for at in arcs if weights[at] >= min_weight]
    n_above = int((weights >= max(min_weight, np.finfo(float).tiny)).sum())
    colours = palette(theme)
    figure = go.Figure()
    for i, j in reversed(arcs):  # the strongest on top
        said = f"query {names[i]}<br>key {names[j]}<br>attention {numbers[i, j]:.4g}<br>rank {ranks[i, j]}"
        figure.add_trace(_arc(i, j, float(weights[i, j] / weights[arcs[0]]), said, colours))
    _set_text(figure, names, arcs, query, {at: float(numbers[at]) for at in arcs}, colours)
    of = "" if query is None else f" of query {query}"
    if arcs:
        part = f"the {len(arcs)} strongest of {n_above:,}" if len(arcs) < n_above else f"all {n_above}"
        said = f"{part} weights{of} ≥ {min_weight:g}" if n_above > 1 else f"the only weight{of} ≥ {min_weight:g}"
        ends = f"{numbers[arcs[-1]]:.3g} to {numbers[arcs[0]]:.3g}" if len(arcs) > 1 else ""
        notes = [said, ends, "wider: stronger; dot: the key"]
    else:
        notes = [f"no weight{of} is ≥ {min_weight:g}"]
    heading = title or "Attention over the text"
    framed(figure, theme, heading, about(getattr(pattern, "attrs", {}), *notes))
    return figure.update_layout(margin={"l": 24, "r": 24})


def _read(pattern: Any, tokens: Sequence[str] | None) -> tuple[np.ndarray, list[str]]:
    """The numbers [query_pos key_pos], and what the places are called."""
    if isinstance(pattern, DataArray):
        axes = ("query_pos", "key_pos")
        if set(pattern.dims) != set(axes):
            raise ValueError(f"the pattern has the axes {in_words(pattern.dims)}; one head's are {in_words(axes)}")
        pattern = pattern.transpose(*axes)
    numbers = pattern.detach().float().cpu().numpy() if isinstance(pattern, Tensor) else np.asarray(pattern, np.float32)
    if numbers.ndim != 2 or numbers.size == 0:
        raise ValueError(f"the pattern is {list(numbers.shape)}; one head's is [query_pos key_pos]")
    if not np.isfinite(numbers).any():
        raise ValueError("no number of the pattern is finite: there is nothing to draw")
    n = numbers.shape[1]
    if tokens is None:
        return numbers, labels(pattern, "key_pos") if isinstance(pattern, DataArray) else list(map(str, range(n)))
    if len(tokens) != n:
        raise ValueError(f"key_pos has {n} places, and {len(tokens)} tokens are given")
    return numbers, tick_texts("key_pos", range(n), tokens)


def _is_hidden(numbers: np.ndarray) -> np.ndarray:
    """What a causal pattern cannot see: keys after the query, if there is nothing in any of them."""
    n_queries, n_keys = numbers.shape
    later = np.triu(np.ones(numbers.shape, bool), 1 + n_keys - n_queries)
    of_later = numbers[later]
    return later & bool(((of_later == 0) | ~np.isfinite(of_later)).all())


def _ranks(numbers: np.ndarray) -> np.ndarray:
    """Of each key among its query's, from 1 for the largest; equal ones share a rank."""
    n = numbers.shape[1]
    rows = [1 + n - np.searchsorted(np.sort(row), row, "right") for row in numbers]
    return np.stack(rows).astype(np.uint16)


def _name_places(figure: go.Figure, names: list[str]) -> None:
    """Name some places along the axes, and in what hovering says all of them: the map lies on axes of its own."""
    trace: Any = figure.data[0]
    n_queries, n_keys = trace.z.shape
    hidden: dict[str, Any] = {
        "showticklabels": False,
        "ticks": "",
        "title_text": None,
        "showgrid": False,
        "zeroline": False,
    }
    shown = hidden | {"showticklabels": True}
    x_range, y_range = [-0.5, n_keys - 0.5], [n_queries - 0.5, -0.5]
    queries = names[n_keys - n_queries :] if n_queries <= n_keys else [str(i) for i in range(n_queries)]
    figure.update_traces(xaxis="x2", yaxis="y2")
    figure.update_layout(
        xaxis=shown | ticks(names, _LABELS[0]) | {"range": x_range, "title_text": "key_pos"},
        yaxis=shown | ticks(queries, _LABELS[1]) | {"range": y_range, "title_text": "query_pos"},
        xaxis2=hidden | ticks(names, n_keys) | {"range": x_range, "matches": "x", "overlaying": "x"},
        yaxis2=hidden | ticks(queries, n_queries) | {"range": y_range, "matches": "y", "overlaying": "y"},
    )
    figure.add_scatter(x=[None], y=[None], hoverinfo="skip", showlegend=False, name="labels")


def _arc(query: int, key: int, strength: float, said: str, colours: Palette) -> go.Scatter:
    turn = np.linspace(0, np.pi, 33)
    if query == key:
        x, y = query + 0.4 * np.sin(2 * turn), 0.4 * (1 - np.cos(2 * turn))
    else:
        x = (query + key + (query - key) * np.cos(turn)) / 2
        y = abs(query - key) ** 0.5 * np.sin(turn)  # near keys are seen beside far ones
    return go.Scatter(
        x=x,
        y=y,
        mode="lines+markers",
        line={"width": 0.8 + 2.7 * strength, "shape": "spline", "color": colours.categories[0 if key <= query else 1]},
        marker={"size": [0] * (len(turn) - 1) + [4 + 3 * strength], "line": {"width": 0}, "opacity": 1},
        opacity=0.25 + 0.6 * strength,
        name=f"{query}->{key}",
        text=[said] * len(turn),
        hovertemplate="%{text}<extra></extra>",
        showlegend=False,
        cliponaxis=False,
    )


def _set_text(
    figure: go.Figure,
    names: list[str],
    arcs: list[tuple[int, int]],
    query: int | None,
    weights: dict[tuple[int, int], float],
    colours: Palette,
) -> None:
    """The row of tokens: all of them, or if they are many those at the ends of the strongest arcs."""
    n = len(names)
    if n <= _WIDE:
        shown = list(range(n))
    else:
        room, shown = -(-n // _ARC_LABELS), [] if query is None else [query]
        for at in (place for arc in arcs for place in arc):
            if all(abs(at - other) >= room for other in shown):
                shown.append(at)
    texts = dict(enumerate(names))
    if query is not None:
        texts |= {j: f"{names[j]} <b>{weights[i, j]:.2f}</b>" for i, j in arcs}
        texts[query] = f"<b>{texts[query]}</b> ◂"
    highest = max([2.0, 0.35 * n**0.5, *(abs(i - j) ** 0.5 for i, j in arcs)])
    figure.update_xaxes(
        tickmode="array",
        tickvals=sorted(shown),
        ticktext=[texts[at] for at in sorted(shown)],
        tickangle=90 if len(shown) > _LEVEL else 0,
        ticklabeloverflow="allow",
        ticks="outside",
        ticklen=6,
        tickcolor="rgba(0,0,0,0)",
        range=[-0.8, n - 0.2],
        showgrid=False,
        zeroline=False,
    )
    figure.update_yaxes(visible=False, range=[0, 1.08 * highest], fixedrange=True)
    figure.update_layout(hovermode="closest", plot_bgcolor=colours.background)
    if _NARROW < n <= _WIDE:
        figure.update_layout(width=60 + _TOKEN * n)
