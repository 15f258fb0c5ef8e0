"""A memory's card: what the analyses say of it, in one place."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from interp import memories
from interp.heads import HeadCard
from interp.memories import NeuronCard, Triggers, key_statistics, neuron_card, promoted, triggers
from interp.zoo import planted
from interp.zoo.planted.memories import FACTS
from tests.memories.scanned import model_of, scanned
from tests.memories.test_values import followed, neuron_of

PLANTED = planted.memories()


@cache
def found() -> Triggers:
    return triggers(PLANTED.model, followed(FACTS, 8), 0, progress=False)


def card(fact: int = 0) -> NeuronCard:
    return neuron_card(PLANTED.model, 0, neuron_of(PLANTED, fact), found(), 5, progress=False)


def test_a_planted_memorys_card_says_what_it_knows() -> None:
    for fact, (a, b, c) in enumerate(FACTS):
        own = card(fact)
        assert own.name == f"L0N{neuron_of(PLANTED, fact)}"
        assert own.says == str(c)
        assert own["shared"].text.values[0] == f"{a} {b}"
        assert set(own["triggers"].token_id.values) == {b}
        assert set(own["triggers"].next_token.values) - {""} == {str(c)}
        assert own.tables.attrs["follows"] == 1
        assert float(own["removal"].change.sel(removed="last").median()) == -1
        assert own["key"].value.sel(statistic="largest") == 0.5
        text = str(own)
        for part in (f"{own.name}: promotes '{c}'", "fires on", f"[{b}] -> {c}", "promoted by", "last      -100%"):
            assert part in text


def test_a_cards_tables_are_what_the_analyses_say_of_a_whole_scan() -> None:
    for name in ("gpt2", "llama"):
        model = model_of(name)
        of_all = scanned(model)
        own = neuron_card(model, 1, 3, of_all, 4, progress=False)
        for statistic, value in key_statistics(model, of_all).sel(layer=1, neuron=3).data_vars.items():
            assert float(own["key"].value.sel(statistic=statistic)) == pytest.approx(float(value), rel=1e-6)
        assert own["promoted"].token_id.equals(promoted(model, 1, 3, 4).token_id)
        assert own["triggers"].sizes["rank"] == 4
        assert own["triggers"].equals(of_all[1, 3].isel(rank=slice(4)))
        expected = memories.removal_test(model, of_all, [3], n_triggers=4, progress=False).sel(layer=1).isel(key=0)
        kept = ["first", "last"]  # the random one is another
        np.testing.assert_allclose(
            own["removal"].change.sel(removed=kept), expected.change.sel(removed=kept), rtol=1e-4, atol=1e-5
        )
        after = [t for t in of_all.tokens(1)[1, 3].tolist() if t >= 0]
        best = promoted(model, 1, 3, 4).token_id.values.tolist()
        assert own.tables.attrs["follows"] == sum(t in best for t in after) / len(after)


def test_a_card_is_saved_and_loaded_whole(tmp_path: Path) -> None:
    card().save(tmp_path / "card.nc")
    again = NeuronCard.load(tmp_path / "card.nc")
    assert isinstance(again, NeuronCard)
    assert str(again) == str(card())
    assert again.tables.identical(card().tables)
    with pytest.raises(ValueError, match="holds no head's card"):
        HeadCard.load(tmp_path / "card.nc")


def test_a_memory_that_nothing_fires_has_a_card_too(tmp_path: Path) -> None:
    silent = triggers(PLANTED.model, torch.full((4, 6), 7), 0, progress=False)
    own = neuron_card(PLANTED.model, 0, neuron_of(PLANTED, 0), silent, 5, progress=False)
    assert own["key"].value.sel(statistic="is_dead") == 1
    assert own["triggers"].sizes["rank"] == 0
    own.save(tmp_path / "card.nc")
    assert str(NeuronCard.load(tmp_path / "card.nc")) == str(own)


def test_cards_of_what_is_not_there_are_refused() -> None:
    with pytest.raises(ValueError, match=r"no such neurons: \[999\]"):
        neuron_card(PLANTED.model, 0, 999, found())
    with pytest.raises(ValueError, match="layer=3"):
        neuron_card(PLANTED.model, 3, 0, found())
    with pytest.raises(ValueError, match="of another model"):
        neuron_card(model_of(), 0, 0, found())
    with pytest.raises(KeyError, match=r"layers are \[1\]"):
        neuron_card(model_of(), 0, 0, scanned(layer=1))
    with pytest.raises(KeyError, match="no table 'keys' on a neuron's card"):
        card()["keys"]
