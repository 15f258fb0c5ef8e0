"""Where heads took it from, and which neurons add most."""

from pathlib import Path

import numpy as np
import pandas as pd
import streamlit as st
from xarray import DataArray

from dashboards.parts.attribution.measured import Attribution, sources
from dashboards.parts.attribution.whole import code, question
from dashboards.parts.figure import figure
from dashboards.parts.state import Chosen
from dashboards.parts.strip import strip
from dashboards.parts.words import token_text
from interp import plots

_N = 20  # neurons to each side
_VIEWS = Path(__file__).parents[2] / "views"


def draw_sources(now: Chosen, frozen: bool) -> None:
    """The prompt, each token by what heads bring from it."""
    found = sources(now, frozen)
    st.markdown("**From where**: what heads add, by the position that they look at")
    if found is None:
        st.info("The patterns of all heads on a prompt of this length take too much memory.", icon=":material/memory:")
        return
    heads = found[(found.kind == "head").values]
    values = heads.sum("component").to_numpy()
    at = st.session_state.get("_source")
    if at is None or at >= len(now.labels):
        at = int(np.abs(values).argmax())
    strip(
        now.labels,
        key="source_strip",
        values=values,
        colour="diverging",
        selected=at,
        read=now.q,
        name="From where: click a token to see which heads bring what from it",
        of="adds",
        sets="_source",
        is_dark=now.is_dark,
    )
    whole = float(heads.sum())
    st.caption(f"All heads add {whole:+.4g}; the other parts come from the position itself and are not in this strip.")
    _draw_from(now, heads, at)


def _draw_from(now: Chosen, heads: DataArray, at: int) -> None:
    """The heads that bring most from one position."""
    one = heads.isel(key_pos=at)
    most = one[np.argsort(-np.abs(one.to_numpy()), kind="stable")[:8]]
    st.markdown(f"From position {at} {token_text(now.labels[at])}: {float(one.sum()):+.4f}")
    table = pd.DataFrame({"head": most.component.values, "adds": most.to_numpy()})
    st.dataframe(table, key="source_heads", hide_index=True, width=260, height=38 + 35 * len(table))


def draw_neurons(now: Chosen, found: Attribution, frozen: bool) -> tuple[int, int] | None:
    """The neurons that add most and take away most; layer and neuron of the one just picked, if one was."""
    st.markdown("**Neurons** that add most, and that take away most")
    if "neuron" not in found.by:
        st.caption("This model has no MLPs.")
        return None
    neurons = found.by["neuron"]
    neurons = neurons[(neurons.kind == "neuron").values]
    order = np.argsort(-neurons.to_numpy(), kind="stable")
    n = min(_N, len(order) // 2)
    shown = neurons.isel(component=np.concatenate([order[:n], order[len(order) - n :]]))
    shown = shown.drop_vars(["total", "capped", "remainder"])
    drawn = plots.bars(shown, title=f"Neurons: the {n} at each end of {len(order):,}", theme=now.theme)
    names, values = shown.component.values.tolist(), shown.to_numpy()
    made = (
        "neurons = found.isel(prompt=0)[found.kind.values == 'neuron']\n"
        f"order = (-neurons.to_numpy()).argsort(kind='stable')\norder = [*order[:{n}], *order[-{n}:]]\n"
        "fig = plots.bars(neurons.isel(component=order))\n"
    )
    figure(
        drawn,
        key="attribution_neurons",
        caption=f"Of the {len(order):,} neurons, which together add {float(neurons.sum()):+.4g} to the "
        f"{'logit difference' if frozen else 'product'}.",
        code=code(now, "neuron", frozen) + made,
        data=shown,
        alt=f"Bars: neurons by what they add to the {question(now)}. Most: {names[0]} {values[0]:+.3f}; least: "
        f"{names[-1]} {values[-1]:+.3f}.",
    )
    if not (_VIEWS / "memories.py").is_file():
        return None
    return _pick(shown)


def _pick(shown: DataArray) -> tuple[int, int] | None:
    """A table of the same neurons, of which a click opens one."""
    names = shown.component.values.tolist()
    st.session_state["_neurons"] = names
    st.dataframe(
        pd.DataFrame({"neuron": names, "adds": shown.to_numpy()}),
        key="neurons",
        hide_index=True,
        width=260,
        height=250,
        on_select=_neuron_picked,
        selection_mode="single-cell",
    )
    st.caption("A click opens a neuron on the page Memories.")
    name = st.session_state.pop("_neuron_picked", None)
    if name is None:
        return None
    layer, neuron = name.removeprefix("L").split("N")
    return int(layer), int(neuron)


def _neuron_picked() -> None:
    for row, _ in st.session_state["neurons"].selection.cells[:1]:
        st.session_state["_neuron_picked"] = st.session_state["_neurons"][int(row)]
