"""A figure on a page, with its caption, its numbers as a table, files, and the code that makes it."""

import json
from typing import Any

import plotly.graph_objects as go
import streamlit as st
from pandas import DataFrame
from xarray import DataArray


def figure(
    fig: go.Figure,
    *,
    key: str,
    caption: str = "",
    code: str = "",
    data: DataFrame | DataArray | None = None,
    alt: str = "",
    height: int | None = None,
) -> None:
    """Draw a figure of `interp.plots`, and offer its numbers, its files and its code.

    `alt` is what a reader who does not see it is told. `data` are the numbers drawn. `code` is Python that uses only
    `interp` and makes the figure again.
    """
    if height is not None:
        fig.update_layout(height=height)
    save = {"format": "svg", "filename": key}
    config: dict[str, Any] = {"displaylogo": False, "toImageButtonOptions": save}
    st.plotly_chart(fig, theme=None, key=key, alt=alt or None, config=config)
    if caption:
        st.caption(caption)
    with st.container(horizontal=True):
        if data is not None and st.toggle("Table", key=f"{key}_table"):
            st.dataframe(_table(data), key=f"{key}_numbers")
        if code:
            with st.popover("As code"):
                st.code(code, language="python")
        with st.popover("Download"):
            options: Any = {"on_click": "ignore"}
            st.download_button(
                "HTML", lambda: fig.to_html(include_plotlyjs=True), f"{key}.html", key=f"{key}_html", **options
            )
            st.download_button(
                "JSON",
                lambda: json.dumps(fig.to_plotly_json(), default=str),
                f"{key}.json",
                key=f"{key}_json",
                **options,
            )


def _table(data: DataFrame | DataArray) -> DataFrame:
    return data if isinstance(data, DataFrame) else data.to_dataframe(str(data.name or "value")).reset_index()
