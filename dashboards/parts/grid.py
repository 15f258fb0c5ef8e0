"""A grid of layers and heads, or of any two axes, on one canvas: hover, click, arrows and Enter."""

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import streamlit as st
from streamlit.components.v2 import component

from interp.plots import Mosaic, grid_svg
from interp.plots.theme import Theme, palette

Colour = Literal["sequential", "diverging"]

HTML = """
<div class="grid" tabindex="0" role="application" aria-roledescription="grid">
  <canvas></canvas>
  <div class="tip" hidden></div>
  <div class="legend" aria-hidden="true"><span class="low"></span><i></i><span class="high"></span><b></b></div>
  <div class="live" aria-live="polite"></div>
</div>
"""

CSS = """
.grid { position: relative; outline: none; font-family: var(--st-font); color: var(--st-text-color); }
.grid:focus-visible canvas { outline: 2px solid var(--st-primary-color); outline-offset: 2px; border-radius: 4px; }
canvas { display: block; cursor: pointer; }
.tip {
  position: absolute; z-index: 5; pointer-events: none; white-space: pre-line; max-width: 18rem; padding: 4px 8px;
  font-size: 12px; line-height: 1.35; color: var(--st-text-color); background: var(--st-background-color);
  border: 1px solid var(--st-border-color); border-radius: 4px; box-shadow: 0 2px 8px rgba(0, 0, 0, .2);
  overflow-wrap: anywhere;
}
.legend { display: flex; align-items: center; gap: 6px; margin: 6px 0 2px; font-size: 12px; }
.legend i { width: 110px; height: 10px; border-radius: 2px; border: 1px solid var(--st-border-color);
  background-origin: border-box; }
.legend b { font-weight: 400; margin-left: 4px; opacity: .8; }
.live { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap; }
"""

