"""Values that are put into widgets by something else than a hand: a click elsewhere, another model, a state file."""

from typing import Any

import streamlit as st


def put(name: str, value: Any) -> None:
    """The widget of this name shows this value from now on."""
    st.session_state[name] = value
    st.session_state.setdefault("_put", set()).add(name)


def default(name: str, value: Any, none: Any = None) -> Any:
    """The default of this widget; `none` in the run in which a value was put there: of two, streamlit complains.

    Where `none` itself was put, the default stays: a link leaves out what is the default, and would lose it.
    """
    was_put: set[str] = st.session_state.get("_put", set())
    if name not in was_put:
        return value
    was_put.discard(name)
    return value if st.session_state.get(name, none) == none else none
