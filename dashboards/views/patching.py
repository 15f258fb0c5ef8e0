"""Patching: which parts of one run, put into another, bring its answer along."""

import streamlit as st
import torch

from dashboards.parts.models import Trouble, told
from dashboards.parts.patching.chosen import choose, choose_place
from dashboards.parts.patching.map import draw_maps
from dashboards.parts.patching.measured import Asked, differences, ends, gradient_of
from dashboards.parts.patching.one import draw_patch, draw_paths
from dashboards.parts.patching.traced import draw_trace
from dashboards.parts.state import cached, chosen
from dashboards.parts.words import report

# Two maps beside each other while there is room; of many positions more are drawn than there is room for.
STYLE = """
<style>
.st-key-patch_maps { flex-wrap: wrap; }
.st-key-patch_maps > div { min-width: min(480px, 100%); }
.st-key-patch_place [role="radiogroup"] { flex-wrap: wrap; row-gap: 4px; }
.st-key-patch_exact_box, .st-key-patch_gradient_box, .st-key-trace_box { overflow: auto hidden; }
</style>
"""
SMALL = 0.5  # logits: two prompts that differ less hardly have another answer


@st.fragment
def explorer() -> None:
    """The two prompts, the maps, and one patch: one fragment, so that they stay in step."""
    now = chosen()
    asked = choose(now)
    if isinstance(asked, Trouble):
        report(asked, "patching")
        return
    try:
        ends(now.tokens, asked)
    except ValueError as error:
        report(told(error), "patching")
        return
    doubts(asked)
    place, layer, method = choose_place(now)
    exact = draw_maps(now, asked, place, layer, method)
    st.divider()
    found = cached(gradient_of, asked, place, layer, method) if exact is None else exact
    draw_patch(now, asked, place, layer, found, exact is not None)
    st.divider()
    draw_paths(now, asked)
    st.divider()
    draw_trace(now, asked)


def doubts(asked: Asked) -> None:
    """What to know of the two prompts before one reads the maps."""
    clean, corrupted = differences(asked)
    said = f"The logit difference is {clean:+.3f} in the clean run and {corrupted:+.3f} in the corrupted one"
    if asked.metric == "scaled" and abs(clean - corrupted) < SMALL:
        st.warning(
            f"{said}: so near to each other that the scale from 0 to 1 blows up what is small.",
            icon=":material/straighten:",
        )
    elif clean * corrupted > 0:
        st.caption(f"{said}: both would say the same of the two tokens.")
    else:
        st.caption(f"{said}.")


chosen()
st.title("Patching")
st.html(STYLE)
with torch.no_grad():
    explorer()