JS = """
const LEFT = 30, TOP = 20, LEAST = 14, MOST = 104

export default function ({ data, parentElement, setStateValue, setTriggerValue }) {
  const root = parentElement.querySelector(".grid")
  root.leave?.()  // new data come without an end of the call before
  const [canvas, tip, legend, live] = ["canvas", ".tip", ".legend", ".live"].map((name) => root.querySelector(name))
  const n = [data.rows.length, data.columns.length]
  const marks = (window.interpMarks ??= {})
  let picture = null, side = LEAST, pen = null
  let cursor = root.cursor ?? marks[data.key] ?? [0, 0]
  cursor = [0, 1].map((axis) => Math.min(cursor[axis], n[axis] - 1))
  let hovered = null

  const said = ([row, column]) => data.said[row][column]
  const inside = (at) => at && at[0] < n[0] && at[1] < n[1]

  function frame(at, colour, width, inset) {
    pen.strokeStyle = colour
    pen.lineWidth = width
    pen.strokeRect(LEFT + at[1] * side + inset, TOP + at[0] * side + inset, side - 2 * inset, side - 2 * inset)
  }

  function draw() {
    const style = getComputedStyle(root)
    const ink = style.color, ground = style.getPropertyValue("--st-background-color")
    const width = root.clientWidth
    if (!width) return
    side = Math.max(LEAST, Math.min(MOST, Math.floor((width - LEFT - 2) / n[1])))
    const size = [LEFT + side * n[1] + 2, TOP + side * n[0] + 2]
    const ratio = window.devicePixelRatio || 1
    canvas.width = size[0] * ratio
    canvas.height = size[1] * ratio
    canvas.style.width = size[0] + "px"
    canvas.style.height = size[1] + "px"
    pen = canvas.getContext("2d")
    pen.scale(ratio, ratio)
    pen.font = "11px " + style.fontFamily
    pen.fillStyle = ink
    pen.textBaseline = "middle"
    const every = Math.ceil(22 / side)
    pen.textAlign = "center"
    data.columns.forEach((name, j) => j % every || pen.fillText(name, LEFT + (j + 0.5) * side, TOP / 2))
    pen.textAlign = "right"
    data.rows.forEach((name, i) => i % every || pen.fillText(name, LEFT - 5, TOP + (i + 0.5) * side))
    const gap = side > 24 ? 2 : 1
    for (let i = 0; i < n[0]; i++)
      for (let j = 0; j < n[1]; j++) {
        const x = LEFT + j * side + gap, y = TOP + i * side + gap, room = side - 2 * gap
        if (picture) {
          const [tall, wide] = data.tile
          pen.imageSmoothingEnabled = room * ratio < Math.max(tall, wide)
          pen.imageSmoothingQuality = "high"
          const from = [data.gap + j * (wide + data.gap), data.gap + i * (tall + data.gap)]
          pen.drawImage(picture, from[0], from[1], wide, tall, x, y, room, room)
          frame([i, j], style.getPropertyValue("--st-border-color"), 1, gap - 0.5)
        } else if (data.colours) {
          pen.fillStyle = data.colours[i][j]
          pen.fillRect(x, y, room, room)
          if (data.text && side >= 34) {
            const [red, green, blue] = [1, 3, 5].map((at) => parseInt(data.colours[i][j].slice(at, at + 2), 16))
            pen.fillStyle = 0.299 * red + 0.587 * green + 0.114 * blue > 140 ? "#1f2328" : "#ffffff"
            pen.textAlign = "center"
            pen.fillText(data.text[i][j], x + room / 2, y + room / 2, room - 2)
          }
        }
        const letter = data.letters && data.letters[i][j]
        if (letter && side >= 22) {
          pen.font = "bold 11px " + style.fontFamily
          const wide = pen.measureText(letter).width + 6
          pen.fillStyle = ground
          pen.fillRect(x + room - wide, y, wide, 15)
          pen.fillStyle = ink
          pen.textAlign = "center"
          pen.fillText(letter, x + room - wide / 2, y + 8)
          pen.font = "11px " + style.fontFamily
        }
      }
    const mark = marks[data.key]
    if (inside(mark)) {
      if (side > 24) frame(mark, ground, 5, 1)
      frame(mark, data.accent, side > 24 ? 3 : 2, side > 24 ? 1 : 0)
    }
    const active = (parentElement.activeElement ?? document.activeElement) === root
    if (active) {
      pen.setLineDash([3, 2])
      frame(cursor, ink, 1.5, 3)
      pen.setLineDash([])
    }
    if (hovered) frame(hovered, ink, 1.5, side > 24 ? 1 : -1)
    root.dataset.side = side
    root.dataset.left = LEFT
    root.dataset.top = TOP
    root.dataset.selected = inside(mark) ? mark.join(",") : ""
    root.dataset.cursor = cursor.join(",")
    root.dataset.ready = "1"
  }

  // How many columns have room for their words: told where fewer do than there are, or more than the fewer there are.
  function tellRoom() {
    const width = root.clientWidth, room = data.room
    if (!room || !width) return
    const fits = Math.max(1, Math.floor((width - LEFT - 2) / room.each))
    if (fits === room.known || (fits >= n[1] && n[1] >= room.most)) return
    clearTimeout(root.telling)
    root.telling = setTimeout(() => setStateValue("room", fits), 150)
  }

  function at(event) {
    const box = canvas.getBoundingClientRect()
    const column = Math.floor((event.clientX - box.left - LEFT) / side)
    const row = Math.floor((event.clientY - box.top - TOP) / side)
    return row >= 0 && row < n[0] && column >= 0 && column < n[1] ? [row, column] : null
  }

  function tell(cell) {
    tip.hidden = !cell
    if (!cell) return
    tip.textContent = said(cell)
    const x = LEFT + (cell[1] + 1) * side + 6, y = TOP + cell[0] * side
    const isRight = x + 170 > root.clientWidth
    tip.style.left = isRight ? "" : x + "px"
    tip.style.right = isRight ? root.clientWidth - (LEFT + cell[1] * side) + 6 + "px" : ""
    tip.style.top = y + "px"
  }

  function pick(cell) {
    cursor = root.cursor = cell
    marks[data.key] = cell
    setTriggerValue("clicked", cell)
    draw()
  }

  canvas.onmousemove = (event) => {
    const cell = at(event)
    if (String(cell) === String(hovered)) return
    hovered = cell
    canvas.style.cursor = cell ? "pointer" : "default"
    tell(cell)
    draw()
  }
  canvas.onmouseleave = () => { hovered = null; tell(null); draw() }
  canvas.onclick = (event) => { const cell = at(event); if (cell) pick(cell) }
  root.onkeydown = (event) => {
    const steps = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1],
                    Home: [0, -n[1]], End: [0, n[1]], PageUp: [-n[0], 0], PageDown: [n[0], 0] }
    if (event.key === "Enter" || event.key === " ") pick(cursor)
    else if (event.key === "Escape") { tell(null); return }
    else if (steps[event.key]) {
      cursor = root.cursor = [0, 1].map((a) => Math.max(0, Math.min(n[a] - 1, cursor[a] + steps[event.key][a])))
      live.textContent = said(cursor).replaceAll("\\n", ", ")
      tell(cursor)
      draw()
    } else return
    event.preventDefault()
  }
  root.onfocus = () => {
    if (root.matches(":focus-visible") && inside(marks[data.key])) cursor = root.cursor = marks[data.key]
    draw()
  }
  root.onblur = () => { tell(null); draw() }

  root.setAttribute("aria-label", data.alt)
  legend.querySelector(".low").textContent = data.legend.low
  legend.querySelector(".high").textContent = data.legend.high
  legend.querySelector("b").textContent = data.legend.title
  legend.querySelector("i").style.backgroundImage = "linear-gradient(to right, " + data.legend.colours.join(",") + ")"
  live.textContent = ""
  tell(null)
  root.dataset.ready = ""
  if (data.image) {
    const image = new Image()
    image.onload = () => { picture = image; draw() }
    image.src = "data:image/png;base64," + data.image
  } else draw()
  const marked = () => { if (inside(marks[data.key])) cursor = root.cursor = marks[data.key]; draw() }
  window.addEventListener("interp-mark", marked)
  const watch = new ResizeObserver(() => { if (!data.image || picture) draw(); tellRoom() })
  watch.observe(root)
  root.leave = () => { watch.disconnect(); window.removeEventListener("interp-mark", marked) }
  return root.leave
}
"""

