"""Below the grids: the head that is marked, the next tokens of both, and which heads change most."""

import streamlit as st
from xarray import DataArray

from dashboards.parts.compare.chosen import Both
from dashboards.parts.compare.grids import about_other, code_of, number
from dashboards.parts.compare.measured import TOP, changes, log_probs, next_tokens
from dashboards.parts.figure import numbers, opening
from dashboards.parts.heads.measured import quoted
from dashboards.parts.words import plain


def draw_head(a: DataArray, b: DataArray, layer: int, head: int) -> None:
    """The numbers of the head that is marked, and the way to its page."""
    one, other = (float(each.sel(layer=layer, head=head)) for each in (a, b))
    with st.container(horizontal=True, vertical_alignment="center"):
        said = f"A {number(one)}, B {number(other)}, B − A {number(other - one, '+.4g')}"
        st.markdown(f"**L{layer}H{head}**: {said}", width="content")
        st.page_link(
            "views/heads.py",
            label="On the page Heads",
            icon=":material/grid_view:",
            help="There it is shown on the model and the prompt on the left.",
            query_params={"layer": str(layer), "head": str(head)},
        )


def draw_next(both: Both) -> None:
    """The next tokens of both."""
    a, b = both.a, both.b
    st.markdown("**Next tokens**")
    found = [log_probs(each) for each in (a, b)]
    one, other = (float(each[a.target] - each[a.foil]) for each in found)
    target, foil = (plain(quoted(a, token)) for token in (a.target, a.foil))
    caption = (
        f"The {TOP} likeliest of either. Logit of {target} less that of {foil}: "
        f"A {one:+.3f}, B {other:+.3f}, B − A {other - one:+.3f}."
    )
    model = "other_model" if both.is_other_model else "model"
    code = opening(a, other=b) + (
        f"a = model(tokens)[0, {a.q}].softmax(-1).detach()\n"
        f"b = {model}(other_tokens)[0, {b.q}].softmax(-1).detach()\n"
        f"either = {{*a.topk(min({TOP}, len(a))).indices.tolist(), *b.topk(min({TOP}, len(b))).indices.tolist()}}\n"
        "ids = sorted(either, key=lambda i: -max(a[i], b[i]))\n"
        "table = [(i, float(a[i]), float(b[i]), float(b[i] - a[i])) for i in ids]\n"
    )
    numbers(next_tokens(a, b), key="compare_next", caption=caption, code=code, more=about_other(both))


def draw_changes(both: Both, a: DataArray, b: DataArray, selected: tuple[int, int]) -> None:
    """All heads, by how much they change, and which of them is marked on the grids."""
    st.markdown("**Largest changes**")
    code = code_of(both) + (
        "table = sorted(change.to_series().items(), key=lambda each: -abs(each[1]))  # (layer, head), B − A\n"
    )
    found = changes(a, b)
    marked = found["head"].tolist().index("L{}H{}".format(*selected))
    caption = f"Heads by the size of B − A: {both.what}. ▶ is the head that is marked, {marked + 1} of {len(found)}."
    numbers(found, key="compare_changes", caption=caption, code=code, more=about_other(both), marked=marked)
