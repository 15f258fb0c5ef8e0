"""One cell of the map: what is read there."""

import numpy as np
import pandas as pd
import streamlit as st

from dashboards.parts.lens.chosen import COLOURS, Cell, readings
from dashboards.parts.state import Chosen
from dashboards.parts.words import token_text
from interp.plots.theme import seen


def draw_cell(now: Chosen, cell: Cell) -> None:
    """The likeliest tokens there, and how far each has come since the reading before."""
    one, names = cell.one, readings(now, cell.halves)
    by = "" if cell.tuned is None else ", by the tuned lens"
    st.markdown(f"**{names[cell.row].capitalize()}**, position {cell.pos} {token_text(now.labels[cell.pos])}{by}")
    changes = [_change(before, rank) for rank, before in enumerate(one.rank_before.to_numpy().tolist())]
    probability = one.probability.to_numpy()
    columns = {"token": [seen(str(token)) for token in one.token.to_numpy()], "probability": probability}
    st.dataframe(
        pd.DataFrame(columns | {"rank": changes}),
        key="lens_top",
        hide_index=True,
        height=37 + 35 * len(changes),
        column_config={
            "probability": st.column_config.ProgressColumn(format="%.4f", min_value=0, max_value=1, width="small"),
            "rank": st.column_config.TextColumn(
                help="How far up or down since the reading before.", width="small", alignment="right"
            ),
        },
    )
    others = now.model.cfg.d_vocab_out - len(changes)
    rest = max(0.0, 1 - float(probability.sum()))
    st.text(f"The other {others:,} tokens: {rest:.4f}" if others else "These are all tokens.")
    st.text("\n".join(_numbers(cell)))


def _numbers(cell: Cell) -> list[str]:
    one, asked = cell.one, "Next token" if cell.is_next else "Target"
    if np.isfinite(float(one.target_rank)):
        rank = int(one.target_rank)
        said = [
            f"{asked}: probability {float(one.target_probability):.4g}",
            f"{asked}: rank {rank:,}" + (", the likeliest" if rank == 0 else f", after {rank:,} likelier"),
            f"{asked} less foil: logits {float(one.logit_difference):+.4g}",
        ]
    else:
        said = ["No token follows here."]
    said += [f"Entropy {float(one.entropy):.4g} nats", f"KL to the end {float(one.kl):.4g} nats"]
    if cell.less is not None:
        said.append(f"Tuned less plain: {COLOURS[cell.colour]} {float(cell.numbers[cell.row, cell.column]):+.4g}")
    return said


def _change(before: float, rank: int) -> str:
    if not np.isfinite(before):
        return ""
    moved = int(before) - rank
    return f"↑{moved:,}" if moved > 0 else f"↓{-moved:,}" if moved < 0 else "="
