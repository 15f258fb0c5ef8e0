"""Words in the cells of a map, in the ink that stands out from each cell's colour."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float

_Cells = Float[np.ndarray, "row column"]
_INKS = ("#0b0b0b", "#ffffff")
_CLEAR = "rgba(0,0,0,0)"
_UNSEEN = "\u00a0"  # as long as the longest word: a map's letters are as large as its longest word allows


def with_words(cells: go.Heatmap, texts: Sequence[Sequence[str]], missing: str) -> list[go.Heatmap]:
    """A map with texts in its cells, and over it, if there are dark cells, an unseen one with theirs.

    `missing` is the colour behind cells without a number.
    """
    values, scale = np.asarray(cells.z, dtype=float), [list(stop) for stop in cells.colorscale or ()]
    low, high = np.array([cells.zmin, cells.zmax], dtype=float)
    shares = np.clip((values - low) / (high - low), 0, 1)
    behind = _lightness([[0, missing], [1, missing]], np.zeros_like(shares))
    lightness = np.where(np.isnan(shares), behind, _lightness(scale, shares))
    is_dark = lightness < 0.187  # where both inks stand out alike
    longest = max((len(line) for row in texts for text in row for line in text.split("<br>")), default=0)

    def written(here: np.ndarray) -> list[list[str]]:
        rows = zip(texts, here, strict=True)
        return [[text if on or not text else _UNSEEN * longest for text, on in zip(*row, strict=True)] for row in rows]

    cells.update(text=written(~is_dark), texttemplate="%{text}", textfont={"color": _INKS[0]})
    if not is_dark.any():
        return [cells]
    over = go.Heatmap(
        z=values,
        colorscale=[[0, _CLEAR], [1, _CLEAR]],
        showscale=False,
        hoverinfo="skip",
        xgap=cells.xgap,
        ygap=cells.ygap,
        text=written(is_dark),
        texttemplate="%{text}",
        textfont={"color": _INKS[1]},
        name="words on dark cells",
    )
    return [cells, over]


def _lightness(scale: Sequence[Sequence[Any]], shares: _Cells) -> _Cells:
    """The relative luminance of the colours at shares of a scale, as WCAG defines it."""
    stops = [at for at, _ in scale]
    channels = np.array([[int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)] for _, colour in scale])
    found = [np.interp(shares, stops, channel) for channel in channels.T]
    red, green, blue = (np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4) for x in found)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
