"""Figures of memories show what the results say."""

from functools import cache

import numpy as np
import plotly.graph_objects as go
import pytest

from interp import memories, plots
from interp.memories import NeuronCard, Triggers
from tests.memories.scanned import corpus, model_of, scanned


@cache
def found() -> Triggers:
    return scanned()


@cache
def card() -> NeuronCard:
    return memories.neuron_card(model_of(), 1, 3, found(), 4, progress=False)


def titles(figure: go.Figure) -> list[str]:
    return [each.text for each in figure.layout.annotations]


def named(figure: go.Figure) -> dict[str, go.Scatter]:
    return {trace.name: trace for trace in figure.data if trace.name}


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_memorys_figure_says_what_its_card_says(theme: str) -> None:
    figure = plots.neuron_card(card(), theme=theme)  # type: ignore[arg-type]
    assert figure.layout.title.text == f"L1N3: promotes {card().says}"
    assert "active at" in figure.layout.title.subtitle.text
    assert titles(figure)[2] == "without a token of the trigger"
    traces = named(figure)
    best, worst = (card()[part].logit.values for part in ("promoted", "suppressed"))
    np.testing.assert_allclose(traces["value"].x, [*best, *worst[::-1]])
    assert figure.layout.yaxis.ticktext == tuple(
        map(str, [*card()["promoted"].token.values, *card()["suppressed"].token.values[::-1]])
    )
    change = card()["removal"].change
    np.testing.assert_allclose(traces["median"].x, change.median("trigger"))
    np.testing.assert_allclose(traces["triggers"].x.reshape(3, -1), change)
    assert figure.layout.xaxis2.title.text == "change of the coefficient"
    shown, shared = (each.cells["values"] for each in figure.data if isinstance(each, go.Table))
    assert list(shown[0]) == [f"{value:.3f}" for value in card()["triggers"].value.values]
    for text, token in zip(shown[1], card()["triggers"].token.values, strict=True):
        assert text.endswith(f"[{token}]")
    assert list(shown[2]) == card()["triggers"].next_token.values.tolist()
    assert len(shared[0]) == card()["shared"].sizes["pattern"]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_trends_are_curves_over_layers_in_a_panel_each(theme: str) -> None:
    model = model_of()
    agreement = memories.agreement(model, found())
    removal = memories.removal_test(model, found(), n_keys=6, progress=False)
    composed = memories.composition(model, corpus(), found=found(), n_ctx=11, progress=False)
    figure = plots.layer_trends(agreement, removal, composed, theme=theme)  # type: ignore[arg-type]
    assert titles(figure) == [
        "agreement of value and next token",
        "change of the coefficient",
        "predictions: share of positions",
    ]
    traces = named(figure)
    np.testing.assert_allclose(traces["keys whose value promotes the next token"].y, agreement.rate)
    np.testing.assert_allclose(traces["keys whose value promotes the next token"].error_y.array, agreement.error)
    np.testing.assert_allclose(traces["the same tokens dealt at random"].y, agreement.chance)
    for kind in ("first", "last", "random"):
        flat = removal.change.sel(removed=kind).to_numpy().reshape(2, -1)
        np.testing.assert_allclose(traces[f"without the {kind} token"].y, np.nanmedian(flat, 1))
        band = traces[f"{kind}, quartiles"].y
        np.testing.assert_allclose(band, [*np.nanquantile(flat, 0.75, 1), *np.nanquantile(flat, 0.25, 1)[::-1]])
    shares = composed / composed.attrs["positions"]
    np.testing.assert_allclose(traces["the stream's stays"].y, shares.residual)
    np.testing.assert_allclose(traces["the MLP's is one memory's"].y, shares.single)
    for axis in (figure.layout.xaxis, figure.layout.xaxis2, figure.layout.xaxis3):
        assert axis.title.text == "layer"
        assert axis.ticktext == ("0", "1")


def test_one_result_is_one_panel_and_none_is_refused() -> None:
    figure = plots.layer_trends(agreement=memories.agreement(model_of(), found()))
    assert titles(figure) == ["agreement of value and next token"]
    with pytest.raises(ValueError, match="at least one of agreement, removal and composition"):
        plots.layer_trends()


def test_bars_of_memories_are_the_farthest_from_0_and_sum_to_what_all_of_them_add() -> None:
    model = model_of()
    _, cache = model.run_with_cache(corpus()[3][None, :9])
    updates = memories.sub_updates(model, cache, 3, 4, top=34)
    figure = plots.memory_bars(updates, top=5)
    drawn = {name: x for trace in figure.data for name, x in zip(trace.y, trace.x, strict=True)}
    of_one = updates.isel(prompt=0)
    largest = of_one[np.argsort(-np.abs(of_one.to_numpy()))]
    np.testing.assert_allclose([drawn[i] for i in range(5)], largest[:5])
    assert figure.layout.yaxis.ticktext[:6] == (*largest.memory.values[:5].tolist(), "others (29)")
    assert sum(drawn.values()) == pytest.approx(float(of_one.memories), abs=1e-5)
    assert figure.layout.title.text.endswith(f"{float(of_one.memories):.4g}")
    assert "layers 0 to 1" in figure.layout.title.subtitle.text.replace("\u00a0", " ")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_values_bars_run_from_what_it_promotes_to_what_it_suppresses(theme: str) -> None:
    best, worst = (of(model_of(), 1, 3, 4) for of in (memories.promoted, memories.suppressed))
    figure = plots.value_bars(best, worst, theme=theme)  # type: ignore[arg-type]
    np.testing.assert_allclose(figure.data[0].x, [*best.logit.values, *worst.logit.values[::-1]])
    assert figure.layout.title.text.startswith("L1N3")
    assert figure.layout.yaxis.ticktext[0] == str(best.token.values[0])


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_next_tokens_are_bars_before_and_after(theme: str) -> None:
    found = memories.next_tokens(model_of(), ["L1N3"], corpus()[3][:9], -2, 6)
    figure = plots.next_token_bars(found, theme=theme)  # type: ignore[arg-type]
    for trace, column in zip(figure.data, ("before", "after"), strict=True):
        np.testing.assert_allclose(trace.x, found[column])
    assert figure.layout.title.text == "Next token, L1N3 × -2"
    assert f"KL {found.attrs['kl']:.3g}" in figure.layout.title.subtitle.text.replace("\u00a0", " ")
