"""The lens: what the model would say if it stopped at a layer, at every position; and one cell of that map."""

import streamlit as st
import torch

from dashboards.parts.lens.cell import draw_cell
from dashboards.parts.lens.chosen import WIDTHS, choose
from dashboards.parts.lens.map import draw_figures, draw_map
from dashboards.parts.state import chosen

# Of many positions more are drawn than a narrow window has room for.
STYLE = """
<style>
@media (max-width: 1100px) { .st-key-lens_grid_box { overflow: auto hidden; } }
.st-key-lens_colour [role="radiogroup"] { flex-wrap: wrap; }
</style>
"""


@st.fragment
def explorer() -> None:
    """The map, and the cell that is picked on it: one fragment, so that they stay in step."""
    now = chosen()
    cell = choose(now)
    st.html(STYLE)
    is_wide = cell.last - cell.first > WIDTHS[0]  # then the map needs the room, and the cell is told below it
    with st.container(horizontal=not is_wide, gap="medium"):
        with st.container(width="stretch"):
            draw_map(now, cell)
        with st.container(width=330):
            draw_cell(now, cell)
    draw_figures(now, cell)


chosen()
with torch.no_grad():
    explorer()
