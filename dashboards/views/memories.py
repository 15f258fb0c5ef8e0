"""Memories: which of them make the prediction, what fires each and what it writes, and what happens without it."""

import streamlit as st
import torch
from streamlit.delta_generator import DeltaGenerator

from dashboards.parts.memories.all import draw_list, draw_search, strongest
from dashboards.parts.memories.one import draw_memory, draw_switch, draw_triggers
from dashboards.parts.state import Chosen, chosen

COLUMNS = """
<style>
.st-key-memories_page [data-testid="stLayoutWrapper"] > [data-testid="stHorizontalBlock"] { flex-wrap: wrap; }
.st-key-memories_page [data-testid="stColumn"] { min-width: min(420px, 100%); }
</style>
"""


@st.fragment
def explorer() -> None:
    """The memories of the prompt, and one of them: one fragment, so that they stay in step."""
    now = chosen()
    within_bounds(now)
    left, right = two_columns()
    with left:
        layer, neuron = pick_memory(now)
    with right:
        draw_memory(now, layer, neuron)
    with left:
        draw_list(now, layer, neuron)
    st.divider()
    left, right = two_columns()
    with left:
        draw_search(now, layer, neuron)
    with right:
        draw_switch(now, layer, neuron)
    st.divider()
    draw_triggers(now, layer, neuron)


def two_columns() -> tuple[DeltaGenerator, DeltaGenerator]:
    """Beside each other where the window is wide enough for two figures, else one below the other."""
    left, right = st.columns([5, 6], gap="medium")
    return left, right


def within_bounds(now: Chosen) -> None:
    """What was picked on a larger model gives way."""
    for key, size in {"mlp_layer": now.model.cfg.n_layers, "neuron": now.model.cfg.d_mlp}.items():
        if (st.session_state.get(key) or 0) >= size:
            st.session_state[key] = None


def pick_memory(now: Chosen) -> tuple[int, int]:
    """The layer and the neuron on show; what is left open is the strongest memory's."""
    with st.container(horizontal=True, vertical_alignment="bottom"):
        layer = _number("Layer", "mlp_layer", now.model.cfg.n_layers, "of all layers")
        neuron = _number("Neuron", "neuron", now.model.cfg.d_mlp, "of the layer")
    if layer is None:
        found, best = strongest(now, None)
        return (found, best) if neuron is None else (found, neuron)
    return layer, strongest(now, layer)[1] if neuron is None else neuron


def _number(label: str, key: str, n: int, where: str) -> int | None:
    return st.number_input(
        label,
        0,
        n - 1,
        None,
        key=key,
        bind="query-params",
        placeholder="the strongest",
        width=170,
        help=f"Empty: that of the memory {where} that adds most, or takes most away, at the position read.",
    )


st.title("Memories")
if chosen().model.cfg.attn_only:
    st.info(
        "This model has attention alone: no MLP, and so no memories. Its heads are on the page Heads.",
        icon=":material/info:",
    )
else:
    st.html(COLUMNS)
    with torch.no_grad(), st.container(key="memories_page"):
        explorer()
