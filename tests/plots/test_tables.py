import numpy as np
import plotly.graph_objects as go
import pytest
import torch
from xarray import Dataset

from interp import plots
from interp.lens import logit_lens
from tests.variants import some_tokens, variant


def table(**more: object) -> Dataset:
    words = np.array([[[" the", "a"], ["\n", "<b>"]], [["x" * 20, "y"], [" the", "z"]]], dtype=object)
    probability = np.array([[[0.5, 0.25], [0.4, 0.1]], [[0.9, 0.05], [0.3, 0.2]]])
    axes = ("layer", "pos", "top")
    return Dataset({"token": (axes, words), "probability": (axes, probability)} | more, coords={"pos": ["0 a", "1 a"]})


def said(figure: go.Figure) -> list[list[str]]:
    rows = zip(*(trace.text for trace in figure.data), strict=True)
    return [["".join(texts).strip("\u00a0") for texts in zip(*row, strict=True)] for row in rows]


def test_a_real_lens_is_drawn_prompt_by_prompt() -> None:
    model, tokens = variant("gpt2"), some_tokens()
    lens = logit_lens(model, model.run_with_cache(tokens)[1], "next", k=3, progress=False)
    figure = plots.lens_table(lens, prompt=2)
    trace = figure.data[0]
    np.testing.assert_allclose(trace.z, lens.probability[:, 2, :, 0])
    np.testing.assert_array_equal(said(figure), lens.token[:, 2, :, 0])
    for name in ("entropy", "kl", "target_probability"):
        np.testing.assert_allclose(plots.lens_table(lens, name).data[0].z, lens[name][:, 0])
    ranks = plots.lens_table(lens, "target_rank").data[0]
    np.testing.assert_allclose(ranks.z, torch.log10(torch.tensor(lens.target_rank[:, 0].values) + 1))
    with pytest.raises(ValueError, match="prompt=3"):
        plots.lens_table(lens, prompt=3)


def test_cells_say_the_first_token_and_the_hover_says_them_all() -> None:
    figure = plots.lens_table(table(entropy=(("layer", "pos"), np.eye(2))))
    trace = figure.data[0]
    np.testing.assert_array_equal(said(figure), [["·the", "⏎"], ["xxxxxxxxx<br>xxxxxxxx…", "·the"]])
    assert trace.hovertext[0][1] == "layer 0<br>pos 1 a<br>0.400 ⏎<br>0.100 &lt;b&gt;<br>entropy (nats) 0"
    assert figure.layout.xaxis.ticktext == ("0 a", "1 a")
    assert trace.colorbar.title.text == "probability"


def test_many_words_are_broken_and_many_layers_make_a_figure_taller() -> None:
    words = np.full((13, 9, 1), " heigh<", dtype=object)
    axes = ("layer", "pos", "top")
    tall = plots.lens_table(Dataset({"token": (axes, words), "probability": (axes, np.full(words.shape, 0.5))}))
    assert said(tall)[0][0] == "·hei<br>gh&lt;"
    assert tall.layout.height == 130 + 26 * 13
    assert plots.lens_table(table()).layout.height is None


def test_ranks_go_by_their_logarithm() -> None:
    ranks = np.array([[1.0, 10.0], [100.0, 5000.0]])
    trace = plots.lens_table(table(rank=(("layer", "pos"), ranks)), "rank").data[0]
    np.testing.assert_allclose(trace.z, np.log10(ranks))
    assert trace.colorbar.ticktext == ("1", "3", "10", "30", "100", "300", "1,000", "3,000")
    np.testing.assert_allclose(trace.colorbar.tickvals, np.log10([1, 3, 10, 30, 100, 300, 1000, 3000]))
    first = plots.lens_table(table(rank=(("layer", "pos"), ranks - 1)), "rank").data[0]
    np.testing.assert_allclose(first.z, np.log10(ranks))
    assert first.colorbar.ticktext[:3] == ("0", "1", "3")
    np.testing.assert_allclose(first.colorbar.tickvals[:3], np.log10([1, 2, 4]))


def test_what_has_both_signs_is_drawn_to_both_sides_of_0() -> None:
    numbers = (("layer", "pos"), np.array([[-4.0, 1.0], [2.0, 0.0]]))
    trace = plots.lens_table(table(logit_difference=numbers), "logit_difference").data[0]
    assert (trace.zmin, trace.zmax) == (-4, 4)
    assert trace.colorscale[4] == (0.5, "#f7f7f7")
    assert "logit difference -4" in trace.hovertext[0][0]
    assert plots.lens_table(table(kl=(*numbers[:1], abs(numbers[1]))), "kl").data[0].zmin == 0


def test_what_is_no_table_is_refused() -> None:
    with pytest.raises(ValueError, match=r"lacks \['probability'\]"):
        plots.lens_table(table().drop_vars("probability"))
    with pytest.raises(ValueError, match=r"\[layer pos\]"):
        plots.lens_table(table().isel(top=0))
    with pytest.raises(ValueError, match=r"colour='kl'; the table has \['probability'\]"):
        plots.lens_table(table(), "kl")
    with pytest.raises(ValueError, match="empty"):
        plots.lens_table(table().isel(pos=slice(0)))
    with pytest.raises(ValueError, match="finite"):
        plots.lens_table(table(kl=(("layer", "pos"), np.full((2, 2), np.nan))), "kl")
