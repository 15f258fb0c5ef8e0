"""The map: readings down, positions across."""

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from dashboards.parts.figure import figure, opening
from dashboards.parts.grid import Room, Scale, grid, scale_of, svg_of
from dashboards.parts.heads.measured import quoted
from dashboards.parts.lens.chosen import COLOURS, NO_HALVES, WIDTHS, Cell, jump, readings
from dashboards.parts.lens.measured import FAR, ends, has_halves, output_error, scale_by_layer, scales
from dashboards.parts.lens.tuned import FILE
from dashboards.parts.minimap import minimap
from dashboards.parts.state import Chosen
from dashboards.parts.taken import taken
from dashboards.parts.words import plain
from interp import plots
from interp.plots.heatmap import TEXT_CELLS
from interp.plots.theme import palette, seen

_READ = "_, cache = model.run_with_cache(tokens)\n"
_LONGEST = 6  # characters in a cell
_TOLD_ALL = 500  # cells; of more, less is told of each


def draw_map(now: Chosen, cell: Cell) -> None:
    """The map, and what should hold of it."""
    colour, few = cell.colour, min(WIDTHS[0], len(now.labels))
    numbers = cell.numbers
    if cell.less is None:
        z, look = _look(now, numbers, colour, cell.is_next)
    else:
        z, look = _look_of_difference(cell)
    if cell.last - cell.first < len(now.labels):
        _draw_minimap(now, cell)
    look |= {
        "row_labels": ["end" if i == len(cell.layers) - 1 else f"{x:g}" for i, x in enumerate(cell.layers)],
        "column_labels": _columns(now, cell),
        "text": _texts(cell),
        "letters": _right(now, cell),
        "theme": now.theme,
    }
    grid(
        z,
        key="lens_grid",
        said=_said(now, cell),
        selected=(cell.row, cell.column),
        sets=("_lens_row", "_lens_column"),
        room=Room("_lens_room", few) if cell.last - cell.first <= few else None,
        alt=_alt(now, cell, colour, numbers),
        **look,
    )
    st.caption(_caption(now, cell))
    if cell.tuned is None or cell.less is not None:
        _warn_of_scales(now)
    names = [f"{pos} {seen(now.labels[pos])}" for pos in range(cell.first, cell.last)]
    table = pd.DataFrame(numbers, readings(now, cell.halves), names)
    title = f"{cell.lens} of {now.name}: {COLOURS[colour]}"
    svg = lambda: svg_of(z, title=title, **look)
    taken(table, key="lens_map", code=_code(now, cell), made=lambda: _drawn(now, cell), svg=svg)


def _draw_minimap(now: Chosen, cell: Cell) -> None:
    """All positions, by what the model says there in the end."""
    values, n = ends(now, cell.is_next)[cell.colour].to_numpy(), len(now.labels)
    z, look = _look(now, values[None], cell.colour, cell.is_next)
    scale, signed = look["scale"], look.get("colour") == "diverging"
    said = [f"{pos} {seen(label)}\n{x:.4g}" for pos, (label, x) in enumerate(zip(now.labels, values, strict=True))]
    minimap(
        palette(now.theme).colours_of(z, scale.low, scale.high, signed)[0],
        (cell.first, cell.last),
        key="lens_minimap",
        said=said,
        alt=f"All {n} positions by {COLOURS[cell.colour]} at the end: a click or the arrows move the window",
        on_pick=lambda pos: jump(pos, cell.last - cell.first, n),
        theme=now.theme,
    )


def draw_figures(now: Chosen, cell: Cell) -> None:
    """The map as a figure that can be taken away, and the stream's size."""
    which = st.segmented_control(
        "Draw", ["The map as a figure", "How large the stream is"], key="lens_figure", bind="query-params"
    )
    if which == "The map as a figure":
        alt = _alt(now, cell, cell.colour, cell.numbers)
        figure(
            _drawn(now, cell),
            key="lens_table",
            caption=_caption(now, cell),
            code=_code(now, cell),
            data=cell.found[cell.colour].copy(data=cell.numbers),
            alt=alt,
        )
    elif which is not None:
        _draw_stream(now)


def _drawn(now: Chosen, cell: Cell) -> go.Figure:
    where = [f"{pos} {now.labels[pos]}" for pos in range(cell.first, cell.last)]
    found, title = cell.found.assign_coords(pos=where), f"{cell.lens} of {now.name}"
    if cell.less is None:
        return plots.lens_table(found, cell.colour, title=title, theme=now.theme)
    change = found[cell.colour].copy(data=cell.numbers.astype(float))
    return plots.heatmap(change, title=title, scale="diverging", text=False, theme=now.theme)


