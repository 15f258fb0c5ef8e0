"""A row of tokens to click, a button each, drawn in the browser: moving over them costs nothing."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import streamlit as st
from streamlit.components.v2 import component

from interp.plots.theme import palette

PAGE = 256  # tokens drawn at once

_CSS = """
.strip { display: flex; flex-wrap: wrap; gap: 2px; align-items: center; font-family: var(--st-code-font);
  direction: ltr; max-height: 200px; overflow-y: auto; padding: 2px; }
.strip button { font: inherit; font-size: 13px; line-height: 18px; min-height: 26px; min-width: 24px; padding: 2px 5px;
  border: 1px solid var(--st-border-color); border-radius: 4px; background: transparent; color: var(--st-text-color);
  cursor: pointer; white-space: pre; unicode-bidi: isolate; max-width: 22em; overflow: hidden;
  text-overflow: ellipsis; }
.strip button:hover { border-color: var(--st-primary-color); }
.strip button:focus-visible { outline: 2px solid var(--st-primary-color); outline-offset: 1px; }
.strip button[aria-pressed="true"] { box-shadow: inset 0 0 0 2px var(--st-primary-color);
  border-color: var(--st-primary-color); }
.strip button.read:not(:focus-visible) { outline: 2px dashed var(--st-text-color); outline-offset: 1px; }
.strip button.read { margin: 2px 4px; }
.strip .end { flex-basis: 100%; height: 0; }
.key { display: flex; gap: 6px; align-items: center; flex-wrap: wrap; min-height: 20px; margin-top: 4px;
  font-family: var(--st-font); font-size: 12px; color: var(--st-text-color); }
.key i { width: 110px; height: 10px; border-radius: 2px; border: 1px solid var(--st-border-color);
  background-origin: border-box; }
.key u { width: 14px; height: 10px; margin-left: 10px; border: 2px dashed var(--st-text-color); border-radius: 4px; }
.key b { font-weight: 400; opacity: 0.8; }
.key [hidden], .key[hidden] { display: none; }
.foot { display: flex; gap: 10px; align-items: center; min-height: 22px; margin-top: 3px; font-family: var(--st-font);
  font-size: 13px; color: var(--st-text-color); opacity: 0.8; }
.foot button { font: inherit; min-height: 24px; padding: 0 8px; border: 1px solid var(--st-border-color);
  border-radius: 4px; background: transparent; color: inherit; cursor: pointer; }
.foot button:disabled { opacity: 0.4; cursor: default; }
.foot [hidden] { display: none; }
"""

_JS = """
const pages = new WeakMap();

