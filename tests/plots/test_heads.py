from typing import Any

import numpy as np
import pytest
from xarray import DataArray, Dataset

from interp import plots

NAMES = ["previous", "<b>$x$", "induction"]


def some_scores(n_layers: int = 4, n_heads: int = 5, names: list[str] = NAMES) -> DataArray:
    axes = ("score", "layer", "head")
    values = np.random.default_rng(n_layers).random((len(names), n_layers, n_heads))
    found = DataArray(values, coords={"score": names}, dims=axes, name="score", attrs={"method": "scores of heads"})
    return found.assign_coords(
        low=found - 0.125, high=found + 0.125, threshold=("score", np.linspace(0.4, 0.7, len(names)))
    )


def maps(figure: Any) -> list[Any]:
    return [trace for trace in figure.data if trace.type == "heatmap" and trace.hoverinfo != "skip"]


def dots(figure: Any) -> list[set[tuple[int, int]]]:
    found = [trace for trace in figure.data if trace.name == "above the threshold"]
    assert all(trace.hoverinfo == "skip" for trace in found), "a dot hides what the map says"
    cells = [np.rint([trace.y, trace.x]).astype(int).T.tolist() for trace in found]  # each in a corner of its cell
    return [set(map(tuple, of_panel)) for of_panel in cells]


def test_every_score_has_a_map_and_heads_above_its_threshold_have_dots() -> None:
    for theme, n in (("light", 12), ("dark", 32)):
        scores = some_scores(n, n + 1)
        figure = plots.head_scores(scores, theme=theme)
        for i, (panel, found) in enumerate(zip(maps(figure), dots(figure), strict=True)):
            np.testing.assert_allclose(panel.z, scores[i])
            assert found == set(map(tuple, np.argwhere(scores.low.values[i] > float(scores.threshold[i])).tolist()))
            assert found
        axes = [(trace.xaxis, trace.yaxis) for trace in figure.data]
        assert axes == [("x", "y"), ("x2", "y2"), ("x3", "y3")] * 2
        n_above = sum(map(len, dots(figure)))
        assert f"dot: above the threshold ({n_above})" in figure.layout.title.subtitle.text
        assert [note.text for note in figure.layout.annotations] == [
            "previous",
            "&lt;b&gt;&#36;x&#36;",
            "induction",
        ]
        assert figure.layout.xaxis2.range == (-0.5, n + 0.5)
        assert figure.layout.yaxis2.range == (n - 0.5, -0.5)


def test_hovering_gives_score_interval_and_threshold() -> None:
    scores = some_scores().assign_coords(n=("score", [100, 200, 300]))
    value = float(scores[1, 2, 3])
    words = (
        f"L2H3<br>&lt;b&gt;&#36;x&#36; {value:.4g}<br>interval {value - 0.125:.3g} to {value + 0.125:.3g}"
        "<br>threshold 0.55<br>n 200"
    )
    assert maps(plots.head_scores(scores))[1].hovertext[2][3] == words
    one = plots.head_scores(scores, "<b>$x$")
    assert maps(one)[0].hovertext[2][3] == words
    assert one.layout.title.text == "Heads: &lt;b&gt;&#36;x&#36;"
    plain = maps(plots.head_scores(scores.drop_vars(["low", "high", "threshold", "n"])))[0]
    assert plain.hovertext[0][1] == f"L0H1<br>previous {float(scores[0, 0, 1]):.4g}"


def test_one_score_is_one_large_map() -> None:
    scores = some_scores(32, 32)
    figure = plots.head_scores(scores, "induction")
    assert len(maps(figure)) == 1
    np.testing.assert_allclose(maps(figure)[0].z, scores[2])
    assert maps(figure)[0].colorbar.title.text == "induction"
    assert len(dots(figure)) == 1
    with pytest.raises(ValueError, match=r"score='inductive'; there are \['previous'"):
        plots.head_scores(scores, "inductive")


