"""The lens: what the model would say if it stopped at a layer, at every position; and one cell of that map."""

import streamlit as st
import torch

from dashboards.parts.lens.cell import draw_cell
from dashboards.parts.lens.chosen import choose
from dashboards.parts.lens.map import draw_figures, draw_map
from dashboards.parts.state import chosen


@st.fragment
def explorer() -> None:
    """The map, and the cell that is picked on it: one fragment, so that they stay in step."""
    now = chosen()
    cell = choose(now)
    with st.container(horizontal=True, gap="medium"):
        with st.container(width="stretch"):
            draw_map(now, cell)
        with st.container(width=330):
            draw_cell(now, cell)
    draw_figures(now, cell)


chosen()
with torch.no_grad():
    explorer()
