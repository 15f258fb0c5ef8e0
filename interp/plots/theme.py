"""What all figures share: colours for light and dark, the frame with its title, words as they are shown."""

import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from textwrap import wrap
from typing import Any, Literal

import numpy as np
import plotly.graph_objects as go

Theme = Literal["light", "dark"]
_TITLE_WIDTH, _SUBTITLE_WIDTH = 34, 62  # characters that fit a figure 420 pixels wide
UNBROKEN = "\u00a0"  # a space at which no line ends
LABEL = 8  # characters of a token beside an axis
# A title needs the room, and no figure leaves the machine by a slip of the hand.
_FEWER_BUTTONS = ["zoomIn2d", "zoomOut2d", "autoScale2d", "select2d", "lasso2d", "pan2d", "sendChartToCloud"]


@dataclass(frozen=True)
class Palette:
    """Colours that keep their meaning for colour-blind readers, on one background."""

    background: str
    ink: str
    faint_ink: str
    grid: str
    missing: str  # what was not computed: in none of the scales
    diverging: tuple[str, ...]  # the middle is 0, and fades into the background
    sequential: tuple[str, ...]  # little to much; little fades into the background
    categories: tuple[str, ...]  # Okabe and Ito's

    def scale(self, colours: tuple[str, ...]) -> list[list[Any]]:
        """A plotly colour scale, its colours equally far apart."""
        return [[i / (len(colours) - 1), colour] for i, colour in enumerate(colours)]

    def shades(self, n: int) -> np.ndarray:
        """[n 3]: from little to much in equal steps, red, green and blue up to 255."""
        known = np.array([[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in self.sequential])
        at, own = np.linspace(0, len(known) - 1, n), np.arange(len(known))
        return np.rint([np.interp(at, own, channel) for channel in known.T]).astype(np.uint8).T

    def colours_of(self, values: np.ndarray, low: float, high: float, is_signed: bool) -> list[list[str]]:
        """[row column]: each number's colour where the scale goes from `low` to `high`; grey for what is not finite."""
        names = self.diverging if is_signed else self.sequential
        known = np.array([[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in names])
        share = np.clip((np.nan_to_num(values) - low) / ((high - low) or 1.0), 0, 1) * (len(known) - 1)
        mixed = np.stack([np.interp(share, np.arange(len(known)), channel) for channel in known.T], -1)
        hexes = [["#" + bytes(np.rint(colour).astype(np.uint8)).hex() for colour in row] for row in mixed]
        return [
            [name if np.isfinite(x) else self.missing for name, x in zip(*each, strict=True)]
            for each in zip(hexes, values.tolist(), strict=True)
        ]

    def scale_by_root(self) -> list[list[Any]]:
        """From little to much by the square root of the number, so that small numbers are told apart too."""
        shades = self.shades(33)
        return [[(i / 32) ** 2, f"rgb({red},{green},{blue})"] for i, (red, green, blue) in enumerate(shades.tolist())]


_PALETTES = {
    "light": Palette(
        background="#ffffff",
        ink="#1f2328",
        faint_ink="#57606a",
        grid="#e3e6ea",
        missing="#b4b4b4",
        diverging=("#053061", "#2166ac", "#67a9cf", "#d1e5f0", "#f7f7f7", "#fddbc7", "#ef8a62", "#b2182b", "#67001f"),
        sequential=("#f7fbff", "#d2e3f3", "#a6cfe6", "#6fb1d8", "#1d6cb1", "#08306b"),
        categories=("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#1f2328", "#b8a800"),
    ),
    "dark": Palette(
        background="#0e1117",
        ink="#e8eaed",
        faint_ink="#a8b0ba",
        grid="#2b313a",
        missing="#666666",
        diverging=("#8ecbff", "#2f7fc1", "#1b1a18", "#c4621f", "#ffb787"),
        sequential=("#131a24", "#173f68", "#1d6cb1", "#6fb1d8", "#a6cfe6", "#e3f1fb"),
        categories=("#56b4e9", "#e69f00", "#00b586", "#e39cc4", "#f0e442", "#3f8fd0", "#e8eaed", "#f07a30"),
    ),
}


def palette(theme: Theme) -> Palette:
    """The colours of a theme."""
    if theme not in _PALETTES:
        raise ValueError(f"theme={theme!r}; allowed: {', '.join(map(repr, _PALETTES))}")
    return _PALETTES[theme]


def framed(figure: go.Figure, theme: Theme, title: str, subtitle: str = "", room: int = 0) -> go.Figure:
    """Give a figure its colours, and its words above it; `room` is kept free below them, in pixels."""
    colours = palette(theme)
    heading, under = _lines(title, _TITLE_WIDTH), _lines(subtitle, _SUBTITLE_WIDTH)
    figure.layout.template = _template(colours)
    top = 18 + 22 * len(heading) + 15 * len(under) + room
    figure.update_layout(
        title={
            "text": "<br>".join(heading),
            "subtitle": {"text": "<br>".join(under)},
            "x": 0,
            "xref": "container",
            "pad": {"l": 12, "t": 10 + 14 * (len(heading) - 1)},  # plotly moves several lines up
            "y": 1,
            "yref": "container",
            "yanchor": "top",
        },
        margin={"t": top + 6, "l": 12, "r": 12, "b": 12},
    )
    return figure


def about(attrs: Mapping[Any, Any], *more: str) -> str:
    """A figure's small line: what was done, of which model."""
    said = [
        str(attrs[key]) for key in ("metric", "of", "site", "direction", "kind") if attrs.get(key) not in (None, "")
    ]
    model = [f"model {str(attrs['model'])[:12]}"] if attrs.get("model") else []
    parts = [*said, *filter(None, more), *model]
    return " · ".join(part.replace(" ", UNBROKEN) if len(part) < _SUBTITLE_WIDTH else part for part in parts)


def visible(token: str, longest: int = 12) -> str:
    """A token as a figure can show it: its spaces and line breaks seen, cut, and read as text alone."""
    return plain(seen(token), longest)


def seen(token: str) -> str:
    """A token whose spaces, line breaks and other characters without a shape are seen; it is no markup yet."""
    return "".join(char if char.isprintable() and char != " " else _shape(char) for char in token)


def plain(text: str, longest: int = 28) -> str:
    """Text of which nothing is taken for markup, cut where it is long."""
    cut = text if len(text) <= longest else text[: longest - 1] + "…"
    return html.escape(cut, quote=False).replace("$", "&#36;")


def broken(name: str, width: int) -> str:
    """A name in lines, which end at spaces, and where that is not enough, at dots."""
    lines = []
    for line in wrap(name, width, break_long_words=False):
        apart = line if len(line) <= width else line.replace(".", ". ")
        lines += [part.replace(". ", ".") for part in wrap(apart, width, break_long_words=False)]
    return "<br>".join(lines)


def tick_texts(axis: str, labels: Sequence[Any], tokens: Sequence[Any] | None = None, longest: int = 12) -> list[str]:
    """The labels of an axis; those of positions are an index, and a token if it is known."""
    if tokens is not None:
        return [f"{label} {visible(str(token), longest)}" for label, token in zip(labels, tokens, strict=True)]
    if not axis.endswith("pos"):
        return [plain(f"{label:.4g}" if isinstance(label, float) else str(label)) for label in labels]
    return [_position(str(label), longest) for label in labels]


def ticks(texts: Sequence[str], most: int) -> dict[str, Any]:
    """Every n-th label on an axis of integers, so that there are no more than `most`."""
    every = -(-len(texts) // most)
    return {"tickmode": "array", "tickvals": list(range(0, len(texts), every)), "ticktext": list(texts[::every])}


def in_words(names: Sequence[Any]) -> str:
    """Axes or variables as messages list them."""
    return "[" + " ".join(map(str, names)) + "]"


def _shape(char: str) -> str:
    known = {" ": "·", "\n": "⏎", "\t": "⇥", "\r": "␍", "\x7f": "␡"}
    return known.get(char) or (chr(0x2400 + ord(char)) if ord(char) < 32 else f"U+{ord(char):04X}")


def _position(label: str, longest: int) -> str:
    found = re.fullmatch(r"(\d+) (.*)", label, re.DOTALL)
    return visible(label, longest) if found is None else f"{found[1]} {visible(found[2], longest)}"


def _lines(text: str, width: int) -> list[str]:
    return [plain(line, width).replace(UNBROKEN, " ") for line in wrap(text, width)]


def _template(colours: Palette) -> go.layout.Template:
    axis = {
        "gridcolor": colours.grid,
        "linecolor": colours.grid,
        "zerolinecolor": colours.faint_ink,
        "tickfont": {"size": 10, "color": colours.ink},
        "title": {"font": {"size": 12, "color": colours.ink}, "standoff": 6},
        "automargin": True,
        "autotickangles": [0, 60, 90],
    }
    return go.layout.Template(
        layout={
            "paper_bgcolor": colours.background,
            "plot_bgcolor": colours.background,
            "font": {"family": "system-ui, -apple-system, 'Segoe UI', Arial, sans-serif", "color": colours.ink},
            "title": {"font": {"size": 15}, "subtitle": {"font": {"size": 11, "color": colours.faint_ink}}},
            "colorway": colours.categories,
            "modebar": {
                "remove": _FEWER_BUTTONS,
                "bgcolor": "rgba(0,0,0,0)",
                "color": colours.faint_ink,
                "activecolor": colours.ink,
            },
            "hoverlabel": {
                "bgcolor": colours.background,
                "bordercolor": colours.faint_ink,
                "font": {"color": colours.ink, "size": 12},
                "align": "left",
            },
            "xaxis": axis,
            "yaxis": axis,
            "legend": {"font": {"size": 11, "color": colours.ink}, "bgcolor": "rgba(0,0,0,0)"},
        }
    )
