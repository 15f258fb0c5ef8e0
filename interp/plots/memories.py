"""Memories as figures: one memory's card, and what layers have in common with key-value memories."""

from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots
from xarray import DataArray, Dataset

from interp.plots.bars import attribution_bars
from interp.plots.cards import add_table, bar_labels, in_one_line, paired_bars, two_by_two
from interp.plots.theme import Palette, Theme, about, framed, palette, plain, ticks, visible

if TYPE_CHECKING:
    from interp.memories import NeuronCard

_TITLES = (
    "value: promotes, suppresses",
    "fires on [token], before → next",
    "without a token of the trigger",
    "n-grams that triggers share",
)
_BEFORE = 60  # characters
_FATES = {
    "residual": "the stream's stays",
    "composition": "a third",
    "ffn": "becomes the MLP's",
    "agreement": "all agree",
    "single": "the MLP's is one memory's",
}
_DASHES = ("solid", "dash", "dot", "dashdot", "longdash")


def neuron_card(card: "NeuronCard", *, title: str | None = None, theme: Theme = "light") -> go.Figure:
    """A memory's card (`memories.neuron_card`) as a figure.

    What is lost without a token is a mark for each trigger, and a bar at the median.
    """
    colours = palette(theme)
    figure = two_by_two(_TITLES)
    _add_value(figure, card, colours)
    _add_removal(figure, card, colours)
    found, shared = card["triggers"], card["shared"]
    texts = [
        f"{plain(in_one_line(str(before)).lstrip()[-_BEFORE:], _BEFORE)}[{visible(str(token))}]"
        for before, token in zip(found.before.values, found.token.values, strict=True)
    ]
    after = [visible(str(token)) for token in found.next_token.values]
    add_table(figure, ["value", "text", "next"], [_fixed(found.value.values), texts, after], [2, 14, 3], 1, colours)
    grams = [visible(str(text), 40) for text in shared.text.values]
    shares = [[f"{share:.0%}" for share in shared[name].values] for name in ("share", "share_at_end")]
    add_table(figure, ["n-gram", "of triggers", "at the end"], [grams, *shares], [4, 1, 1], 2, colours)
    key = {str(name): float(x) for name, x in zip(card["key"].statistic.values, card["key"].value.values, strict=True)}
    attrs = card.tables.attrs
    active = f"active at {key['active']:.1%} of positions, below 0 at {key['active_negative']:.1%}"
    follows = f"next tokens among those promoted: {attrs['follows']:.0%}" if np.isfinite(attrs["follows"]) else ""
    figure.update_layout(height=640, showlegend=False)
    said = about(attrs, f"largest {key['largest']:.3g}", active, follows)
    return framed(figure, theme, title or f"{card.name}: promotes {visible(card.says)}", said, room=18)


def memory_bars(
    found: DataArray, *, prompt: int = 0, top: int = 16, title: str | None = None, theme: Theme = "light"
) -> go.Figure:
    """What memories add to a logit by what they write, the farthest from 0 first, and all others in one bar.

    `found` is as from `memories.sub_updates`, of one position; together they add what all memories of its layers do,
    as far as it has them all.
    """
    of_one = found.isel(prompt=prompt)
    bars = DataArray(of_one.to_numpy(), {"memory": of_one.memory.to_numpy()}, ("memory",), "contribution")
    layers = list(found.attrs["layers"])
    said = f"layer {layers[0]}" if len(layers) == 1 else f"layers {layers[0]} to {layers[-1]}"
    attrs = {key: found.attrs[key] for key in ("of", "model") if key in found.attrs} | {"kind": f"memories of {said}"}
    total = {"total": float(of_one.memories), "remainder": float(of_one.memories) - float(of_one.sum())}
    return attribution_bars(bars.assign_attrs(attrs | total), top=top, title=title or "Memories add", theme=theme)


