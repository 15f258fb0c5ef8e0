"""Cards as figures: numbers on the left, words on the right."""

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from interp.plots.theme import Palette, Theme, about, framed, palette, plain, visible

if TYPE_CHECKING:
    from interp.heads import HeadCard

_TITLES = (
    "scores, thresholds",
    "attends to most: what that raises",
    "composition",
    "looks hardest, from [query] at {key}",
)


def head_card(card: "HeadCard", *, title: str | None = None, theme: Theme = "light") -> go.Figure:
    """A head's card (`heads.head_card`) as a figure.

    A score's bar is coloured where its role is named, and a mark stands at its threshold; a dotted line in the
    composition panel is what random heads reach.
    """
    colours = palette(theme)
    figure = two_by_two(_TITLES)
    _add_scores(figure, card, colours)
    _add_partners(figure, card, colours)
    writes, contexts = card["writes"], card["contexts"]
    raised = [" ".join(visible(str(token), 8) for token in row) for row in writes.raised.values]
    tokens = [visible(str(token)) for token in writes.token.values]
    shares = [f"{share:.1%}" for share in writes.share.values]
    add_table(figure, ["token", "share", "raises"], [tokens, shares, raised], [2, 1, 6], 1, colours)
    texts = [plain(in_one_line(str(text)), 200) for text in contexts.text.values]
    weights = [f"{weight:.3f}" for weight in contexts.weight.values]
    add_table(figure, ["weight", "text"], [weights, texts], [1, 8], 2, colours)
    changes = [
        f"{on} {change:+.3f}"
        for on, change in zip(*(card["ablation"][x].values for x in ("on", "change")), strict=True)
    ]
    said = about(card.tables.attrs, f"without it, nats a token: {', '.join(changes)}")
    figure.update_layout(height=640, showlegend=False)
    return framed(figure, theme, title or f"{card.name}: {card.role}", said, room=18)


def two_by_two(titles: Sequence[str]) -> go.Figure:
    """A card's four panels: two for bars, and beside each one for a table."""
    figure = make_subplots(
        2,
        2,
        specs=[[{"type": "xy"}, {"type": "table"}], [{"type": "xy"}, {"type": "table"}]],
        subplot_titles=titles,
        column_widths=[0.4, 0.6],
        horizontal_spacing=0.04,
        vertical_spacing=0.12,
    )
    return figure.update_annotations(font_size=12)


def _add_scores(figure: go.Figure, card: "HeadCard", colours: Palette) -> None:
    scores = card["scores"]
    known = scores.isel(score=np.isfinite(scores.value.to_numpy()))
    names, values = [str(name) for name in known.score.values], known.value.to_numpy()
    at = list(range(len(names)))
    low, high = (np.nan_to_num(known[end].to_numpy(), nan=0.0) for end in ("low", "high"))
    hover = [
        f"{name} {value:.3f}<br>interval {one:.3f} to {other:.3f}<br>threshold {threshold:.3f}"
        for name, value, one, other, threshold in zip(names, values, low, high, known.threshold.to_numpy(), strict=True)
    ]
    figure.add_bar(
        x=values,
        y=at,
        orientation="h",
        width=0.7,
        marker={"color": [colours.categories[0] if named else colours.missing for named in known.named.to_numpy()]},
        hovertext=hover,
        hovertemplate="%{hovertext}<extra></extra>",
        name="scores",
        row=1,
        col=1,
    )
    mark = {"symbol": "line-ns", "size": 11, "line": {"width": 2, "color": colours.categories[1]}}
    figure.add_scatter(
        x=known.threshold.to_numpy(),
        y=at,
        mode="markers",
        marker=mark,
        hoverinfo="skip",
        name="thresholds",
        row=1,
        col=1,
    )
    figure.update_yaxes(bar_labels(names), autorange="reversed", showgrid=False, zeroline=False, row=1, col=1)
    figure.update_xaxes(rangemode="tozero", row=1, col=1)


def _add_partners(figure: go.Figure, card: "HeadCard", colours: Palette) -> None:
    partners = card["partners"]
    names, values = [str(edge).replace("->", " → ") for edge in partners.edge.values], partners.value.to_numpy()
    hover = [f"{name}<br>{value:.3f}" for name, value in zip(names, values, strict=True)]
    figure.add_bar(
        x=values,
        y=list(range(len(names))),
        orientation="h",
        width=0.7,
        marker={"color": colours.categories[2]},
        hovertext=hover,
        hovertemplate="%{hovertext}<extra></extra>",
        name="composition",
        row=2,
        col=1,
    )
    figure.update_yaxes(bar_labels(names), autorange="reversed", showgrid=False, zeroline=False, row=2, col=1)
    if len(names):
        line = {"color": colours.faint_ink, "width": 1, "dash": "dot"}
        figure.add_vline(x=float(card.tables.attrs["baseline"]), line=line, row=2, col=1)  # type: ignore[arg-type]


def bar_labels(names: list[str]) -> dict[str, Any]:
    """What stands beside bars at 0, 1, 2 …"""
    return {"tickmode": "array", "tickvals": list(range(len(names))), "ticktext": [plain(name) for name in names]}


def paired_bars(names: list[str], columns: Mapping[str, np.ndarray], colours: Palette) -> go.Figure:
    """A probability of each name, under several conditions, as bars side by side with a legend above."""
    figure = go.Figure()
    for i, (said, values) in enumerate(columns.items()):
        figure.add_bar(
            x=values,
            y=list(range(len(names))),
            orientation="h",
            name=said,
            marker={"color": colours.categories[i], "line": {"width": 0}},
            hovertext=[f"{name}<br>{said}: {p:.4g}" for name, p in zip(names, values, strict=True)],
            hovertemplate="%{hovertext}<extra></extra>",
        )
    most = max((float(values.max(initial=0.0)) for values in columns.values()), default=0.0)
    figure.update_yaxes(bar_labels(names) | {"ticktext": names}, autorange="reversed", showgrid=False, zeroline=False)
    figure.update_xaxes(title_text="probability", range=[0, 1.02 * max(0.05, most)])
    legend = {"orientation": "h", "x": 0, "y": 1.0, "yanchor": "bottom", "traceorder": "normal"}
    return figure.update_layout(barmode="group", bargap=0.25, height=160 + 30 * len(names), legend=legend)


def in_one_line(text: str) -> str:
    """A text with its line breaks as signs, and no two spaces."""
    return re.sub(r"\s+", " ", re.sub(r"\s*\n\s*", " ⏎ ", text))


def add_table(
    figure: go.Figure, heads: list[str], columns: list[list[str]], widths: list[int], row: int, colours: Palette
) -> None:
    """Put a table of some columns on the right of a card."""
    figure.add_table(
        header={
            "values": heads,
            "fill": {"color": colours.grid},
            "font": {"color": colours.ink, "size": 11},
            "align": "left",
            "line": {"width": 0},
        },
        cells={
            "values": columns,
            "fill": {"color": colours.background},
            "font": {"color": colours.ink, "size": 11},
            "align": "left",
            "line": {"color": colours.grid},
            "height": 22,
        },
        columnwidth=widths,
        row=row,
        col=2,
    )
