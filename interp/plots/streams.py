"""The stream and what is written to it, layer by layer: how large they are, and where they point."""

from typing import Literal

import numpy as np
import plotly.graph_objects as go
from xarray import DataArray, Dataset

from interp.plots.theme import Theme, about, framed, palette, plain, ticks

_SAID = {
    "norm": "norm",
    "variance": "variance",
    "cosine": "cosine with the final stream",
    "cosine_before": "cosine with the stream before",
}
_KINDS = {"stream": "stream", "attn": "attention", "mlp": "MLP"}
_DASHES = {"stream": "solid", "attn": "dash", "mlp": "dot"}
_BAND = (0.1, 0.9)
_LEGEND = 22  # pixels


def stream_statistics(
    table: Dataset,
    what: str = "norm",
    *,
    values: Literal["linear", "log"] = "linear",
    title: str | None = None,
    theme: Theme = "light",
) -> go.Figure:
    """A curve over layers for the stream before each of them, one for attention's writes, and one for the MLPs'.

    `table` is as from `lens.stream_statistics`, and `what` one of its variables. Means over prompts and positions, in a
    band from the 10th percentile to the 90th. Position 0, whose norm is often far larger, counts only if it is alone.
    """
    if values not in ("linear", "log"):
        raise ValueError(f"values={values!r}; allowed: 'linear', 'log'")
    of = _checked(table, what)
    kept = _without_first(of)
    places = [axis for axis in kept.dims if axis != "component"]
    n_values = int(np.prod([kept.sizes[axis] for axis in places]))
    flat = kept.stack(place=places, create_index=False) if places else kept.expand_dims(place=1, axis=-1)
    curves = {kind: flat[(flat["kind"] == kind).values] for kind in _KINDS}
    curves = {kind: curve for kind, curve in curves.items() if np.isfinite(curve).any()}
    if not curves:
        raise ValueError(f"no number of {what} is finite: there is nothing to draw")
    if values == "log" and any((curve <= 0).any() for curve in curves.values()):
        raise ValueError(f"values='log': {what} has numbers that are not above 0")
    colour_of = dict(zip(_KINDS, palette(theme).categories, strict=False))
    bands = [_band(kind, curve, colour_of[kind]) for kind, curve in curves.items() if n_values > 1]
    lines = [_line(kind, curve, colour_of[kind], _SAID[what]) for kind, curve in curves.items()]
    figure = go.Figure([*bands, *lines])
    n_layers, is_cosine = int(of["layer"].max()), what.startswith("cosine")
    figure.update_xaxes(ticks([*map(str, range(n_layers)), "end"], 24), title_text="layer", zeroline=False)
    figure.update_yaxes(
        type=values,
        tickformat="~g" if values == "log" else None,
        title_text=_SAID[what] + (" (log)" if values == "log" else ""),
        zeroline=is_cosine,
        rangemode="normal" if is_cosine else "tozero",
    )
    legend = {"orientation": "h", "x": 0, "y": 1.0, "yanchor": "bottom"}
    figure.update_layout(legend=legend, hovermode="closest", showlegend=True)
    sizes = " × ".join(f"{kept.sizes[axis]} {'positions' if axis == 'pos' else f'{axis}s'}" for axis in places)
    mean_of = f"mean of {sizes}, band: 10% to 90%" if n_values > 1 else ""
    left_out = "without position 0" if kept.size < of.size else ""
    heading = title or str(table.attrs.get("method") or "stream statistics").capitalize() + f": {_SAID[what]}"
    return framed(figure, theme, heading, about(table.attrs, mean_of, left_out), room=_LEGEND)


def _checked(table: Dataset, what: str) -> DataArray:
    if what not in _SAID or what not in table.data_vars:
        known = [name for name in _SAID if name in table.data_vars]
        raise ValueError(f"what={what!r}; of {list(_SAID)} the table has {known}")
    of = table[what]
    if of.size == 0:
        raise ValueError(f"the table is empty: {dict(table.sizes)}")
    if lacking := [name for name in ("kind", "layer") if name not in of.coords or of[name].dims != ("component",)]:
        raise ValueError(f"the components lack {lacking}; they have both, as from lens.stream_statistics")
    return of


def _without_first(of: DataArray) -> DataArray:
    if "pos" not in of.dims or "pos" not in of.coords:
        return of
    is_later = of["pos"].values != 0
    return of.isel(pos=is_later) if is_later.any() else of


def _band(kind: str, curve: DataArray, colour: str) -> go.Scatter:
    layers = curve["layer"].values
    low, high = curve.quantile(_BAND, "place").values
    return go.Scatter(
        x=np.concatenate([layers, layers[::-1]]),
        y=np.concatenate([high, low[::-1]]),
        fill="toself",
        fillcolor=colour,
        opacity=0.15,
        mode="lines",
        line={"width": 0},
        name=f"{_KINDS[kind]}, 10% to 90%",
        legendgroup=kind,
        showlegend=False,
        hoverinfo="skip",
    )


def _line(kind: str, curve: DataArray, colour: str, said: str) -> go.Scatter:
    mean = curve.mean("place").values
    low, high = curve.quantile(_BAND, "place").values
    names = [plain(str(name)) for name in curve["component"].values]
    has_band = curve.sizes["place"] > 1
    return go.Scatter(
        x=curve["layer"].values,
        y=mean,
        mode="lines+markers",
        line={"color": colour, "width": 1.8, "dash": _DASHES[kind]},
        marker={"size": 5},
        name=_KINDS[kind],
        legendgroup=kind,
        hovertext=[
            f"{name}<br>{said} {x:.4g}" + (f"<br>10% to 90%: {a:.4g} to {b:.4g}" if has_band else "")
            for name, x, a, b in zip(names, mean, low, high, strict=True)
        ],
        hovertemplate="%{hovertext}<extra></extra>",
    )
