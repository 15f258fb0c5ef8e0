"""An edge's x-ray: what query and key have in common, dimension by dimension, and what the edge does to the answer."""

from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from interp.plots.theme import Theme, about, framed, palette, plain, ticks

if TYPE_CHECKING:
    from xarray import Dataset
else:
    Dataset = Any


def edge_xray(found: Dataset, *, title: str | None = None, theme: Theme = "light") -> go.Figure:
    """What `heads.edge_xray` found of an edge.

    Above q · k / attn_scale by dimension, terms that sum to the score before any cap. Below what the edge
    adds to the logit directly, and what it is to the logit by way of all later layers too: the logit with the edge less
    that without it, so that the three are alike where nothing later reads or repairs it.
    """
    terms = found.term.to_numpy()
    figure = make_subplots(
        2,
        1,
        row_heights=[0.62, 0.38],
        vertical_spacing=0.25,
        subplot_titles=[f"q · k / scale by dimension: {float(found.before_cap):.4g}", plain(str(found.attrs["of"]))],
    )
    names = [str(i) for i in found.dim.values]
    figure.add_bar(
        x=list(range(len(terms))),
        y=terms,
        marker={"color": _signed(terms, theme), "line": {"width": 0}},
        customdata=names,
        hovertemplate="dimension %{customdata}<br>q k / scale %{y:.4g}<extra></extra>",
        name="terms",
        row=1,
        col=1,
    )
    effects = dict(zip(found.way.values.tolist(), found.effect.values.tolist(), strict=True))
    known = [(name, x) for name, x in effects.items() if np.isfinite(x)]
    numbers = np.array([x for _, x in known])
    figure.add_bar(
        x=numbers,
        y=list(range(len(known))),
        orientation="h",
        width=0.8,
        marker={"color": _signed(numbers, theme), "line": {"width": 0}},
        text=[f"{x:+.3f}" for x in numbers],
        textposition="auto",
        textfont={"size": 11},
        cliponaxis=False,
        hovertext=[f"{name}<br>{x:+.4g}" for name, x in known],
        hovertemplate="%{hovertext}<extra></extra>",
        name="effects",
        row=2,
        col=1,
    )
    figure.update_xaxes(ticks(names, 16) | {"title_text": "dim", "showgrid": False, "zeroline": False}, row=1, col=1)
    figure.update_yaxes(zeroline=True, row=1, col=1)
    labels = {"tickmode": "array", "tickvals": list(range(len(known))), "ticktext": [name for name, _ in known]}
    figure.update_yaxes(labels | {"autorange": "reversed", "showgrid": False, "zeroline": False}, row=2, col=1)
    figure.update_xaxes(zeroline=True, row=2, col=1)
    figure.update_annotations(font_size=12)
    figure.update_layout(showlegend=False, bargap=0.25, height=460)
    key = int(found.attrs["key"])
    score, weight = float(found.score[key]), float(found.weight[key])
    chain = f"score {score:.4g} → weight {weight:.3g} → {effects['adds directly']:+.3g} to the {found.attrs['of']}"
    return framed(figure, theme, title or f"Edge {found.attrs['edge']}", about({}, chain), room=18)


def _signed(values: np.ndarray, theme: Theme) -> list[str]:
    """Blue below 0 and red above, or the theme's own two."""
    colours = palette(theme).diverging
    below, above = colours[len(colours) // 4], colours[-1 - len(colours) // 4]
    return [above if x >= 0 else below for x in values]