def value_bars(
    promoted: Dataset, suppressed: Dataset, *, title: str | None = None, theme: Theme = "light"
) -> go.Figure:
    """The tokens that one value promotes and suppresses most (`memories.promoted`, `memories.suppressed`)."""
    figure = go.Figure()
    names = _add_tokens(figure, promoted, suppressed, palette(theme))
    figure.update_layout(height=150 + 18 * len(names), showlegend=False)
    attrs = promoted.attrs
    name = f"L{attrs['layer']}N{int(promoted.neuron)}"
    said = about(
        {"model": attrs["model"]}, {"final": "through the final norm", "gain": "by the gain"}.get(attrs["norm"], "")
    )
    return framed(figure, theme, title or f"{name}: what its value promotes, suppresses", said)


def next_token_bars(found: Dataset, *, title: str | None = None, theme: Theme = "light") -> go.Figure:
    """Next tokens with memories as they are and scaled (`memories.next_tokens`)."""
    colours, attrs = palette(theme), found.attrs
    names = [visible(str(token)) for token in found.token.values]
    columns = {"as they are": found.before.to_numpy(), f"× {attrs['factor']:g}": found.after.to_numpy()}
    figure = paired_bars(names, columns, colours)
    where = "everywhere" if attrs["pos"] == "all" else "at the token read"
    said = about({"model": attrs["model"]}, f"scaled {where}", f"KL {attrs['kl']:.3g} nats")
    return framed(figure, theme, title or f"Next token, {attrs['memories']} × {attrs['factor']:g}", said, room=22)


def layer_trends(
    agreement: Dataset | None = None,
    removal: Dataset | None = None,
    composition: Dataset | None = None,
    *,
    title: str | None = None,
    theme: Theme = "light",
) -> go.Figure:
    """Curves over layers, a panel for each result of `memories.agreement`, `removal_test` and `composition` given.

    Agreement with its standard error, beside what tokens dealt at random reach; of coefficients without a token the
    median change, in a band between the quartiles; of predictions the shares of positions.
    """
    colours = palette(theme)
    given = [
        (name, of, add)
        for name, of, add in (
            ("agreement of value and next token", agreement, _agreement),
            ("change of the coefficient", removal, _removal),
            ("predictions: share of positions", composition, _composition),
        )
        if of is not None
    ]
    if not given:
        raise ValueError("give at least one of agreement, removal and composition")
    figure = make_subplots(1, len(given), subplot_titles=[name for name, _, _ in given], horizontal_spacing=0.08)
    figure.update_annotations(font_size=12)
    for col, (_, of, add) in enumerate(given, 1):
        add(figure, of, col, colours)
        layers = list(map(str, of.layer.values.tolist()))
        figure.update_xaxes(ticks(layers, 24), title_text="layer", zeroline=False, row=1, col=col)
        figure.update_yaxes(tickformat="~%", zeroline=True, row=1, col=col)
        left = figure.layout["xaxis" if col == 1 else f"xaxis{col}"].domain[0]
        font = {"size": 11, "color": colours.ink}  # a template has them for the first legend alone
        legend = {"x": left, "y": -0.22, "xanchor": "left", "yanchor": "top", "font": font}
        figure.update_layout({_legend(col): legend})
    figure.update_layout(hovermode="closest", showlegend=True, height=420)
    return framed(figure, theme, title or "Memories by layer", about(given[0][1].attrs), room=18)


def _add_value(figure: go.Figure, card: "NeuronCard", colours: Palette) -> None:
    _add_tokens(figure, card["promoted"], card["suppressed"], colours, row=1, col=1)


def _add_tokens(figure: go.Figure, promoted: Dataset, suppressed: Dataset, colours: Palette, **cell: Any) -> list[str]:
    """Bars of logits, from the token promoted most to the one suppressed most; their names."""
    best, worst = promoted, suppressed.isel(rank=slice(None, None, -1))
    names = [visible(str(token)) for part in (best, worst) for token in part.token.values]
    values = np.concatenate((best.logit.values, worst.logit.values))
    figure.add_bar(
        x=values,
        y=list(range(len(names))),
        orientation="h",
        width=0.7,
        marker={"color": [colours.categories[0] if x > 0 else colours.categories[1] for x in values]},
        hovertext=[f"{name}<br>logit {x:.3f}" for name, x in zip(names, values, strict=True)],
        hovertemplate="%{hovertext}<extra></extra>",
        name="value",
        **cell,
    )
    labels = bar_labels(names) | {"ticktext": names}
    figure.update_yaxes(labels, autorange="reversed", showgrid=False, zeroline=False, **cell)
    figure.update_xaxes(title_text="logit", **cell)
    return names


