"""All positions as a slim strip, the window of those that are drawn framed: a click moves it."""

from collections.abc import Callable, Sequence
from typing import Any

import streamlit as st
from streamlit.components.v2 import component

from interp.plots.theme import Theme, palette

_HTML = """
<div class="minimap" tabindex="0" role="slider"><canvas></canvas><div class="tip" hidden></div></div>
"""

_CSS = """
.minimap { position: relative; outline: none; font-family: var(--st-font); padding-bottom: 4px; }
.minimap:focus-visible canvas { outline: 2px solid var(--st-primary-color); outline-offset: 2px; }
canvas { display: block; width: 100%; height: 26px; cursor: pointer; }
.tip { position: absolute; top: 30px; z-index: 5; pointer-events: none; padding: 2px 8px; font-size: 12px;
  white-space: pre; color: var(--st-text-color); background: var(--st-background-color);
  border: 1px solid var(--st-border-color); border-radius: 4px; }
"""

_JS = """
export default function ({ data, parentElement, setTriggerValue }) {
  const root = parentElement.querySelector(".minimap")
  const [canvas, tip] = ["canvas", ".tip"].map((name) => root.querySelector(name))
  const n = data.colours.length
  root.setAttribute("aria-label", data.alt)
  root.setAttribute("aria-valuemin", 0)
  root.setAttribute("aria-valuemax", n - 1)
  root.setAttribute("aria-valuenow", data.first)
  root.setAttribute("aria-valuetext", `positions ${data.first} to ${data.last - 1} of ${n}`)

  function draw() {
    const width = root.clientWidth, ratio = window.devicePixelRatio || 1
    if (!width) return
    canvas.width = width * ratio
    canvas.height = 26 * ratio
    const pen = canvas.getContext("2d"), each = width / n
    pen.scale(ratio, ratio)
    data.colours.forEach((colour, i) => {
      pen.fillStyle = colour
      pen.fillRect(i * each, 5, Math.max(each, 1), 16)
    })
    pen.strokeStyle = getComputedStyle(root).getPropertyValue("--st-border-color")
    pen.strokeRect(0.5, 4.5, width - 1, 17)
    pen.strokeStyle = data.accent
    pen.lineWidth = 2
    pen.strokeRect(Math.max(1, data.first * each), 1, Math.min((data.last - data.first) * each, width - 2), 24)
    root.dataset.ready = `${data.first},${data.last}`
  }
  const at = (event) => {
    const box = canvas.getBoundingClientRect()
    return Math.max(0, Math.min(n - 1, Math.floor((event.clientX - box.left) / box.width * n)))
  }
  canvas.onmousemove = (event) => {
    const i = at(event), right = i > n / 2
    tip.textContent = data.said[i]
    tip.style.left = right ? "" : `${i / n * 100}%`
    tip.style.right = right ? `${100 - i / n * 100}%` : ""
    tip.hidden = false
  }
  canvas.onmouseleave = () => { tip.hidden = true }
  canvas.onclick = (event) => setTriggerValue("clicked", at(event))
  root.onkeydown = (event) => {
    const middle = Math.floor((data.first + data.last) / 2), width = data.last - data.first
    const to = { ArrowLeft: middle - width, ArrowRight: middle + width, Home: 0, End: n - 1 }[event.key]
    if (to === undefined) return
    event.preventDefault()
    setTriggerValue("clicked", Math.max(0, Math.min(n - 1, to)))
  }
  const watch = new ResizeObserver(draw)
  watch.observe(root)
  draw()
  return () => watch.disconnect()
}
"""

_minimap = component("interp_minimap", html=_HTML, css=_CSS, js=_JS)


def minimap(
    colours: Sequence[str],
    window: tuple[int, int],
    *,
    key: str,
    said: Sequence[str],
    alt: str,
    on_pick: Callable[[int], None],
    theme: Theme = "light",
) -> None:
    """Draw a bar for each position and a frame around those in the window; `on_pick` hears which was clicked.

    `said` is told of a position when one hovers there.
    """
    n = len(colours)

    def picked() -> None:
        match st.session_state[key].clicked:
            case int(at) if 0 <= at < n:
                on_pick(at)

    data: dict[str, Any] = {"colours": list(colours), "said": list(said), "alt": alt}
    data |= {"first": window[0], "last": window[1], "accent": palette(theme).categories[1]}
    with st.container(gap=None, key=f"{key}_box"):
        _minimap(data=data, key=key, on_clicked_change=picked)
