"""What can be taken away from a grid: its numbers as a table, files of it, and the code that makes it as a figure."""

import json
from collections.abc import Callable, Mapping
from typing import Any

import plotly.graph_objects as go
import streamlit as st
from pandas import DataFrame

from dashboards.parts.state import about


def taken(
    data: DataFrame | None,
    *,
    key: str,
    code: str,
    made: Callable[[], go.Figure],
    svg: Callable[[], str],
    png: bytes | None = None,
    pick: Callable[[int, int], None] | None = None,
    more: Mapping[str, Any] | None = None,
) -> None:
    """Offer the numbers of a grid, rows and columns named, and the figure that `made` makes when it is asked for.

    `svg` makes the picture that is on the canvas, `png` is the picture of its tiles. `pick` hears of a cell of the
    table that is clicked, its row and column. `more` is said in the files beside what every file says.
    """
    said = about() | dict(more or {})  # now: where the files are made there is no session
    files: dict[str, tuple[Callable[[], str | bytes], str]] = {
        "html": (lambda: _figure(made, said).to_html(include_plotlyjs=True), "text/html"),
        "json": (lambda: _figure(made, said).to_json() or "", "application/json"),
        "py": (lambda: "".join(f"# {k}: {v!r}\n" for k, v in said.items()) + code, "text/x-python"),
        "svg": (svg, "image/svg+xml"),
    }
    if data is not None:
        files["csv"] = (lambda: f"# {json.dumps(said)}\n" + data.to_csv(), "text/csv")
    if png is not None:
        files["png"] = (lambda: png, "image/png")
    with st.container(horizontal=True, vertical_alignment="center", key=f"{key}_tools"):
        is_table = data is not None and st.toggle("Table", key=f"{key}_table")
        with st.popover("As code", type="tertiary"):
            st.code(code, language="python")
        with st.popover("Download", type="tertiary"), st.container(horizontal=True):
            for kind, (make, mime) in sorted(files.items()):
                st.download_button(kind.upper(), make, f"{key}.{kind}", mime, key=f"{key}_{kind}", on_click="ignore")
    if not is_table or data is None:
        return
    numbers = f"{key}_numbers"
    if pick is None:
        st.dataframe(data, key=numbers, height=240)
        return

    def picked() -> None:
        for row, column in st.session_state[numbers].selection.cells[:1]:
            pick(int(row), list(data.columns).index(column))

    st.dataframe(data, key=numbers, height=240, on_select=picked, selection_mode="single-cell")


def _figure(made: Callable[[], go.Figure], said: dict[str, object]) -> go.Figure:
    return made().update_layout(meta=said)
