"""The map of what each patch changes, exact and estimated."""

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import streamlit as st
import torch
from xarray import DataArray, concat

from dashboards.parts import jobs
from dashboards.parts.figure import opening
from dashboards.parts.grid import Scale, grid, scale_of, svg_of
from dashboards.parts.patching.chosen import said_of
from dashboards.parts.patching.measured import (
    AT_ONCE,
    PLACES,
    Asked,
    ends,
    exact_by_layer,
    exact_of,
    gradient_of,
    seconds_at_most,
)
from dashboards.parts.state import Chosen, cached
from dashboards.parts.taken import taken
from interp import plots
from interp.patching.attribution import Method

TEXTS = 400  # cells with numbers in them
WIDE = 20  # columns that two maps beside each other have room for


def draw_maps(now: Chosen, asked: Asked, place: str, layer: int | None, method: Method) -> DataArray | None:
    """Both maps beside each other; the exact one, once it is there."""
    estimated = cached(gradient_of, asked, place, layer, method)
    with st.container(horizontal=True, key="patch_maps", gap="medium"):
        with st.container(width="stretch", key="patch_exact_side"):
            found = _exact(now, asked, place, layer, estimated)
        with st.container(width="stretch", key="patch_gradient_side"):
            forward, backward = (int(estimated.attrs[f"{way} passes"]) for way in ("forward", "backward"))
            back = "1 pass" if backward == 1 else f"{backward} passes"
            st.markdown(f"**Estimated**, all at once: {forward} passes forward, {back} back")
            _draw(now, asked, place, layer, estimated, "patch_gradient", found, method)
            st.caption(_agreement(found, estimated, asked))
    return found


def _exact(now: Chosen, asked: Asked, place: str, layer: int | None, estimated: DataArray) -> DataArray | None:
    st.markdown("**Exact**: one run for each patch")
    seconds, what = seconds_at_most(now, place), PLACES[place]
    if what.is_one_layer or seconds <= AT_ONCE:
        with st.spinner("Patching"):
            found = cached(exact_of, asked, place, None if layer is None else (layer,))
        _draw(now, asked, place, layer, found, "patch_exact", estimated)
        st.caption(_caption(now, asked, found))
        return found

    def draw(parts: dict[int, DataArray]) -> None:
        _draw(now, asked, place, layer, _joined(now, parts, estimated), "patch_exact")

    of = f"{estimated.size:,} patches"
    parts = jobs.offer(exact_by_layer, asked, place, name=f"Patching: {place}", seconds=seconds, of=of, draw=draw)
    if parts is None:
        return None
    found = _joined(now, parts, estimated)
    _draw(now, asked, place, layer, found, "patch_exact", estimated)
    st.caption(_caption(now, asked, found))
    return found


def _joined(now: Chosen, parts: dict[int, DataArray], like: DataArray) -> DataArray:
    """The layers that are done; the others are not computed yet."""
    empty = _unknown(like)
    rows = [parts[i] if i in parts else empty.isel(layer=[i]) for i in range(now.model.cfg.n_layers)]
    counted = {"rows": sum(int(part.attrs.get("rows", 0)) for part in parts.values())}
    return concat(rows, "layer").assign_attrs(next(iter(parts.values())).attrs | counted)


def _unknown(like: DataArray) -> DataArray:
    """The same axes, nothing known."""
    return like.copy(data=np.full(like.shape, np.nan))


def _draw(
    now: Chosen,
    asked: Asked,
    place: str,
    layer: int | None,
    found: DataArray,
    key: str,
    beside: DataArray | None = None,
    method: Method | None = None,
) -> None:
    """A map; with another beside it, of the same colours, and marked where that one is largest."""
    end = None if beside is None else _end(found, beside)
    best = None if beside is None or key == "patch_exact" else flat(now, place, layer, beside).to_numpy()
    table = flat(now, place, layer, found)
    z = table.to_numpy()
    scale = scale_of(z, "diverging") if end is None else Scale(-end, end)
    finite = np.argsort(-np.abs(np.nan_to_num(z)), axis=None)[:2].tolist()
    largest = [
        f"{table.index[i]} {table.columns[j]} {z[i, j]:+.3f}" for i, j in (divmod(k, z.shape[1]) for k in finite)
    ]
    kind = "exact" if key == "patch_exact" else "estimated"
    look: dict[str, Any] = {
        "row_labels": table.index.tolist(),
        "column_labels": _short(now, place, table),
        "text": [[f"{x:+.2f}" if np.isfinite(x) else "" for x in row] for row in z] if z.size <= TEXTS else None,
        "colour": "diverging",
        "scale": Scale(scale.low, scale.high, "change"),
        "theme": now.theme,
    }
    grid(
        z,
        key=key,
        said=[
            [
                f"{row} {column}\n" + (f"{x:+.4f}" if np.isfinite(x) else "not computed yet")
                for column, x in zip(table.columns, values, strict=True)
            ]
            for row, values in zip(table.index, z, strict=True)
        ],
        selected=picked(z if best is None else best),
        sets=("_patch_row", "_patch_column"),
        alt=f"{place}: {kind} change of the {said_of(asked, now)}. Largest: {', '.join(largest)}.",
        **look,
    )
    taken(
        table,
        key=f"{key}_map",
        code=code_of(now, asked, place, layer, method),
        made=lambda: _figure(now, found, kind),
        svg=lambda: svg_of(z, title=f"{place}, {kind}: change of the {said_of(asked, now)}", **look),
    )