def test_scores_not_computed_are_grey_and_each_panel_keeps_its_words() -> None:
    scores = some_scores()
    scores[0, 1, 1] = scores.low[0, 1, 1] = np.nan
    figure = plots.head_scores(scores)
    assert [trace.name for trace in maps(figure)] == [None, "not computed", None, None]
    assert maps(figure)[1].hovertext[1][1].startswith("L1H1<br>previous not computed")
    assert maps(figure)[3].hovertext[0][0].startswith("L0H0<br>induction")
    assert (1, 1) not in dots(figure)[0]


def test_axes_may_come_in_any_order_and_prompts_are_averaged_over() -> None:
    scores = some_scores()
    prompts = scores.expand_dims(prompt=2) * DataArray([0.5, 1.5], dims="prompt")
    for given in (scores.transpose("head", "layer", "score"), prompts):
        figure = plots.head_scores(given)
        np.testing.assert_allclose([trace.z for trace in maps(figure)], scores)
        assert dots(figure) == dots(plots.head_scores(scores))


def test_what_is_no_grid_of_scores_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\[layer head\]"):
        plots.head_scores(some_scores()[0])
    with pytest.raises(ValueError, match=r"13 scores; 12 fit"):
        plots.head_scores(some_scores(names=[f"s{i}" for i in range(13)]))
    assert len(maps(plots.head_scores(some_scores(names=[f"s{i}" for i in range(13)]), "s12"))) == 1


def by_offset(n_layers: int = 3, n_heads: int = 4) -> Dataset:
    offsets = [0, 1, 2, 4, 8, 16, 128]
    values = np.random.default_rng(0).random((n_layers, n_heads, len(offsets)))
    return Dataset({"by_offset": (("layer", "head", "offset"), values)}, {"offset": offsets, "layer": range(2, 5)})


def test_a_heads_curve_is_its_attention_by_offset() -> None:
    statistics = by_offset()
    for theme in ("light", "dark"):
        figure = plots.corpus_offsets(statistics, [(4, 1), (2, 3)], theme=theme)
        assert [trace.name for trace in figure.data] == ["L4H1", "L2H3"]
        np.testing.assert_array_equal(figure.data[0].y, statistics.by_offset[2, 1])
        np.testing.assert_array_equal(figure.data[0].x, [0.5, 1, 2, 4, 8, 16, 128])  # 0 has no logarithm
        np.testing.assert_array_equal(figure.data[0].customdata, statistics.offset)
        assert figure.layout.xaxis.type == "log"
        assert figure.layout.xaxis.ticktext == ("0", "1", "10", "100")
        assert figure.layout.xaxis.tickvals == (0.5, 1, 10, 100)
        assert len({trace.line.color for trace in figure.data}) == 2


def test_without_heads_those_with_the_highest_peaks_are_drawn() -> None:
    statistics = by_offset()
    peaks = statistics.by_offset.max("offset")
    figure = plots.corpus_offsets(statistics)
    ranked = sorted(((float(peaks[i, j]), f"L{i + 2}H{j}") for i in range(3) for j in range(4)), reverse=True)
    assert [trace.name for trace in figure.data] == [name for _, name in ranked[:8]]
    assert "the 8 heads with the highest peaks, of 12" in figure.layout.title.subtitle.text


def test_what_has_no_curves_is_refused() -> None:
    statistics = by_offset()
    with pytest.raises(ValueError, match=r"\['entropy'\]; curves need `by_offset`"):
        plots.corpus_offsets(statistics.rename(by_offset="entropy"))
    with pytest.raises(ValueError, match=r"no such heads: \[\(0, 1\)\]; layers are \[2, 3, 4\]"):
        plots.corpus_offsets(statistics, [(0, 1), (2, 2)])
    with pytest.raises(ValueError, match="finite"):
        plots.corpus_offsets(statistics * np.nan)
