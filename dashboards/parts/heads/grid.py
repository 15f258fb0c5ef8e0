"""One grid, three truths: what every head looks at, what is known of it, what hangs on it."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import streamlit as st
from xarray import DataArray, Dataset

from dashboards.parts.figure import opening
from dashboards.parts.grid import Scale, grid, scale_of, svg_of
from dashboards.parts.heads.measured import (
    EFFECTS,
    HERE,
    OTHERS,
    all_patterns,
    detected,
    effect_or_offer,
    offer_to_detect,
    picture_of,
    quoted,
    score_of,
    statistic_code,
)
from dashboards.parts.state import Chosen
from dashboards.parts.taken import taken
from interp import plots
from interp.heads import SCORES

MANY = 256  # heads; a picture of more takes a while to paint
TEXTS = 800  # cells with numbers in them
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
    picture, found = picture_of(now, relative), all_patterns()
    title = "of each head's own scale, by square root" if relative else "attention, by square root"
    pooled = f" A pixel is the largest of {picture.pooled} × {picture.pooled} places." if picture.pooled > 1 else ""
    _grid(
        now,
        selected,
        images=picture,
        scale=Scale(0.0, 1.0 if relative else picture.limit, title),
        alt="Attention patterns of all heads",
        caption=f"Queries down, keys across.{pooled}",
        code=f"fig = plots.head_mosaic(heads.patterns(model, tokens), relative={relative})\n",
        made=lambda: plots.head_mosaic(found, tokens=now.labels, relative=relative, theme=now.theme),
    )


def _score_grid(now: Chosen, selected: tuple[int, int]) -> None:
    name = st.selectbox("Score", [*HERE, *SCORES], key="score", bind="query-params", persist_state="session")
    z = score_of(now, name)
    if z is None:
        st.info("This score has a null: it is measured once for a model.", icon=":material/science:")
        offer_to_detect(now, "grid")
        return
    if name in HERE:
        caption = f"{HERE[name].capitalize()}. One prompt alone, without a null."
        code = "found = heads.corpus_statistics(model, tokens)\n"
        code += f"fig = plots.heatmap(({statistic_code(name)}).rename({name!r}), title={name!r})\n"
        made = lambda: plots.heatmap(z.rename(name), title=name, theme=now.theme)
        said, end = None, 1.0
    else:
        found = detected(now)
        assert found is not None
        own = found.sel(score=name)
        caption = (
            f"{SCORES[name].capitalize()}. Null: {float(own.null):.3f}; threshold {float(own.threshold):.3f}, above "
            f"{found.value.attrs['null_of']}; n = {int(own.n)}."
        )
        code = f"found = heads.detect(model)\nfig = plots.head_scores(found.value, {name!r})\n"
        made = lambda: plots.head_scores(found.value, name, theme=now.theme)
        said, end = _told(found, name), max(1.0, float(np.nanmax(z.to_numpy(), initial=0.0)))
    scale = Scale(0.0, end, name)
    alt = f"{name} of all heads"
    _grid(now, selected, z, scale=scale, said=said, alt=alt, caption=caption, code=code, made=made)


def _effect_grid(now: Chosen, selected: tuple[int, int]) -> None:
    kind = st.selectbox("Effect", list(EFFECTS), key="effect", bind="query-params", persist_state="session")
    effect = effect_or_offer(now, EFFECTS[kind], "grid")
    if effect is None:
        return
    title = f"on logit {quoted(now, now.target)} − {quoted(now, now.foil)}"
    answers = f"{now.target}, {now.foil}"
    if kind == "direct effect":
        caption = f"What each head adds to the difference at position {now.q} by what it writes there."
        code = "_, cache = model.run_with_cache(tokens, names_filter=heads.effect_names(model))\n"
        code += f"found = heads.direct_effects(model, cache, {answers}, pos={now.q})\n"
        code += "fig = plots.heatmap(found, scale='diverging')\n"
    else:
        text = "Python's standard library" if now.model.tokenizer is not None else "tokens drawn at random"
        to = {
            "zero": "0",
            "mean": "its mean over this prompt",
            "resample": f"what it is at the same place in other rows as long ({text}, seed 0), a mean of n = {OTHERS}",
        }[EFFECTS[kind]]
        caption = (
            f"The difference at position {now.q} without the head, less that with it"
            f" ({float(effect.attrs['base']):.4g}); its output is set to {to} at every position."
        )
        code = f"metric = metrics.logit_diff(model, {answers}, pos={now.q})\n"
        prompts, more = "tokens", ""
        if EFFECTS[kind] == "resample":
            code += f"others = passages.rows_like(model, tokens, {OTHERS})\n"
            prompts, more = f"tokens.expand({OTHERS}, -1)", ", reference=others"
        code += f"found = patching.ablation(model, {prompts}, 'z', metric, kind={EFFECTS[kind]!r}{more})\n"
        code += "fig = plots.heatmap(found, effect=True)\n"
    scale, alt = scale_of(effect.to_numpy(), "diverging", title), f"{kind} of all heads {title}"
    made = lambda: plots.heatmap(effect, scale="diverging", theme=now.theme)
    _grid(now, selected, effect, scale=scale, colour="diverging", alt=alt, caption=caption, code=code, made=made)


def _grid(
    now: Chosen,
    selected: tuple[int, int],
    z: DataArray | None = None,
    *,
    alt: str,
    caption: str,
    code: str,
    made: Callable[[], go.Figure],
    **look: Any,
) -> None:
    """The grid itself, what is said below it, and its numbers as a table."""
    rows = [f"L{i}" for i in range(now.model.cfg.n_layers)]
    title = alt
    columns, letters = [f"H{j}" for j in range(now.model.cfg.n_heads)], _letters(now)
    if z is not None:
        numbers = z.to_numpy()
        words = [[f"{x:+.2f}" if look.get("colour") else f"{x:.2f}" for x in row] for row in numbers.tolist()]
        look["text"] = words if numbers.size <= TEXTS else None
        named = [
            [f"{i}{j} {_number(x)}" for j, x in zip(columns, row, strict=True)]
            for i, row in zip(rows, numbers, strict=True)
        ]
        look["said"] = look.get("said") or named
        largest = np.argsort(-np.abs(np.nan_to_num(numbers)), axis=None)[:2]
        alt += ". Largest: " + ", ".join(named[k // len(columns)][k % len(columns)] for k in largest.tolist())
    grid(
        None if z is None else z.to_numpy(),
        key="grid",
        row_labels=rows,
        column_labels=columns,
        letters=letters,
        selected=selected,
        theme=now.theme,
        sets=("layer", "head"),
        alt=alt,
        **look,
    )
    st.caption(f"{caption} {_letters_said(now)}")
    imports = {"heads", "plots"} | {name for name in ("metrics", "passages", "patching") if f"{name}." in code}
    seen: dict[str, Any] = {name: x for name, x in look.items() if name != "said"}
    taken(
        None if z is None else pd.DataFrame(z.to_numpy(), rows, columns),
        key="grid",
        code=opening(now, *imports) + code,
        made=made,
        svg=lambda: svg_of(
            None if z is None else z.to_numpy(),
            row_labels=rows,
            column_labels=columns,
            letters=letters,
            theme=now.theme,
            title=title,
            **seen,
        ),
        png=None if z is not None else look["images"].png,
        pick=_pick,
    )


def _pick(layer: int, head: int) -> None:
    st.session_state["layer"], st.session_state["head"] = layer, head


def _number(x: float) -> str:
    return f"{x:.4g}" if np.isfinite(x) else "not computed"


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


def _told(found: Dataset, name: str) -> list[list[str]]:
    """What is said of each head's score."""
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
