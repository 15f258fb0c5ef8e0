"""Heads: what each looks at, what it writes, and what happens without it, on one grid; then one head, and one edge."""

import streamlit as st
import torch

from dashboards.parts.heads.edge import draw_edge
from dashboards.parts.heads.grid import draw_grid
from dashboards.parts.heads.measured import role_of
from dashboards.parts.heads.one import draw_head
from dashboards.parts.heads.tables import draw_tables
from dashboards.parts.state import Chosen, chosen


@st.fragment
def explorer() -> None:
    """The grid, the head that is picked on it, and an edge of that head: one fragment, so that they stay in step."""
    now = chosen()
    within_bounds(now)
    left, right = st.columns([5, 6], gap="medium")
    with right:
        layer, head = pick_head(now)
    with left:
        draw_grid(now, layer, head)
    with right:
        draw_head(now, layer, head)
    st.divider()
    draw_edge(now, layer, head)
    st.divider()
    draw_tables(now, layer, head)


def within_bounds(now: Chosen) -> None:
    """What was picked on a larger model or a longer prompt gives way."""
    sizes = {"layer": now.model.cfg.n_layers, "head": now.model.cfg.n_heads, "k": len(now.labels)}
    for key, size in sizes.items():
        if (st.session_state.get(key) or 0) >= size:
            st.session_state[key] = None if key == "k" else size - 1


def pick_head(now: Chosen) -> tuple[int, int]:
    """The layer and the head on show."""
    with st.container(horizontal=True, vertical_alignment="bottom"):
        layer = st.number_input("Layer", 0, now.model.cfg.n_layers - 1, 0, key="layer", bind="query-params", width=140)
        head = st.number_input("Head", 0, now.model.cfg.n_heads - 1, 0, key="head", bind="query-params", width=140)
        st.text(f"L{layer}H{head}: {role_of(now, layer, head)}")
    return int(layer), int(head)


chosen()
with torch.no_grad():
    explorer()
