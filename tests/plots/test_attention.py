from typing import Any

import numpy as np
import pytest
import torch
from xarray import DataArray

from interp import plots
from interp.plots.theme import palette
from tests.variants import some_tokens, variant

HOSTILE = [" the", "<b>", "$x$", "\n", "q" * 60, " the", " the"]


def a_pattern(n: int = 7, is_causal: bool = True) -> np.ndarray:
    scores = torch.randn(n, n, generator=torch.Generator().manual_seed(n)) * 2
    hidden = torch.ones(n, n).triu(1).bool()
    return (scores.masked_fill(hidden, -torch.inf) if is_causal else scores).softmax(-1).numpy()


def said(figure: Any) -> str:
    return figure.layout.title.subtitle.text.replace("<br>", " ")


def arcs(figure: Any) -> dict[str, Any]:
    return {trace.name: trace for trace in figure.data}


def test_the_map_is_the_pattern_and_the_future_is_left_blank() -> None:
    pattern = a_pattern()
    future = np.triu(np.ones((7, 7), bool), 1)
    for given in (pattern, torch.from_numpy(pattern), DataArray(pattern.T, dims=("key_pos", "query_pos"))):
        trace = plots.head_pattern(given, HOSTILE).data[0]
        np.testing.assert_array_equal(trace.z, np.where(future, np.nan, pattern))
        assert not trace.hoverongaps
    seen = plots.head_pattern(a_pattern(is_causal=False)).data[0]
    np.testing.assert_array_equal(seen.z, a_pattern(is_causal=False))


def test_a_keys_rank_is_one_more_than_the_keys_above_it() -> None:
    pattern = a_pattern(9)
    pattern[5, :3] = 0.25  # equals
    trace = plots.head_pattern(pattern).data[0]
    for query in range(9):
        for key in range(query + 1):
            assert trace.customdata[query][key] == 1 + sum(pattern[query, : query + 1] > pattern[query, key])
    assert "rank %{customdata}" in trace.hovertemplate


def test_hovering_names_every_place_though_few_labels_are_shown() -> None:
    tokens = [HOSTILE[i % 7] for i in range(100)]
    figure = plots.head_pattern(a_pattern(100), tokens)
    trace = figure.data[0]
    assert (trace.xaxis, trace.yaxis) == ("x2", "y2")
    for axis, shown in ((figure.layout.xaxis2, figure.layout.xaxis), (figure.layout.yaxis2, figure.layout.yaxis)):
        assert axis.tickvals == tuple(range(100))
        assert axis.ticktext[:7] == (
            "0 ·the",
            "1 &lt;b&gt;",
            "2 &#36;x&#36;",
            "3 ⏎",
            "4 qqqqqqqqqqq…",
            "5 ·the",
            "6 ·the",
        )
        assert not axis.showticklabels
        assert axis.matches == axis.overlaying
        assert axis.range == shown.range
        assert 5 <= len(shown.tickvals) <= 20
        assert [axis.ticktext[i] for i in shown.tickvals] == list(shown.ticktext)
    assert trace.hovertemplate.startswith("query %{y}<br>key %{x}<br>attention %{z")


def test_colours_go_by_the_root_unless_they_are_asked_not_to() -> None:
    for theme in ("light", "dark"):
        root, linear = (plots.head_pattern(a_pattern(), scale=x, theme=theme).data[0] for x in ("sqrt", "linear"))
        scale, shades = dict(root.colorscale), palette(theme).sequential
        red, green, blue = (int(shades[-1][i : i + 2], 16) for i in (1, 3, 5))
        assert scale[1.0] == f"rgb({red},{green},{blue})"
        middle = palette(theme).shades(33)[16]
        assert scale[0.25] == "rgb({},{},{})".format(*middle)
        assert dict(linear.colorscale)[1.0] == shades[-1]
        assert (root.zmin, root.zmax) == (0, 1)
    assert said(plots.head_pattern(a_pattern())) == "colour by square root"
    signed = plots.head_pattern(a_pattern() - 0.1, values="change in attention")
    assert signed.data[0].zmin == -signed.data[0].zmax
    assert signed.layout.title.text == "Change in attention"


def test_what_is_not_finite_is_grey_unless_it_is_the_future() -> None:
    scores = np.where(np.triu(np.ones((4, 4), bool), 1), -np.inf, np.arange(16.0).reshape(4, 4))
    scores[2, 1] = np.nan
    figure = plots.head_pattern(scores, values="attn_scores")
    np.testing.assert_array_equal(np.argwhere(np.isfinite(figure.data[1].z)), [[2, 1]])
    assert "grey: 1 places not finite" in said(figure)
    assert figure.data[0].customdata[2][2] == 1
    assert figure.data[0].customdata[2][0] == 2


def test_one_pattern_of_a_cache_has_ranks_too() -> None:
    model, tokens = variant("gpt2"), some_tokens()
    _, cache = model.run_with_cache(tokens)
    trace = plots.patterns(cache, 1, 2).data[0]
    n = tokens.shape[1]
    expected = cache["pattern", 1][0, 2].detach().masked_fill(torch.ones(n, n).triu(1).bool(), torch.nan)
    np.testing.assert_allclose(trace.z, expected)
    assert "rank" in trace.hovertemplate


