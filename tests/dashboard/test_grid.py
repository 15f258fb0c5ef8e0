"""The grid component: what is sent to the browser, and what is taken from it."""

import base64
import struct
from typing import Any

import numpy as np
import pytest
from streamlit.testing.v1 import AppTest

from dashboards.parts import grid as grids
from dashboards.parts.grid import Scale, scale_of
from interp import plots
from interp.plots.theme import palette


def sent(z: np.ndarray | None, monkeypatch: pytest.MonkeyPatch, clicked: Any = None, **look: Any) -> tuple[dict, Any]:
    """What the two components are given, and what the grid returns where the browser says `clicked`."""
    given: dict[str, Any] = {}

    class Result:
        def __init__(self) -> None:
            self.clicked = clicked

    def mount(data: Any, key: str, **_: Any) -> Result:
        given[key] = data
        return Result()

    monkeypatch.setattr(grids, "_grid", mount)
    monkeypatch.setattr(grids, "_mark", mount)
    rows, columns = ["L0", "L1"], ["H0", "H1", "H2"]
    return given, grids.grid(z, key="g", row_labels=rows, column_labels=columns, **look)


NUMBERS = np.array([[0.0, 0.5, 1.0], [np.nan, -0.5, 0.25]])


def test_numbers_become_colours_of_the_theme_and_what_is_missing_is_grey(monkeypatch: pytest.MonkeyPatch) -> None:
    for theme in ("light", "dark"):
        colours = palette(theme)
        given, _ = sent(NUMBERS, monkeypatch, colour="diverging", scale=Scale(-1.0, 1.0), theme=theme)
        found = given["g"]["colours"]
        assert found[0][0] == colours.diverging[len(colours.diverging) // 2]
        assert found[0][2] == colours.diverging[-1]
        assert found[1][0] == colours.missing
        assert given["g"]["said"][1][:2] == ["not computed", "-0.5"]
        assert (given["g"]["legend"]["low"], given["g"]["legend"]["high"]) == ("-1", "1")


def test_a_scale_is_as_wide_on_both_sides_of_0_where_numbers_are_signed() -> None:
    assert scale_of(NUMBERS, "diverging") == Scale(-1.0, 1.0)
    assert scale_of(NUMBERS, "sequential") == Scale(-0.5, 1.0)
    assert scale_of(np.full((2, 2), np.nan), "sequential") == Scale(0.0, 1.0)
    assert scale_of(np.zeros((2, 2)), "diverging") == Scale(-1.0, 1.0)


def test_the_picture_is_the_mosaics_and_its_words_are_no_markup(monkeypatch: pytest.MonkeyPatch) -> None:
    patterns = np.random.default_rng(0).dirichlet(np.ones(4), (2, 3, 4))
    picture = plots.mosaic(patterns, tokens=["<b>", "$x$", "&lt;", "a"])
    given, _ = sent(None, monkeypatch, images=picture)
    assert base64.b64decode(given["g"]["image"]) == picture.png
    width, height = struct.unpack(">II", picture.png[16:24])
    assert height == 2 * (picture.tile[0] + picture.gap) + picture.gap
    assert width == 3 * (picture.tile[1] + picture.gap) + picture.gap
    first = given["g"]["said"][0][0].split("\n")
    assert first[0] == "L0H0"
    on_average = patterns[0, 0].mean(0)
    most = int(on_average.argmax())
    assert first[1] == f"most at {most} {['<b>', '$x$', '&lt;', 'a'][most]}: {on_average[most]:.3g} on average"


def test_the_selection_is_not_sent_with_the_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    one, _ = sent(NUMBERS, monkeypatch, selected=(0, 1))
    other, _ = sent(NUMBERS, monkeypatch, selected=(1, 2))
    assert str(one["g"]) == str(other["g"])
    mark = "g (2, 3)_mark"  # of this size alone: a late one of another size would take its place
    assert (one[mark]["at"], other[mark]["at"]) == ((0, 1), (1, 2))
    assert one[mark]["key"] == one["g"]["key"] == "g (2, 3)"


def test_only_cells_that_are_there_can_be_picked(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sent(NUMBERS, monkeypatch, clicked=[1, 2])[1] == (1, 2)
    for wrong in ([2, 0], [0, 3], [-1, 0], [0], "L0H0", [0.5, 1], None, {"row": 1}):
        assert sent(NUMBERS, monkeypatch, clicked=wrong)[1] is None
    with pytest.raises(ValueError, match="needs numbers z, or images"):
        sent(None, monkeypatch)


def test_it_stands_on_a_page() -> None:
    def page() -> None:
        import numpy as np

        from dashboards.parts.grid import grid

        grid(np.eye(2), key="g", row_labels=["a", "b"], column_labels=["c", "d"], selected=(0, 0), sets=("x", "y"))

    at = AppTest.from_function(page, default_timeout=30).run()
    assert not at.exception
