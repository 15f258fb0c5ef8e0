"""How far a run is, how it was made, and its checkpoints, each of which can be put on show."""

import pandas as pd
import streamlit as st

from dashboards.parts import models
from dashboards.parts.figure import SIGN, with_sign
from dashboards.parts.state import opened
from dashboards.parts.training.measured import Source, number_at
from dashboards.parts.words import plain
from interp import zoo

STALLED = 120  # seconds without a line after which a run may have been stopped


def draw_state(source: Source) -> None:
    """How far it is, and what is wrong with its log."""
    if source.is_done:
        st.caption(f"All of its {source.total:,} steps are done.")
    else:
        share, age = min(source.last / source.total, 1.0), source.age or 0.0
        still = f"; nothing was written for {_in_words(age)}, so it may have been stopped" if age > STALLED else ""
        st.progress(share, f"Step {source.last:,} of {source.total:,}{still}")
    if source.fault:
        st.warning(f"The log is damaged: {plain(source.fault)}. What follows is not shown.", icon=":material/info:")
    if not source.rows:
        st.info("Nothing is on the log yet.", icon=":material/hourglass_empty:")
    seen: dict[str, int] = st.session_state.setdefault("_train_seen", {})
    before = seen.get(source.name, 0)
    if source.last < before:
        st.info(
            f"The log ends at step {source.last:,} now, and had come to {before:,}: the run went on from an earlier "
            "checkpoint, or was begun anew.",
            icon=":material/replay:",
        )
    seen[source.name] = max(before, source.last)


def draw_checkpoints(source: Source) -> None:
    """The checkpoints; a click on one puts it on show."""
    st.subheader("Checkpoints")
    if source.is_bundled:
        st.caption(f"The model that comes along is the last of this run, that of step {source.total:,}.")
        if opened().name != source.name:
            st.button(f"Show {plain(source.name)}", key="train_show", on_click=_put_on_show, args=(source.name,))
        return
    if not source.checkpoints:
        st.caption("There is none yet: `checkpoint_every` says how often one is made, and there is one at the end.")
        return
    steps, rows = source.checkpoints, source.rows
    losses = [number_at(rows, "loss", step - 1) for step in steps]
    held_out = [number_at(rows, "held_out_loss", step) for step in steps]
    names = [models.checkpoint_name(source.name, step) for step in steps]
    table = pd.DataFrame(
        {
            "step": steps,
            "loss before": [None if found is None else found[1] for found in losses],
            "held-out loss": [
                found[1] if found and found[0] == step else None for found, step in zip(held_out, steps, strict=True)
            ],
            "model": names,
        }
    )
    own = opened().name
    table = with_sign(table, names.index(own) if own in names else None)

    def picked() -> None:
        for row in st.session_state["train_checkpoints"].selection.rows[:1]:
            _put_on_show(names[row])

    st.dataframe(
        table,
        key="train_checkpoints",
        hide_index=True,
        on_select=picked,
        selection_mode="single-row",
        column_config=SIGN,
    )
    with st.container(horizontal=True, vertical_alignment="bottom"):
        default = names.index(own) if own in names else len(names) - 1
        step = st.selectbox("Checkpoint", source.checkpoints, default, key="_train_checkpoint", width=160)
        name = models.checkpoint_name(source.name, step)
        st.button("Put it on show", key="train_show", on_click=_put_on_show, args=(name,), disabled=name == own)
    st.caption(
        "A row that is clicked, or a step and the button, puts that checkpoint on show (▶) on all pages: it is a model "
        "as others are, and the link says which. Two of them stand beside each other on the page Compare."
    )


def draw_config(source: Source) -> None:
    """How it was made."""
    if source.is_bundled:
        with st.expander("Card"):
            st.markdown(zoo.card(source.name).split("\n", 1)[1])
    if source.config:
        with st.expander("Config"):
            rows = {key: "" if each is None else str(each)[:2000] for key, each in source.config.items()}
            table = pd.DataFrame({"field": list(rows), "value": list(rows.values())})
            st.dataframe(table, key="train_config", hide_index=True)
            if source.is_bundled:
                st.caption(f"What `python -m interp.training {source.name}` takes where nothing else is said.")


def _put_on_show(name: str) -> None:
    st.session_state["_take_model"] = name


def _in_words(seconds: float) -> str:
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
