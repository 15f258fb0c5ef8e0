"""Figures: labelled results in, `plotly` figures out. A result's axes name the figure's; prompts are averaged over."""

try:
    import plotly  # noqa: F401
except ImportError as error:
    raise ImportError("interp.plots draws with plotly, which is not installed: pip install interp[plots]") from error

from interp.plots.attention import attention_arcs, head_pattern
from interp.plots.bars import attribution_bars, bars
from interp.plots.cards import head_card
from interp.plots.circuits import circuit_graph
from interp.plots.curves import training_curves, training_map
from interp.plots.effects import effect_bars, effect_curve, effect_map
from interp.plots.graphs import composition_graph
from interp.plots.heads import corpus_offsets, head_scores
from interp.plots.heatmap import heatmap, patterns
from interp.plots.lines import lines
from interp.plots.memories import layer_trends, memory_bars, neuron_card, next_token_bars, value_bars
from interp.plots.mosaic import Mosaic, head_mosaic, mosaic
from interp.plots.streams import stream_statistics
from interp.plots.svg import grid_svg
from interp.plots.sweeps import sweep
from interp.plots.tables import lens_table
from interp.plots.walk import attention_steps, bar_code, choice_bars
from interp.plots.xray import edge_xray

__all__ = [
    "Mosaic",
    "attention_arcs",
    "attention_steps",
    "attribution_bars",
    "bar_code",
    "bars",
    "choice_bars",
    "circuit_graph",
    "composition_graph",
    "corpus_offsets",
    "edge_xray",
    "effect_bars",
    "effect_curve",
    "effect_map",
    "grid_svg",
    "head_card",
    "head_mosaic",
    "head_pattern",
    "head_scores",
    "heatmap",
    "layer_trends",
    "lens_table",
    "lines",
    "memory_bars",
    "mosaic",
    "neuron_card",
    "next_token_bars",
    "patterns",
    "stream_statistics",
    "sweep",
    "training_curves",
    "training_map",
    "value_bars",
]
