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
END = "end"
MOST = 200  # steps that can be marked
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
        st.code(COMMAND, language="bash", wrap_lines=True)
    return picked or own


def pick_look(source: Source) -> Look:
    """The axes, and the step that is marked."""
    steps, losses = _axis("train_steps", "Steps", "log"), _axis("train_values", "Losses", "linear")
    options = [*map(str, _steps(source)), END]
    if st.session_state.get("_train_of") not in (None, source.name):
        st.session_state["train_step"] = END  # the step marked was another run's
    st.session_state["_train_of"] = source.name
    forget_unless("train_step", options)
    step = st.select_slider(
        "Marked step",
        options,
        END,
        key="train_step",
        bind="query-params",
        help="It is marked on all curves; at the right end, none is.",
        width=360,
    )
    is_dark = st.context.theme.type == "dark"
    return Look(steps, losses, None if step == END else int(step), "dark" if is_dark else "light")


def _steps(source: Source) -> list[int]:
    """The steps on the log; of many, those at which more than a loss was taken, and some between."""
    found = sorted({row["step"] for row in source.rows})
    if len(found) <= MOST:
        return found
    measured = sorted({row["step"] for row in source.rows if "loss" not in row})
    some = [steps[:: -(-len(steps) // (MOST // 2)) or 1] for steps in (measured, found)]
    return sorted({*some[0], *some[1], found[-1]})


def _axis(key: str, label: str, first: AxisType) -> AxisType:
    forget_unless(key, AXES)
    picked = st.segmented_control(label, AXES, default=first, key=key, bind="query-params", required=True)
    return "log" if picked == "log" else "linear"


def forget_unless(key: str, options: Sequence[object]) -> None:
    """What a link or a state file says there, where it is none of these."""
    if st.session_state.get(key) is not None and st.session_state[key] not in options:
        del st.session_state[key]
