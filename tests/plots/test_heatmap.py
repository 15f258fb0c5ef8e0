from typing import Any, Literal

import numpy as np
import plotly.graph_objects as go
import pytest
from xarray import DataArray

from interp import plots
from interp.metrics import logit_diff
from interp.patching import ablation, activation_patching, path_patching
from interp.plots.theme import visible
from interp.tokenization import Tokenizer
from tests.variants import some_tokens, variant


def array(*shape: int, axes: str = "layer head", name: str = "effect", **more: Any) -> DataArray:
    draw = np.random.default_rng(len(shape))
    return DataArray(draw.normal(size=shape), dims=axes.split(), name=name, **more)


def maps(figure: go.Figure) -> list[go.Heatmap]:
    return [trace for trace in figure.data if trace.name != "words on dark cells"]


def test_real_results_are_drawn_averaged_over_prompts_and_as_effects() -> None:
    model, clean = variant("gpt2"), some_tokens()
    corrupted = (clean + 1) % 13
    metric = logit_diff(model, 5, 6, clean=clean, corrupted=corrupted)
    result = activation_patching(model, clean, corrupted, "z", metric, progress=False)
    figure = plots.heatmap(result)
    np.testing.assert_allclose(figure.data[0].z, result.mean("prompt"))
    assert figure.layout.yaxis.title.text == "layer"
    assert figure.layout.xaxis.title.text == "head"
    assert figure.layout.title.text == "Activation patching"
    for word in ("logit difference", "denoise", "mean of 3 prompts", "model"):
        assert word in figure.layout.title.subtitle.text.replace("<br>", " ")
    changed = plots.heatmap(result, effect=True)
    np.testing.assert_allclose(changed.data[0].z, (result - result.base).mean("prompt"))
    assert changed.data[0].colorbar.title.text.startswith("change in logit difference")
    np.testing.assert_allclose(plots.heatmap(result, x="layer", y="head").data[0].z, result.mean("prompt").T)
    assert len(maps(plots.heatmap(ablation(model, clean, "mlp_out", metric, by="pos", progress=False)))) == 1
    paths = path_patching(model, clean, corrupted, "heads", ["blocks.1.attn.hook_q", "logits"], metric, progress=False)
    panels = plots.heatmap(paths)
    np.testing.assert_allclose([panel.z for panel in maps(panels)], paths.mean("prompt"))
    titles = [each.text.replace(".<br>", ".").replace("<br>", " ") for each in panels.layout.annotations]
    assert titles == ["receiver " + x for x in paths.receiver.values]
    assert max(len(line) for each in panels.layout.annotations for line in each.text.split("<br>")) <= 27


