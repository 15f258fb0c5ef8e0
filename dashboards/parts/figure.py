"""A figure on a page, with its caption, its numbers as a table, files of it, and the code that makes it."""

import json
from collections.abc import Mapping
from typing import Any

import plotly.graph_objects as go
import streamlit as st
from pandas import DataFrame
from xarray import DataArray

from dashboards.parts.models import DISTRACTORS, FOLDER, HUB, PLANTED, UPLOAD, checkpoint
from dashboards.parts.state import Chosen, Opened, about

SIGN = {" ": st.column_config.TextColumn(" ", width=24)}  # how the column of `with_sign` is drawn
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
    more: Mapping[str, Any] | None = None,
) -> None:
    """Draw a figure of `interp.plots`, and offer its numbers, its files and its code.

    `alt` is what a reader who does not see it is told, with its largest numbers; `data` are the numbers drawn. `code`
    is Python that uses only `interp` and makes the figure again, as `fig`; `opening` writes its first lines. What the
    caption takes from outside goes through `words.plain`. `more` is said in the files beside what every file says.
    """
    said = about() | dict(more or {})  # now: where the files are made there is no session
    drawn = go.Figure(fig)  # the one given may be kept, and shown again
    drawn.update_layout(meta=said)
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
            _downloads(drawn, key, code, data, said)
    if is_table and data is not None:
        st.dataframe(table(data), key=f"{key}_numbers")


def numbers(
    data: DataFrame,
    *,
    key: str,
    caption: str = "",
    code: str = "",
    more: Mapping[str, Any] | None = None,
    marked: int | None = None,
) -> None:
    """Draw a table, and offer it as a file, with the code that makes it again, as `table`.

    `more` is said in the file beside what every file says; a row that is `marked` has a sign before it.
    """
    drawn = data if marked is None else with_sign(data, marked)
    st.dataframe(drawn, key=key, hide_index=True, column_config=SIGN)
    if caption:
        st.caption(caption)
    with st.container(horizontal=True, key=f"{key}_tools"):
        if code:
            with st.popover("As code", type="tertiary"):
                st.code(code, language="python")
        said = json.dumps(about() | dict(more or {}))  # now: where the file is made there is no session
        made = lambda: f"# {said}\n" + data.to_csv(index=False)
        st.download_button("CSV", made, f"{key}.csv", "text/csv", key=f"{key}_csv", on_click="ignore", type="tertiary")


def with_sign(data: DataFrame, marked: int | None) -> DataFrame:
    """A table with a sign before one of its rows."""
    signed = data.copy(deep=False)
    signed.insert(0, " ", ["▶" if i == marked else "" for i in range(len(data))])
    return signed


def table(data: DataFrame | DataArray) -> DataFrame:
    """The numbers of a figure, one row each, or two axes as rows and columns."""
    if isinstance(data, DataFrame):
        return data
    if data.size > LARGEST_TABLE:
        raise ValueError(f"{data.size:,} numbers make no table; select some, up to {LARGEST_TABLE:,}")
    named = data.rename(data.name or "value")
    return named.to_dataframe().reset_index()


def opening(now: Chosen | Opened, *imports: str, other: Chosen | None = None) -> str:
    """The first lines of a figure's code: the model that is on show, and its tokens, if there is a prompt.

    With an `other`, also its tokens, as `other_tokens`, and its model, as `other_model`, where that is another.
    """
    both = [each for each in (now, other) if each is not None]
    is_run = [checkpoint(each.name) is not None for each in both]
    kinds = ["zoo" if each.name.startswith(PLANTED) else "HookedGPT" for each in both]
    names = {*imports, *(kind for kind, of_run in zip(kinds, is_run, strict=True) if not of_run)}
    lines = [f"from interp import {', '.join(sorted(names, key=lambda n: (n != 'HookedGPT', n)))}"] if names else []
    lines += ["from interp.training import Run"] if any(is_run) else []
    lines.append("")
    lines += _model(now, "model")
    own = _tokens(now) if isinstance(now, Chosen) else ""
    lines += [f"tokens = {own}"] if own else []
    if other is not None:
        lines += [] if other.name == now.name else _model(other, "other_model")
        also = _tokens(other)
        lines.append(f"other_tokens = {'tokens' if also == own else also}")
    made = ("tokens = torch.", "other_tokens = torch.")
    first = ["import torch", ""] if any(line.startswith(made) for line in lines) else []
    return "\n".join([*first, *lines]) + "\n"


def _model(now: Chosen | Opened, called: str) -> list[str]:
    """The lines that open a model."""
    name, kind = now.name, now.name.split("/", 1)[0] + "/"
    if of_run := checkpoint(name):
        made = f"Run({of_run[0]!r}).model({of_run[1]})  # where that run is: {of_run[0]}"
    elif kind == PLANTED:
        made = f"zoo.planted.{name.removeprefix(PLANTED)}(distractor_heads={DISTRACTORS})"
        made += ".model" if now.planted else ""
    else:
        note = f"  # where that folder is: {name}" if kind in (FOLDER, UPLOAD) else ""
        made = f"HookedGPT.from_pretrained({name.removeprefix(HUB)!r}){note}"
    return [f"{called} = {made}", f'assert {called}.fingerprint() == "{now.fingerprint}"']


def _tokens(now: Chosen) -> str:
    if now.model.tokenizer is not None:
        whole = now.model.to_tokens(now.prompt, prepend_bos=now.bos) if now.prompt else None
        if whole is not None and whole.shape == now.tokens.shape:
            return f"model.to_tokens({now.prompt!r}, prepend_bos={now.bos})"
    return f"torch.tensor({now.tokens.tolist()})"


def _downloads(drawn: go.Figure, key: str, code: str, data: DataFrame | DataArray | None, said: dict[str, Any]) -> None:
    st.segmented_control(
        "The camera above the figure saves", ["SVG", "PNG"], default="SVG", key=f"{key}_picture", required=True
    )

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
