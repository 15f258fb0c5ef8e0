"""A grid as an SVG holds the cells, the tiles and the words that it was given."""

import base64
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from interp.plots import grid_svg, mosaic
from interp.plots.theme import palette

SVG = "{http://www.w3.org/2000/svg}"
COLOURS = [["#102030", "#f0f0f0", "#808080"], ["#ffffff", "#000000", "#123456"]]


def parsed(said: str) -> ElementTree.Element:
    return ElementTree.fromstring(said)


def texts(of: ElementTree.Element) -> list[str]:
    return ["".join(each.itertext()) for each in of.iter(f"{SVG}text")]


def test_cells_have_their_colours_and_words_in_an_ink_that_is_read() -> None:
    words = [["a", "b", ""], ["<b>&", "\x00x", "long long long long"]]
    scale = ("0", "1", "score")
    made = grid_svg(
        ["L0", "L1"], ["H0", "H1", "H2"], colours=COLOURS, text=words, letters=[["P", "", ""], ["", "", "I"]],
        scale=scale, shades=["#ffffff", "#000000"], title="Heads <here>",
    )  # fmt: skip
    root = parsed(made)
    cells = [each for each in root.findall(f"{SVG}rect") if each.get("width") == "54"]
    assert [each.get("fill") for each in cells] == [colour for row in COLOURS for colour in row]
    places = [(float(each.get("x") or 0), float(each.get("y") or 0)) for each in cells]
    assert places == sorted(places, key=lambda at: (at[1], at[0]))
    inks = {"".join(each.itertext()): each.get("fill") for each in root.iter(f"{SVG}text")}
    assert (inks["a"], inks["b"]) == ("#ffffff", "#1f2328")
    assert {"L0", "L1", "H0", "H2", "<b>&", "\ufffdx", "P", "I", "Heads <here>", "0", "1   score"} <= set(texts(root))
    pressed = [each for each in root.iter(f"{SVG}text") if each.get("textLength")]
    assert ["".join(each.itertext()) for each in pressed] == ["long long long long"]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_tiles_are_the_mosaics_picture_each_cut_to_its_own(theme: str) -> None:
    patterns = np.random.default_rng(0).dirichlet(np.ones(5), (2, 3, 5)).astype(np.float32)
    found = mosaic(patterns, theme=theme)  # type: ignore[arg-type]
    root = parsed(grid_svg(["L0", "L1"], ["H0", "H1", "H2"], images=found, theme=theme))  # type: ignore[arg-type]
    image = next(root.iter(f"{SVG}image"))
    assert base64.b64decode((image.get("href") or "").removeprefix("data:image/png;base64,")) == found.png
    windows = [each.get("viewBox") for each in root.findall(f"{SVG}svg")]
    (tall, wide), gap = found.tile, found.gap
    assert windows == [
        f"{gap + j * (wide + gap)} {gap + i * (tall + gap)} {wide} {tall}" for i in range(2) for j in range(3)
    ]
    assert root.findall(f"{SVG}rect")[0].get("fill") == palette(theme).background  # type: ignore[arg-type]


def test_a_grid_without_cells_is_refused() -> None:
    with pytest.raises(ValueError, match="colours or images"):
        grid_svg(["L0"], ["H0"])
