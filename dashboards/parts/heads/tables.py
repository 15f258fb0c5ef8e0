"""What stands below: strongest pairs, heads whose score and effect disagree, the head's card."""

import numpy as np
import pandas as pd
import streamlit as st

from dashboards.parts.figure import figure, numbers, opening
from dashboards.parts.heads.measured import (
    EFFECTS,
    all_patterns,
    ask,
    asked,
    card_of,
    detected,
    effect_or_offer,
    offer_to_detect,
    score_of,
)
from dashboards.parts.state import Chosen
from interp import heads, plots
from interp.plots.theme import seen

MOST = 100  # rows of a table


def draw_tables(now: Chosen, layer: int, head: int) -> None:
    """Three tables on tabs."""
    tabs = st.tabs(["Strongest pairs", "Score against effect", "Head card"], key="below", bind="query-params")
    for tab, draw in zip(tabs, (_draw_pairs, _draw_parting, _draw_card), strict=True):
        if tab.open:
            with tab:
                draw(now, layer, head)


def _draw_pairs(now: Chosen, layer: int, head: int) -> None:
    hide = bool(st.session_state.get("hide_first"))
    found = all_patterns().strongest(layer, head, 20, first=not hide)
    pairs = found.to_dataframe()
    for end in ("query", "key"):
        pairs[end] = [seen(now.labels[i]) for i in pairs[f"{end}_pos"]]
    code = opening(now, "heads") + (
        f"found = heads.patterns(model, tokens, [{layer}], [{head}])\n"
        f"table = found.strongest({layer}, {head}, 20, first={not hide}).to_dataframe()\n"
        f"labels = {[seen(label) for label in now.labels]!r}\n"
        "for end in ('query', 'key'):\n    table[end] = [labels[i] for i in table[f'{end}_pos']]\n"
    )
    numbers(pairs, key="pairs", caption="Of all pairs of a query and a key.", code=code)


def _draw_parting(now: Chosen, *_: int) -> None:
    """Heads by how far their rank by score and by effect are apart."""
    name, kind = st.session_state.get("score", "focus here"), st.session_state.get("effect", "direct effect")
    score, effect = score_of(now, name), effect_or_offer(now, EFFECTS[kind], "parting")
    if score is None:
        st.text(f"The score {name!r} is not measured yet.")
        offer_to_detect(now, "parting")
    if score is None or effect is None:
        return
    apart = heads.disagreement(score, effect).to_numpy()
    order = np.argsort(-np.abs(np.nan_to_num(apart)), axis=None, kind="stable")[:MOST]
    layers, others = np.unravel_index(order, apart.shape)
    found = detected(now)
    columns = {
        "head": [f"L{i}H{j}" for i, j in zip(layers, others, strict=True)],
        "role": "not measured" if found is None else found.role.to_numpy()[layers, others],
        name: score.to_numpy()[layers, others],
        kind: effect.to_numpy()[layers, others],
        "apart": apart[layers, others],
        "means": np.where(apart[layers, others] > 0, "high score, little effect", "large effect, low score"),
    }
    st.session_state["_parting"] = list(zip(layers.tolist(), others.tolist(), strict=True))
    st.dataframe(
        pd.DataFrame(columns),
        key="parting",
        hide_index=True,
        on_select=_row_picked,
        selection_mode="single-row",
        width="stretch",
        height=300,
    )
    st.caption(
        f"Do the heads with a high score ({name}) also do something here ({kind})? First those where the answer is a "
        "clear no: a high score and next to no effect, or a large effect and a low score. `apart` is the share of "
        "heads with a lower score less the share with a smaller effect, from −1 to 1. Pick a row to see the head."
    )


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
        f"card = heads.head_card(model, {layer}, {head})\nprint(card)\nfig = plots.head_card(card)\n"
    )
    scores = card["scores"].to_dataframe().reset_index()
    alt = f"Card of {card.name}: {card.role}"
    figure(plots.head_card(card, theme=now.theme), key="card", code=code, data=scores, alt=alt)


def _ask_for_cards(fingerprint: str) -> None:
    ask("roles", fingerprint)
    ask("card", fingerprint)