def test_zero_is_the_middle_of_signed_values() -> None:
    for theme in ("light", "dark"):
        trace = plots.heatmap(array(3, 4), theme=theme).data[0]
        assert trace.zmid == 0
        assert trace.zmax == -trace.zmin == np.abs(trace.z).max()
        at, colour = trace.colorscale[len(trace.colorscale) // 2]
        assert at == 0.5
        assert len({int(colour[i : i + 2], 16) // 8 for i in (1, 3, 5)}) == 1, "the middle has a colour"
    clipped = plots.heatmap(array(3, 4), limit=0.25)
    assert clipped.data[0].zmin == -0.25
    assert "colours end at ±0.25" in clipped.layout.title.subtitle.text
    assert "end at" not in plots.heatmap(array(3, 4), limit=99).layout.title.subtitle.text


def test_what_has_no_sign_runs_from_little_to_much() -> None:
    trace = plots.heatmap(abs(array(3, 4, name="probability"))).data[0]
    assert trace.zmid is None
    assert trace.zmin == 0
    assert trace.zmax == trace.z.max()
    losses = 3 + 0.1 * abs(array(3, 4, name="metric"))
    assert plots.heatmap(losses).data[0].zmin == float(losses.min())


def test_a_metric_that_is_zero_where_nothing_changes_is_signed() -> None:
    result = abs(array(3, 4, 2, axes="layer head prompt", name="metric"))
    assert plots.heatmap(result.assign_coords(base=("prompt", [0.0, 0.0]))).data[0].zmid == 0
    assert plots.heatmap(result.assign_coords(base=("prompt", [1.0, 1.0]))).data[0].zmid is None
    assert plots.heatmap(result, scale="diverging").data[0].zmid == 0


def test_repeated_tokens_keep_their_own_columns() -> None:
    result = array(2, 4, axes="layer pos", coords={"token": ("pos", [" the", "\n", " the", "<b>$x$"])})
    figure = plots.heatmap(result)
    assert figure.data[0].x is None  # places are counted, never named
    assert figure.data[0].z.shape == (2, 4)
    assert figure.layout.xaxis.tickvals == (0, 1, 2, 3)
    assert figure.layout.xaxis.ticktext == ("0 ·the", "1 ⏎", "2 ·the", "3 &lt;b&gt;&#36;x&#36;")
    labelled = array(2, 2, axes="layer pos", coords={"pos": ["0 a b", "1"]})
    assert plots.heatmap(labelled).layout.xaxis.ticktext == ("0 a·b", "1")


def test_of_many_labels_every_nth_is_shown_and_all_are_in_the_hover() -> None:
    result = array(3, 61, axes="layer pos", coords={"pos": [f"{i} t{i}" for i in range(61)]})
    figure = plots.heatmap(result)
    assert figure.layout.xaxis.tickvals == tuple(range(0, 61, 3))
    assert figure.data[0].hovertext[2][44].startswith("layer 2<br>pos 44 t44<br>effect ")
    assert plots.heatmap(result, max_labels=(61, 3)).layout.xaxis.tickvals == tuple(range(61))


def test_what_was_not_computed_is_grey_and_says_so() -> None:
    result = array(3, 4)
    result[1, 2], result[0, 0] = np.nan, np.inf
    there, missing = maps(plots.heatmap(result))
    np.testing.assert_array_equal(np.isnan(there.z), ~np.isfinite(result))
    np.testing.assert_array_equal(np.isfinite(missing.z), ~np.isfinite(result))
    assert missing.hovertext[1][2] == "layer 1<br>head 2<br>not computed"
    assert missing.colorscale[0][1] == missing.colorscale[1][1]
    assert missing.text[1][2] == "×"
    assert missing.text[0][1] == there.text[1][2] == ""
    assert there.zmax == np.abs(result.values[np.isfinite(result)]).max()
    assert "2 of 12 cells not computed" in plots.heatmap(result).layout.title.subtitle.text
    prompts = DataArray([[[1.0, np.nan], [np.nan, np.nan]]], dims=("layer", "head", "prompt"))
    np.testing.assert_array_equal(plots.heatmap(prompts).data[0].z, [[1, np.nan]])


def test_three_axes_make_panels_with_one_scale_or_a_slider() -> None:
    panels = plots.heatmap(array(2, 3, 4, axes="layer head pos"))
    assert [trace.zmax for trace in maps(panels)] == [panels.data[0].zmax] * 2
    assert [trace.showscale for trace in maps(panels)] == [True, False]
    result = array(14, 3, 4, axes="layer head pos")
    result[5, 0, 0] = np.nan
    slides = plots.heatmap(result, x="head", y="pos")
    assert [trace.visible for trace in slides.data] == [True] + [False] * 14
    steps = slides.layout.sliders[0].steps
    assert [step.label for step in steps] == [str(i) for i in range(14)]
    shown = [trace for trace, on in zip(slides.data, steps[5].args[0]["visible"], strict=True) if on]
    assert len(shown) == 2
    np.testing.assert_array_equal(shown[0].z, result[5].T)


def test_text_stands_in_cells_if_they_are_few_or_it_is_asked_for() -> None:
    assert plots.heatmap(array(3, 4)).data[0].texttemplate == "%{text}"
    assert plots.heatmap(array(12, 12)).data[0].texttemplate is None
    assert plots.heatmap(array(12, 12), text=True).data[0].text[0][0] == (f"{float(array(12, 12)[0, 0]):.2f}")
    many = plots.heatmap(array(4, 4, 6, axes="layer head pos")).data[0]
    assert many.texttemplate is None
    with pytest.raises(ValueError, match=r"801 cells.* 800"):
        plots.heatmap(array(1, 801), text=True)


def test_large_maps_name_places_by_number() -> None:
    trace = plots.heatmap(array(150, 150, axes="query_pos key_pos")).data[0]
    assert trace.hovertext is None
    assert trace.hovertemplate.startswith("query_pos %{y}<br>key_pos %{x}")


def test_patterns_are_those_of_the_cache() -> None:
    model, tokens = variant("gpt2"), some_tokens()
    _, cache = model.run_with_cache(tokens)
    figure = plots.patterns(cache, 1, prompt=2)
    np.testing.assert_allclose([trace.z for trace in figure.data], cache["pattern", 1][2].detach())
    assert figure.layout.xaxis.ticktext == tuple(f"{i} {token}" for i, token in enumerate(tokens[2].tolist()))
    assert figure.data[0].zmax == 1
    words = [f" w{i}" for i in range(7)]
    one = plots.patterns(cache, 0, head=2, tokens=words)
    np.testing.assert_allclose(np.nan_to_num(one.data[0].z), cache["pattern", 0][0, 2].detach())
    assert one.layout.yaxis.ticktext[3] == "3 ·w3"
    with pytest.raises(ValueError, match="6 tokens"):
        plots.patterns(cache, 0, tokens=words[:6])
    with pytest.raises(ValueError, match="head=\\[3\\]"):
        plots.patterns(cache, 0, head=3)
    with pytest.raises(ValueError, match="prompt=3"):
        plots.patterns(cache, 0, prompt=3)


def test_patterns_spell_their_tokens_and_leave_out_padding() -> None:
    model = variant("gpt2", d_vocab=280)
    model.tokenizer = Tokenizer.train(
        ["the cat sat on the mat, and the dog on the log"] * 9, d_vocab=280, progress=False
    )
    texts = ["the cat", "the cat sat on the mat"]
    sides: tuple[Literal["left", "right"], ...] = ("left", "right")
    for side in sides:
        tokens, mask = model.read(texts, padding_side=side)
        _, cache = model.run_with_cache(tokens, attention_mask=mask)
        for prompt, text in enumerate(texts):
            _, alone = model.run_with_cache(text)
            named = tuple(f"{i} {visible(token, 8)}" for i, token in enumerate(model.to_str_tokens(text)))
            for figure in (plots.patterns(cache, 1, prompt=prompt), plots.patterns(alone.remove_batch_dim(), 1)):
                assert figure.layout.xaxis.ticktext == figure.layout.yaxis.ticktext == named
                np.testing.assert_allclose([x.z for x in maps(figure)], alone["pattern", 1].detach(), atol=1e-6)


def test_patterns_of_parts_of_prompts_are_refused() -> None:
    model, tokens = variant("gpt2"), some_tokens()
    for part in (-1, slice(2, 5)):
        _, cache = model.run_with_cache(tokens, pos_slice=part)
        with pytest.raises(ValueError, match="all positions of whole prompts"):
            plots.patterns(cache, 1)


def test_what_cannot_be_drawn_is_refused() -> None:
    cases: list[tuple[DataArray, dict[str, Any], str]] = [
        (array(3, axes="layer"), {}, r"axes \[layer\].*2 or 3"),
        (array(2, 2, 2, 2, axes="a b c d"), {}, r"\[a b c d\]"),
        (array(0, 3), {}, "empty"),
        (array(2, 2) * np.nan, {}, "finite"),
        (DataArray([["a"]], dims=("layer", "head")), {}, "not numbers"),
        (array(2, 2), {"x": "pos"}, r"\['pos'\].*\[layer head\]"),
        (array(2, 2), {"x": "head", "y": "head"}, "both"),
        (array(2, 2), {"effect": True}, "no `base`"),
        (array(2, 2), {"limit": -1.0}, "limit=-1"),
        (array(200, 2, 2, axes="neuron layer head"), {}, "neuron has 200"),
    ]
    for result, options, message in cases:
        with pytest.raises(ValueError, match=message):
            plots.heatmap(result, **options)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_words_stand_out_from_the_background(theme: Any) -> None:
    look = plots.heatmap(array(3, 4), theme=theme).layout.template.layout

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        red, green, blue = (x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    for ink in (look.font.color, look.xaxis.tickfont.color, look.title.subtitle.font.color):
        light, dark = sorted((luminance(ink), luminance(look.paper_bgcolor)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) > 4.5
