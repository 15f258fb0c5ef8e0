"""Graphs: heads as nodes, layer by layer, and what passes between them."""

from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go
from xarray import DataArray

from interp.plots.results import of_prompts, prepared
from interp.plots.theme import Palette, Theme, about, framed, in_words, palette

AXES = ("sender_layer", "sender", "receiver_layer", "receiver")
_MOST_EDGES = 300


def composition_graph(
    scores: DataArray,
    threshold: int | float | None = None,
    *,
    top: int = 20,
    title: str | None = None,
    theme: Theme = "light",
) -> go.Figure:
    """Heads from the first layer (left) to the last, and the edges between them whose score is above a threshold.

    `scores` is [sender_layer sender receiver_layer receiver], as from `weights.composition_scores` of one kind. Unless
    there is a `threshold`, the `top` largest are drawn, of those above `attrs["baseline"]` if that is known. Scores are
    compared without their sign; negative ones are dashed. Only edges from a layer to a later one count.
    """
    _check_axes(scores)
    mean, n_prompts = prepared(scores, False, (4,))
    mean = mean.transpose(*AXES)
    if mean.shape[0] != mean.shape[2] or mean.shape[1] != mean.shape[3]:
        raise ValueError(f"senders and receivers differ: {dict(mean.sizes)}; they are {in_words(AXES)}")
    layers = [list(_places(mean, axis)) for axis in (0, 1)]
    edges = _edges(mean.to_numpy())
    if top < 1:
        raise ValueError(f"top={top}; at least 1")
    baseline = mean.attrs.get("baseline")
    floor = threshold if threshold is not None else -1.0 if baseline is None else abs(float(baseline))
    drawn = [edge for edge in edges if abs(edge.score) > floor]
    n_above = len(drawn)
    drawn = drawn if threshold is not None else drawn[:top]
    if len(drawn) > _MOST_EDGES:
        raise ValueError(
            f"{len(drawn)} edges are above {threshold}; at most {_MOST_EDGES} are drawn: raise the threshold"
        )
    colours = palette(theme)
    lines = [_line(edge, drawn, colours) for edge in reversed(drawn)]  # the strongest on top
    figure = go.Figure(lines)
    _add_nodes(figure, drawn, layers, colours)
    _set_axes(figure, layers, [float(y) for line in lines for y in np.asarray(line.y)])
    name = str(scores.name or "score")
    if threshold is not None:
        said = f"{len(drawn)} edges above {threshold:.3g}, of {len(edges):,}"
    else:
        said = f"the {len(drawn)} largest of {n_above:,} edges" + (
            "" if baseline is None else f" above {floor:.3g} (baseline)"
        )
    said += f", {abs(drawn[-1].score):.3g} to {abs(drawn[0].score):.3g}; wider: stronger" if drawn else ""
    heading = title or str(scores.attrs.get("method") or name).capitalize()
    of_kind = {"kind": scores["kind"].item()} if "kind" in scores.coords else {}
    return framed(figure, theme, heading, about(scores.attrs | of_kind, said, of_prompts(n_prompts)))


@dataclass(frozen=True)
class _Edge:
    """From a head to a head of a later layer; layers and heads are counted along their axes."""

    sender: tuple[int, int]
    receiver: tuple[int, int]
    score: float


def _check_axes(scores: DataArray) -> None:
    if "kind" in scores.dims:
        kinds = scores["kind"].values.tolist() if "kind" in scores.coords else range(scores.sizes["kind"])
        raise ValueError(
            f"the scores have an axis `kind`, with {list(kinds)}: select one, as in scores.sel(kind={kinds[0]!r})"
        )
    axes = [axis for axis in scores.dims if axis != "prompt"]
    if set(axes) != set(AXES):
        raise ValueError(f"the scores have the axes {in_words(axes)} beside prompts; a graph has {in_words(AXES)}")


def _places(mean: DataArray, axis: int) -> range | list[int]:
    name = mean.dims[axis]
    return mean[name].values.tolist() if name in mean.coords else range(mean.sizes[name])


