from typing import Literal

import numpy as np
import plotly.graph_objects as go
import pytest

from interp.plots.cells import with_words
from interp.plots.theme import palette


def lightness(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in channels]
    return float(np.dot([0.2126, 0.7152, 0.0722], linear))


def contrast(one: str, other: str) -> float:
    low, high = sorted(map(lightness, (one, other)))
    return (high + 0.05) / (low + 0.05)


def mixed(colours: tuple[str, ...], share: float) -> str:
    stops = np.linspace(0, 1, len(colours))
    channels = [[int(colour[i : i + 2], 16) for colour in colours] for i in (1, 3, 5)]
    return "#" + "".join(f"{round(float(np.interp(share, stops, channel))):02x}" for channel in channels)


def map_of(values: np.ndarray, theme: Literal["light", "dark"], own: tuple[str, ...]) -> go.Heatmap:
    return go.Heatmap(z=values, zmin=-1, zmax=1, colorscale=palette(theme).scale(own), xgap=1, ygap=1)


def written(layers: list[go.Heatmap]) -> list[tuple[str, str]]:
    """The word of each cell, and its ink."""
    cells = zip(*([text for row in layer.text for text in row] for layer in layers), strict=True)
    inks = [layer.textfont.color for layer in layers]
    return [next((t, ink) for t, ink in zip(cell, inks, strict=True) if t.strip()) for cell in cells]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_words_stand_out_from_every_colour_of_a_scale(theme: Literal["light", "dark"]) -> None:
    colours = palette(theme)
    for own in (colours.sequential, colours.diverging, colours.sequential[::-1]):
        shares = np.linspace(0, 1, 101)[:, None]
        texts = [[f"word{i}"] for i in range(101)]
        found = written(with_words(map_of(2 * shares - 1, theme, own), texts, colours.missing))
        assert [word for word, _ in found] == [text for [text] in texts]
        for share, (_, ink) in zip(shares[:, 0], found, strict=True):
            assert contrast(ink, mixed(own, share)) > 4.35, share
    gap = written(with_words(map_of(np.array([[np.nan]]), theme, colours.sequential), [["word"]], colours.missing))
    assert contrast(gap[0][1], colours.missing) > 4.35


def test_words_in_both_inks_are_equally_large() -> None:
    own = palette("light").sequential
    layers = with_words(map_of(np.array([[-1.0, 1.0, 0.0]]), "light", own), [["a", "long", ""]], "#b4b4b4")
    assert [{len(text) for text in layer.text[0] if text} for layer in layers] == [{1, 4}, {4}]
    assert [layer.text[0][2] for layer in layers] == ["", ""]
    assert [(layer.xgap, layer.ygap) for layer in layers] == [(1, 1)] * 2
    assert layers[1].hoverinfo == "skip"
    assert layers[1].showscale is False
    assert len(with_words(map_of(np.array([[-1.0]]), "light", own), [["a"]], "#b4b4b4")) == 1
