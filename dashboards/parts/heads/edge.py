"""One edge of the head that is picked: from q · k to the logit, and the run without it."""

import numpy as np
import streamlit as st
from pandas import DataFrame
from xarray import DataArray, Dataset

from dashboards.parts.figure import figure, numbers, opening
from dashboards.parts.heads.measured import all_patterns, writes, xray
from dashboards.parts.heads.one import check
from dashboards.parts.state import Chosen
from dashboards.parts.strip import strip
from dashboards.parts.words import token_text
from interp import plots
from interp.plots.theme import seen


def draw_edge(now: Chosen, layer: int, head: int) -> None:
    """The keys to choose from, and the edge's x-ray."""
    q = now.q
    row = all_patterns()[layer, head][0, q].detach().float().cpu().numpy()
    st.markdown(f"**Edge x-ray** of L{layer}H{head}: from the token read, {q}, to a key")
    k = st.number_input(
        "Key position",
        0,
        len(now.labels) - 1,
        None,
        key="k",
        bind="query-params",
        placeholder="the strongest",
        width=200,
    )
    k = int(row.argmax()) if k is None else int(k)
    strip(
        now.labels,
        key="key_strip",
        values=row,
        selected=k,
        read=q,
        sets="k",
        of="attention",
        name=f"Keys of L{layer}H{head}: click one",
        is_dark=now.is_dark,
    )
    try:
        found = xray(now, layer, head, k)
    except ValueError as error:
        st.info(f"{error}. Click a key that it looks at.", icon=":material/visibility_off:")
        return
    _draw_chain(found)
    code = opening(now, "heads", "plots") + (
        f"found = heads.edge_xray(model, tokens, {layer}, {head}, {q}, {k}, {now.target}, {now.foil})\n"
        "fig = plots.edge_xray(found)\n"
    )
    off = abs(float(found.remainder))
    caption = check(f"Terms sum to {float(found.term.sum()):.4f}, the score {float(found.before_cap):.4f}", off, 1e-3)
    alt = f"Edge {found.attrs['edge']}: score {float(found.score[k]):.3f}, weight {float(found.weight[k]):.3f}."
    drawn = plots.edge_xray(found, theme=now.theme, title=f"L{layer}H{head}: {q} {now.labels[q]} → {k} {now.labels[k]}")
    table = DataArray(found.term.to_numpy(), coords={"dim": found.dim.to_numpy()}, dims="dim", name="q k / scale")
    figure(drawn, key="edge", caption=caption, code=code, data=table, alt=alt)
    _draw_writes(now, layer, head, k)


def _draw_writes(now: Chosen, layer: int, head: int, k: int) -> None:
    """What the head's OV circuit says of the token at the key."""
    found = writes(now, layer, head, k)
    source = token_text(now.labels[k])
    st.markdown(f"**What L{layer}H{head} writes for {source}**, the token at {k}")
    code = opening(now, "heads") + (
        f"found = heads.edge_writes(model, tokens, {layer}, {head}, {now.q}, {k}, {found.sizes['rank']})\n"
        "table = found.to_dataframe()\n"
    )
    listed = DataFrame({
        "raises most": list(map(seen, map(str, found.token.values))),
        "by weights": found.logit.values,
        "here": found.here.values,
    })  # fmt: skip
    numbers(
        listed,
        key="writes",
        caption=f"By weights: what attending to {source} by itself does to each logit, through the OV circuit. Here: "
        "the weight of this edge times the value at the key, which earlier layers have made, through the final norm as "
        "it is in this prompt.",
        code=code,
    )


def _draw_chain(found: Dataset) -> None:
    """The chain of numbers from scores to the logit."""
    k = found.attrs["key"]
    direct, zeroed, knocked_out = (float(x) for x in found.effect)
    said = {
        "Score": f"{float(found.score[k]):.3f}",
        "Weight": f"{float(found.weight[k]):.3f}",
        "Length of value": f"{float(found.value_norm):.3f}",
        "Adds directly": f"{direct:+.3f}",
        "Lost: zeroed": f"{zeroed:+.3f}",
        "Lost: knocked out": "–" if np.isnan(knocked_out) else f"{knocked_out:+.3f}",
    }
    helps = {
        "Score": "q · k / scale, capped where the model does so",
        "Weight": "after the softmax over all keys",
        "Length of value": "of what the value writes at a weight of 1",
        "Adds directly": "weight × value, through the final norm, to the logit difference",
        "Lost: zeroed": "the logit difference less that with a weight of 0 here; other weights as they were",
        "Lost: knocked out": "the same with the edge masked: other keys share its weight",
    }
    with st.container(horizontal=True, key="chain"):
        for label, value in said.items():
            st.metric(label, value, help=helps[label], width="content")
