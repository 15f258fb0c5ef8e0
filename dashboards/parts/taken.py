"""What can be taken away from a grid: its numbers as a table, files of it, and the code that makes it as a figure."""

import json
from collections.abc import Callable

import plotly.graph_objects as go
import streamlit as st
from pandas import DataFrame

from dashboards.parts.state import about


def taken(data: DataFrame, *, key: str, code: str, made: Callable[[], go.Figure]) -> None:
    """Offer the numbers of a grid, rows and columns named, and the figure that `made` makes when it is asked for."""
    with st.container(horizontal=True, vertical_alignment="center", key=f"{key}_tools"):
        is_table = st.toggle("Table", key=f"{key}_table")
        with st.popover("As code", type="tertiary"):
            st.code(code, language="python")
        with st.popover("Download", type="tertiary"), st.container(horizontal=True):
            files = {
                "csv": (lambda: f"# {json.dumps(about())}\n" + data.to_csv(), "text/csv"),
                "html": (lambda: _figure(made).to_html(include_plotlyjs=True), "text/html"),
                "json": (lambda: _figure(made).to_json(), "application/json"),
                "py": (lambda: "".join(f"# {k}: {v!r}\n" for k, v in about().items()) + code, "text/x-python"),
            }
            for kind, (make, mime) in files.items():
                st.download_button(kind.upper(), make, f"{key}.{kind}", mime, key=f"{key}_{kind}", on_click="ignore")
    if is_table:
        st.dataframe(data, key=f"{key}_numbers", height=240)


def _figure(made: Callable[[], go.Figure]) -> go.Figure:
    return made().update_layout(meta=about())