def _edges(scores: np.ndarray) -> list[_Edge]:
    """All that are there, the strongest first."""
    found = [
        _Edge((i, j), (k, m), float(scores[i, j, k, m]))
        for i, j, k, m in np.argwhere(np.isfinite(scores)).tolist()
        if i < k
    ]
    if not found:
        raise ValueError("no score of an edge from a layer to a later one is finite: there is nothing to draw")
    return sorted(found, key=lambda edge: -abs(edge.score))


def _line(edge: _Edge, drawn: list[_Edge], colours: Palette) -> go.Scatter:
    """A bow, so that edges over several layers pass by the heads between their ends."""
    low, high = abs(drawn[-1].score), abs(drawn[0].score)
    strength = (abs(edge.score) - low) / (high - low) if high > low else 1.0
    (x0, y0), (x1, y1) = edge.sender, edge.receiver
    t = np.linspace(0, 1, 17)
    bow = 0.22 * (x1 - x0 - 1) * (1 if (y0 + y1) % 2 else -1)
    y = y0 + (y1 - y0) * (3 * t**2 - 2 * t**3) + 4 * bow * t * (1 - t)
    name = f"L{edge.sender[0]}H{edge.sender[1]}->L{edge.receiver[0]}H{edge.receiver[1]}"
    return go.Scatter(
        x=x0 + (x1 - x0) * t,
        y=y,
        mode="lines",
        line={
            "width": 1 + 5 * strength,
            "color": colours.categories[1 if edge.score < 0 else 0],
            "dash": "dash" if edge.score < 0 else "solid",
        },
        opacity=0.35 + 0.6 * strength,
        name=name,
        text=[f"{name.replace('->', ' → ')}<br>score {edge.score:.4g}"] * len(t),
        hovertemplate="%{text}<extra></extra>",
        showlegend=False,
    )


def _add_nodes(figure: go.Figure, drawn: list[_Edge], places: list[list[int]], colours: Palette) -> None:
    n_layers, n_heads = map(len, places)
    is_crowded = n_layers > 6 or n_heads > 8
    busy = {node for edge in drawn for node in (edge.sender, edge.receiver)}
    idle = [(i, j) for i in range(n_layers) for j in range(n_heads) if (i, j) not in busy]

    def name(node: tuple[int, int]) -> str:
        return f"L{places[0][node[0]]}H{places[1][node[1]]}"

    def add(nodes: list[tuple[int, int]], kind: str, mode: str, marker: dict[str, object]) -> None:
        said = [
            f"{sum(e.receiver == n for e in drawn)} edges in, {sum(e.sender == n for e in drawn)} out" for n in nodes
        ]
        figure.add_scatter(
            x=[node[0] for node in nodes],
            y=[node[1] for node in nodes],
            mode=mode,
            marker=marker,
            text=list(map(name, nodes)),
            customdata=said,
            textposition="top center",
            textfont={"size": 8 if is_crowded else 10, "color": colours.ink},
            hovertemplate="%{text}<br>%{customdata}<extra></extra>",
            name=kind,
            showlegend=False,
            cliponaxis=False,
        )

    add(idle, "heads without edges", "markers", {"size": 4, "color": colours.missing})
    outline = {"color": colours.background, "width": 1}
    add(sorted(busy), "heads", "markers+text", {"size": 6 if is_crowded else 10, "color": colours.ink, "line": outline})


def _set_axes(figure: go.Figure, places: list[list[int]], heights: list[float]) -> None:
    for update, name, of in ((figure.update_xaxes, "layer", places[0]), (figure.update_yaxes, "head", places[1])):
        every = -(-len(of) // 16)
        shown = list(range(0, len(of), every))
        update(
            title_text=name,
            tickmode="array",
            tickvals=shown,
            ticktext=[str(of[i]) for i in shown],
            showgrid=False,
            zeroline=False,
        )
    figure.update_xaxes(range=[-0.5, len(places[0]) - 0.5])
    figure.update_yaxes(range=[max([len(places[1]) - 0.7, *heights]) + 0.2, min([-0.7, *heights]) - 0.2])
