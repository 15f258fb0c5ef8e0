"""A figure on a page, with its caption, its numbers as a table, files of it, and the code that makes it."""

import json
from typing import Any

import plotly.graph_objects as go
import streamlit as st
from pandas import DataFrame
from xarray import DataArray

from dashboards.parts.models import DISTRACTORS, FOLDER, HUB, PLANTED, UPLOAD
from dashboards.parts.state import Chosen, Opened, about

LARGEST_TABLE = 200_000  # cells


def figure(
    fig: go.Figure,
    *,
    key: str,
    caption: str = "",
    code: str = "",
    data: DataFrame | DataArray | None = None,
    alt: str,
    height: int | None = None,
) -> None:
    """Draw a figure of `interp.plots`, and offer its numbers, its files and its code.

    `alt` is what a reader who does not see it is told, with its largest numbers; `data` are the numbers drawn. `code`
    is Python that uses only `interp` and makes the figure again, as `fig`; `opening` writes its first lines. What the
    caption takes from outside goes through `words.plain`.
    """
    drawn = go.Figure(fig)  # the one given may be kept, and shown again
    drawn.update_layout(meta=about())
    if height is not None:
        drawn.update_layout(height=height)
    picture = st.session_state.get(f"{key}_picture") or "SVG"
    config: dict[str, Any] = {
        "displaylogo": False,
        "toImageButtonOptions": {"format": picture.lower(), "filename": key, "scale": 1 if picture == "SVG" else 2},
    }
    st.plotly_chart(drawn, theme=None, key=key, alt=alt, config=config)
    if caption:
        st.caption(caption)
    with st.container(horizontal=True, vertical_alignment="center", key=f"{key}_tools"):
        is_table = data is not None and st.toggle("Table", key=f"{key}_table")
        if code:
            with st.popover("As code", type="tertiary"):
                st.code(code, language="python")
        with st.popover("Download", type="tertiary"):
            _downloads(drawn, key, code, data)
    if is_table and data is not None:
        st.dataframe(table(data), key=f"{key}_numbers")


def numbers(data: DataFrame, *, key: str, caption: str = "", code: str = "") -> None:
    """Draw a table, and offer it as a file, with the code that makes it again, as `table`."""
    st.dataframe(data, key=key, hide_index=True)
    if caption:
        st.caption(caption)
    with st.container(horizontal=True, key=f"{key}_tools"):
        if code:
            with st.popover("As code", type="tertiary"):
                st.code(code, language="python")
        said = json.dumps(about())  # now: where the file is made there is no session
        made = lambda: f"# {said}\n" + data.to_csv(index=False)
        st.download_button("CSV", made, f"{key}.csv", "text/csv", key=f"{key}_csv", on_click="ignore", type="tertiary")


def table(data: DataFrame | DataArray) -> DataFrame:
    """The numbers of a figure, one row each, or two axes as rows and columns."""
    if isinstance(data, DataFrame):
        return data
    if data.size > LARGEST_TABLE:
        raise ValueError(f"{data.size:,} numbers make no table; select some, up to {LARGEST_TABLE:,}")
    named = data.rename(data.name or "value")
    return named.to_dataframe().reset_index()


def opening(now: Chosen | Opened, *imports: str) -> str:
    """The first lines of a figure's code: the model that is on show, and its tokens, if there is a prompt."""
    name, kind = now.name, now.name.split("/", 1)[0] + "/"
    names = sorted(
        {*imports, "zoo"} if kind == PLANTED else {"HookedGPT", *imports}, key=lambda n: (n != "HookedGPT", n)
    )
    tokens = _tokens(now) if isinstance(now, Chosen) else ""
    first = ["import torch", ""] if tokens.startswith("tokens = torch") else []
    lines = [*first, f"from interp import {', '.join(names)}", ""]
    if kind == PLANTED:
        made = f"zoo.planted.{name.removeprefix(PLANTED)}(distractor_heads={DISTRACTORS})"
        lines.append(f"model = {made}{'.model' if now.planted else ''}")
    else:
        where = name.removeprefix(HUB)
        note = f"  # where that folder is: {name}" if kind in (FOLDER, UPLOAD) else ""
        lines.append(f"model = HookedGPT.from_pretrained({where!r}){note}")
    lines.append(f'assert model.fingerprint() == "{now.fingerprint}"')
    return "\n".join([*lines, *([tokens] if tokens else [])]) + "\n"


def _tokens(now: Chosen) -> str:
    if now.model.tokenizer is not None:
        whole = now.model.to_tokens(now.prompt, prepend_bos=now.bos) if now.prompt else None
        if whole is not None and whole.shape == now.tokens.shape:
            return f"tokens = model.to_tokens({now.prompt!r}, prepend_bos={now.bos})"
    return f"tokens = torch.tensor({now.tokens.tolist()})"


def _downloads(drawn: go.Figure, key: str, code: str, data: DataFrame | DataArray | None) -> None:
    st.segmented_control(
        "The camera above the figure saves", ["SVG", "PNG"], default="SVG", key=f"{key}_picture", required=True
    )

    said = about()  # now: where the files are made there is no session

    def csv() -> str:
        assert data is not None
        return f"# {json.dumps(said)}\n" + table(data).to_csv(index=False)

    def html() -> str:
        return drawn.to_html(include_plotlyjs=True, full_html=True, config={"displaylogo": False})

    files = {"html": (html, "text/html"), "json": (drawn.to_json, "application/json")}
    if data is not None:
        files["csv"] = csv, "text/csv"
    if code:
        files["py"] = lambda: "".join(f"# {k}: {v!r}\n" for k, v in said.items()) + code, "text/x-python"
    with st.container(horizontal=True):
        for kind, (made, mime) in sorted(files.items()):
            st.download_button(kind.upper(), made, f"{key}.{kind}", mime, key=f"{key}_{kind}", on_click="ignore")