def flat(now: Chosen, place: str, layer: int | None, found: DataArray) -> pd.DataFrame:
    """A map as rows and columns, named."""
    if PLACES[place].is_one_layer:
        rows = [f"L{layer}H{i}" for i in range(found.sizes["head"])]
        values = found.isel(layer=0).transpose("head", "pos").to_numpy()
    else:
        rows, values = [f"L{i}" for i in found.layer.to_numpy()], found.to_numpy()
    has_pos = "pos" in found.dims
    columns = (
        [f"{i} {label}" for i, label in enumerate(now.labels)]
        if has_pos
        else [f"H{i}" for i in found["head"].to_numpy()]
    )
    return pd.DataFrame(values, rows, columns)


def _short(now: Chosen, place: str, table: pd.DataFrame) -> list[str]:
    if "pos" not in PLACES[place].by or table.shape[1] > WIDE:
        return [str(i) if "pos" in PLACES[place].by else name for i, name in enumerate(table.columns)]
    return [label if len(label) <= 6 else label[:5] + "…" for label in now.labels]


def picked(z: np.ndarray) -> tuple[int, int]:
    """The cell that was picked, or that which changes most."""
    row, column = st.session_state.get("_patch_row"), st.session_state.get("_patch_column")
    if row is None or column is None or row >= z.shape[0] or column >= z.shape[1]:
        row, column = divmod(int(np.abs(np.nan_to_num(z)).argmax()), z.shape[1])
    return int(row), int(column)


def _end(*maps: DataArray | None) -> float:
    """The number at the end of the colours, for maps side by side."""
    known = [np.abs(each.to_numpy()) for each in maps if each is not None]
    return max([float(np.nanmax(each, initial=0.0)) for each in known]) or 1.0


def _agreement(found: DataArray | None, estimated: DataArray, asked: Asked) -> str:
    own = "corrupted" if asked.direction == "denoise" else "clean"
    error = float(estimated.attrs["completeness_error"])
    said = f"The gradient is that of the {own} run. The whole first stream is estimated {error:+.3g} off what it does."
    if found is None:
        return said
    one, other = found.to_numpy().ravel(), estimated.to_numpy().ravel()
    if one.std() == 0 or other.std() == 0:
        return said + " One of the two maps is the same everywhere."
    return f"{said} Correlation with the exact changes: {np.corrcoef(one, other)[0, 1]:.3f}."


def _caption(now: Chosen, asked: Asked, found: DataArray) -> str:
    clean, corrupted = ends(now.tokens, asked)
    return (
        f"Change of the {said_of(asked, now)}. Clean run {clean:.4g}, corrupted run {corrupted:.4g}; "
        f"{int(found.attrs['rows']):,} runs, each from its patch on."
    )


def _figure(now: Chosen, found: DataArray, kind: str) -> go.Figure:
    return plots.heatmap(found.rename("change"), title=f"Patching, {kind}", scale="diverging", theme=now.theme)


def code_of(now: Chosen, asked: Asked, place: str, layer: int | None, method: Method | None) -> str:
    """Python that makes a map again, the exact one without a method."""
    what = PLACES[place]
    layers = "" if layer is None else f", layers=[{layer}]"
    is_exact = method is None
    call = "activation_patching" if is_exact else "attribution_patching"
    how = "" if method in (None, "gradient") else f", method={method!r}"
    end = "fig = plots.heatmap(found, effect=True)\n" if is_exact else "fig = plots.heatmap(found, scale='diverging')\n"
    return before(now, asked, "metrics", "patching", "plots") + (
        f"{asked.code()}found = patching.{call}(\n"
        f"    model, tokens, corrupted, {what.site!r}, metric, by={what.by!r},\n"
        f"    direction={asked.direction!r}{layers}{how}\n)\n{end}"
    )


def before(now: Chosen, asked: Asked, *imports: str) -> str:
    """The first lines: the model, and both prompts."""
    opens = opening(now, *imports)
    first = "" if opens.startswith("import torch") else "import torch\n\n"
    return f"{first}{opens}corrupted = torch.tensor({torch.tensor([asked.other]).tolist()})\n"
