"""Direct logit attribution: which part of the model adds what to the target's logit less that of the foil."""

from collections.abc import Mapping

import streamlit as st
import torch

from dashboards.parts.attribution.finer import draw_neurons, draw_sources
from dashboards.parts.attribution.measured import attribution
from dashboards.parts.attribution.whole import ask, draw_bars, draw_heads
from dashboards.parts.state import chosen

_RIGHT = 440  # pixels; where the window is narrow, what stands on the right goes below
_KEPT = {"model", "prompt", "bos", "q", "target", "foil"}


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


def go_to(page: str, fields: Mapping[str, int]) -> None:
    """Another page, on which these widgets are set."""
    for name in _KEPT & {*st.query_params}:
        st.session_state[name] = st.session_state[name]  # what is set is written into the new page's link
    for name, value in fields.items():
        st.session_state[name] = value
    st.switch_page(page, query_params={name: str(value) for name, value in fields.items()})


chosen()
with torch.no_grad():
    explorer()
