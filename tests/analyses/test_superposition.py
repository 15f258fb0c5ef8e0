"""The study of superposition: features that are alone, in pairs and in a pentagon; and numbers that are those of W."""

from functools import cache
from math import cos, pi, sqrt
from pathlib import Path

import numpy as np
import pytest
import torch

from analyses.output import Found, opened
from analyses.superposition import Toy, dimensionality, loss, main, study, trained

_SMALL = Toy(features=3, instances=2, starts=2, steps=3, batch=4)


@cache
def _found() -> Found:
    return study(progress=False)


def _by_p(low: float, high: float) -> list[dict]:
    return [each for p, each in _found().findings["by_p"].items() if low <= float(p) <= high]


@pytest.mark.slow
def test_dense_features_have_a_dimension_each_or_nothing() -> None:
    (dense,) = _by_p(1, 1)
    assert dense["features"] == 2
    assert dense["shapes"] == {"1": 2}
    of = _found().result.sel(output="ReLU", p=1.0)
    np.testing.assert_allclose(of.norm, [1, 1, 0, 0, 0], atol=0.1)  # the two that are most important
    np.testing.assert_allclose(of.dimensionality, [1, 1, 0, 0, 0], atol=0.02)


@pytest.mark.slow
def test_sparser_ones_stand_in_pairs_that_point_opposite_ways() -> None:
    sparse = _by_p(0.2, 0.4)
    assert len(sparse) == 2
    for each in sparse:
        assert each["features"] == 4
        assert each["shapes"] == {"1/2": 4}
        assert each["least_cosine"] < -0.99
    of = _found().result.sel(output="ReLU", p=0.215)
    W = of.W.to_numpy()[:4] / of.norm.to_numpy()[:4, None]
    np.testing.assert_allclose(np.sort(W @ W.T), [[-1, 0, 0, 1]] * 4, atol=0.1)


@pytest.mark.slow
def test_the_sparsest_stand_in_a_pentagon() -> None:
    sparsest = _by_p(0, 0.15)
    assert len(sparsest) == 6
    assert all(each["features"] == 5 and each["shapes"] == {"2/5": 5} for each in sparsest)
    of = _found().result.sel(output="ReLU", p=0.01)
    W = of.W.to_numpy() / of.norm.to_numpy()[:, None]
    turned = [cos(4 * pi / 5)] * 2 + [cos(2 * pi / 5)] * 2 + [1.0]
    np.testing.assert_allclose(np.sort(W @ W.T), [turned] * 5, atol=0.08)


@pytest.mark.slow
def test_pairs_where_a_pentagon_is_best_cost_more_and_are_starts_that_got_stuck() -> None:
    of = _found().result.sel(p=[p for p in _found().result.p.values if p < 0.15])
    stuck = of.loss.where(of.features == 4) / of.loss.min("start")
    assert 1 <= int((of.features == 4).sum()) <= 12
    assert float(stuck.min()) > 1.05
    assert float((of.loss.where(of.features == 5) / of.loss.min("start")).max()) < 1.25


@pytest.mark.slow
def test_without_the_relu_there_are_as_many_features_as_dimensions() -> None:
    for each in _by_p(0, 1):
        assert each["squared_norm_linear"] == pytest.approx(2, abs=0.05)
        assert each["sum"] <= 2.0001
    assert all(each["squared_norm_ReLU"] > 5.5 for each in _by_p(0, 0.15))


def test_dimensionalities_of_known_shapes() -> None:
    at = torch.arange(5) * 2 * pi / 5
    pentagon = torch.stack((at.cos(), at.sin()), 1) * 1.3
    pair = torch.tensor([[0.0, 2.0], [0.0, -2.0], [1.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    tetrahedron = torch.tensor([[1.0, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])
    torch.testing.assert_close(dimensionality(pentagon), torch.full((5,), 0.4))
    torch.testing.assert_close(dimensionality(pair), torch.tensor([0.5, 0.5, 1, 0, 0]))
    torch.testing.assert_close(dimensionality(tetrahedron), torch.full((4,), 0.75))
    many = torch.randn(6, 9, 4, generator=torch.Generator().manual_seed(0))
    assert (dimensionality(many).sum(-1) <= 4 + 1e-5).all()


def test_features_are_there_as_often_as_p_says_and_then_uniform() -> None:
    x = Toy().draw(40_000, torch.Generator().manual_seed(0))
    assert x.shape == (10, 1, 40_000, 5)
    torch.testing.assert_close((x > 0).float().mean((1, 2, 3)), Toy().p, atol=0.01, rtol=0)
    for i in (0, 5, 9):
        there = x[i][x[i] > 0]
        assert there.mean().item() == pytest.approx(0.5, abs=0.02)
        assert there.std().item() == pytest.approx(1 / sqrt(12), abs=0.02)


def test_errors_count_by_importance() -> None:
    toy, W, b = Toy(features=3, importance=0.5), torch.zeros(1, 1, 3, 2), torch.zeros(1, 1, 1, 3)
    x = torch.tensor([[1.0, 2.0, 4.0]])[None, None]
    assert loss(toy, "ReLU", W, b, x).item() == pytest.approx((1 + 0.5 * 4 + 0.25 * 16) / 3)
    assert loss(toy, "linear", W, b - 1, x).item() == pytest.approx((4 + 0.5 * 9 + 0.25 * 25) / 3)
    assert loss(toy, "ReLU", W, b - 1, x).item() == pytest.approx((1 + 0.5 * 4 + 0.25 * 16) / 3)


def test_a_second_look_trains_nothing_and_another_toy_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    main(_SMALL, tmp_path)
    result, summary = opened(tmp_path)
    assert summary["config"]["features"] == 3
    assert dict(result.W.sizes) == {"output": 2, "p": 2, "feature": 3, "dimension": 2}
    assert dict(result.loss.sizes) == {"p": 2, "start": 2}
    assert (tmp_path / "geometry.html").is_file()
    assert "0.01" in capsys.readouterr().out
    monkeypatch.setattr(torch.optim.AdamW, "step", None)  # calling it fails
    main(_SMALL, tmp_path)
    assert opened(tmp_path)[0].equals(result)
    with pytest.raises(TypeError):
        trained(Toy(features=3, instances=2, starts=2, steps=3, batch=5), "ReLU", tmp_path / "runs/ReLU.safetensors")


def test_in_more_dimensions_there_is_no_plane_to_draw() -> None:
    toy = Toy(features=9, hidden=3, instances=2, starts=1, steps=2, batch=4)
    figures = study(toy, progress=False).figures
    assert set(figures) == {"dimensionality", "products"}
    assert [note.text for note in figures["dimensionality"].layout.annotations] == [
        "1",
        "3/4",
        "2/3",
        "1/2",
        "2/5",
        "3/8",
    ]


def test_a_wrong_toy_is_refused() -> None:
    for wrong in ({"sparsest": 0.0}, {"sparsest": 1.0}, {"importance": 0.0}, {"instances": 1}):
        with pytest.raises(ValueError, match="a probability between 0 and 1"):
            Toy(**wrong)
    with pytest.raises(ValueError, match="each size is 1 at least"):
        Toy(starts=0)
