"""The figure that fits a result's axes."""

from typing import Any

import plotly.graph_objects as go
from xarray import DataArray

from interp.plots.bars import attribution_bars, bars
from interp.plots.graphs import AXES, composition_graph
from interp.plots.heatmap import heatmap
from interp.plots.theme import in_words

_IN_ORDER = ("layer", "pos", "query_pos", "key_pos", "step", "head")
_MOST = 30


def sweep(result: DataArray, **options: Any) -> go.Figure:
    """Bars for one axis beside prompts, a map for two or three, a graph for senders and receivers.

    Options are those of the figure: `bars`, `attribution_bars` (of contributions), `heatmap`, `composition_graph`.
    """
    axes = tuple(str(axis) for axis in result.dims if axis != "prompt")
    if len(axes) == 1 and result.name == "contribution":
        return attribution_bars(result, **options)
    if len(axes) == 1:
        is_long = axes[0] not in _IN_ORDER and result.sizes[axes[0]] > _MOST
        return bars(result, **{"top": _MOST if is_long else None, **options})
    if len(axes) in (2, 3):
        return heatmap(result, **options)
    if set(AXES) <= set(axes):
        return composition_graph(result, **options)
    raise ValueError(
        f"no figure for the axes {in_words(axes)} beside prompts; one to three can be drawn, or {in_words(AXES)}"
    )