def _code(now: Chosen, cell: Cell) -> str:
    target = "'next'" if cell.is_next else now.target
    asked = f"model, cache, {target}, {now.foil}, k={cell.found.sizes['top']}, pos=slice({cell.first}, {cell.last})"
    begin, table = opening(now, "lens", "plots") + _READ, f"fig = plots.lens_table(found, {cell.colour!r})\n"
    if cell.tuned is None:
        return begin + f"found = lens.logit_lens({asked}, halves={cell.halves})\n{table}"
    begin += f"translator = lens.TunedLens.load({FILE!r}, model)  # downloaded from the page, under Tuned lens\n"
    tuned = f"lens.logit_lens({asked}, translate=translator)"
    if cell.less is None:
        return begin + f"found = {tuned}\n{table}"
    return begin + (
        f"tuned = {tuned}\nplain = lens.logit_lens({asked})\n"
        f"found = tuned[{cell.colour!r}] - plain[{cell.colour!r}]\n"
        "fig = plots.heatmap(found, scale='diverging', text=False)\n"
    )


def _draw_stream(now: Chosen) -> None:
    found = scales(now)
    code = opening(now, "lens", "plots") + (
        f"{_READ}found = lens.stream_statistics(model, cache)\nfig = plots.stream_statistics(found, 'norm', "
        "values='log')\n"
    )
    drawn = plots.stream_statistics(found, "norm", values="log", theme=now.theme)
    ends = found["norm"].isel(component=-1)
    alt = f"Norm of the stream and of what is written to it, by layer. At the end {float(ends.median()):.3g}."
    figure(drawn, key="lens_stream", caption="All positions but the first.", code=code, data=found["norm"], alt=alt)


def _look(now: Chosen, numbers: np.ndarray, colour: str, is_next: bool) -> tuple[np.ndarray, dict[str, Any]]:
    """What the colours stand for."""
    values = numbers.astype(float)
    of = "the next token" if is_next else quoted(now, now.target)
    if colour == "target_probability":
        return values, {"scale": Scale(0.0, 1.0, f"probability of {of}")}
    if colour == "target_rank":
        z = -np.log10(values + 1)
        low = min(-1.0, float(np.nanmin(z))) if np.isfinite(z).any() else -1.0
        return z, {"scale": Scale(low, 0.0, f"−log₁₀(1 + rank) of {of}; 0: the likeliest")}
    if colour == "logit_difference":
        title = f"logit of {of} − {quoted(now, now.foil)}"
        return values, {"scale": scale_of(values, "diverging", title), "colour": "diverging"}
    title = "entropy, nats" if colour == "entropy" else "KL(model ‖ reading), nats"
    return values, {"scale": scale_of(values, "sequential", title)}


def _look_of_difference(cell: Cell) -> tuple[np.ndarray, dict[str, Any]]:
    """What the colours of a difference stand for; ranks by their logarithms."""
    assert cell.less is not None
    z, title = cell.numbers.astype(float), f"{COLOURS[cell.colour]}: tuned − plain"
    if cell.colour == "target_rank":
        tuned, less = (np.log10(each.target_rank.to_numpy().astype(float) + 1) for each in (cell.found, cell.less))
        z, title = less - tuned, "−log₁₀(1 + rank): tuned − plain; above 0: nearer to the likeliest"
    return z, {"scale": scale_of(z, "diverging", title), "colour": "diverging"}


def _columns(now: Chosen, cell: Cell) -> list[str]:
    if cell.last - cell.first > 16:
        return [str(pos) for pos in range(cell.first, cell.last)]
    return [_cut(now.labels[pos]) for pos in range(cell.first, cell.last)]


def _texts(cell: Cell) -> list[list[str]] | None:
    """The likeliest token of each cell."""
    best = cell.found.token[..., 0].to_numpy()
    return None if best.size > TEXT_CELLS else [[_cut(str(token)) for token in row] for row in best]


