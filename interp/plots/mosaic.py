"""The mosaic: the patterns of all heads on one picture."""

import base64
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go

from interp.plots.sources import HeadPatterns, head_patterns
from interp.plots.theme import Palette, Theme, about, framed, palette, tick_texts, ticks

_TILE, _SMALL_TILE, _MANY_HEADS = 64, 48, 256  # pixels a side, of up to so many heads and of more
_GAP = 2
_MISSING, _BETWEEN = 254, 255  # the picture's last two colours
_SMALLEST = 1e-9
_HEIGHT, _MOST_HEIGHT = 50, 880  # pixels, of a layer and of all


def head_mosaic(
    patterns: Any,
    *,
    tokens: Sequence[str] | None = None,
    prompt: int = 0,
    tile: int | None = None,
    relative: bool = False,
    highlight: tuple[int, int] | None = None,
    title: str | None = None,
    theme: Theme = "light",
) -> go.Figure:
    """Every head's pattern as a tile, layers down and heads across; hovering says where the head looks.

    `patterns` are [layer head query_pos key_pos], an ActivationCache with patterns, or what makes them one by one: an
    object with `layers` and `heads` whose `[layer, head]` is [batch query_pos key_pos]. A pixel is the largest of the
    places it covers, so that a tile has `tile` pixels a side at most. Colours go by the square root, from 0 to 1 in all
    heads, or with `relative` to what 99 of 100 pixels of each are below. `highlight` frames one (layer, head).
    """
    found = mosaic(patterns, tokens=tokens, prompt=prompt, tile=tile, relative=relative, theme=theme)
    colours = palette(theme)
    figure = go.Figure(_placed(found))
    _add_hover(figure, found)
    _add_scale(figure, colours, found.limit, relative)
    _set_axes(figure, found)
    if highlight is not None:
        _frame(figure, found, highlight, colours)
    n_heads = len(found.layers) * len(found.heads)
    n_queries, n_keys = found.shape
    notes = [
        f"tiles: {n_queries} queries down, {n_keys} keys across",
        f"a pixel: the largest of {found.pooled} × {found.pooled}" if found.pooled > 1 else "",
        "each head's own scale, to its 99th percentile" if relative else "one scale for all heads",
        f"prompt {prompt} of {found.n_prompts}" if found.n_prompts > 1 else "",
        f"framed: L{highlight[0]}H{highlight[1]}" if highlight is not None else "",
        "grey: not finite" if found.has_gaps else "",
    ]
    heading = title or f"Attention of {n_heads:,} heads"
    return framed(figure, theme, heading, about(getattr(patterns, "attrs", {}), *notes))


@dataclass(frozen=True)
class Mosaic:
    """The picture alone, for pages that place it themselves, and what is said of its tiles."""

    layers: list[int]
    heads: list[int]
    png: bytes
    tile: tuple[int, int]  # pixels down and across
    gap: int  # pixels around each tile
    shape: tuple[int, int]  # queries and keys
    pooled: int  # a pixel is the largest of so many places squared
    limit: float  # what the darkest colour stands for, if all heads have one scale
    said: list[list[str]]  # of each layer's heads, lines of markup
    n_prompts: int
    has_gaps: bool  # whether some numbers are not finite


