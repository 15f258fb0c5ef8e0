"""The study of addition modulo p: its Fourier pictures of logits that are known, of the bundled model, and of a run."""

from functools import cache
from math import log, pi
from pathlib import Path

import numpy as np
import pytest
import torch

from analyses.modular_addition import (
    fewest,
    gini,
    logit_shares,
    main,
    neuron_shares,
    only,
    picture,
    small_run,
    waves,
    without,
)
from analyses.output import opened
from interp import HookedGPT


@cache
def _bundled() -> tuple:
    model = HookedGPT.from_pretrained("modular-addition")
    return picture(model), picture(HookedGPT(model.cfg))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("modular_addition")
    main(out=out)
    return out


def _pairs(p: int) -> tuple[torch.Tensor, torch.Tensor]:
    a, b = torch.meshgrid(torch.arange(p), torch.arange(p), indexing="ij")
    return a.flatten().double(), b.flatten().double()


@pytest.mark.slow
def test_of_the_bundled_model_few_frequencies_are_what_the_embedding_has_and_fewer_what_the_logits_use() -> None:
    (result, found), (_, untrained) = _bundled()
    np.testing.assert_allclose(result.share.sel(of="embedding").sum(), 1, atol=1e-5)
    assert found["embedding_frequencies"] == [1, 2, 7, 14, 19, 22, 38, 47]  # as its card says
    assert found["key_frequencies"] == [1, 7, 19, 47]
    assert len(untrained["embedding_frequencies"]) > 45
    assert found["embedding_gini"] > 0.8 > 0.2 > untrained["embedding_gini"]
    assert found["logits_explained"] > 0.88 > 0.01 > untrained["logits_explained"]
    assert found["neurons_explained"] > 0.35 > 0.01 > untrained["neurons_explained"]
    assert found["neurons_at_key"] > 0.8


@pytest.mark.slow
def test_of_the_bundled_model_the_key_frequencies_are_needed_and_suffice() -> None:
    ablated = _bundled()[0][1]["ablated"]
    assert ablated["whole"]["accuracy"] == 1
    assert ablated["without key"]["loss"] > 2 * log(113)
    assert ablated["without key"]["accuracy"] < 0.1
    assert ablated["key only"]["accuracy"] == 1
    assert ablated["key only"]["loss"] < 0.01 * ablated["whole"]["loss"]
    assert ablated["without others"]["accuracy"] > 0.99
    assert ablated["without others"]["loss"] < 0.01


@pytest.mark.slow
@pytest.mark.long
def test_the_rule_comes_behind_what_was_learned_by_heart_and_before_it_shows(folder: Path) -> None:
    result, summary = opened(folder)
    phases, run = summary["findings"]["phases"], summary["findings"]["run"]
    assert phases["excluded_least"] <= phases["train"] <= 160
    assert phases["train"] < phases["restricted"] <= phases["others"] - 100
    assert phases["excluded"] <= phases["restricted"]
    by_heart = result.sel(step=140)
    assert by_heart.loss_train < 0.1 < 1 < by_heart.loss_restricted * 2 < by_heart.loss_others
    assert by_heart.loss_others > log(29)  # what it knew then was no rule
    assert float(result.loss_others[-1]) < 1e-3
    assert float(result.loss_restricted[-1]) < 0.7 * float(result.loss_others[-1])
    assert float(result.loss_excluded[-1]) > 2 * log(29)
    assert (result.loss_restricted < result.loss_others).all()
    assert float(result.gini[-1]) > 0.65 > 0.2 > float(result.gini[0])
    assert float(result.weights[-1]) < 0.75 * float(result.weights.max()), "what was learned by heart is cleaned up"
    assert run["ablated"]["key only"]["accuracy"] == 1
    assert run["ablated"]["without key"]["accuracy"] < 0.15
    assert run["neurons_explained"] > 0.6


@pytest.mark.slow
@pytest.mark.long
def test_a_second_look_trains_nothing_and_a_run_can_be_given(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.optim.AdamW, "step", None)  # calling it fails
    (of_run,) = (folder / "runs").iterdir()
    assert small_run(of_run).steps[-1] == 800
    main(run=of_run, share=0.6, out=tmp_path)
    mine, theirs = (opened(each)[1]["findings"] for each in (tmp_path, folder))
    assert mine["phases"] == theirs["phases"]
    assert mine["model"] == mine["run"] == theirs["run"]
    assert f"restricted {mine['phases']['restricted']}" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"was not trained on the pairs of share=0\.3, seed=0: say --share, --seed"):
        main(run=of_run, out=tmp_path)


def test_logits_made_of_cosines_are_seen_as_such() -> None:
    p, c = 13, torch.arange(13)
    a, b = _pairs(p)
    wave = lambda k: (2 * pi * k / p * (a + b)[:, None] - 2 * pi * k / p * c).cos()
    logits = 3 * wave(2) + wave(5) + 7.0
    torch.testing.assert_close(logit_shares(logits, p), torch.tensor([0, 0.9, 0, 0, 0.1, 0]).double())
    of = waves(p, [2])
    torch.testing.assert_close(without(logits, of), wave(5) + 7.0)
    torch.testing.assert_close(only(logits, of), 3 * wave(2) + 7.0)
    torch.testing.assert_close(waves(p, [1, 4]) @ waves(p, [1, 4]).mT, torch.eye(4).double())
    other = (2 * pi * 2 / p * (a - b)[:, None] - 2 * pi * 2 / p * c).cos()  # of a − b
    assert logit_shares(other, p).max() < 1e-9


def test_neurons_made_of_waves_are_seen_as_such() -> None:
    p, w = 11, 2 * pi / 11
    a, b = _pairs(p)
    one = (3 * w * a).cos() * (3 * w * b).sin() + 0.5 * (3 * w * b).cos() + 2
    two = (2 * w * a).cos() * (4 * w * b).cos()  # of two frequencies: of neither
    mixed = 3 * (w * a).cos() + (5 * w * b).sin()
    found = neuron_shares(torch.stack((one, two, mixed, torch.zeros_like(a)), 1), p)
    expected = torch.zeros(5, 4).double()
    expected[2, 0], expected[0, 2], expected[4, 2] = 1, 0.9, 0.1
    torch.testing.assert_close(found, expected)


def test_the_fewest_frequencies_and_the_gini_coefficient() -> None:
    shares = torch.tensor([0.1, 0.5, 0.05, 0.35])
    assert fewest(shares, 0.8) == [2, 4]
    assert fewest(shares, 0.9) == [1, 2, 4]
    assert fewest(10 * shares, 0.4) == [2]
    assert gini(torch.ones(5)) == pytest.approx(0)
    assert gini(torch.tensor([0.0, 0, 0, 7])) == pytest.approx(0.75)
    assert gini(torch.tensor([3.0, 1])) == pytest.approx(0.25)


def test_a_model_that_does_not_add_is_refused() -> None:
    with pytest.raises(ValueError, match="one that adds modulo an odd p reads p"):
        picture(HookedGPT.from_pretrained("stdlib-attn-2l"))