def _cut(token: str) -> str:
    text = seen(token)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def _said(now: Chosen, cell: Cell) -> list[list[str]]:
    """What is told of a cell when one hovers there."""
    found, names = cell.found, readings(now, cell.halves)
    n_top = 3 if found.entropy.size <= _TOLD_ALL else 1
    token, p = found.token.to_numpy()[..., :n_top], found.probability.to_numpy()[..., :n_top]
    more, change = {name: found[name].to_numpy() for name in COLOURS}, cell.numbers

    def told(i: int, j: int) -> str:
        pos = cell.first + j
        lines = [f"{names[i]}, {pos} {_short(now.labels[pos])}"]
        lines += [f"{x:.3f} {_short(str(word))}" for word, x in zip(token[i, j], p[i, j], strict=True)]
        x = {name: float(values[i, j]) for name, values in more.items()}
        if np.isfinite(x["target_rank"]):
            asked = "next token" if cell.is_next else "target"
            lines.append(f"{asked} {x['target_probability']:.3g}, rank {x['target_rank']:.0f}")
            lines.append(f"logit difference {x['logit_difference']:+.3g}")
        lines.append(f"entropy {x['entropy']:.3g}, KL {x['kl']:.3g}")
        if cell.less is not None and np.isfinite(change[i, j]):
            lines.append(f"tuned − plain: {COLOURS[cell.colour]} {float(change[i, j]):+.3g}")
        return "\n".join(lines)

    return [[told(i, j) for j in range(p.shape[1])] for i in range(p.shape[0])]


def _short(token: str) -> str:
    text = seen(token)
    return text if len(text) <= 24 else text[:23] + "…"


def _right(now: Chosen, cell: Cell) -> list[list[str]]:
    """A mark where the likeliest token is the one that follows."""
    after = [*now.tokens[0].tolist(), -1][cell.first + 1 : cell.last + 1]
    return [["✓" if a == b else "" for a, b in zip(row, after, strict=True)] for row in _best(cell)]


def _best(cell: Cell) -> list[list[int]]:
    return cell.found.token_id[..., 0].to_numpy().tolist()


def _caption(now: Chosen, cell: Cell) -> str:
    error = output_error(now, cell.found, cell.first, cell.last)
    norm = "no norm" if scale_by_layer(now) is None else "the final norm"
    holds = (
        f"The last row equals the model's output (error {error:.1g}) ✓"
        if error <= 1e-4
        else f":red[The last row is {error:.2g} off the model's output ✗]"
    )
    begins = " The prompt begins with the token that begins every text." if now.bos else ""
    if cell.tuned is None:
        return (
            f"Row l reads the stream before layer l through {norm} and the unembedding; in the cells, the likeliest "
            f"token, marked where it is the one that follows. {holds}.{begins}"
        )
    said = "Tuned lens" if cell.less is None else "Tuned lens less the plain one, cell by cell"
    return (
        f"{said}. Row l is read through a map of its own, {cell.tuned.trained_on}, {norm} and the unembedding; in the "
        f"cells, the token that is likeliest by the tuned lens, marked where it is the one that follows. {holds}."
        + begins
        + (f" No rows after attention: {NO_HALVES[0].lower()}{NO_HALVES[1:]}" if has_halves(now.model) else "")
    )


def _warn_of_scales(now: Chosen) -> None:
    """Where the final norm divides early streams by something far from what it divides the last by."""
    found = scale_by_layer(now)
    if found is None:
        st.caption("This model has no final norm: all rows are read alike.")
        return
    times = found / found[-1]
    far = [i for i, x in enumerate(times) if not 1 / FAR <= x <= FAR]
    said = (
        f"The final norm divides by {found[-1]:.3g} at the end and by {found[0]:.3g} before layer 0, "
        f"{max(times[0], 1 / times[0]):.1f} × apart (median over positions)"
    )
    if far:
        rows = f"row {far[0]}" if len(far) == 1 else f"rows {far[0]} to {far[-1]}"
        st.warning(f"{said}: {rows} may say little of what the model knows there.", icon=":material/straighten:")
    else:
        st.caption(f"{said}: less than {FAR} ×, no reason to doubt early rows.")


def _alt(now: Chosen, cell: Cell, colour: str, values: np.ndarray) -> str:
    """The map in words, with its two largest numbers."""
    said = f"{cell.lens}, {len(cell.layers)} readings by {cell.last - cell.first} positions, {COLOURS[colour]}."
    finite = np.where(np.isfinite(values), values, -np.inf).ravel()
    names = readings(now, cell.halves)
    largest = [
        f"{values[i, j]:.3g} {names[i]} at {cell.first + j} {plain(seen(now.labels[cell.first + j]), 20)}"
        for i, j in (divmod(int(at), values.shape[1]) for at in np.argsort(-finite)[:2])
        if np.isfinite(values[i, j])
    ]
    return f"{said} Largest: {'; '.join(largest)}." if largest else said
