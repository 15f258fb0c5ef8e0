"""Walkthrough: the way of one token through this model, from text to the token that follows, a stage at a time."""

from pathlib import Path

import streamlit as st
import torch

from dashboards.parts.heads.measured import strongest_head
from dashboards.parts.state import Chosen, chosen
from dashboards.parts.walkthrough.ends import draw_chances, draw_next, draw_text, draw_tokens
from dashboards.parts.walkthrough.inside import draw_inside
from dashboards.parts.walkthrough.measured import has_merges
from dashboards.parts.walkthrough.texts import PARTS, STAGES, TITLES, Facts, Stage
from dashboards.parts.words import token_text

_VIEWS = Path(__file__).parent

# The list of stages, under the names of its parts; where there is little room, in rows above the stage.
HEADINGS = "".join(
    f"""
  .st-key-stage [role=radiogroup] > div:nth-child({TITLES.index(first) + 1})::before {{ content: "{name}"; }}"""
    for first, name in PARTS.items()
)
STYLE = f"""
<style>
.st-key-stage [role=radiogroup] {{ gap: 0.1rem; }}
.st-key-stage [role=radiogroup] > div::before {{
  display: block; margin-top: 0.5rem; font-size: 0.8rem; opacity: 0.7;
}}
[data-testid=stLayoutWrapper]:has(> .st-key-walk_stage) {{ min-width: min(26rem, 100%); }}
@media (min-width: 1101px) {{{HEADINGS}
}}
@media (max-width: 1100px) {{
  [data-testid=stLayoutWrapper]:has(> .st-key-walk_stages) {{ flex: 1 1 100%; width: 100%; }}
  .st-key-walk_stages {{ width: 100%; }}
  .st-key-stage [role=radiogroup] {{ flex-flow: row wrap; column-gap: 1rem; }}
}}
</style>
"""


@st.fragment
def explorer() -> None:
    """The list of stages, and one of them: one fragment, so that they stay in step."""
    if st.session_state.pop("_walk_longer", None):
        st.rerun()  # the prompt was made longer
    now = chosen()
    settle(now)
    st.html(STYLE)
    layer, head = pick(now)
    with st.container(key="walk"), st.container(horizontal=True, gap="large"):
        with st.container(key="walk_stages", width=210):
            title = st.radio("Stage", TITLES, key="stage", bind="query-params")
        with st.container(key="walk_stage", width="stretch"):
            draw(now, STAGES[TITLES.index(title or TITLES[0])], layer, head)


def settle(now: Chosen) -> None:
    """What was picked on a larger model gives way."""
    for key, size in {"layer": now.model.cfg.n_layers, "head": now.model.cfg.n_heads}.items():
        if (st.session_state.get(key) or 0) >= size:
            st.session_state[key] = size - 1
    if st.session_state.get("stage", TITLES[0]) not in TITLES:
        del st.session_state["stage"]


def pick(now: Chosen) -> tuple[int, int]:
    """The layer and the head on show: those on which most hangs, unless others are picked."""
    sizes, picked = (now.model.cfg.n_layers, now.model.cfg.n_heads), []
    with st.container(horizontal=True, vertical_alignment="bottom"):
        for key, size, best in zip(("layer", "head"), sizes, strongest_head(now), strict=True):
            number = st.number_input(
                key.capitalize(), 0, size - 1, None, key=key, bind="query-params", placeholder=f"{best}", width=150
            )
            picked.append(best if number is None else int(number))
        st.markdown(f"Token {now.q} of 0 to {len(now.labels) - 1}: **{token_text(now.labels[now.q])}**")
    return picked[0], picked[1]


def draw(now: Chosen, stage: Stage, layer: int, head: int) -> None:
    """A stage: what is asked, the answer, and its numbers; or why this model has it not."""
    facts = Facts(
        now.model.cfg, layer, now.model.tokenizer is not None, has_merges(now.model), now.q + 2 <= now.model.cfg.n_ctx
    )
    at = TITLES.index(stage.title)
    st.caption(f"{at + 1} of {len(STAGES)} · {part_of(stage)}{where(stage, layer, head)}")
    st.subheader(stage.asks, anchor=False)
    lacks = stage.missing(facts)
    if lacks is not None:
        st.info(lacks, icon=":material/info:")
    else:
        st.markdown(stage.answer(facts))
        numbers_of(now, stage, layer, head)
    with st.container(horizontal=True, vertical_alignment="center", key="walk_on_and_back"):
        for words, to, icon in (("Back", at - 1, "arrow_back"), ("Next", at + 1, "arrow_forward")):
            off = not 0 <= to < len(STAGES)
            st.button(words, key=f"walk_{words}", on_click=go, args=(to,), disabled=off, icon=f":material/{icon}:")
        if stage.page and (_VIEWS / f"{stage.page}.py").is_file():
            fields = {"layer": str(layer), "head": str(head)} if stage.page == "heads" else {}
            st.page_link(
                f"views/{stage.page}.py", label=f"In full: the page {stage.page.capitalize()}", query_params=fields
            )


def numbers_of(now: Chosen, stage: Stage, layer: int, head: int) -> None:
    """The numbers of a stage that the model has."""
    if stage.of is not None:
        draw_inside(now, stage.of, layer, head)
    elif stage.title == "Text":
        draw_text(now)
    elif stage.title == "Tokens":
        draw_tokens(now)
    elif stage.title == "Next token":
        draw_next(now, layer, head)
    else:
        draw_chances(now, layer, stage.title)


def part_of(stage: Stage) -> str:
    """The part of the way that a stage belongs to."""
    before = [name for title, name in PARTS.items() if TITLES.index(title) <= TITLES.index(stage.title)]
    return before[-1]


def where(stage: Stage, layer: int, head: int) -> str:
    """The layer and the head, where the stage has them."""
    part = part_of(stage)
    if part == "Attention":
        return f" of layer {layer}, head {head}"
    return f" of layer {layer}" if part == "MLP" else ""


def go(to: int) -> None:
    """Another stage."""
    st.session_state["stage"] = TITLES[to]


chosen()
st.title("Walkthrough")
with torch.no_grad():
    explorer()
