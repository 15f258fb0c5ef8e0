"""The parts of the logit difference: by what they are, and by head."""

from typing import Any

import numpy as np
import pandas as pd
import streamlit as st

from dashboards.parts.attribution.measured import Attribution, by_head, has_norm
from dashboards.parts.figure import figure, opening
from dashboards.parts.grid import grid, scale_of, svg_of
from dashboards.parts.heads.measured import quoted
from dashboards.parts.state import Chosen
from dashboards.parts.taken import taken
from dashboards.parts.words import plain
from interp import plots

CLASSES = {"embed": "embeddings", "attn": "attention", "mlp": "MLPs", "bias": "biases"}
NORM = {"frozen": "scale frozen", "none": "left out"}


def question(now: Chosen) -> str:
    """What is taken apart, in words."""
    return f"logit of {quoted(now, now.target)} − {quoted(now, now.foil)}"


def ask(now: Chosen) -> bool:
    """Draw the choice of how the final norm is treated; whether its scale is frozen."""
    if not has_norm(now.model):
        st.caption("This model has no final norm: parts are read off the stream as they are.")
        return True
    if st.session_state.get("norm", "frozen") not in NORM:
        del st.session_state["norm"]
    how = st.segmented_control(
        "Final norm",
        list(NORM),
        default="frozen",
        format_func=NORM.__getitem__,
        key="norm",
        bind="query-params",
        required=True,
        help="Frozen: every part is divided by the scale that the norm had in this run, so that the parts sum to the "
        "logit difference. Left out: every part's product with the difference of the two columns of W_U.",
    )
    return how == "frozen"


def draw_bars(now: Chosen, found: Attribution, frozen: bool) -> None:
    """What each component adds."""
    drawn = plots.attribution_bars(found.parts, title=f"What adds to the {question(now)}", theme=now.theme)
    order = np.argsort(-np.abs(found.parts.to_numpy()))[:2]
    largest = "; ".join(f"{found.parts.component.values[i]} {float(found.parts[i]):+.3f}" for i in order)
    figure(
        drawn,
        key="attribution_bars",
        caption=_check(now, found, frozen),
        code=code(now, "component", frozen) + "fig = plots.attribution_bars(found)\n",
        data=found.parts,
        alt=f"Bars: what each component adds to the {question(now)}, in all {found.total:.4g}. Largest: {largest}.",
    )


def draw_heads(now: Chosen, found: Attribution, frozen: bool) -> tuple[int, int] | None:
    """The map of heads; the head that was just clicked, if one was."""
    z = by_head(now, found)
    values = z.to_numpy()
    n_layers, n_heads = values.shape
    order = np.argsort(-np.abs(values), axis=None)[:2]
    largest = "; ".join(f"L{i}H{j} {values[i, j]:+.3f}" for i, j in (divmod(int(at), n_heads) for at in order))
    names = [[f"L{i}H{j} {values[i, j]:+.4g}" for j in range(n_heads)] for i in range(n_layers)]
    title = f"What each head adds to the {question(now)}"
    look: dict[str, Any] = {
        "row_labels": [f"L{i}" for i in range(n_layers)],
        "column_labels": [f"H{j}" for j in range(n_heads)],
        "text": [[f"{x:+.2f}" for x in row] for row in values.tolist()] if values.size <= 800 else None,
        "colour": "diverging",
        "scale": scale_of(values, "diverging", question(now)),
        "theme": now.theme,
    }
    clicked = grid(values, key="attribution_heads", said=names, alt=f"{title}. Largest: {largest}.", **look)
    st.caption(f"What each head adds; together {values.sum():+.4g}. A click opens the head on the page Heads.")
    code = opening(now, "heads", "plots") + (
        "_, cache = model.run_with_cache(tokens)\n"
        f"found = heads.direct_effects(model, cache, {_answer(now, frozen)}, pos={now.q})\n"
        "fig = plots.heatmap(found, scale='diverging')\n"
    )
    table = pd.DataFrame(values, [f"L{i}" for i in range(n_layers)], [f"H{j}" for j in range(n_heads)])
    taken(
        table,
        key="attribution_heads",
        code=code,
        made=lambda: plots.heatmap(z, scale="diverging", title=f"Heads: {question(now)}", theme=now.theme),
        svg=lambda: svg_of(values, title=title, **look),
    )
    return clicked


def code(now: Chosen, by: str, frozen: bool) -> str:
    """The lines that take the logit difference apart."""
    return opening(now, "lens", "plots") + (
        "_, cache = model.run_with_cache(tokens)\n"
        f"found = lens.direct_logit_attribution(model, cache, {_answer(now, frozen)}, by={by!r}, pos={now.q})\n"
    )


def _answer(now: Chosen, frozen: bool) -> str:
    return f"{now.target}, {now.foil}" if frozen else f"model.W_U[:, {now.target}] - model.W_U[:, {now.foil}]"


def _check(now: Chosen, found: Attribution, frozen: bool) -> str:
    """Whether the parts, class by class, are the whole."""
    sums = {kind: float(found.parts[(found.parts.kind == kind).values].sum()) for kind in CLASSES}
    said = " + ".join(f"{CLASSES[kind]} {x:.4g}" for kind, x in sums.items() if (found.parts.kind == kind).any())
    whole = "logit difference" if frozen else "the stream's product with W_U's columns"
    remainder = float(found.parts.remainder)
    ok = found.error <= 1e-4 * max(1.0, abs(found.total))
    mark = f"(error {found.error:.1g}) ✓" if ok else f":red[(error {found.error:.2g}) ✗]"
    line = f"{said} + remainder {remainder:.1g} = {whole} {found.total:.5g} {mark}."
    own = abs(float(found.parts.capped) - found.own)
    if not frozen:
        return f"{line} It is not the logit difference {found.own:.4g}: the final norm is left out."
    if abs(float(found.parts.capped) - found.total) > 1e-6:
        line += f" The model caps its logits: {float(found.parts.capped):.4g} after the cap."
    agrees = f"error {own:.1g} ✓" if own <= 1e-3 else f":red[off by {own:.2g} ✗]"
    norm = "The final norm's scale is frozen. " if has_norm(now.model) else ""
    begins = " The prompt begins with the token that begins every text." if now.bos else ""
    return f"{line} The model's own output: {found.own:.5g} ({agrees}). {norm}At position {now.q} {token(now)}.{begins}"


def token(now: Chosen) -> str:
    """The token read, as a caption can show it."""
    return plain(now.labels[now.q], 24)
