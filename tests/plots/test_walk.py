"""Figures of a walk: their numbers are those given, and nothing masked has a colour of its own."""

import numpy as np
import pytest
import torch
from xarray import DataArray, Dataset

from interp import plots
from interp.generation import Sampling
from interp.heads import patterns
from interp.plots.theme import palette
from interp.walk import choices
from tests.variants import some_tokens, variant


def steps(name: str = "gpt2") -> Dataset:
    return patterns(variant(name), some_tokens(1)).steps(1, 2)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_vectors_are_lines_of_colour_on_one_scale_about_0(theme: str) -> None:
    values = np.random.default_rng(0).normal(size=(3, 50))
    vectors = DataArray(values, coords={"vector": ["q", "<b>k</b>", "v"]}, dims=["vector", "d_head"])
    figure = plots.bar_code(vectors, theme=theme)  # type: ignore[arg-type]
    (drawn,) = figure.data
    np.testing.assert_allclose(drawn.z, values, rtol=1e-6)
    assert drawn.zmid == 0
    assert drawn.zmax == -drawn.zmin == pytest.approx(np.percentile(np.abs(values), 99))
    assert figure.layout.xaxis.title.text == "d_head"
    assert figure.layout.yaxis.ticktext == ("q", "&lt;b&gt;k&lt;/b&gt;", "v")
    assert drawn.colorscale[0][1] == palette(theme).diverging[0]  # type: ignore[arg-type]
    assert "colours end at" in figure.layout.title.subtitle.text.replace("\u00a0", " ")


def test_long_vectors_are_cut_and_say_so() -> None:
    figure = plots.bar_code(DataArray(np.ones((2, 3000)), dims=["vector", "d_mlp"]))
    assert figure.data[0].z.shape == (2, 1024)
    assert "the first 1,024 of 3,000" in figure.layout.title.subtitle.text.replace("\u00a0", " ")
    with pytest.raises(ValueError, match="two are drawn"):
        plots.bar_code(DataArray(np.ones(3), dims=["d_mlp"]))
    assert np.isfinite(plots.bar_code(DataArray(np.zeros((2, 4)), dims=["vector", "d_mlp"])).data[0].zmax)


def test_the_matrices_of_a_head_are_drawn_step_by_step() -> None:
    found = steps()
    figure = plots.attention_steps(found)
    drawn = {trace.name: trace for trace in figure.data if trace.name != "may not look"}
    assert list(drawn) == ["q · k", "scaled", "masked", "weights"]
    np.testing.assert_allclose(drawn["q · k"].z, found["product"], rtol=1e-5)
    is_seen = np.isfinite(found.masked.to_numpy())
    np.testing.assert_allclose(drawn["masked"].z[is_seen], found.masked.to_numpy()[is_seen], rtol=1e-5)
    assert np.isnan(drawn["masked"].z[~is_seen]).all()
    (grey,) = [trace for trace in figure.data if trace.name == "may not look"]
    np.testing.assert_array_equal(np.isfinite(grey.z), ~is_seen)
    assert (drawn["weights"].zmin, drawn["weights"].zmax) == (0, 1)
    assert drawn["scaled"].zmid == 0
    assert drawn["scaled"].zmax == drawn["q · k"].zmax == pytest.approx(np.abs(found["product"]).max())
    assert "may not look" in figure.layout.title.subtitle.text.replace("\u00a0", " ")
    assert figure.layout.xaxis.title.text == "key"
    assert figure.layout.yaxis.title.text == "query"


def test_some_steps_are_drawn_alone_and_others_refused() -> None:
    figure = plots.attention_steps(steps(), ["score", "weight"], query=3)
    assert [(shape.y0, shape.y1, shape.x1) for shape in figure.layout.shapes] == 2 * [(2.5, 3.5, 6.5)]
    assert [trace.name for trace in figure.data] == ["scaled", "weights"]
    for wrong in (["scores"], []):
        with pytest.raises(ValueError, match="allowed: some of"):
            plots.attention_steps(steps(), wrong)


def test_choices_are_drawn_before_and_after() -> None:
    model, tokens = variant("gpt2"), some_tokens(1)
    found = choices(model, Sampling(temperature=0.5, top_k=3), model(tokens)[0, -1].detach(), tokens, top=5)
    own, after = plots.choice_bars(found).data
    np.testing.assert_array_equal(own.x, found.own)
    np.testing.assert_array_equal(after.x, found.probability)
    assert "all other 8 tokens" in plots.choice_bars(found).layout.title.subtitle.text.replace("\u00a0", " ")
    assert torch.tensor(after.x).sum() == pytest.approx(1)
