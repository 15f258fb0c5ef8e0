"""A walk through the model: vectors as bar codes, a head's matrices step by step, tokens before and after filters."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots
from xarray import DataArray

from interp.plots.cards import paired_bars
from interp.plots.results import labels
from interp.plots.theme import LABEL, Theme, about, framed, palette, ticks, visible

if TYPE_CHECKING:
    from xarray import Dataset
else:
    Dataset = Any

STEPS = {"product": "q · k", "score": "scaled", "masked": "masked", "weight": "weights"}
LONGEST = 1024  # places of a vector: a window has no more columns


def bar_code(vectors: DataArray, *, title: str | None = None, theme: Theme = "light") -> go.Figure:
    """Vectors one below the other, [vector place], a line of colour for each number, 0 in the middle of the scale.

    All share one scale, so that what is larger looks larger. Colours end at the 99th percentile of the sizes; of longer
    vectors the first places are drawn.
    """
    if vectors.ndim != 2:
        raise ValueError(f"vectors have the axes {list(vectors.dims)}; two are drawn, [vector place]")
    drawn, colours = vectors[:, :LONGEST], palette(theme)
    values = drawn.to_numpy().astype(float)
    names, across = labels(drawn, drawn.dims[0], 40), str(drawn.dims[1])
    sizes = np.abs(values[np.isfinite(values)])
    end = float(np.percentile(sizes, 99)) if sizes.size else 0.0
    end = end or float(sizes.max(initial=0.0)) or 1.0
    figure = go.Figure(
        go.Heatmap(
            z=values.astype(np.float32),
            colorscale=colours.scale(colours.diverging),
            zmin=-end,
            zmid=0,
            zmax=end,
            ygap=4,
            customdata=np.repeat(np.array(names, dtype=object)[:, None], values.shape[1], 1)
            if values.size <= 4096
            else None,
            hovertemplate=("%{customdata}" if values.size <= 4096 else "row %{y}")
            + f"<br>{across} %{{x}}<br>%{{z:.4g}}<extra></extra>",
            colorbar={"thickness": 12, "outlinewidth": 0, "tickfont": {"size": 10}, "x": 1.01, "xpad": 4},
        )
    )
    figure.update_xaxes(title_text=across, showgrid=False, zeroline=False)
    figure.update_yaxes(
        {"tickmode": "array", "tickvals": list(range(len(names))), "ticktext": names},
        autorange="reversed", showgrid=False, zeroline=False,
    )  # fmt: skip
    cut = f"the first {LONGEST:,} of {vectors.shape[1]:,}" if vectors.shape[1] > LONGEST else ""
    clipped = f"colours end at ±{end:.3g}" if sizes.size and sizes.max() > end else ""
    figure.update_layout(height=130 + 34 * len(names))
    return framed(figure, theme, title or "Vectors", about(vectors.attrs, cut, clipped))


def attention_steps(
    found: Dataset,
    steps: Sequence[str] = tuple(STEPS),
    *,
    query: int | None = None,
    title: str | None = None,
    theme: Theme = "light",
) -> go.Figure:
    """A head's matrices [query_pos key_pos] side by side (`heads.Patterns.steps`), from q · k to weights.

    Products and scores share a scale about 0, so that smaller numbers look smaller; weights go from 0 to 1. What a
    query may not look at is grey; the row `query` has a frame.
    """
    if not steps or set(steps) - STEPS.keys():
        raise ValueError(f"steps={list(steps)}; allowed: some of {list(STEPS)}")
    colours, n = palette(theme), len(steps)
    figure = make_subplots(
        1, n, subplot_titles=[STEPS[step] for step in steps], shared_yaxes=True, horizontal_spacing=0.16 / n
    )
    signed = np.concatenate([found[step].to_numpy().ravel() for step in steps if step != "weight"] or [np.zeros(1)])
    largest = float(np.abs(signed[np.isfinite(signed)]).max(initial=0.0)) or 1.0
    for i, step in enumerate(steps, 1):
        values = found[step].to_numpy().astype(float)
        there = np.isfinite(values)
        is_signed = step != "weight"
        end = largest if is_signed else 1.0
        names = [
            [f"query {q}<br>key {k}<br>" for k in labels(found[step], "key_pos", 40)]
            for q in labels(found[step], "query_pos", 40)
        ]
        common = {"hovertext": names, "xgap": 1, "ygap": 1}
        figure.add_heatmap(
            z=np.where(there, values, np.nan).astype(np.float32),
            colorscale=colours.scale(colours.diverging if is_signed else colours.sequential),
            zmin=-end if is_signed else 0.0,
            zmax=end,
            zmid=0 if is_signed else None,
            hovertemplate=f"%{{hovertext}}{STEPS[step]} %{{z:.4g}}<extra></extra>",
            showscale=False,
            name=STEPS[step],
            row=1, col=i, **common,
        )  # fmt: skip
        if not there.all():
            figure.add_heatmap(
                z=np.where(there, np.nan, 0.0).astype(np.float32),
                colorscale=[[0, colours.missing], [1, colours.missing]],
                hovertemplate="%{hovertext}may not look: −∞<extra></extra>",
                showscale=False, name="may not look", hoverongaps=False,
                row=1, col=i, **common,
            )  # fmt: skip
        if query is not None:
            edges = {"x0": -0.5, "x1": values.shape[1] - 0.5, "y0": query - 0.5, "y1": query + 0.5}
            figure.add_shape(**edges, line={"color": colours.ink, "width": 1.5}, row=1, col=i)
        figure.layout.annotations[i - 1].text += f", 0 to {end:.3g}" if not is_signed else f", −{end:.3g} to {end:.3g}"
    figure.update_xaxes(
        ticks(labels(found[steps[0]], "key_pos", LABEL), 24 // n)
        | {"title_text": "key", "showgrid": False, "zeroline": False}
    )
    figure.update_yaxes(
        ticks(labels(found[steps[0]], "query_pos", LABEL), 16) | {"showgrid": False, "zeroline": False},
        autorange="reversed",
    )
    figure.update_yaxes(title_text="query", col=1)
    figure.update_annotations(font_size=12)
    figure.update_layout(height=430)
    grey = "grey: the query may not look" if any(not np.isfinite(found[step]).all() for step in steps) else ""
    return framed(
        figure,
        theme,
        title or f"Attention of {found.attrs['of']}",
        about({"model": found.attrs.get("model")}, grey),
        room=16,
    )


def choice_bars(found: Dataset, *, title: str | None = None, theme: Theme = "light") -> go.Figure:
    """The likeliest next tokens: by the model itself, and after temperature and filters (`walk.choices`)."""
    colours = palette(theme)
    names = [visible(str(token)) for token in found.token.values]
    said = {"own": "the model's own", "probability": "after temperature and filters"}
    figure = paired_bars(names, {words: found[column].to_numpy() for column, words in said.items()}, colours)
    before, after = (float(found.attrs["rest"][name]) for name in ("own", "probability"))
    n_rest = found.attrs["n_rest"]
    rest = f"all other {n_rest:,} tokens: {before:.3g}, then {after:.3g}" if n_rest else ""
    return framed(figure, theme, title or "The next token", about({"model": found.attrs.get("model")}, rest), room=22)