MARK = """
export default function ({ data }) {
  (window.interpMarks ??= {})[data.key] = data.at
  window.dispatchEvent(new Event("interp-mark"))
}
"""

_grid = component("interp_grid", html=HTML, css=CSS, js=JS)
# What is selected reaches the browser by itself: beside the picture it would have the picture sent again.
_mark = component("interp_grid_mark", html="", js=MARK)


@dataclass(frozen=True)
class Room:
    """What columns need for their words: the browser writes how many have it to the state under `sets`."""

    sets: str
    most: int  # columns that are drawn where there is room for them
    each: int = 38  # pixels


@dataclass(frozen=True)
class Scale:
    """What the colours of a grid mean."""

    low: float
    high: float
    title: str = ""


def grid(
    z: np.ndarray | None,
    *,
    key: str,
    row_labels: Sequence[str],
    column_labels: Sequence[str],
    images: Mosaic | None = None,
    text: Sequence[Sequence[str]] | None = None,
    said: Sequence[Sequence[str]] | None = None,
    letters: Sequence[Sequence[str]] | None = None,
    selected: tuple[int, int] | None = None,
    colour: Colour = "sequential",
    scale: Scale | None = None,
    theme: Theme = "light",
    sets: tuple[str, str] | None = None,
    room: Room | None = None,
    alt: str = "",
) -> tuple[int, int] | None:
    """Draw numbers [row column] as colours, or the tiles of a mosaic; the cell that was just picked, if one was.

    `text` stands in the cells, `said` is told of them when one hovers there, `letters` are marks in their corners.
    `selected` is framed. With `sets` a pick is also written to the state of these two widgets, which stand in the same
    fragment as the grid. With `room` it is found out how many columns have room for their words.
    """
    size = len(row_labels), len(column_labels)

    def set_it() -> None:
        cell = _checked(st.session_state[key].clicked, size)
        if sets is not None and cell is not None:
            st.session_state[sets[0]], st.session_state[sets[1]] = cell

    data = _look(z, images, colour, scale, theme)
    own = f"{key} {size}"  # a mark of a grid of another size, late in the browser, is not this one's
    data |= {"key": own, "rows": list(row_labels), "columns": list(column_labels), "alt": alt}
    data |= {"letters": letters, "text": text, "accent": palette(theme).categories[1]}
    if said is not None:
        data["said"] = said
    if room is not None:
        data["room"] = {"each": room.each, "most": room.most, "known": st.session_state.get(room.sets)}

    def tell_room() -> None:
        match st.session_state[key].room:
            case int(n) if room is not None and 0 < n < 1000:
                st.session_state[room.sets] = n

    with st.container(gap=None, key=f"{key}_box"):
        found = _grid(data=data, key=key, on_clicked_change=set_it, on_room_change=tell_room)
        clicked = _checked(found.clicked, size)
        _mark(data={"key": own, "at": clicked or selected}, key=f"{own}_mark")
    return clicked