export default function (component) {
  const { data, parentElement, setTriggerValue } = component;
  const strip = parentElement.querySelector('.strip');
  const [back, range, on, told] = parentElement.querySelectorAll('.foot > *');
  const { labels, said, fills, inks, key, read, selected, page, name } = data;
  const n = labels.length;
  const nPages = Math.max(1, Math.ceil(n / page));
  const before = pages.get(parentElement);
  const isSame = before && before.selected === selected && before.n === n;
  let at = isSame ? before.at : Math.floor((selected === null ? 0 : selected) / page);
  const active = parentElement.activeElement || (parentElement.getRootNode().activeElement);
  const held = active && active.dataset ? active.dataset.place : undefined;
  strip.setAttribute('aria-label', name);
  const told_of = parentElement.querySelector('.key');
  told_of.hidden = !key;
  if (key) {
    const [low, scale, high, of, dashes, where] = told_of.children;
    low.textContent = key.low;
    high.textContent = key.high;
    of.textContent = key.of;
    scale.style.backgroundImage = `linear-gradient(to right, ${key.colours.join(', ')})`;
    dashes.hidden = where.hidden = read === null;
  }

  const tell = (i) => { told.textContent = i === null ? (selected === null ? '' : said[selected]) : said[i]; };

  function draw(focus) {
    pages.set(parentElement, { at, selected, n });
    const start = at * page, end = Math.min(n, start + page);
    const entry = selected !== null && selected >= start && selected < end ? selected : start;
    strip.replaceChildren();
    for (let i = start; i < end; i++) {
      const button = document.createElement('button');
      button.type = 'button';
      button.textContent = labels[i];
      button.dataset.place = i;
      button.tabIndex = i === entry ? 0 : -1;
      button.title = said[i];
      button.setAttribute('aria-label', said[i]);
      button.setAttribute('aria-pressed', String(i === selected));
      if (i === read) button.classList.add('read');
      if (fills) { button.style.background = fills[i]; button.style.color = inks[i]; }
      button.onclick = () => setTriggerValue('clicked', i);
      button.onmouseenter = button.onfocus = () => tell(i);
      button.onmouseleave = button.onblur = () => tell(null);
      strip.append(button);
      if (labels[i].includes('\\u23CE')) {
        const line = document.createElement('span');
        line.className = 'end';
        strip.append(line);
      }
    }
    back.hidden = on.hidden = range.hidden = nPages === 1;
    back.disabled = at === 0;
    on.disabled = at === nPages - 1;
    range.textContent = `${start} to ${end - 1} of ${n} tokens`;
    tell(null);
    const shown = strip.querySelector(`[data-place="${entry}"]`);
    strip.scrollTop = shown.offsetTop - strip.offsetTop - (strip.clientHeight - shown.offsetHeight) / 2;
    if (focus !== undefined) strip.querySelector(`[data-place="${focus}"]`)?.focus();
    strip.dataset.ready = 'true';
  }

  const go = (to) => {
    if (to < 0 || to >= n) return;
    const other = Math.floor(to / page);
    if (other !== at) { at = other; draw(to); return; }
    const button = strip.querySelector(`[data-place="${to}"]`);
    strip.querySelectorAll('button').forEach((each) => { each.tabIndex = each === button ? 0 : -1; });
    button.focus();
  };
  strip.onkeydown = (event) => {
    const here = Number(event.target.dataset.place);
    const to = { ArrowLeft: here - 1, ArrowRight: here + 1, Home: 0, End: n - 1 }[event.key];
    if (to === undefined || Number.isNaN(here)) return;
    event.preventDefault();
    go(to);
  };
  back.onclick = () => { at -= 1; draw(); };
  on.onclick = () => { at += 1; draw(); };
  draw(held);
}
"""

_HTML = """
<div class="strip" role="toolbar"></div>
<div class="key"><span></span><i></i><span></span><b></b><u></u><b>the position read</b></div>
<div class="foot"><button type="button">Earlier</button><span></span><button type="button">Later</button>
<span aria-hidden="true"></span></div>
"""

_strip = component("interp_token_strip", html=_HTML, css=_CSS, js=_JS)


def strip(
    labels: Sequence[str],
    *,
    key: str,
    values: Sequence[float] | np.ndarray | None = None,
    selected: int | None = None,
    read: int | None = None,
    colour: Literal["sequential", "diverging"] = "sequential",
    sets: str | None = None,
    also: Mapping[str, Any] | None = None,
    name: str = "Prompt",
    of: str = "",
    notes: Sequence[str] | None = None,
    is_dark: bool | None = None,
) -> int | None:
    """The place in the strip that was just clicked, if one was; with `sets`, it is also written to that widget's
    state, and what `also` says to that of others.

    Each token is coloured by its value, between 0 and 1 (or the largest, if that is more), or symmetrically about 0;
    `of` says what the values are, and a key below the strip what their colours, unless it is left out; `notes` what
    else is told of each token under the mouse. `read` is marked apart from `selected`. A widget that a click sets
    stands in the same fragment as the strip, or both in none.
    """
    numbers = None if values is None else np.asarray(values, dtype=float)
    if numbers is not None and numbers.shape != (len(labels),):
        raise ValueError(f"{len(labels)} labels, and values of shape {list(numbers.shape)}: give each label one")
    dark = st.context.theme.type == "dark" if is_dark is None else is_dark
    fills, inks = (None, None) if numbers is None else colours(numbers, colour, dark)
    said = [
        f"{i} {label}"
        + ("" if numbers is None or not of else f"  {of} {numbers[i]:.4g}")
        + ("" if notes is None else f"  {notes[i]}")
        + ("  the position read" if i == read else "")
        for i, label in enumerate(labels)
    ]
    data = {
        "labels": list(labels),
        "said": said,
        "fills": fills,
        "inks": inks,
        "key": None if numbers is None or not of else _key(numbers, colour, of, dark),
        "read": read,
        "selected": selected,
        "page": PAGE,
        "name": name,
    }
    result: Any = _strip(key=key, data=data, on_clicked_change=_setting(key, sets, also or {}))
    return None if result.clicked is None else int(result.clicked)


def colours(values: np.ndarray, colour: str, is_dark: bool) -> tuple[list[str], list[str]]:
    """A background for each value, and an ink that is read on it."""
    theme = palette("dark" if is_dark else "light")
    known = theme.sequential if colour == "sequential" else theme.diverging
    low, high = _ends(values, colour)
    channels = np.array([[int(shade[i : i + 2], 16) for i in (1, 3, 5)] for shade in known])
    finite = np.isfinite(values)
    share = np.clip((values - low) / (high - low), 0, 1)
    if colour == "sequential":
        share = np.sqrt(share)
    at = np.where(finite, share, 0.0) * (len(known) - 1)
    rgb = np.stack([np.interp(at, range(len(known)), channel) for channel in channels.T], -1)
    missing = np.array([int(theme.missing[i : i + 2], 16) for i in (1, 3, 5)])
    rgb = np.rint(np.where(finite[:, None], rgb, missing)).astype(int)
    linear = np.where(rgb / 255 <= 0.04045, rgb / 255 / 12.92, ((rgb / 255 + 0.055) / 1.055) ** 2.4)
    is_light = linear @ np.array([0.2126, 0.7152, 0.0722]) > 0.18  # where black and white are read equally well
    return [f"rgb({r},{g},{b})" for r, g, b in rgb.tolist()], ["#111418" if light else "#ffffff" for light in is_light]


def _ends(values: np.ndarray, colour: str) -> tuple[float, float]:
    """The values of the first colour and of the last."""
    largest = float(np.abs(values[np.isfinite(values)]).max(initial=0.0))
    return (0.0, max(largest, 1.0)) if colour == "sequential" else (-(largest or 1.0), largest or 1.0)


def _key(values: np.ndarray, colour: str, of: str, is_dark: bool) -> dict[str, Any]:
    """What the colours say, and the numbers at their two ends."""
    low, high = _ends(values, colour)
    theme = palette("dark" if is_dark else "light")
    is_signed = colour != "sequential"
    return {
        "low": f"{low:.3g}",
        "high": f"{high:+.3g}" if is_signed else f"{high:.3g}",
        "of": of if is_signed else f"{of}, by square root",
        "colours": list(theme.diverging if is_signed else theme.sequential),
    }


def _setting(key: str, sets: str | None, also: Mapping[str, Any]) -> Callable[[], None]:
    def set_it() -> None:
        if sets is not None and st.session_state[key].clicked is not None:
            st.session_state[sets] = int(st.session_state[key].clicked)
            for other, value in also.items():
                st.session_state[other] = value

    return set_it
