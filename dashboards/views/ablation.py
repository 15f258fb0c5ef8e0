"""Ablation and steering: what a model does without some of its parts, or pushed along a direction."""

from functools import partial

import streamlit as st
import torch

from dashboards.parts.ablation.drawn import draw_curves, draw_losses, draw_numbers, draw_repair, draw_texts, draw_tokens
from dashboards.parts.ablation.measured import outcomes
from dashboards.parts.ablation.studies import draw_studies, study_of
from dashboards.parts.ablation.wanted import RIGHT, controls, in_words
from dashboards.parts.models import Trouble
from dashboards.parts.state import chosen
from dashboards.parts.words import plain, report


@st.fragment
def explorer() -> None:
    """What is chosen, and what it does."""
    now = chosen()
    wanted = controls(now)
    draw_studies(now)
    if isinstance(wanted, Trouble):
        report(wanted, "ablation")
        return
    if not wanted:
        st.info("Nothing is changed yet: name a part, click a head, or steer.", icon=":material/info:")
        return
    st.divider()
    with st.container(horizontal=True, vertical_alignment="center"):
        st.caption(plain(in_words(wanted)))
        if wanted.parts:
            made, how = partial(study_of, now, wanted), "For python -m analyses.ablate --study study.toml"
            st.download_button("study.toml", made, "study.toml", key="abl_study", on_click="ignore", help=how)
    before, after = outcomes(now, wanted)
    draw_numbers(now, before, after)
    with st.container(horizontal=True, gap="medium"):
        with st.container(width="stretch"):
            draw_losses(now, wanted, before, after)
        with st.container(width=RIGHT):
            draw_tokens(now, wanted, before, after)
    st.subheader("Text")
    draw_texts(now, wanted)
    draw_repair(now, wanted)
    draw_curves(now, wanted)


chosen()
with torch.no_grad():
    explorer()
