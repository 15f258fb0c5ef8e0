"""Lines: numbers along positions, or steps, for a few runs beside each other."""

import numpy as np
import plotly.graph_objects as go
from xarray import DataArray

from interp.plots.results import labels, of_prompts, prepared, quantity
from interp.plots.theme import Theme, about, framed, palette, plain, ticks

_DASHES = ("solid", "dash", "dot", "dashdot")
_LEGEND = 22  # pixels


def lines(result: DataArray, *, title: str | None = None, theme: Theme = "light") -> go.Figure:
    """A line for each place of the first axis, along the second: [run pos]. What is not a number leaves a gap."""
    mean, n_prompts = prepared(result, False, (2,))
    of, along = map(str, mean.dims)
    names, places, colours = labels(mean, of, 40), labels(mean, along), palette(theme)
    what, figure = quantity(result, False), go.Figure()
    for i, (name, values) in enumerate(zip(names, mean.to_numpy().astype(float), strict=True)):
        hover = [
            f"{name}<br>{along} {place}<br>" + (f"{what} {x:.4g}" if np.isfinite(x) else "not computed")
            for place, x in zip(places, values, strict=True)
        ]
        colour = colours.categories[i % len(colours.categories)]
        figure.add_scatter(
            x=list(range(len(values))),
            y=values,
            name=name,
            mode="lines+markers",
            line={"color": colour, "dash": _DASHES[i % len(_DASHES)], "width": 2},
            marker={"size": 5},
            hovertext=hover,
            hoverinfo="text",
        )
    figure.update_xaxes(ticks(places, 40), title_text=plain(along), zeroline=False)
    figure.update_yaxes(title_text=what, zeroline=True)
    figure.update_layout(
        legend={"orientation": "h", "x": 0, "y": 1.0, "yanchor": "bottom"},
        showlegend=len(names) > 1,
        hovermode="closest",
    )
    heading = title or str(result.attrs.get("method") or what).capitalize()
    return framed(figure, theme, heading, about(result.attrs, of_prompts(n_prompts)), room=_LEGEND)
