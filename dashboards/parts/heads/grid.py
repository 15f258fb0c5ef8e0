"""One grid, three truths: what every head looks at, what is known of it, what hangs on it."""

from typing import Any

import numpy as np
import pandas as pd
import streamlit as st
from xarray import DataArray

from dashboards.parts.grid import Scale, grid, scale_of
from dashboards.parts.heads.measured import (
    EFFECTS,
    HERE,
    detected,
    effect_or_offer,
    offer_to_detect,
    picture_of,
    quoted,
    score_of,
)
from dashboards.parts.state import Chosen
from interp.heads import SCORES

MANY = 256  # heads; a picture of more takes a while to paint
LETTERS = {
    "previous token": "P",
    "induction": "I",
    "induction in text": "T",
    "duplicate token": "D",
    "current token": "C",
    "first token": "F",
    "copying": "Y",
    "copy suppression": "N",
    "successor": "S",
}


def draw_grid(now: Chosen, layer: int, head: int) -> None:
    """The grid, and the choice of what it shows."""
    n_layers, n_heads = now.model.cfg.n_layers, now.model.cfg.n_heads
    default = "Score" if n_layers * n_heads > MANY else "Pattern"
    show = st.segmented_control(
        "Show", ["Pattern", "Score", "Effect"], default=default, key="show", bind="query-params", required=True
    )
    draw = {"Pattern": _pattern_grid, "Score": _score_grid, "Effect": _effect_grid}[show]
    draw(now, (layer, head))


def _pattern_grid(now: Chosen, selected: tuple[int, int]) -> None:
    relative = st.toggle("A colour scale for each head", key="relative", bind="query-params")
    picture = picture_of(now, relative)
    title = "of each head's own scale, by square root" if relative else "attention, by square root"
    scale = Scale(0.0, 1.0 if relative else picture.limit, title)
    _grid(now, selected, images=picture, scale=scale, alt="Attention patterns of all heads")
    pooled = f" A pixel is the largest of {picture.pooled} × {picture.pooled} places." if picture.pooled > 1 else ""
    st.caption(f"Queries down, keys across.{pooled} {_letters_said(now)}")


def _score_grid(now: Chosen, selected: tuple[int, int]) -> None:
    name = _pick_score()
    z = score_of(now, name)
    if z is None:
        st.info("This score has a null: it is measured once for a model.", icon=":material/science:")
        offer_to_detect(now, "grid")
        return
    said, letters = None, None
    if name in HERE:
        title, end = name, 1.0
    else:
        title, end, said = name, max(1.0, float(np.nanmax(z.to_numpy(), initial=0.0))), _told(now, name)
    _grid(now, selected, z=z, scale=Scale(0.0, end, title), said=said, letters=letters, alt=f"{title} of all heads")
    if name in HERE:
        st.caption(f"{HERE[name].capitalize()}. One prompt alone, without a null. {_letters_said(now)}")
    else:
        found = detected(now)
        assert found is not None
        own = found.sel(score=name)
        st.caption(
            f"{SCORES[name]}. Null: {float(own.null):.3f}; threshold {float(own.threshold):.3f}, above "
            f"{found.value.attrs['null_of']}; n = {int(own.n)}. {_letters_said(now)}"
        )


def _effect_grid(now: Chosen, selected: tuple[int, int]) -> None:
    kind = st.selectbox("Effect", list(EFFECTS), key="effect", bind="query-params", persist_state="session")
    effect = effect_or_offer(now, EFFECTS[kind], "grid")
    if effect is None:
        return
    title = f"on logit {quoted(now, now.target)} − {quoted(now, now.foil)}"
    scale = scale_of(effect.to_numpy(), "diverging", title)
    _grid(now, selected, z=effect, scale=scale, colour="diverging", alt=f"{kind} of all heads {title}")
    if kind == "direct effect":
        st.caption(f"What each head adds to the difference at position {now.q} by what it writes there.")
    else:
        st.caption(
            f"The difference at position {now.q} without the head, less that with it"
            f" ({float(effect.attrs['base']):.4g}); its output is set to "
            f"{'0' if kind == 'zeroed' else 'its mean over this prompt'} at every position."
        )


def _grid(now: Chosen, selected: tuple[int, int], z: DataArray | None = None, **look: Any) -> None:
    """The grid itself, and its numbers as a table."""
    n_layers, n_heads = now.model.cfg.n_layers, now.model.cfg.n_heads
    names = [[f"L{i}H{j}" for j in range(n_heads)] for i in range(n_layers)]
    if z is not None:
        numbers = z.to_numpy()
        words = [[f"{x:+.2f}" if look.get("colour") else f"{x:.2f}" for x in row] for row in numbers.tolist()]
        look["text"] = words if numbers.size <= 800 else None
        if look.get("said") is None:
            look["said"] = [
                [f"{names[i][j]} {_number(numbers[i, j])}" for j in range(n_heads)] for i in range(n_layers)
            ]
    look["letters"] = _letters(now)
    grid(
        None if z is None else z.to_numpy(),
        key="grid",
        row_labels=[f"L{i}" for i in range(n_layers)],
        column_labels=[f"H{j}" for j in range(n_heads)],
        selected=selected,
        theme=now.theme,
        sets=("layer", "head"),
        **look,
    )
    if z is not None and st.toggle("Table", key="grid_table"):
        table = pd.DataFrame(z.to_numpy(), [f"L{i}" for i in range(n_layers)], [f"H{j}" for j in range(n_heads)])
        st.dataframe(
            table, key="grid_cells", on_select=_cell_picked, selection_mode="single-cell", width="stretch", height=220
        )


def _cell_picked() -> None:
    for row, column in st.session_state["grid_cells"].selection.cells[:1]:
        st.session_state["layer"], st.session_state["head"] = int(row), int(str(column)[1:])


def _number(x: float) -> str:
    return f"{x:.4g}" if np.isfinite(x) else "not computed"


def _pick_score() -> str:
    names = [*HERE, *SCORES]
    return st.selectbox("Score", names, key="score", bind="query-params", persist_state="session")


def _letters(now: Chosen) -> list[list[str]] | None:
    found = detected(now)
    if found is None:
        return None
    return [
        [
            "".join(LETTERS.get(role, "K") for role in str(roles).split(", ") if role != "unclassified")[:2]
            for roles in row
        ]
        for row in found.role.to_numpy()
    ]


def _letters_said(now: Chosen) -> str:
    found = detected(now)
    if found is None:
        return ""
    roles = sorted({role for roles in found.role.to_numpy().flatten() for role in str(roles).split(", ")})
    return "Letters: " + ", ".join(f"{LETTERS.get(role, 'K')} {role}" for role in roles if role != "unclassified") + "."


def _told(now: Chosen, name: str) -> list[list[str]]:
    """What is said of each head's score."""
    found = detected(now)
    assert found is not None
    own = found.sel(score=name)
    value, low, high, role = (each.to_numpy() for each in (own.value, own.low, own.high, found.role))
    return [
        [
            f"L{i}H{j} {name} {_number(value[i, j])}\ninterval {low[i, j]:.3f} to {high[i, j]:.3f}\n"
            f"threshold {float(own.threshold):.3f}\n{role[i, j]}"
            for j in range(value.shape[1])
        ]
        for i in range(value.shape[0])
    ]
