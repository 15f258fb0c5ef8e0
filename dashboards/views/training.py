"""Training: how a model came about, from its log: losses, heads as they form, measures, checkpoints; live."""

import streamlit as st

from dashboards.parts.models import Trouble
from dashboards.parts.state import opened
from dashboards.parts.training.chosen import Look, pick_look, pick_run
from dashboards.parts.training.drawn import draw_curves
from dashboards.parts.training.measured import read
from dashboards.parts.training.tables import draw_checkpoints, draw_config, draw_state
from dashboards.parts.words import report

EVERY, SELDOM = 2, 15  # seconds between two looks at a log: one that grows, and one that has not for a while
LONG = 600  # seconds

# Two beside each other while there is room.
STYLE = """
<style>
.st-key-train_figures { flex-wrap: wrap; }
.st-key-train_figures > div { min-width: min(440px, 100%); flex: 1 1 440px; max-width: 640px; }
</style>
"""


@st.fragment
def explorer() -> None:
    """The run and how it is looked at, and below it all there is."""
    if "_take_model" in st.session_state:
        st.rerun()  # a checkpoint was put on show
    with st.container(horizontal=True, vertical_alignment="bottom"):
        name = pick_run(opened())
        source = None if name is None else read(name)
        look = None if source is None or isinstance(source, Trouble) else pick_look(source)
    if name is None or source is None:
        return
    if isinstance(source, Trouble) or look is None:
        assert isinstance(source, Trouble)
        report(source, "training")
        return
    every = None if not source.is_live else EVERY if (source.age or 0) < LONG else SELDOM
    st.fragment(watched, run_every=every)(name, look, source.is_live)


def watched(name: str, look: Look, was_live: bool) -> None:
    """The run as it is now; while it goes on, looked at again and again."""
    if "_take_model" in st.session_state:
        st.rerun()
    source = read(name)
    if isinstance(source, Trouble):
        report(source, "training")
        return
    if was_live and not source.is_live:
        st.rerun()  # it has ended: nobody looks again
    draw_state(source)
    if source.rows:
        draw_curves(source, look)
    draw_checkpoints(source)
    draw_config(source)


opened()
st.title("Training")
st.html(STYLE)
explorer()