def mosaic(
    patterns: Any,
    *,
    tokens: Sequence[str] | None = None,
    prompt: int = 0,
    tile: int | None = None,
    relative: bool = False,
    theme: Theme = "light",
) -> Mosaic:
    """The picture that `head_mosaic` draws."""
    source = head_patterns(patterns, prompt)
    n_heads = len(source.layers) * len(source.heads)
    side = tile if tile is not None else _TILE if n_heads <= _MANY_HEADS else _SMALL_TILE
    if side < 1:
        raise ValueError(f"tile={tile}; it is the pixels of a tile's side, and at least 1")
    tiles = _tiles(source, tokens, side)
    largest = np.array([[each.largest for each in row] for row in tiles])
    if not np.isfinite(largest).any():
        raise ValueError("no number of the patterns is finite: there is nothing to draw")
    limit = max(1.0, float(np.nanmax(largest)))
    limit = limit if limit > 1.001 else 1.0  # attention may pass 1 by a rounding error
    own = np.array([[np.nanquantile(each.pixels, 0.99) if each.largest > 0 else 1.0 for each in row] for row in tiles])
    shape, pixels = tiles[0][0].shape, tiles[0][0].pixels.shape
    return Mosaic(
        layers=source.layers,
        heads=source.heads,
        png=_picture(tiles, own if relative else np.full(largest.shape, limit), palette(theme)),
        tile=(pixels[0], pixels[1]),
        gap=_GAP,
        shape=(shape[0], shape[1]),
        pooled=-(-max(shape) // side),
        limit=limit,
        said=[[each.said for each in row] for row in tiles],
        n_prompts=source.n_prompts,
        has_gaps=any(np.isnan(each.pixels).any() for row in tiles for each in row),
    )


@dataclass(frozen=True)
class _Tile:
    """One head: its pixels, and what is said of it."""

    pixels: np.ndarray
    shape: tuple[int, int]
    largest: float
    said: str


def _tiles(source: HeadPatterns, tokens: Sequence[str] | None, side: int) -> list[list[_Tile]]:
    def tile(i: int, j: int) -> _Tile:
        pattern = source.pattern(i, j)
        name = f"L{source.layers[i]}H{source.heads[j]}"
        if pattern.ndim != 2 or pattern.size == 0 or np.fmin.reduce(pattern, None) < -_SMALLEST:
            what = f"shape {list(pattern.shape)}" if pattern.ndim != 2 or not pattern.size else "negative numbers"
            raise ValueError(f"the pattern of {name} has {what}; a tile is [query_pos key_pos], and at least 0")
        if tokens is not None and len(tokens) != pattern.shape[1]:
            raise ValueError(f"key_pos has {pattern.shape[1]} places, and {len(tokens)} tokens are given")
        return _Tile(_pooled(pattern, side), pattern.shape, *_said(name, pattern, tokens))

    return [[tile(i, j) for j in range(len(source.heads))] for i in range(len(source.layers))]


def _pooled(pattern: np.ndarray, side: int) -> np.ndarray:
    """The largest of each square, so that no side is longer than asked; few places are several pixels each."""
    by = -(-max(pattern.shape) // side)
    if by == 1:
        times = max(1, side // max(pattern.shape))
        return pattern.repeat(times, 0).repeat(times, 1)
    n_rows, n_columns = (-(-n // by) for n in pattern.shape)
    padded = np.zeros((n_rows * by, n_columns * by), pattern.dtype)
    padded[: pattern.shape[0], : pattern.shape[1]] = pattern
    return padded.reshape(n_rows, by, -1).max(1).reshape(n_rows, n_columns, by).max(2)  # in two steps: 8 times as fast


def _said(name: str, pattern: np.ndarray, tokens: Sequence[str] | None) -> tuple[float, str]:
    """A head's largest number, and the words about it."""
    of_queries = np.fmax.reduce(pattern, 1)
    of_queries = of_queries[~np.isnan(of_queries)]
    if not of_queries.size:
        return np.nan, f"{name}<br>not finite"
    on_average = np.where(np.isnan(pattern), 0, pattern).mean(0)
    most = int(on_average.argmax())
    place = tick_texts("pos", [most], None if tokens is None else [tokens[most]], 20)[0]
    return float(of_queries.max()), (
        f"{name}<br>most at {place}: {on_average[most]:.3g} on average<br>"
        f"a query's largest: {of_queries.mean():.3g} on average"
    )


def _picture(tiles: list[list[_Tile]], limits: np.ndarray, colours: Palette) -> bytes:
    rows, columns = tiles[0][0].pixels.shape
    n_layers, n_heads = limits.shape
    down, across = rows + _GAP, columns + _GAP
    places = np.full((n_layers * down + _GAP, n_heads * across + _GAP), _BETWEEN, np.uint8)
    for (i, j), limit in np.ndenumerate(limits):
        share = np.clip(tiles[i][j].pixels / max(float(limit), _SMALLEST), 0, 1)
        place = np.where(np.isnan(share), _MISSING, np.rint(np.sqrt(np.nan_to_num(share)) * (_MISSING - 1)))
        top, left = _GAP + i * down, _GAP + j * across
        places[top : top + rows, left : left + columns] = place
    return _png(places, _colours(colours))


def _placed(found: Mosaic) -> go.Image:
    """The picture, on axes that count layers and heads."""
    rows, columns = found.tile
    down, across = rows + found.gap, columns + found.gap
    return go.Image(
        source="data:image/png;base64," + base64.b64encode(found.png).decode(),
        x0=-(found.gap + (columns - 1) / 2) / across,
        y0=-(found.gap + (rows - 1) / 2) / down,
        dx=1 / across,
        dy=1 / down,
        zsmooth="fast",
        hoverinfo="skip",
        name="patterns",
    )


def _colours(colours: Palette) -> np.ndarray:
    """[256 3]: the scale, what is missing, what is between tiles."""
    rest = [[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in (colours.missing, colours.grid)]
    return np.concatenate([colours.shades(_MISSING), np.array(rest, np.uint8)])


def _png(places: np.ndarray, colours: np.ndarray) -> bytes:
    """A picture whose pixels are numbers of colours (PNG's colour type 3)."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    height, width = places.shape
    lines = np.zeros((height, width + 1), np.uint8)  # every line begins with its filter, 0 for none
    lines[:, 1:] = places
    head = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)
    content = [
        (b"IHDR", head),
        (b"PLTE", colours.tobytes()),
        (b"IDAT", zlib.compress(lines.tobytes(), 9)),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(kind, of) for kind, of in content)


def _add_hover(figure: go.Figure, found: Mosaic) -> None:
    """A point that is not seen in the middle of each tile; the nearest answers the mouse, and clicks."""
    at = [(i, j) for i in range(len(found.layers)) for j in range(len(found.heads))]
    figure.add_scatter(
        x=[j for _, j in at],
        y=[i for i, _ in at],
        mode="markers",
        marker={"size": 12, "opacity": 0, "symbol": "square"},
        hovertext=[found.said[i][j] for i, j in at],
        hovertemplate="%{hovertext}<extra></extra>",
        name="heads",
        showlegend=False,
    )
    figure.update_layout(hovermode="closest", hoverdistance=-1)


def _add_scale(figure: go.Figure, colours: Palette, limit: float, relative: bool) -> None:
    bar: dict[str, Any] = {
        "title": {"text": "of the head's own scale" if relative else "attention", "side": "right"},
        "tickfont": {"size": 10},
        "thickness": 12,
        "outlinewidth": 0,
        "x": 1.01,
        "xpad": 4,
    }
    bar["title"]["font"] = {"size": 11}
    figure.add_scatter(
        x=[None],
        y=[None],
        mode="markers",
        marker={
            "color": [0],
            "cmin": 0,
            "cmax": 1 if relative else limit,
            "colorscale": colours.scale_by_root(),
            "showscale": True,
            "colorbar": bar,
        },
        hoverinfo="skip",
        name="scale",
        showlegend=False,
    )


def _set_axes(figure: go.Figure, source: Mosaic) -> None:
    n_layers, n_heads = len(source.layers), len(source.heads)
    common: dict[str, Any] = {"showgrid": False, "zeroline": False}
    figure.update_xaxes(
        ticks(list(map(str, source.heads)), 16), title_text="head", range=[-0.52, n_heads - 0.48], **common
    )
    figure.update_yaxes(
        ticks(list(map(str, source.layers)), 16),
        title_text="layer",
        range=[n_layers - 0.48, -0.52],
        scaleanchor=False,
        **common,
    )
    if n_layers > 8:
        figure.update_layout(height=120 + min(_HEIGHT * n_layers, _MOST_HEIGHT))


def _frame(figure: go.Figure, source: Mosaic, highlight: tuple[int, int], colours: Palette) -> None:
    layer, head = highlight
    if layer not in source.layers or head not in source.heads:
        raise ValueError(f"highlight={highlight}; layers are {source.layers}, heads {source.heads}")
    i, j = source.layers.index(layer), source.heads.index(head)
    for width, colour in ((5, colours.background), (2.5, colours.ink)):
        figure.add_shape(
            type="rect", x0=j - 0.5, x1=j + 0.5, y0=i - 0.5, y1=i + 0.5, line={"color": colour, "width": width}
        )