def _add_removal(figure: go.Figure, card: "NeuronCard", colours: Palette) -> None:
    change = card["removal"].change
    names = [str(name) for name in change.removed.values]
    at = list(range(len(names)))
    median = change.median("trigger").to_numpy()
    bars = {"x": median, "y": at, "orientation": "h", "width": 0.7, "marker": {"color": colours.categories[2]}}
    hover = [f"without the {name} token<br>{x:+.0%}" for name, x in zip(names, median, strict=True)]
    figure.add_bar(**bars, hovertext=hover, hovertemplate="%{hovertext}<extra></extra>", name="median", row=2, col=1)
    figure.add_scatter(
        x=change.to_numpy().ravel(),
        y=np.repeat(at, change.sizes["trigger"]),
        mode="markers",
        marker={"symbol": "line-ns", "size": 11, "line": {"width": 1.5, "color": colours.ink}},
        hovertemplate="%{x:+.0%}<extra></extra>",
        name="triggers",
        row=2,
        col=1,
    )
    figure.update_yaxes(bar_labels(names), autorange="reversed", showgrid=False, zeroline=False, row=2, col=1)
    figure.update_xaxes(tickformat="~%", title_text="change of the coefficient", row=2, col=1)


def _agreement(figure: go.Figure, of: Dataset, col: int, colours: Palette) -> None:
    error = {"type": "data", "array": of.error.to_numpy(), "thickness": 1, "width": 3}
    _line(figure, "keys whose value promotes the next token", of.rate.to_numpy(), col, 0, colours, error_y=error)
    _line(figure, "the same tokens dealt at random", of.chance.to_numpy(), col, 1, colours)


def _removal(figure: go.Figure, of: Dataset, col: int, colours: Palette) -> None:
    for i, removed in enumerate(of.removed.values.tolist()):
        change = of.change.sel(removed=removed).stack(each=("key", "trigger"), create_index=False)
        low, median, high = change.quantile([0.25, 0.5, 0.75], "each").to_numpy()
        at, colour = np.arange(len(median)), colours.categories[i + 2]
        band = {"x": np.concatenate([at, at[::-1]]), "y": np.concatenate([high, low[::-1]]), "fill": "toself"}
        figure.add_scatter(
            **band,
            fillcolor=colour,
            opacity=0.15,
            mode="lines",
            line={"width": 0},
            name=f"{removed}, quartiles",
            showlegend=False,
            hoverinfo="skip",
            row=1,
            col=col,
        )
        _line(figure, f"without the {removed} token", median, col, i + 2, colours)


def _composition(figure: go.Figure, of: Dataset, col: int, colours: Palette) -> None:
    for i, (name, said) in enumerate(_FATES.items()):
        _line(figure, said, of[name].to_numpy() / of.attrs["positions"], col, i, colours)
    figure.update_yaxes(range=[0, 1], row=1, col=col)


def _line(
    figure: go.Figure, name: str, values: np.ndarray, col: int, place: int, colours: Palette, **more: Any
) -> None:
    colour = colours.categories[place % len(colours.categories)]
    figure.add_scatter(
        x=np.arange(len(values)),
        y=values,
        mode="lines+markers",
        line={"color": colour, "width": 1.8, "dash": _DASHES[place % len(_DASHES)]},
        marker={"size": 5},
        name=name,
        legend=_legend(col),
        hovertemplate=f"{name}<br>layer %{{x}}: %{{y:.2%}}<extra></extra>",
        row=1,
        col=col,
        **more,
    )


def _legend(col: int) -> str:
    """Each panel has its own."""
    return "legend" if col == 1 else f"legend{col}"


def _fixed(values: np.ndarray) -> list[str]:
    return [f"{value:.3f}" for value in values]
