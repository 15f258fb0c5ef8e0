"""A planted model's truth as a graph: from the embeddings (left) through heads and neurons to the logits."""

import re
from collections import defaultdict

import numpy as np
import plotly.graph_objects as go

from interp.plots.theme import Palette, Theme, framed, palette, plain
from interp.zoo.planted import Planted


def circuit_graph(
    planted: Planted, ablation: str = "zero", *, title: str | None = None, theme: Theme = "light"
) -> go.Figure:
    """The nodes and edges that are a planted model's mechanism, under one kind of ablation, and its distractors.

    A node's label says what it is for; where only some positions matter, which. An edge into a head says whether it is
    read as query, key or value. Nodes of which one is enough are dashed.
    """
    if ablation not in planted.truth:
        raise ValueError(f"ablation={ablation!r}; this model has the truths {sorted(planted.truth)}")
    truth, colours = planted.truth[ablation], palette(theme)
    idle = [name for name in planted.distractors if name not in truth.nodes]
    where = _places([*truth.nodes, "logits"], idle, planted.model.cfg.n_layers)
    slots: dict[tuple[str, str], list[str]] = defaultdict(list)
    for edge in sorted(truth.edges):
        sender, receiver = edge.split("->")
        node, *slot = receiver.split(".")
        slots[sender, node] += slot
    figure = go.Figure([_line(*ends, read, where, colours) for ends, read in slots.items()])
    _add_slots(figure, slots, where, colours)
    shown = [name for name in idle if name in where]
    figure.add_scatter(
        x=[where[name][0] for name in shown],
        y=[where[name][1] for name in shown],
        mode="markers",
        marker={"size": 6, "color": colours.missing},
        text=[f"{name}<br>random weights" for name in shown],
        hovertemplate="%{text}<extra></extra>",
        name="distractors",
        showlegend=False,
    )
    roles = {name: role for role, name in planted.roles.items()}
    either = {name for group in truth.redundant for name in group}
    nodes = [name for name in where if name in truth.nodes or name == "logits"]
    figure.add_scatter(
        x=[where[name][0] for name in nodes],
        y=[where[name][1] for name in nodes],
        mode="markers+text",
        marker={
            "size": 14,
            "color": [colours.categories[2] if name in roles else colours.ink for name in nodes],
            "symbol": ["circle-open-dot" if name in either else "circle" for name in nodes],
        },
        text=["<br>".join(filter(None, (plain(roles.get(name, "")), name))) for name in nodes],
        customdata=[f"matters at: {plain(truth.positions.get(name, 'every'))}" for name in nodes],
        textposition=["bottom center" if where[name][1] <= 0 else "top center" for name in nodes],  # bows pass opposite
        textfont={"size": 11, "color": colours.ink},
        hovertemplate="%{text}<br>%{customdata}<extra></extra>",
        name="nodes",
        showlegend=False,
        cliponaxis=False,
    )
    heights = [y for _, y in where.values()]
    figure.update_xaxes(visible=False, range=[-0.5, max(x for x, _ in where.values()) + 0.5])
    figure.update_yaxes(visible=False, range=[max(heights) + 0.7, min(heights) - 1.1])
    said = f"{len(truth.nodes)} nodes and {len(truth.edges)} edges, under {ablation} ablation"
    said += "; of the dotted nodes one is enough" if either else ""
    more = f"; grey: {len(idle)} distractors with random weights" if idle else ""
    return framed(figure, theme, title or f"What is true of {planted.name}", said + more)


def _places(nodes: list[str], idle: list[str], n_layers: int) -> dict[str, tuple[float, float]]:
    """A column for the embeddings, two for each layer, one for the logits; columns are centred."""
    columns: dict[int, list[str]] = defaultdict(list)
    for name in sorted(nodes, key=_order):
        columns[_column(name, n_layers)].append(name)
    for name in sorted(idle, key=_order):
        if len(columns[_column(name, n_layers)]) < 24:
            columns[_column(name, n_layers)].append(name)
    kept = sorted(column for column, names in columns.items() if names)
    return {
        name: (float(kept.index(column)), i - (len(columns[column]) - 1) / 2)
        for column in kept
        for i, name in enumerate(sorted(columns[column], key=_order))
    }


def _column(name: str, n_layers: int) -> int:
    found = re.fullmatch(r"L(\d+)([HN])\d+|MLP(\d+)", name)
    if found is None:
        return 2 * n_layers + 1 if name == "logits" else 0
    return 2 * int(found[1] or found[3] or 0) + (1 if found[2] == "H" else 2)


def _order(name: str) -> list[int | str]:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def _path(sender: tuple[float, float], receiver: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """A bow where the edge passes over columns between its ends."""
    (x0, y0), (x1, y1) = sender, receiver
    t = np.linspace(0, 1, 33)
    bow = 0.3 * (x1 - x0 - 1) * (-1 if y0 + y1 <= 0 else 1)
    return x0 + (x1 - x0) * t, y0 + (y1 - y0) * (3 * t**2 - 2 * t**3) + 4 * bow * t * (1 - t)


def _line(
    sender: str, receiver: str, slots: list[str], where: dict[str, tuple[float, float]], colours: Palette
) -> go.Scatter:
    x, y = _path(where[sender], where[receiver])
    as_what = f" as {', '.join(slots)}" if slots else ""
    return go.Scatter(
        x=x,
        y=y,
        mode="lines",
        line={"width": 2, "color": colours.categories[0]},
        opacity=0.75,
        name=f"{sender}->{receiver}",
        text=[f"{sender} → {receiver}{as_what}"] * len(x),
        hovertemplate="%{text}<extra></extra>",
        showlegend=False,
    )


def _add_slots(
    figure: go.Figure,
    slots: dict[tuple[str, str], list[str]],
    where: dict[str, tuple[float, float]],
    colours: Palette,
) -> None:
    """Letters near the receiving ends: q, k, v."""
    for (sender, receiver), read in slots.items():
        if not read:
            continue
        x, y = _path(where[sender], where[receiver])
        figure.add_annotation(
            x=float(x[20]),
            y=float(y[20]),
            text=",".join(read),
            showarrow=False,
            bgcolor=colours.background,
            font={"size": 11, "color": colours.categories[1]},
        )
