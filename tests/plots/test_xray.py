import numpy as np
import pytest

from interp import plots
from interp.heads import edge_xray
from interp.plots.theme import palette
from tests.variants import some_tokens, variant


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_figure_shows_the_terms_and_what_the_edge_is_to_the_logit(theme: str) -> None:
    found = edge_xray(variant("gptj"), some_tokens(1), 1, 2, 5, 3, 4, 2)
    figure = plots.edge_xray(found, theme=theme)  # type: ignore[arg-type]
    terms, effects = figure.data
    np.testing.assert_array_equal(terms.y, found.term)
    np.testing.assert_array_equal(effects.x, found.effect)
    colours = palette(theme).diverging  # type: ignore[arg-type]
    assert set(terms.marker.color) <= set(colours)
    above = {colour for colour, x in zip(terms.marker.color, terms.y, strict=True) if x >= 0}
    assert len(above) == 1
    assert f"weight {float(found.weight[3]):.3g}" in figure.layout.title.subtitle.text.replace("<br>", " ")
    assert figure.layout.xaxis.title.text == "dim"


def test_what_cannot_be_knocked_out_is_left_out() -> None:
    found = edge_xray(variant("gpt2"), some_tokens(1), 0, 1, 0, 0, 4)
    effects = plots.edge_xray(found).data[1]
    assert len(effects.x) == 2