def svg_of(
    z: np.ndarray | None,
    *,
    row_labels: Sequence[str],
    column_labels: Sequence[str],
    images: Mosaic | None = None,
    text: Sequence[Sequence[str]] | None = None,
    letters: Sequence[Sequence[str]] | None = None,
    colour: Colour = "sequential",
    scale: Scale | None = None,
    theme: Theme = "light",
    title: str = "",
) -> str:
    """The picture of the grid with these numbers or tiles, as a file."""
    look = _look(z, images, colour, scale, theme)
    legend = look["legend"]
    return grid_svg(
        row_labels,
        column_labels,
        colours=look.get("colours"),
        images=images,
        text=text,
        letters=letters,
        scale=(legend["low"], legend["high"], legend["title"]),
        shades=legend["colours"],
        title=title,
        theme=theme,
    )


def _look(z: np.ndarray | None, images: Mosaic | None, colour: Colour, scale: Scale | None, theme: Theme) -> dict:
    colours = palette(theme)
    if images is not None:
        shades = ["#" + bytes(shade).hex() for shade in colours.shades(254)[:: 254 // 16]]
        said = [[html.unescape(each.replace("<br>", "\n")) for each in row] for row in images.said]
        title = (scale.title if scale else "") or "attention, by square root"
        legend = {"low": "0", "high": f"{scale.high if scale else images.limit:.3g}", "title": title, "colours": shades}
        picture = base64.b64encode(images.png).decode()
        return {"image": picture, "tile": images.tile, "gap": images.gap, "said": said, "legend": legend}
    if z is None:
        raise ValueError("a grid needs numbers z, or images")
    known = scale or scale_of(z, colour)
    signed = colour == "diverging"
    legend = {
        "low": f"{known.low:.3g}",
        "high": f"{known.high:.3g}",
        "title": known.title,
        "colours": list(colours.diverging if signed else colours.sequential),
    }
    said = [[f"{x:.4g}" if np.isfinite(x) else "not computed" for x in row] for row in z.tolist()]
    return {"colours": colours.colours_of(z, known.low, known.high, signed), "said": said, "legend": legend}


def scale_of(z: np.ndarray, colour: Colour, title: str = "") -> Scale:
    """From 0 or the least to the greatest number; to both sides of 0 alike where they are signed."""
    there = z[np.isfinite(z)]
    if not there.size:
        return Scale(0.0, 1.0, title)
    if colour == "diverging":
        end = float(np.abs(there).max()) or 1.0
        return Scale(-end, end, title)
    return Scale(min(0.0, float(there.min())), float(there.max()) or 1.0, title)


def _checked(clicked: object, size: tuple[int, int]) -> tuple[int, int] | None:
    """What the browser says was picked, if it is a cell."""
    match clicked:
        case [int(row), int(column)] if 0 <= row < size[0] and 0 <= column < size[1]:
            return row, column
    return None
