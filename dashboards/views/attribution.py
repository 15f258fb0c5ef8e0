"""Direct logit attribution: which part of the model adds what to the target's logit less that of the foil."""

import streamlit as st
import torch

from dashboards.parts.attribution.finer import draw_neurons, draw_sources
from dashboards.parts.attribution.measured import attribution
from dashboards.parts.attribution.whole import ask, draw_bars, draw_heads
from dashboards.parts.links import go_to
from dashboards.parts.state import chosen

_RIGHT = 440  # pixels; where the window is narrow, what stands on the right goes below


@st.fragment
def explorer() -> None:
    """The parts by class, by head, by the position they come from, by neuron."""
    now = chosen()
    frozen = ask(now)
    found = attribution(now, frozen)
    with st.container(horizontal=True, gap="medium"):
        with st.container(width="stretch"):
            draw_bars(now, found, frozen)
        with st.container(width=_RIGHT):
            head = draw_heads(now, found, frozen)
    with st.container(horizontal=True, gap="medium"):
        with st.container(width="stretch"):
            neuron = draw_neurons(now, found, frozen)
        with st.container(width=_RIGHT):
            draw_sources(now, frozen)
    if head is not None:
        go_to("views/heads.py", {"layer": head[0], "head": head[1]})
    if neuron is not None:
        go_to("views/memories.py", {"mlp_layer": neuron[0], "neuron": neuron[1]})


chosen()
with torch.no_grad():
    explorer()