def test_the_strongest_arcs_are_drawn_each_with_its_rank() -> None:
    pattern = a_pattern(12)
    figure = plots.attention_arcs(pattern, [f"<{i}>" for i in range(12)], top=9, min_weight=0.2)
    ranked = sorted(((pattern[i, j], i, j) for i in range(12) for j in range(i + 1)), reverse=True)
    n_above = sum(weight >= 0.2 for weight, *_ in ranked)
    assert n_above > 9
    assert list(arcs(figure)) == [f"{i}->{j}" for _, i, j in reversed(ranked[:9])]
    assert f"the 9 strongest of {n_above} weights ≥ 0.2" in said(figure)
    for weight, i, j in ranked[:9]:
        arc = arcs(figure)[f"{i}->{j}"]
        rank = 1 + sum(pattern[i] > weight)
        assert set(arc.text) == {
            f"query {i} &lt;{i}&gt;<br>key {j} &lt;{j}&gt;<br>attention {weight:.4g}<br>rank {rank}"
        }
        np.testing.assert_allclose([arc.x[0], arc.x[-1], arc.y[0], arc.y[-1]], [i, j, 0, 0], atol=1e-6)
        assert arc.marker.size[-1] > 0 == arc.marker.size[0]  # the key has the dot
        assert max(arc.y) > 0.3
    widths = [arc.line.width for arc in figure.data]
    assert widths == sorted(widths)
    assert widths[0] < widths[-1]
    assert len(plots.attention_arcs(pattern, top=400, min_weight=0.2).data) == n_above


def test_the_arcs_of_one_query_have_their_numbers_beside_the_keys() -> None:
    pattern = np.zeros((7, 7), np.float32)
    pattern[4, [0, 1, 3]] = 0.7, 0.2, 0.1
    pattern[6, 6] = 1
    figure = plots.attention_arcs(pattern, HOSTILE, query=4, min_weight=0.15)
    assert set(arcs(figure)) == {"4->0", "4->1"}
    assert figure.layout.xaxis.ticktext == (
        "0 ·the <b>0.70</b>",
        "1 &lt;b&gt; <b>0.20</b>",
        "2 &#36;x&#36;",
        "3 ⏎",
        "<b>4 qqqqqqqqqqq…</b> ◂",
        "5 ·the",
        "6 ·the",
    )
    assert "all 2 weights of query 4 ≥ 0.15" in said(figure)
    assert "the only weight of query 6 ≥ 0.05" in said(plots.attention_arcs(pattern, HOSTILE, query=6))
    assert figure.layout.xaxis.tickvals == tuple(range(7))


def test_of_many_tokens_those_at_the_ends_of_arcs_are_named() -> None:
    tokens = [f" t{i}" for i in range(500)]
    pattern = np.zeros((500, 500), np.float32)
    pattern[np.arange(500), 0] = 0.01
    pattern[400, 100], pattern[401, 102], pattern[499, 498] = 0.9, 0.8, 0.7
    figure = plots.attention_arcs(pattern, tokens)
    assert set(arcs(figure)) == {"400->100", "401->102", "499->498"}
    assert figure.layout.xaxis.ticktext == ("100 ·t100", "400 ·t400", "499 ·t499")
    assert figure.layout.width is None
    crowded = plots.attention_arcs(a_pattern(500), tokens)
    assert len(crowded.data) == 40
    assert 10 < len(crowded.layout.xaxis.tickvals) <= 33
    assert len(crowded.to_json()) < 0.3e6
    assert plots.attention_arcs(pattern, tokens, query=499).layout.xaxis.ticktext[-1] == "<b>499 ·t499</b> ◂"


def test_a_row_of_many_tokens_is_as_wide_as_they_need() -> None:
    widths = [plots.attention_arcs(a_pattern(n)).layout.width for n in (7, 60, 120)]
    assert widths[0] is None
    assert widths[1] < widths[2]
    assert len(plots.attention_arcs(a_pattern(60)).layout.xaxis.tickvals) == 60


def test_arcs_to_later_keys_have_another_colour_and_no_arc_is_told() -> None:
    pattern = np.zeros((4, 4), np.float32)
    pattern[1, 3] = pattern[3, 1] = pattern[2, 2] = 0.5
    for theme in ("light", "dark"):
        drawn = arcs(plots.attention_arcs(pattern, theme=theme))
        later, earlier = (drawn[name].line.color for name in ("1->3", "3->1"))
        assert later != earlier == drawn["2->2"].line.color
        assert {later, earlier} <= set(palette(theme).categories)
    none = plots.attention_arcs(pattern, query=0)
    assert "no weight of query 0 is ≥ 0.05" in said(none)
    assert not none.data
    pattern[1, 3] = np.nan
    assert set(arcs(plots.attention_arcs(pattern))) == {"3->1", "2->2"}


def test_what_is_no_pattern_is_refused() -> None:
    pattern = a_pattern()
    cases: list[tuple[Any, Any, dict[str, Any], str]] = [
        (plots.head_pattern, pattern[None], {}, r"\[1, 7, 7\]"),
        (plots.head_pattern, DataArray(pattern, dims=("pos", "key_pos")), {}, r"\[pos key_pos\]"),
        (plots.head_pattern, pattern * np.nan, {}, "finite"),
        (plots.head_pattern, np.zeros((2, 1025)), {}, "1024 places"),
        (plots.head_pattern, pattern, {"tokens": ["a"]}, "7 places, and 1 tokens"),
        (plots.attention_arcs, pattern[:5], {}, "as many queries as keys"),
        (plots.attention_arcs, pattern, {"query": 7}, "query=7"),
        (plots.attention_arcs, pattern, {"top": 0}, "top=0"),
        (plots.attention_arcs, pattern, {"min_weight": -0.1}, "min_weight=-0.1"),
    ]
    for plot, given, options, message in cases:
        with pytest.raises(ValueError, match=message):
            plot(given, **options)
