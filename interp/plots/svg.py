"""A grid as an SVG: the cells or tiles that a page draws on its canvas, with their labels as text."""

import base64
import html
import re
from collections.abc import Sequence

from interp.plots.mosaic import Mosaic
from interp.plots.theme import Theme, palette

_LEFT, _TOP, _FOOT = 44, 44, 44  # pixels beside, above and below the cells
_CHARACTER = 6.2  # pixels of a label's character, at most


def grid_svg(
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    colours: Sequence[Sequence[str]] | None = None,
    images: Mosaic | None = None,
    text: Sequence[Sequence[str]] | None = None,
    letters: Sequence[Sequence[str]] | None = None,
    scale: tuple[str, str, str] = ("", "", ""),
    shades: Sequence[str] = (),
    title: str = "",
    theme: Theme = "light",
) -> str:
    """A grid of coloured cells, "#rrggbb" each, or of a mosaic's tiles, which are embedded as one PNG; rows go down.

    `text` stands in the cells, `letters` in their corners. `scale` is what the ends of the colours `shades` stand for,
    and of what.
    """
    if (colours is None) == (images is None):
        raise ValueError("a grid has colours or images, one of the two")
    look, side = palette(theme), 64 if images is not None else 56
    left = max(_LEFT, round(12 + _CHARACTER * max(map(len, rows))))
    width, height = left + side * len(columns) + 12, _TOP + side * len(rows) + _FOOT
    width = max(width, left + 260)
    said = _safe(title)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        f'role="img" font-family="system-ui, sans-serif" font-size="11" fill="{look.ink}">',
        f"<title>{said}</title>",
        f'<rect width="{width}" height="{height}" fill="{look.background}"/>',
        f'<text x="{left}" y="16" font-size="13">{said}</text>',
    ]
    if images is not None:
        parts += _tiles(images, left, side, look.grid)
    for j, name in enumerate(columns):
        parts.append(_text(name, left + (j + 0.5) * side, _TOP - 8, "middle", most=side - 2))
    for i, name in enumerate(rows):
        parts.append(_text(name, left - 6, _TOP + (i + 0.5) * side + 4, "end"))
        for j in range(len(columns)):
            x, y = left + j * side, _TOP + i * side
            if colours is not None:
                shade = colours[i][j]
                parts.append(f'<rect x="{x + 1}" y="{y + 1}" width="{side - 2}" height="{side - 2}" fill="{shade}"/>')
                if text is not None and text[i][j]:
                    ink = "#1f2328" if _is_light(shade) else "#ffffff"
                    parts.append(_text(text[i][j], x + side / 2, y + side / 2 + 4, "middle", ink, side - 4))
            if letters is not None and letters[i][j]:
                parts.append(
                    f'<rect x="{x + side - 20}" y="{y + 2}" width="18" height="14" fill="{look.background}"/>'
                    + _text(letters[i][j], x + side - 11, y + 13, "middle", most=18)
                )
    parts += _legend(scale, shades, left, height, look.grid)
    return "\n".join([*parts, "</svg>\n"])


def _tiles(images: Mosaic, left: int, side: int, between: str) -> list[str]:
    """The picture once for each tile, cut to it: tiles are further apart here than in the picture."""
    (tall, wide), gap = images.tile, images.gap
    n = len(images.layers), len(images.heads)
    size = [gap + n[1] * (wide + gap), gap + n[0] * (tall + gap)]
    data = base64.b64encode(images.png).decode()
    parts = [
        f'<defs><image id="tiles" width="{size[0]}" height="{size[1]}" style="image-rendering: pixelated" '
        f'href="data:image/png;base64,{data}"/></defs>'
    ]
    for i in range(n[0]):
        for j in range(n[1]):
            x, y, own = left + j * side + 1, _TOP + i * side + 1, side - 2
            window = f"{gap + j * (wide + gap)} {gap + i * (tall + gap)} {wide} {tall}"
            parts.append(
                f'<svg x="{x}" y="{y}" width="{own}" height="{own}" viewBox="{window}" preserveAspectRatio="none">'
                f'<use href="#tiles"/></svg>'
                f'<rect x="{x}" y="{y}" width="{own}" height="{own}" fill="none" stroke="{between}"/>'
            )
    return parts


def _legend(scale: tuple[str, str, str], shades: Sequence[str], left: int, height: int, edge: str) -> list[str]:
    if not shades:
        return []
    low, high, what = scale
    stops = "".join(
        f'<stop offset="{i / max(1, len(shades) - 1):.4f}" stop-color="{shade}"/>' for i, shade in enumerate(shades)
    )
    start, y = left + 8 + _CHARACTER * len(low), height - 22
    end = start + 110
    return [
        f'<defs><linearGradient id="scale">{stops}</linearGradient></defs>',
        _text(low, left, y + 9, "start"),
        f'<rect x="{start:.0f}" y="{y}" width="110" height="10" fill="url(#scale)" stroke="{edge}"/>',
        _text(f"{high}   {what}", end + 6, y + 9, "start"),
    ]


def _text(
    said: str, x: float | int, y: float | int, anchor: str, ink: str = "", most: float | int | None = None
) -> str:
    """A text, pressed together where it would be wider than `most` pixels."""
    fill = f' fill="{ink}"' if ink else ""
    is_wide = most is not None and len(said) * _CHARACTER > most
    fit = f' textLength="{most:g}" lengthAdjust="spacingAndGlyphs"' if is_wide else ""
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" xml:space="preserve"{fill}{fit}>{_safe(said)}</text>'


def _safe(said: str) -> str:
    """Text as XML takes it: no markup, and no character that XML 1.0 has not."""
    return html.escape(re.sub("[^\t\n\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", said))


def _is_light(shade: str) -> bool:
    red, green, blue = (int(shade[at : at + 2], 16) for at in (1, 3, 5))
    return 0.299 * red + 0.587 * green + 0.114 * blue > 140
