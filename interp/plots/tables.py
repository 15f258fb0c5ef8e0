"""Tables of words: what each layer would say at each position."""

from typing import Any

import numpy as np
import plotly.graph_objects as go
from xarray import DataArray, Dataset

from interp.plots.cells import with_words
from interp.plots.heatmap import TEXT_CELLS
from interp.plots.results import labels
from interp.plots.theme import LABEL, Theme, about, framed, in_words, palette, ticks, visible

_IN_HOVER = ("target_probability", "target_rank", "rank", "logit_difference", "entropy", "kl")
_FEW = 7  # columns wide enough for long words
_ROW, _ROWS_AT_ONCE = 26, 12  # pixels; fit a figure of the usual height


def lens_table(
    table: Dataset,
    colour: str = "probability",
    *,
    prompt: int = 0,
    text: bool | None = None,
    title: str | None = None,
    theme: Theme = "light",
    max_labels: int = 24,
) -> go.Figure:
    """The most probable token of each layer at each position of one prompt; the first few of them appear on hovering.

    `table` is as from `lens.logit_lens`: `token` and `probability`, whose last axis runs from the most probable token
    down. `colour` is "probability", that of the token shown, or another variable, [layer pos]; ranks go by their
    logarithm, and what has both signs to both sides of 0.
    """
    of_one = _of_prompt(table, prompt)
    layers, places, _ = of_one["token"].dims
    known = ["probability", *(str(name) for name in of_one.data_vars if of_one[name].dims == (layers, places))]
    if colour not in known:
        raise ValueError(f"colour={colour!r}; the table has {known}")
    numbers = (of_one[colour][..., 0] if colour == "probability" else of_one[colour]).astype(float)
    values = numbers.to_numpy()
    if not np.isfinite(values).any():
        raise ValueError(f"no number of {colour} is finite: there is nothing to draw")
    has_text = values.size <= TEXT_CELLS if text is None else text
    if has_text and values.size > TEXT_CELLS:
        raise ValueError(f"text=True: {values.size} cells; text is readable in {TEXT_CELLS} at most")
    colours = palette(theme)
    is_rank = colour.endswith("rank")
    bar: dict[str, Any] = {
        "title": {"text": _named(colour), "side": "right", "font": {"size": 11}},
        "tickfont": {"size": 10},
        "thickness": 12,
        "outlinewidth": 0,
        "x": 1.01,
        "xpad": 4,
    }
    z, low, high = values, 0.0, 1.0 if "probability" in colour else float(np.nanmax(values)) or 1.0
    scale = colours.scale(colours.sequential)
    if is_rank:
        first = 0 if (values == 0).any() else 1
        z, high = np.log10(values + 1 - first), max(1.0, float(np.log10(np.nanmax(values) + 1 - first)))
        scale = colours.scale(colours.sequential[::-1])
        round_ranks = [0, *(i * 10**power for power in range(9) for i in (1, 3))][first:]
        shown = [rank for rank in round_ranks if np.log10(rank + 1 - first) <= high]
        bar |= {
            "tickvals": [float(np.log10(rank + 1 - first)) for rank in shown],
            "ticktext": [f"{r:,}" for r in shown],
        }
    elif (values < 0).any():
        high = float(np.nanmax(np.abs(values)))
        low, scale = -high, colours.scale(colours.diverging)
    cells = go.Heatmap(
        z=z,
        zmin=low,
        zmax=high,
        colorscale=scale,
        colorbar=bar,
        hovertext=_hover(of_one, str(layers), str(places)),
        hovertemplate="%{hovertext}<extra></extra>",
        xgap=1,
        ygap=1,
    )
    n_prompts = table.sizes.get("prompt", 1)
    which = f"prompt {prompt} of {n_prompts}" if n_prompts > 1 else ""
    figure = go.Figure(with_words(cells, _said(of_one), colours.missing) if has_text else cells)
    figure.update_xaxes(ticks(labels(of_one["token"], places, LABEL), max_labels), showgrid=False, zeroline=False)
    figure.update_yaxes(
        ticks(labels(of_one["token"], layers), 20), showgrid=False, zeroline=False, autorange="reversed"
    )
    figure.update_xaxes(title_text=str(places))
    figure.update_yaxes(title_text=str(layers))
    if n_missing := int((~np.isfinite(values)).sum()):
        which = " · ".join(filter(None, [which, f"grey: {n_missing} places without {_named(colour)}"]))
    figure.update_layout(plot_bgcolor=colours.background if not n_missing else colours.missing)
    if has_text and len(values) > _ROWS_AT_ONCE:
        figure.update_layout(height=130 + _ROW * len(values))
    heading = title or str(table.attrs.get("method") or "lens").capitalize()
    return framed(figure, theme, heading, about(table.attrs, f"most probable token; colour: {_named(colour)}", which))


def _of_prompt(table: Dataset, prompt: int) -> Dataset:
    if missing := [name for name in ("token", "probability") if name not in table.data_vars]:
        raise ValueError(
            f"a lens table has `token` and `probability`; it lacks {missing}, it has {list(table.data_vars)}"
        )
    n_prompts = table.sizes.get("prompt", 1)
    if not 0 <= prompt < n_prompts:
        raise ValueError(f"prompt={prompt}; the table has {n_prompts}, from 0")
    of_one = table.isel(prompt=prompt) if "prompt" in table.dims else table
    axes = of_one["token"].dims
    if len(axes) != 3 or of_one["probability"].dims != axes:
        raise ValueError(
            f"`token` has the axes {in_words(axes)} and `probability` {in_words(of_one['probability'].dims)} beside "
            "prompts; both need a layer, a position, and the first few tokens"
        )
    if of_one["token"].size == 0:
        raise ValueError(f"the table is empty: {dict(of_one.sizes)}")
    return of_one


def _said(of_one: Dataset) -> list[list[str]]:
    width = 9 if of_one["token"].shape[1] <= _FEW else 5
    return [[_lines(str(token), width) for token in row] for row in of_one["token"][..., 0].values]


def _lines(token: str, width: int) -> str:
    """A token in a line, or if it is longer than `width`, in two of half its length."""
    cut = token if len(token) <= 2 * width else token[: 2 * width - 1] + "…"
    middle = len(cut) if len(cut) <= width else -(-len(cut) // 2)
    return "<br>".join(visible(part) for part in (cut[:middle], cut[middle:]) if part)


def _hover(of_one: Dataset, layers: str, places: str) -> list[list[str]]:
    token, probability = of_one["token"].values, of_one["probability"].values
    more = [name for name in _IN_HOVER if name in of_one.data_vars and of_one[name].ndim == 2]
    numbers: dict[str, np.ndarray] = {name: of_one[name].values for name in more}
    names: DataArray = of_one["token"]
    columns = labels(names, places, 40)

    def cell(row: int, column: int) -> str:
        best = zip(token[row, column], probability[row, column], strict=True)
        listed = [f"{p:.3f} {visible(str(word), 24)}" for word, p in best]
        beside = [f"{_named(name)} {numbers[name][row, column]:.4g}" for name in more]
        return "<br>".join([f"{layers} {rows[row]}", f"{places} {columns[column]}", *listed, *beside])

    rows = labels(names, layers)
    return [[cell(row, column) for column in range(len(columns))] for row in range(len(rows))]


def _named(variable: str) -> str:
    return {"kl": "KL from the model (nats)", "entropy": "entropy (nats)"}.get(variable, variable.replace("_", " "))
