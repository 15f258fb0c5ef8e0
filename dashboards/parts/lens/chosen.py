"""The cell of the map that is looked at, and how the map is drawn: widgets that a link remembers."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import streamlit as st
from xarray import Dataset

from dashboards.parts.lens.measured import has_halves, lens
from dashboards.parts.lens.tuned import LENSES, Tuned, offer
from dashboards.parts.state import Chosen

WIDTHS = (16, 24, 48)  # positions drawn at once; the first, or fewer whose words fit the window
FEWEST = 4
COLOURS = {
    "target_probability": "probability",
    "target_rank": "rank",
    "entropy": "entropy",
    "kl": "KL to the end",
    "logit_difference": "logit difference",
}
NO_HALVES = "No map was trained for what stands between attention and MLP."
OF = {"target": "the target", "next": "the next token"}


@dataclass(frozen=True)
class Cell:
    """A reading at a position, in a window of the prompt."""

    found: Dataset  # what was read in the window, [layer pos], by the tuned lens if there is one
    row: int
    pos: int
    first: int
    last: int
    colour: str
    is_next: bool
    halves: bool
    tuned: Tuned | None = None
    less: Dataset | None = None  # what the plain lens reads there, where its numbers are taken off

    @property
    def numbers(self) -> np.ndarray:
        """What is coloured."""
        return self.of(self.colour)

    def of(self, colour: str) -> np.ndarray:
        """These numbers, less those of the plain lens if they are taken off."""
        values = self.found[colour].to_numpy()
        return values if self.less is None else values - self.less[colour].to_numpy()

    @property
    def lens(self) -> str:
        """What the lens is called."""
        return "Logit lens" if self.tuned is None else "Tuned lens" if self.less is None else "Tuned less plain lens"

    @property
    def column(self) -> int:
        return self.pos - self.first

    @property
    def layers(self) -> list[float]:
        return self.found.layer.values.astype(float).tolist()

    @property
    def one(self) -> Dataset:
        return self.found.isel(layer=self.row, pos=self.column)


def choose(now: Chosen) -> Cell:
    """Draw the widgets, and read what they say."""
    _take_over(now)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        tuned, which = _lens(now)
        colour = st.segmented_control(
            "Colour",
            list(COLOURS),
            default="target_probability",
            format_func=COLOURS.__getitem__,
            key="lens_colour",
            bind="query-params",
            required=True,
        )
        of = st.segmented_control(
            "Of",
            list(OF),
            default="target",
            format_func=OF.__getitem__,
            key="lens_of",
            bind="query-params",
            required=True,
        )
        halves = has_halves(now.model) and st.toggle(
            "Rows after attention, too",
            key="lens_halves",
            bind="query-params",
            on_change=_whole,
            disabled=which != "plain",
            help=None if which == "plain" else NO_HALVES,
        )
    n = len(now.labels)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        names = readings(now, bool(halves))
        row = st.selectbox(
            "Reading",
            range(len(names)),
            None,
            format_func=names.__getitem__,
            key="lens_row",
            bind="query-params",
            placeholder=names[-1],
            width=230,
        )
        pos = st.number_input(
            "Position",
            0,
            n - 1,
            None,
            key="lens_pos",
            bind="query-params",
            placeholder=str(now.q),
            width=150,
        )
        row, pos = len(names) - 1 if row is None else row, now.q if pos is None else int(pos)
        first, last = _window(now, pos)
    asked = now, of == "next", bool(halves), first, last
    found = lens(*asked, tuned)
    less = lens(*asked) if which == "difference" else None
    return Cell(found, row, pos, first, last, colour, of == "next", bool(halves), tuned, less)


def _lens(now: Chosen) -> tuple[Tuned | None, str]:
    """The lens that reads, None for the plain one, and what is asked for."""
    tuned, state, which = offer(now), st.session_state, "plain"
    if tuned is not None:
        which = st.segmented_control(
            "Lens",
            list(LENSES),
            default=None if "lens_which" in state else "plain",
            format_func=LENSES.__getitem__,
            key="lens_which",
            persist_state="session",
            required=True,
        )
    if which != "plain" and state.get("lens_halves"):
        state["lens_halves"] = False
        _whole()
    return (None, "plain") if which == "plain" else (tuned, which or "plain")


def readings(now: Chosen, halves: bool) -> list[str]:
    """What the rows are called in words."""
    n, names = now.model.cfg.n_layers, []
    for layer in range(n):
        names.append(f"before layer {layer}" + (" (embeddings)" if layer == 0 else ""))
        names += [f"after attention of layer {layer}"] if halves else []
    return [*names, "at the end: the model"]


def _take_over(now: Chosen) -> None:
    """What was clicked, or changed outside; what no longer fits gives way."""
    state, n = st.session_state, len(now.labels)
    clicked = state.pop("_lens_row", None), state.pop("_lens_column", None)
    if None not in clicked and "_lens_first" in state:
        state["lens_row"], state["lens_pos"] = clicked[0], state["_lens_first"] + clicked[1]
    read = now.fingerprint, now.prompt, now.bos, now.q
    if state.get("_lens_read", read) != read:
        state["lens_pos"] = None
    state["_lens_read"] = read
    n_rows = 1 + now.model.cfg.n_layers * (2 if state.get("lens_halves") and has_halves(now.model) else 1)
    if isinstance(said := state.get("lens_row"), str):
        names = readings(now, bool(state.get("lens_halves")) and has_halves(now.model))
        state["lens_row"] = names.index(said) if said in names else None
    allowed = {"lens_pos": range(n), "lens_row": range(n_rows), "lens_colour": COLOURS, "lens_of": OF}
    for key, each in allowed.items():
        if state.get(key) is not None and state[key] not in each:
            del state[key]


def _whole() -> None:
    """The row stays that of the same reading, or of the one before it."""
    row, halves = st.session_state.get("lens_row"), st.session_state["lens_halves"]
    if row is not None:
        st.session_state["lens_row"] = row * 2 if halves else row // 2


def _window(now: Chosen, pos: int) -> tuple[int, int]:
    """The positions drawn, among which is the one looked at; they stay while it is among them."""
    n, state = len(now.labels), st.session_state
    few = min(WIDTHS[0], max(FEWEST, state.get("_lens_room") or WIDTHS[0]))
    width = n
    if n > few:
        widths = [WIDTHS[0], *(w for before, w in pairwise(WIDTHS) if n > before or (w == WIDTHS[1] and n > few))]
        width = st.segmented_control(
            "Positions drawn",
            widths,
            default=WIDTHS[0],
            format_func=lambda w: str(few if w == WIDTHS[0] else min(w, n)),
            key="lens_width",
            bind="query-params",
            required=True,
        )
        width = min(n, few if width == WIDTHS[0] else width)
    first = min(state.get("_lens_first", n), n - width)
    if not first <= pos < first + width:
        first = min(max(0, pos - width // 2), n - width)
    state["_lens_first"] = first
    if width < n:
        for words, step, is_end in (("Earlier", -width, first == 0), ("Later", width, first == n - width)):
            st.button(words, key=f"lens_{words}", on_click=_move, args=(pos, step, n), disabled=is_end)
    return first, first + width


def jump(pos: int, width: int, n: int) -> None:
    """Look at a position, and draw those around it."""
    st.session_state["lens_pos"] = pos
    st.session_state["_lens_first"] = min(max(0, pos - width // 2), n - width)


def _move(pos: int, step: int, n: int) -> None:
    """Draw other positions, and look at one among them."""
    st.session_state["lens_pos"] = min(max(0, pos + step), n - 1)
    st.session_state["_lens_first"] = max(0, st.session_state["_lens_first"] + step)
