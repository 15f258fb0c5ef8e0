"""Heads: what each looks at, what it writes, and what happens without it, on one grid; then one head, and one edge."""

import streamlit as st
import torch

from dashboards.parts.heads.edge import draw_edge
from dashboards.parts.heads.grid import draw_grid
from dashboards.parts.heads.measured import measure, strongest_head
from dashboards.parts.heads.one import draw_numbers, draw_pattern
from dashboards.parts.heads.tables import draw_tables
from dashboards.parts.state import Chosen, chosen

# Side by side while there is room; numbers in a row are no headlines.
STYLE = """
<style>
.st-key-explorer > [data-testid="stLayoutWrapper"] > [data-testid="stHorizontalBlock"] { flex-wrap: wrap; }
.st-key-explorer > [data-testid="stLayoutWrapper"] > [data-testid="stHorizontalBlock"] > [data-testid="stColumn"] {
  min-width: min(440px, 100%);
}
</style>
"""


@st.fragment
def explorer() -> None:
    """The grid, the head that is picked on it, and an edge of that head: one fragment, so that they stay in step."""
    now = chosen()
    settle(now)
    measure(now)
    with st.container(key="explorer"):
        left, right = st.columns(2, gap="medium")
    with right:
        layer, head = pick_head(now)
    with left:
        draw_grid(now, layer, head)
        draw_numbers(now, layer, head)
    with right:
        draw_pattern(now, layer, head)
    st.divider()
    draw_edge(now, layer, head)
    st.divider()
    draw_tables(now, layer, head)


def settle(now: Chosen) -> None:
    """What was picked on a larger model or a longer prompt gives way."""
    sizes = {"layer": now.model.cfg.n_layers, "head": now.model.cfg.n_heads, "k": len(now.labels)}
    for key, size in sizes.items():
        if (st.session_state.get(key) or 0) >= size:
            st.session_state[key] = None if key == "k" else size - 1


def pick_head(now: Chosen) -> tuple[int, int]:
    """The layer and the head on show: those on which most hangs, unless others are picked."""
    sizes, picked = (now.model.cfg.n_layers, now.model.cfg.n_heads), []
    with st.container(horizontal=True, vertical_alignment="bottom"):
        for key, size, strongest in zip(("layer", "head"), sizes, strongest_head(now), strict=True):
            number = st.number_input(
                key.capitalize(), 0, size - 1, None, key=key, bind="query-params", placeholder=f"{strongest}", width=150
            )
            picked.append(strongest if number is None else int(number))
    return picked[0], picked[1]


chosen()
st.html(STYLE)
with torch.no_grad():
    explorer()
