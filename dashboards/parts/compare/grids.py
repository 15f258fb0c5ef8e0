"""A, B, and B − A, on the same grid of layers and heads."""

from typing import Any

import numpy as np
import pandas as pd
import streamlit as st
from xarray import DataArray

from dashboards.parts.compare.chosen import Both
from dashboards.parts.compare.measured import DIRECT
from dashboards.parts.figure import opening
from dashboards.parts.grid import Colour, Scale, grid, scale_of, svg_of
from dashboards.parts.heads.measured import HERE, quoted, statistic_code
from dashboards.parts.state import Chosen
from dashboards.parts.taken import taken
from dashboards.parts.words import plain
from interp import plots

TEXTS = 400  # cells with numbers in them


def question(both: Both) -> str:
    """What the numbers are, in words."""
    now = both.a
    if both.what != DIRECT:
        return HERE[both.what]
    return f"what each head adds to the logit of {quoted(now, now.target)} less that of {quoted(now, now.foil)}"


def draw_grids(both: Both, a: DataArray, b: DataArray, selected: tuple[int, int]) -> None:
    """The three grids beside each other; A and B have the same colours."""
    own: tuple[Colour, Scale]
    less: tuple[Colour, Scale]
    if both.what == DIRECT:
        either = np.concatenate([a.to_numpy().ravel(), b.to_numpy().ravel()])
        own = "diverging", scale_of(either, "diverging", "A and B alike")
    else:
        own = "sequential", Scale(0.0, 1.0, "A and B alike")
    change = (b - a).rename("change")
    less = "diverging", scale_of(change.to_numpy(), "diverging", "B less A")
    with st.container(horizontal=True, key="compare_grids", gap="medium"):
        for key, name, found, look in (("a", "A", a, own), ("b", "B", b, own), ("change", "B − A", change, less)):
            with st.container(width="stretch", key=f"compare_{key}_side"):
                st.markdown(f"**{name}**")
                _draw(both, key, name, found, look, selected)
    said = question(both) + _where(both)
    st.caption(plain(said[0].upper() + said[1:]))


def _where(both: Both) -> str:
    if both.what != DIRECT:
        return ". One prompt alone, without a null."
    if both.a.q == both.b.q:
        return f", at position {both.a.q}."
    return f", at position {both.a.q} of A and {both.b.q} of B."


def _draw(
    both: Both, key: str, name: str, found: DataArray, own: tuple[Colour, Scale], selected: tuple[int, int]
) -> None:
    z, now = found.to_numpy(), both.a
    colour, scale = own
    rows, columns = [f"L{i}" for i in range(z.shape[0])], [f"H{j}" for j in range(z.shape[1])]
    form = "{:+.2f}" if colour == "diverging" else "{:.2f}"
    look: dict[str, Any] = {
        "row_labels": rows,
        "column_labels": columns,
        "text": [[form.format(x) if np.isfinite(x) else "" for x in row] for row in z] if z.size <= TEXTS else None,
        "colour": colour,
        "scale": scale,
        "theme": now.theme,
    }
    said = [
        [f"{i}{j} {name} " + number(x, "+.4g" if key == "change" else ".4g") for j, x in zip(columns, row, strict=True)]
        for i, row in zip(rows, z, strict=True)
    ]
    order = np.argsort(-np.abs(np.nan_to_num(z)), axis=None)[:2].tolist()
    largest = ", ".join(said[k // len(columns)][k % len(columns)] for k in order)
    title = f"{name}, {both.what}: {question(both)}"
    grid(
        z,
        key=f"compare_{key}",
        said=said,
        selected=selected,
        sets=("layer", "head"),
        alt=f"{title}. Largest: {largest}.",
        **look,
    )
    taken(
        pd.DataFrame(z, rows, columns),
        key=f"compare_{key}_map",
        code=code_of(both, "plots") + f"fig = plots.heatmap({key}, scale={colour!r})\n",
        made=lambda: plots.heatmap(
            found.rename(both.what), title=f"{name}: {both.what}", scale=colour, theme=now.theme
        ),
        svg=lambda: svg_of(z, title=title, **look),
        more=about_other(both),
    )


def number(x: float, form: str = ".4g") -> str:
    """As it is told."""
    return f"{x:{form}}" if np.isfinite(x) else "not computed"


def about_other(both: Both) -> dict[str, Any]:
    """What a file says of A and B, beside what it says of what is on show."""
    return {
        name: {"model": each.name, "fingerprint": each.fingerprint, "prompt": each.prompt, "position": each.q}
        for name, each in (("A", both.a), ("B", both.b))
    }


def code_of(both: Both, *imports: str) -> str:
    """Python that makes the numbers of A, of B, and their difference again, as `a`, `b` and `change`."""
    code = opening(both.a, "heads", *imports, other=both.b)
    other = "other_model" if both.is_other_model else "model"
    for name, now, model, tokens in (("a", both.a, "model", "tokens"), ("b", both.b, other, "other_tokens")):
        code += _code(both, name, now, model, tokens)
    return code + "change = b - a\n"


def _code(both: Both, name: str, now: Chosen, model: str, tokens: str) -> str:
    if both.what != DIRECT:
        found = f"heads.corpus_statistics({model}, {tokens})"
        return f"found = {found}\n{name} = {statistic_code(both.what)}\n"
    return (
        f"_, cache = {model}.run_with_cache({tokens}, names_filter=heads.effect_names({model}))\n"
        f"{name} = heads.direct_effects({model}, cache, {now.target}, {now.foil}, pos={now.q})"
        ".isel(prompt=0, drop=True)\n"
    )
