"""Effects with their intervals: what is drawn is what the summary says."""

import numpy as np
import pytest
from xarray import DataArray, Dataset

from interp import patching, plots
from interp.plots.effects import is_mapped

NAMES = ["L0H1", "L1 mlp", "L1H0", "L1N3"]
MEAN, LOW, HIGH = [1.0, -2.0, 0.5, 0.1], [0.5, -3.0, -0.25, 0.0], [1.5, -1.0, 1.0, 0.2]


def summary(axis: str = "site") -> Dataset:
    found = {"mean": (axis, MEAN), "low": (axis, LOW), "high": (axis, HIGH)}
    return Dataset(found, {axis: NAMES}, {"metric": "loss", "kind": "zero", "n": 7, "level": 0.9})


def test_a_map_has_each_head_and_half_of_a_layer_in_its_place() -> None:
    figure = plots.effect_map(summary())
    first = figure.data[0]
    assert list(figure.layout.xaxis.ticktext) == ["H0", "H1", "mlp"]
    assert list(figure.layout.yaxis.ticktext) == ["0", "1"]
    np.testing.assert_array_equal(first.z, [[np.nan, 1, np.nan], [0.5, np.nan, -2]])
    assert first.hovertext[0][1] == "L0H1<br>change in loss 1, 90% from 0.5 to 1.5"
    assert first.hovertext[0][0] == "not computed"
    written = [text for trace in figure.data if trace.text is not None for row in trace.text for text in row]
    shown = {text.strip() for text in written} - {"", "×"}
    assert shown == {"1.00", "-2.00"}, "0.50 is not sure, and L1N3 has no place"
    assert "mean of 7 prompts" in figure.layout.title.subtitle.text.replace("\u00a0", " ")
    assert first.zmid == 0


def test_a_map_needs_a_part_that_has_a_place() -> None:
    assert is_mapped(NAMES)
    assert not is_mapped(["L1N3", "resid_pre layer 1 pos 2"])
    with pytest.raises(ValueError, match="neither a head nor a layer"):
        plots.effect_map(summary().isel(site=[3]))


@pytest.mark.parametrize("top", [None, 2])
def test_bars_are_the_largest_first_with_both_ends_of_their_intervals(top: int | None) -> None:
    figure = plots.effect_bars(summary(), top=top)
    (trace,) = figure.data
    order = [1, 0, 2, 3][:top]
    assert list(figure.layout.yaxis.ticktext) == [NAMES[i] for i in order]
    np.testing.assert_allclose(trace.x, np.array(MEAN)[order])
    np.testing.assert_allclose(trace.x + trace.error_x.array, np.array(HIGH)[order])
    np.testing.assert_allclose(trace.x - trace.error_x.arrayminus, np.array(LOW)[order])
    assert trace.hovertext[0] == "site L1 mlp<br>change in loss -2, 90% from -3 to -1"
    assert ("the 2 largest of 4" in figure.layout.title.subtitle.text.replace("\u00a0", " ")) == (top == 2)


def test_a_curve_runs_between_its_intervals_and_names_what_is_taken() -> None:
    figure = plots.effect_curve(summary("step").assign_coords(step=[1, 2, 3, 4]), NAMES)
    band, line = figure.data
    np.testing.assert_array_equal(line.y, MEAN)
    np.testing.assert_array_equal(band.y, [*HIGH, *LOW[::-1]])
    assert list(figure.layout.xaxis.ticktext) == [f"+ {name}" for name in NAMES]
    assert line.hovertext[1] == "step 2, without L1 mlp<br>change in loss -2, 90% from -3 to -1"
    with pytest.raises(ValueError, match="1 parts are named, and there are 4 steps"):
        plots.effect_curve(summary("step"), ["L0H1"])


def test_names_are_shown_as_text_alone() -> None:
    found = summary().assign_coords(site=["<b>x</b>", *NAMES[1:]])
    (trace,) = (drawn := plots.effect_bars(found)).data
    curve = plots.effect_curve(found, ["<b>x</b>", *NAMES[1:]])
    said = [*drawn.layout.yaxis.ticktext, *trace.hovertext, *curve.layout.xaxis.ticktext, *curve.data[1].hovertext]
    assert len([text for text in said if "&lt;b&gt;" in text]) == 4
    assert not [text for text in said if "<b>" in text]


def test_what_is_no_summary_of_one_axis_is_refused() -> None:
    with pytest.raises(ValueError, match=r"lacks \['high', 'low'\]: see patching.summary"):
        plots.effect_bars(summary()[["mean"]])
    with pytest.raises(ValueError, match="select some"):
        plots.effect_bars(summary().expand_dims(kind=["zero", "mean"]))


def test_the_librarys_summary_is_drawn() -> None:
    values = np.random.default_rng(0).normal(size=(4, 6))
    found = patching.summary(DataArray(values, [("site", NAMES), ("prompt", range(6))], name="effect"))
    figure = plots.effect_bars(found)
    assert sorted(figure.data[0].x) == pytest.approx(sorted(values.mean(1)))
