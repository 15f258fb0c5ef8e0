"""Bars: what each part adds, or what each change does, the largest first."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
from xarray import DataArray

from interp.plots.results import labels, of_prompts, prepared, quantity
from interp.plots.theme import UNBROKEN, Theme, about, framed, palette, plain

_ROW, _LEGEND = 18, 22  # pixels
_ROWS_AT_ONCE = 16  # fit a figure of the usual height


def attribution_bars(
    result: DataArray, *, top: int = 20, title: str | None = None, theme: Theme = "light"
) -> go.Figure:
    """The `top` largest contributions, the sum of all others, and what is left of the total: together the total.

    A coordinate `kind` along the parts gives them colours. `total` and `remainder` are coordinates, one for each
    prompt, or attributes; without a total it is the sum of all bars.
    """
    mean, n_prompts = prepared(result, False, (1,))
    values = _without_gaps(mean)
    remainder = _of_all(result, "remainder")
    total = _of_all(result, "total")
    shown, others = largest(values, top)
    axis = str(mean.dims[0])
    names = labels(mean, axis)
    kinds = (
        mean["kind"].values.tolist() if "kind" in mean.coords and mean["kind"].dims == (axis,) else [""] * len(values)
    )
    spread = _standard_errors(result, axis)
    rows = [Row(names[i], float(values[i]), str(kinds[i]), float(spread[i])) for i in shown]
    if others.size:
        rows.append(Row(f"others ({others.size})", float(values[others].sum()), "others"))
    if remainder is not None:
        rows.append(Row("remainder", remainder, "remainder"))
    whole = sum(row.value for row in rows) if total is None else total
    heading = title or str(result.attrs.get("method") or quantity(result, False)).capitalize()
    capped = _of_all(result, "capped")
    notes = [
        f"after the cap {capped:.4g}" if capped is not None and not np.isclose(capped, whole, atol=1e-4) else "",
        of_prompts(n_prompts) + (" ± standard error" if n_prompts > 1 else ""),
    ]
    figure = drawn(rows, theme, quantity(result, False), axis)
    return framed(
        figure,
        theme,
        f"{heading}: total{UNBROKEN}{whole:.4g}",
        about(result.attrs, *notes),
        room=_LEGEND if len(set(kinds)) > 1 else 0,
    )


def bars(
    result: DataArray,
    *,
    top: int | None = None,
    effect: bool = False,
    title: str | None = None,
    theme: Theme = "light",
) -> go.Figure:
    """A number for each place along one axis, in its order; with `top`, those farthest from 0, the largest first."""
    mean, n_prompts = prepared(result, effect, (1,))
    values, axis = mean.to_numpy(), str(mean.dims[0])
    names, spread = labels(mean, axis), _standard_errors(result - result.base if effect else result, axis)
    shown = np.arange(len(values)) if top is None else largest(np.nan_to_num(values), top)[0]
    rows = [Row(names[i], float(values[i]), "", float(spread[i])) for i in shown]
    name = quantity(result, effect)
    part = f"the {len(shown)} largest of {len(values)}" if len(shown) < len(values) else ""
    note = of_prompts(n_prompts) + (" ± standard error" if n_prompts > 1 else "")
    heading = title or str(result.attrs.get("method") or name).capitalize()
    return framed(drawn(rows, theme, name, axis), theme, heading, about(result.attrs, part, note))


@dataclass(frozen=True)
class Row:
    """One bar."""

    name: str
    value: float
    kind: str = ""
    error: float = 0.0


def drawn(rows: list[Row], theme: Theme, name: str, axis: str) -> go.Figure:
    colours = palette(theme)
    kinds = list(dict.fromkeys(row.kind for row in rows))
    own = [kind for kind in kinds if kind not in ("others", "remainder")]
    colour_of = {kind: colours.categories[i % len(colours.categories)] for i, kind in enumerate(own)}
    colour_of |= {"others": colours.missing, "remainder": colours.faint_ink}
    figure = go.Figure()
    for kind in kinds:
        at = [i for i, row in enumerate(rows) if row.kind == kind]
        of_kind = [rows[i] for i in at]
        hover = [
            f"{axis} {row.name}<br>"
            + ("not computed" if np.isnan(row.value) else f"{name} {row.value:.4g}{_plus(row)}")
            for row in of_kind
        ]
        figure.add_bar(
            x=[row.value for row in of_kind],
            y=at,
            orientation="h",
            width=0.75,
            name=plain(kind),
            marker={"color": colour_of[kind], "line": {"width": 0}},
            error_x=_whiskers([row.error for row in of_kind], colours.ink),
            hovertext=hover,
            hovertemplate="%{hovertext}<extra></extra>",
            showlegend=kind in own and len(own) > 1,
        )
    texts: dict[str, Any] = {
        "tickmode": "array",
        "tickvals": list(range(len(rows))),
        "ticktext": [r.name for r in rows],
    }
    figure.update_yaxes(texts, autorange="reversed", showgrid=False, zeroline=False, title_text=axis)
    figure.update_xaxes(title_text=name, zeroline=True, zerolinewidth=1)
    figure.update_layout(barmode="overlay", legend={"orientation": "h", "x": 0, "y": 1.0, "yanchor": "bottom"})
    if len(rows) > _ROWS_AT_ONCE:
        figure.update_layout(height=150 + _ROW * len(rows))
    return figure


def _whiskers(errors: list[float], colour: str) -> dict[str, Any] | None:
    if not any(errors):
        return None
    return {"type": "data", "array": errors, "color": colour, "thickness": 1, "width": 3}


def _plus(row: Row) -> str:
    return f" ± {row.error:.2g}" if row.error else ""


def largest(values: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray]:
    """The `top` places farthest from 0, and the others."""
    if top < 1:
        raise ValueError(f"top={top}; at least 1")
    order = np.argsort(-np.abs(values), kind="stable")
    return order[:top], order[top:]


def _without_gaps(mean: DataArray) -> np.ndarray:
    values = mean.to_numpy()
    if not np.isfinite(values).all():
        names = [label for label, x in zip(labels(mean, mean.dims[0]), values, strict=True) if not np.isfinite(x)]
        raise ValueError(f"contributions that are not finite have no sum: {names[:5]}")
    return values


def _of_all(result: DataArray, name: str) -> float | None:
    """A number of the whole: the mean of a coordinate over prompts, or else an attribute."""
    if name in result.coords:
        return float(result[name].mean())
    return float(result.attrs[name]) if name in result.attrs else None


def _standard_errors(result: DataArray, axis: str) -> np.ndarray:
    n = result.sizes.get("prompt", 0)
    if n < 2:
        return np.zeros(result.sizes[axis])
    return (result.astype(float).std("prompt", ddof=1) / n**0.5).to_numpy()
