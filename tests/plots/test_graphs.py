from collections.abc import Callable

import numpy as np
import plotly.graph_objects as go
import pytest
from xarray import DataArray

from interp import plots
from interp.weights import composition_scores
from tests.variants import variant


def scores(n_layers: int = 4, n_heads: int = 3) -> DataArray:
    draw = np.random.default_rng(0)
    axes = ("sender_layer", "sender", "receiver_layer", "receiver")
    values = draw.random((n_layers, n_heads, n_layers, n_heads))
    return DataArray(values, dims=axes, name="K-composition")


def above(of: DataArray, threshold: float) -> dict[str, float]:
    values = of.to_numpy()
    every = ((at, values[at]) for at in np.ndindex(values.shape))
    return {f"L{i}H{j}->L{k}H{m}": x for (i, j, k, m), x in every if i < k and abs(x) > threshold}


def edges(figure: object) -> list:
    return [trace for trace in figure.data if "->" in (trace.name or "")]


def test_the_edges_are_those_above_the_threshold() -> None:
    figure = plots.composition_graph(scores(), threshold=0.8)
    expected = above(scores(), 0.8)
    assert 3 < len(expected) < 40
    assert {edge.name for edge in edges(figure)} == set(expected)
    for edge in edges(figure):
        assert edge.text[0].endswith(f"score {expected[edge.name]:.4g}")
        sender, receiver = ((int(node[1]), int(node[3])) for node in edge.name.split("->"))
        assert (edge.x[0], edge.y[0]) == sender
        assert edge.x[-1] == receiver[0]
        assert edge.y[-1] == pytest.approx(receiver[1])
    strength = [expected[edge.name] for edge in edges(figure)]
    for look in ([edge.line.width for edge in edges(figure)], [edge.opacity for edge in edges(figure)]):
        assert np.corrcoef(strength, look)[0, 1] > 0.999
    assert not edges(plots.composition_graph(scores(), threshold=2.0))


def test_without_a_threshold_the_largest_above_the_baseline_are_drawn() -> None:
    ranked = sorted(above(scores(), 0), key=lambda name: -above(scores(), 0)[name])
    assert {edge.name for edge in edges(plots.composition_graph(scores(), top=7))} == set(ranked[:7])
    known = scores().assign_attrs(baseline=0.9)
    figure = plots.composition_graph(known)
    assert {edge.name for edge in edges(figure)} == set(above(scores(), 0.9))
    n_above = len(above(scores(), 0.9))
    said = figure.layout.title.subtitle.text.replace("<br>", " ")
    assert f"the {n_above} largest of {n_above} edges above 0.9 (baseline)" in said
    chosen = plots.composition_graph(known, threshold=0.8).layout.title.subtitle.text.replace("<br>", " ")
    assert f"{len(above(scores(), 0.8))} edges above 0.8, of 54" in chosen


@pytest.mark.parametrize("draw", [plots.composition_graph, plots.sweep])
def test_composition_of_a_model_is_drawn_kind_by_kind(draw: Callable[..., go.Figure]) -> None:
    model = variant("gpt2")
    of_keys = composition_scores(model, "K", progress=False)
    expected = above(of_keys, of_keys.attrs["baseline"])
    figure = draw(of_keys, top=99)
    assert {edge.name for edge in edges(figure)} == set(expected)
    assert expected
    assert figure.layout.title.text == "Composition"
    assert figure.layout.title.subtitle.text.startswith("K · ")
    every = composition_scores(model, progress=False)
    with pytest.raises(
        ValueError, match=r"axis `kind`, with \['Q', 'K', 'V'\]: select one, as in scores.sel\(kind='Q'\)"
    ):
        draw(every)
    chosen = draw(every.sel(kind="K"), top=99)
    assert {edge.name for edge in edges(chosen)} == set(expected)
    assert chosen.layout.title.subtitle.text == figure.layout.title.subtitle.text
    turned = draw(of_keys.transpose("receiver", "sender_layer", "sender", "receiver_layer"), top=99)
    assert {edge.name for edge in edges(turned)} == set(expected)


def test_signs_show_and_prompts_are_averaged_over() -> None:
    both = DataArray(np.stack([-scores().values, -scores().values / 2], -1), dims=(*scores().dims, "prompt"))
    figure = plots.composition_graph(both, threshold=0.6)
    assert {edge.name for edge in edges(figure)} == set(above(scores() * 0.75, 0.6))
    assert {edge.line.dash for edge in edges(figure)} == {"dash"}


def test_every_head_is_a_node() -> None:
    nodes = [trace for trace in plots.composition_graph(scores()).data if "->" not in trace.name]
    assert sorted(name for trace in nodes for name in trace.text) == [f"L{i}H{j}" for i in range(4) for j in range(3)]


def test_large_graphs_have_smaller_names_and_room_for_every_bow() -> None:
    small, large = plots.composition_graph(scores()), plots.composition_graph(scores(12, 12), top=80)
    assert small.data[-1].textfont.size > large.data[-1].textfont.size
    for figure in (small, large):
        low, high = sorted(figure.layout.yaxis.range)
        assert all(low < y < high for edge in edges(figure) for y in edge.y)


def test_what_is_no_graph_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\[sender_layer sender\] beside prompts; a graph has"):
        plots.composition_graph(scores()[:, :, 0, 0])
    with pytest.raises(ValueError, match="senders and receivers differ"):
        plots.composition_graph(scores()[:2])
    with pytest.raises(ValueError, match="finite"):
        plots.composition_graph(scores().where(scores().sender_layer >= 9))
    with pytest.raises(ValueError, match="raise the threshold"):
        plots.composition_graph(scores(8, 8), threshold=0.0)
    with pytest.raises(ValueError, match="top=0"):
        plots.composition_graph(scores(), top=0)
