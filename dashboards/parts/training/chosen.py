"""What is looked at: the run, the axes, the step that is marked; widgets that a link remembers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import streamlit as st

from dashboards.parts.state import Opened
from dashboards.parts.training.measured import Source, names, of_model
from dashboards.parts.words import plain
from interp.plots.curves import AxisType

COMMAND = "python -m interp.training induction-toy --out FOLDER/induction"
AXES = ("linear", "log")


@dataclass(frozen=True)
class Look:
    """How curves are drawn, and the step that is marked on them, if one is."""

    steps: AxisType
    losses: AxisType
    marked: int | None
    theme: Literal["light", "dark"]


def pick_run(now: Opened) -> str | None:
    """The run that is looked at: that of the model on show, unless another is picked."""
    own, known = of_model(now.name), names()
    forget_unless("train_run", known)
    picked = st.selectbox(
        "Run", known, None, key="train_run", bind="query-params", placeholder=own or "Choose a run", width=300
    )
    if picked is None and own is None:
        st.info(
            f"No log tells how {plain(now.name)} came about: it was "
            f"{'set by hand' if now.planted else 'not trained here'}. The models that come along have theirs, and so "
            "has each run in the folder of models, under Run. This trains one, in minutes, where FOLDER is that of "
            "`-- --models FOLDER`:",
            icon=":material/info:",
        )
        st.code(COMMAND, language="bash")
    return picked or own


def pick_look(source: Source) -> Look:
    """The axes, and the step that is marked."""
    steps, losses = _axis("train_steps", "Steps", "log"), _axis("train_values", "Losses", "linear")
    state = st.session_state
    if state.get("train_of") not in (None, source.name) or (state.get("train_step") or 0) > source.total:
        state.pop("train_step", None)
    state["train_of"] = source.name
    step = st.slider(
        "Marked step",
        0,
        source.total,
        None if "train_step" in state else source.total,
        key="train_step",
        bind="query-params",
        help="Marked on all curves; at the right end, nothing is.",
        width=360,
    )
    is_dark = st.context.theme.type == "dark"
    return Look(steps, losses, None if step >= source.total else int(step), "dark" if is_dark else "light")


def _axis(key: str, label: str, first: AxisType) -> AxisType:
    forget_unless(key, AXES)
    picked = st.segmented_control(label, AXES, default=first, key=key, bind="query-params", required=True)
    return "log" if picked == "log" else "linear"


def forget_unless(key: str, options: Sequence[object]) -> None:
    """What a link or a state file says there, where it is none of these."""
    if st.session_state.get(key) is not None and st.session_state[key] not in options:
        del st.session_state[key]
