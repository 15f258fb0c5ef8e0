"""Words on a page that come from outside: shown as they are, whatever markup they hold."""

import re
from collections.abc import Mapping

import streamlit as st

from dashboards.parts.models import Trouble
from interp.plots.theme import seen


def plain(text: str, longest: int = 1000) -> str:
    """Text of which markdown takes nothing for markup, on one line, cut where it is long."""
    cut = " ".join(text.split()) if len(text) <= longest else " ".join(text[:longest].split()) + " …"
    visible = "".join(char if char == " " else seen(char) for char in cut)
    return re.sub(r"([\\`*_{}\[\]()#+\-.!|$:<>~&^=])", r"\\\1", visible)


def token_text(token: str) -> str:
    """A token in a line of text, its spaces seen."""
    return plain(seen(token), 40)


def report(trouble: Trouble, key: str) -> None:
    """Say what is wrong, what helps, and offer it where a click can do it."""
    st.warning(f"{plain(trouble.cause)} {plain(trouble.cure)}", icon=":material/info:")
    with st.container(horizontal=True):
        for i, (words, fields) in enumerate(trouble.offers):
            st.button(plain(words), key=f"_{key}_offer_{i}", on_click=fill_in, args=(fields,))


def fill_in(fields: Mapping[str, str | None]) -> None:
    """Write these texts into these fields."""
    for field, text in fields.items():
        st.session_state[field] = text
