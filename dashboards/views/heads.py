"""Heads: what each looks at, what it writes, and what happens without it, on one grid; then one head, and one edge."""

import streamlit as st
import torch

from dashboards.parts.heads.edge import draw_edge
from dashboards.parts.heads.grid import draw_grid
from dashboards.parts.heads.measured import measure, strongest_head
from dashboards.parts.heads.one import draw_numbers, draw_pattern
from dashboards.parts.heads.pick import pick_head, settle
from dashboards.parts.heads.tables import draw_tables
from dashboards.parts.state import chosen

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
        layer, head = pick_head(now, strongest_head(now))
    with left:
        draw_grid(now, layer, head)
        draw_numbers(now, layer, head)
    with right:
        draw_pattern(now, layer, head)
    st.divider()
    draw_edge(now, layer, head)
    st.divider()
    draw_tables(now, layer, head)


chosen()
st.html(STYLE)
with torch.no_grad():
    explorer()
