import numpy as np
import pytest
from xarray import DataArray

from interp import plots
from interp.lens import direct_logit_attribution
from tests.variants import some_tokens, variant


def contributions(values: list[float], **attrs: float) -> DataArray:
    labels = [f"L0H{i}" for i in range(len(values))]
    return DataArray(values, coords={"component": labels}, dims="component", name="contribution", attrs=attrs)


def drawn(figure: object) -> dict[str, float]:
    labels = figure.layout.yaxis.ticktext
    return {labels[y]: x for trace in figure.data for x, y in zip(trace.x, trace.y, strict=True)}


def test_the_largest_are_shown_and_the_others_are_summed() -> None:
    figure = plots.attribution_bars(contributions([0.5, -3.0, 1.0, 0.25, -0.125], remainder=0.0625), top=2)
    assert figure.layout.yaxis.ticktext == ("L0H1", "L0H2", "others (3)", "remainder")
    assert drawn(figure) == {"L0H1": -3, "L0H2": 1, "others (3)": 0.625, "remainder": 0.0625}
    assert figure.layout.title.text == "Contribution: total -1.312"
    assert list(drawn(plots.attribution_bars(contributions([1.0, 2.0])))) == ["L0H1", "L0H0"]


def test_the_bars_of_a_real_attribution_sum_to_its_total() -> None:
    model, tokens = variant("gpt2"), some_tokens()
    _, cache = model.run_with_cache(tokens)
    result = direct_logit_attribution(model, cache, 5, 6, by="head")
    figure = plots.attribution_bars(result, top=4)
    found = drawn(figure)
    assert sum(found.values()) == pytest.approx(float(result.total.mean()), abs=1e-5)
    assert found["remainder"] == float(result.remainder.mean())
    mean = result.mean("prompt")
    largest = mean[np.argsort(-abs(mean.values))[:4]]
    assert [found[name] for name in largest.component.values] == pytest.approx(largest.values)
    names = {trace.name for trace in figure.data}
    assert names == {*largest.kind.values, "others", "remainder"}
    error = {y: e for trace in figure.data for y, e in zip(trace.y, trace.error_x.array or [], strict=False)}
    assert error[0] == pytest.approx(float(result.sel(component=largest.component[0]).std("prompt", ddof=1)) / 3**0.5)
    one = direct_logit_attribution(model, model.run_with_cache(tokens[:1])[1], 5, 6)
    assert abs(drawn(plots.attribution_bars(one))["remainder"]) == one.attrs["remainder"]


def test_a_logit_after_its_cap_is_told() -> None:
    assert "after the cap 1.5" in plots.attribution_bars(contributions([3.0], capped=1.5)).layout.title.subtitle.text
    assert not plots.attribution_bars(contributions([3.0], capped=3.0)).layout.title.subtitle.text


def test_a_sweep_along_one_axis_keeps_its_order() -> None:
    result = DataArray([[1.0, 3.0], [5.0, 7.0]], dims=("layer", "prompt"), name="metric")
    result = result.assign_coords(base=("prompt", [1.0, 2.0]))
    assert drawn(plots.bars(result)) == {"0": 2, "1": 6}
    assert drawn(plots.bars(result, effect=True)) == {"0": 0.5, "1": 4.5}
    assert plots.bars(result, effect=True).data[0].error_x.array == pytest.approx([0.5, 0.5])
    assert list(drawn(plots.bars(contributions([1.0, -4.0, 2.0]), top=2))) == ["L0H1", "L0H2"]


def test_the_figure_fits_the_axes() -> None:
    edges = DataArray(np.arange(40.0), coords={"edge": [f"e{i}" for i in range(40)]}, dims="edge", name="metric")
    assert len(plots.sweep(edges).data[0].x) == 30
    assert len(plots.sweep(edges.rename(edge="layer")).data[0].x) == 40
    assert plots.sweep(contributions([1.0, 2.0])).layout.title.text == "Contribution: total 3"
    assert plots.sweep(DataArray(np.ones((2, 3)), dims=("layer", "head"))).data[0].type == "heatmap"
    scores = DataArray(np.ones((2, 1, 2, 1)), dims=("sender_layer", "sender", "receiver_layer", "receiver"))
    assert plots.sweep(scores).data[0].name == "L0H0->L1H0"
    with pytest.raises(ValueError, match=r"\[a b c d\]"):
        plots.sweep(DataArray(np.ones((1, 1, 1, 1)), dims=("a", "b", "c", "d")))


def test_what_has_no_bars_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\[component pos\]"):
        plots.attribution_bars(DataArray(np.ones((2, 2)), dims=("component", "pos")))
    with pytest.raises(ValueError, match=r"no sum: \['L0H1'\]"):
        plots.attribution_bars(contributions([1.0, np.nan]))
    with pytest.raises(ValueError, match="finite"):
        plots.attribution_bars(contributions([np.nan]))
    with pytest.raises(ValueError, match="top=0"):
        plots.attribution_bars(contributions([1.0]), top=0)
