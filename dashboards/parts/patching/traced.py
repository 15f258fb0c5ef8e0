"""Causal tracing: noise takes the subject of the clean prompt, and one state gives it back."""

from typing import Any

import numpy as np
import pandas as pd
import streamlit as st
from xarray import DataArray

from dashboards.parts import jobs
from dashboards.parts.grid import grid, scale_of, svg_of
from dashboards.parts.heads.measured import seconds_of
from dashboards.parts.models import told
from dashboards.parts.patching.chosen import said_of
from dashboards.parts.patching.map import TEXTS, WIDE, before
from dashboards.parts.patching.measured import (
    AT_ONCE,
    DRAWS,
    FASTER,
    Asked,
    lost_of,
    runs_of_trace,
    trace_of,
    traced,
    window_of,
)
from dashboards.parts.state import Chosen, cached
from dashboards.parts.taken import taken
from dashboards.parts.words import report
from interp import plots

SITES = {"State": "resid_post", "Attention": "attn_out", "MLP": "mlp_out"}


def draw_trace(now: Chosen, asked: Asked) -> None:
    """What is put back, of which subject, and the map of what that gives back."""
    st.subheader("Without its subject")
    names = [name for name in SITES if name != "MLP" or not now.model.cfg.attn_only]
    with st.container(horizontal=True, vertical_alignment="bottom"):
        name = st.segmented_control("Put back", names, key="trace_site", bind="query-params")
        text = st.text_input(
            "Subject", key="trace_subject", bind="query-params", placeholder="the tokens that differ", width=260
        )
    if name not in names:
        st.caption(
            "Causal tracing: noise on the subject's embeddings takes the clean prompt's answer away; then one state of "
            "the run without noise is put back. Choose which; the subject is any text in the prompt."
        )
        return
    site, subject = SITES[name], text or lost_of(now.tokens, asked)
    runs = runs_of_trace(now, subject)
    seconds = runs * cached(seconds_of) / FASTER
    try:
        if seconds <= AT_ONCE:
            with st.spinner("Tracing"):
                found = cached(trace_of, asked, site, subject)
        else:
            options: dict[str, Any] = {"seconds": seconds, "of": f"{runs:,} runs", "draw": lambda _: None}
            found = jobs.offer(traced, asked, site, subject, name=f"Tracing: {name}", **options)
    except ValueError as error:
        report(told(error), "trace")
        return
    if found is not None:
        _draw(now, asked, name, subject, found)


def _draw(now: Chosen, asked: Asked, name: str, subject: str | tuple[int, ...], found: DataArray) -> None:
    site, is_subject = SITES[name], found.is_subject.to_numpy()
    columns = [f"{i} {label}" for i, label in enumerate(now.labels)]
    z = found.transpose("layer", "pos").to_numpy()
    table = pd.DataFrame(z, [f"L{i}" for i in found.layer.to_numpy()], columns)
    largest = np.argsort(-np.abs(z), axis=None)[:2].tolist()
    told_of = [f"{table.index[i]} {columns[j]} {z[i, j]:+.3f}" for i, j in (divmod(k, z.shape[1]) for k in largest)]
    look: dict[str, Any] = {
        "row_labels": table.index.tolist(),
        "column_labels": [f"{i}*" if lost else str(i) for i, lost in enumerate(is_subject)],
        "text": [[f"{x:+.2f}" for x in row] for row in z] if z.size <= TEXTS and z.shape[1] <= WIDE else None,
        "colour": "diverging",
        "scale": scale_of(z, "diverging"),
        "theme": now.theme,
    }
    grid(
        z,
        key="trace",
        said=[
            [f"{row} {column}\n{x:+.4f}" for column, x in zip(columns, values, strict=True)]
            for row, values in zip(table.index, z, strict=True)
        ],
        alt=f"{name} put back: change of the {said_of(asked, now)}. Largest: {', '.join(told_of)}.",
        **look,
    )
    window = window_of(now.model, site)
    several = "" if window == 1 else f" What {window} layers write is put back together."
    st.caption(
        f"Change of the {said_of(asked, now)}, where positions with a * have noise: {found.attrs['clean']:.4g} without "
        f"noise, {found.attrs['base']:.4g} with it and nothing put back. Mean of {DRAWS} draws, the same for every "
        f"state; {int(found.attrs['rows']):,} runs.{several}"
    )
    code = _code(now, asked, site, subject)
    title = f"Causal tracing, {name.lower()} put back"
    taken(
        table,
        key="trace_map",
        code=code,
        made=lambda: plots.heatmap(found.rename("change"), title=title, scale="diverging", theme=now.theme),
        svg=lambda: svg_of(z, title=f"{title}: change of the {said_of(asked, now)}", **look),
    )


def _code(now: Chosen, asked: Asked, site: str, subject: str | tuple[int, ...]) -> str:
    return before(now, asked, "metrics", "patching", "plots") + (
        f"{asked.code()}found = patching.causal_tracing(\n    model, tokens, {subject!r}, metric, samples={DRAWS},\n"
        f"    site={site!r}, window={window_of(now.model, site)}\n)\nfig = plots.heatmap(found, effect=True)\n"
    )
