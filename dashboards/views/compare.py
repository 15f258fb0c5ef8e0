"""Compare: two prompts, two models, or two steps of a run, head by head: A, B, and what is between them."""

import streamlit as st
import torch

from dashboards.parts.compare.chosen import choose, draw_both
from dashboards.parts.compare.grids import draw_grids
from dashboards.parts.compare.measured import by_head, strongest_change
from dashboards.parts.compare.tables import draw_changes, draw_head, draw_next
from dashboards.parts.heads.pick import pick_head, settle
from dashboards.parts.models import Trouble
from dashboards.parts.state import chosen
from dashboards.parts.words import report

# Beside each other while there is room.
STYLE = """
<style>
.st-key-compare_grids, .st-key-compare_tables { flex-wrap: wrap; }
.st-key-compare_grids > div { min-width: min(300px, 100%); }
.st-key-compare_a_box, .st-key-compare_b_box, .st-key-compare_change_box { overflow: auto hidden; }
.st-key-compare_tables > div { min-width: min(400px, 100%); }
</style>
"""


@st.fragment
def explorer() -> None:
    """The two, their grids, and the head that is marked on them: one fragment, so that they stay in step."""
    if "_take_model" in st.session_state:
        st.rerun()  # a checkpoint was put on show
    now = chosen()
    settle(now)
    both = choose(now)
    if isinstance(both, Trouble):
        report(both, "compare")
        return
    draw_both(both)
    a, b = (by_head(each, both.what) for each in (both.a, both.b))
    layer, head = pick_head(now, strongest_change(a, b))
    draw_grids(both, a, b, (layer, head))
    draw_head(a, b, layer, head)
    st.divider()
    with st.container(horizontal=True, key="compare_tables", gap="medium"):
        with st.container(width="stretch", key="compare_next_side"):
            draw_next(both)
        with st.container(width="stretch", key="compare_changes_side"):
            draw_changes(both, a, b, (layer, head))


chosen()
st.title("Compare")
st.html(STYLE)
with torch.no_grad():
    explorer()
