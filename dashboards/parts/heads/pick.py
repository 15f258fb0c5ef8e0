"""The head that is looked at: two fields that a link remembers, and that a click on a grid sets."""

import streamlit as st

from dashboards.parts.state import Chosen


def settle(now: Chosen) -> None:
    """What was picked on a larger model or a longer prompt gives way."""
    sizes = {"layer": now.model.cfg.n_layers, "head": now.model.cfg.n_heads, "k": len(now.labels)}
    for key, size in sizes.items():
        if (st.session_state.get(key) or 0) >= size:
            st.session_state[key] = None if key == "k" else size - 1


def pick_head(now: Chosen, strongest: tuple[int, int]) -> tuple[int, int]:
    """The layer and the head on show: the strongest, unless others are picked."""
    sizes, picked = (now.model.cfg.n_layers, now.model.cfg.n_heads), []
    with st.container(horizontal=True, vertical_alignment="bottom"):
        for key, size, first in zip(("layer", "head"), sizes, strongest, strict=True):
            number = st.number_input(
                key.capitalize(), 0, size - 1, None, key=key, bind="query-params", placeholder=f"{first}", width=150
            )
            picked.append(first if number is None else int(number))
    return picked[0], picked[1]
