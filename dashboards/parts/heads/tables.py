"""What stands below: strongest pairs, heads whose look and effect part, the head's card."""

import numpy as np
import pandas as pd
import streamlit as st

from dashboards.parts.figure import figure
from dashboards.parts.heads.measured import (
    EFFECTS,
    all_patterns,
    ask,
    asked,
    card_of,
    detected,
    effect_or_offer,
    score_of,
)
from dashboards.parts.snippets import opening
from dashboards.parts.state import Chosen
from interp import heads, plots
from interp.plots.theme import seen


def draw_tables(now: Chosen, layer: int, head: int) -> None:
    """Three tables on tabs."""
    pairs, parting, card = st.tabs(["Strongest pairs", "Where look and effect part", "Head card"])
    with pairs:
        _draw_pairs(now, layer, head)
    with parting:
        _draw_parting(now)
    with card:
        _draw_card(now, layer, head)


def _draw_pairs(now: Chosen, layer: int, head: int) -> None:
    hide = bool(st.session_state.get("hide_first"))
    found = all_patterns().strongest(layer, head, 20, first=not hide)
    queries, keys = found.query_pos.to_numpy(), found.key_pos.to_numpy()
    columns = {
        "query": queries,
        "query token": [seen(now.labels[i]) for i in queries],
        "key": keys,
        "key token": [seen(now.labels[i]) for i in keys],
        "attention": found.weight.to_numpy(),
    }
    st.dataframe(pd.DataFrame(columns), key="pairs", hide_index=True, width="stretch", height=300)


def _draw_parting(now: Chosen) -> None:
    """Heads by how far their rank by score and by effect are apart."""
    name, kind = st.session_state.get("score", "focus here"), st.session_state.get("effect", "direct effect")
    score, effect = score_of(now, name), effect_or_offer(now, EFFECTS[kind], "parting")
    if score is None or effect is None:
        st.text(f"The score {name!r} is not measured yet." if score is None else "")
        return
    apart = heads.disagreement(score, effect)
    at = [(int(i), int(j)) for i, j in np.ndindex(*apart.shape) if np.isfinite(apart[i, j])]
    order = sorted(at, key=lambda cell: -abs(float(apart[cell])))
    found = detected(now)
    columns = {
        "head": [f"L{i}H{j}" for i, j in order],
        "role": ["not measured" if found is None else found.role[cell].item() for cell in order],
        name: [float(score[cell]) for cell in order],
        kind: [float(effect[cell]) for cell in order],
        "apart": [float(apart[cell]) for cell in order],
        "means": ["looks, to no effect" if apart[cell] > 0 else "effect, without the look" for cell in order],
    }
    st.session_state["_parting"] = order
    st.dataframe(
        pd.DataFrame(columns),
        key="parting",
        hide_index=True,
        on_select=_row_picked,
        selection_mode="single-row",
        width="stretch",
        height=300,
    )
    st.caption("Rank by score less rank by the size of the effect, as shares of all heads; pick a row to see the head.")


def _row_picked() -> None:
    for row in st.session_state["parting"].selection.rows[:1]:
        st.session_state["layer"], st.session_state["head"] = st.session_state["_parting"][row]


def _draw_card(now: Chosen, layer: int, head: int) -> None:
    if not asked("card", now.fingerprint):
        st.text("What it reads and writes by its weights, where it looks hardest in text, what is lost without it.")
        st.button("Draw head cards", key="draw_card", on_click=_ask_for_cards, args=(now.fingerprint,))
        return
    card = card_of(now, layer, head)
    code = opening(now, "heads", "plots") + (
        f"card = heads.head_card(model, {layer}, {head})\nprint(card)\nfigure = plots.head_card(card)\n"
    )
    scores = card["scores"].to_dataframe().reset_index()
    alt = f"Card of {card.name}: {card.role}"
    figure(plots.head_card(card, theme=now.theme), key="card", code=code, data=scores, alt=alt)


def _ask_for_cards(fingerprint: str) -> None:
    ask("roles", fingerprint)
    ask("card", fingerprint)
