from inspect import unwrap
from typing import Any

import numpy as np
import pytest
import torch

from interp.lens import linear_probe
from interp.lens.probes import Method

METHODS: tuple[Method, ...] = ("closed_form", "logistic")


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("method", METHODS)
def test_classes_that_lie_apart_along_directions_are_read(method: Method) -> None:
    x = draw(600, 9) * torch.arange(1.0, 10.0) + 5
    labels = 10 + 3 * ((x[:, [1, 4, 7]] - 5) / torch.tensor([2.0, 5.0, 8.0])).argmax(1)
    probe = linear_probe(x.float(), labels, method=method)
    assert probe.classes.tolist() == [10, 13, 16]
    assert (probe.n_train, probe.n_held_out) == (450, 150)
    assert probe.held_out > 0.9
    assert probe.train > 0.9
    assert (probe.predict(x) == labels).double().mean() > 0.9
    assert probe.predict(x[:6].view(2, 3, 9)).shape == (2, 3)
    sides = probe.weight[[1, 4, 7]] * torch.tensor([[2.0], [5.0], [8.0]])
    assert (sides.argmax(1) == torch.arange(3)).all()


def test_the_closed_form_is_ridge_regression_written_out() -> None:
    x, noise = draw(40, 5) * torch.tensor([1.0, 9, 2, 3, 0.5]) + 3, draw(40, seed=1)
    y = x @ torch.tensor([1.0, -2, 0, 0.5, 4], dtype=torch.float64) + 7 + noise
    probe = linear_probe(x, y, l2=0.3, held_out=0.25, seed=3)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(3))
    rows = np.setdiff1d(np.arange(40), order[:10].numpy())
    X, Y = x.numpy()[rows], y.numpy()[rows]
    Z = (X - X.mean(0)) / X.std(0)
    w = np.linalg.inv(Z.T @ Z + 0.3 * 30 * np.eye(5)) @ Z.T @ (Y - Y.mean())
    np.testing.assert_allclose(probe.scores(x)[:, 0], ((x.numpy() - X.mean(0)) / X.std(0)) @ w + Y.mean())
    left = probe.predict(x)[order[:10]] - y[order[:10]]
    test = y[order[:10]]
    assert probe.held_out == pytest.approx(1 - (left.square().sum() / (test - test.mean()).square().sum()).item())
    assert linear_probe(x, y - noise, l2=0.0).held_out == pytest.approx(1)


def test_the_logistic_fit_has_no_gradient_left() -> None:
    x, labels = draw(80, 4), torch.randint(0, 3, (80,), generator=torch.Generator().manual_seed(2))
    probe = linear_probe(x, labels, method="logistic", l2=0.02, held_out=0.25, seed=1)
    is_test = torch.zeros(80, dtype=torch.bool)
    is_test[torch.randperm(80, generator=torch.Generator().manual_seed(1))[:20]] = True
    fitted, wanted = x[~is_test], torch.nn.functional.one_hot(labels[~is_test], 3).double()
    wrong = probe.scores(fitted).softmax(-1) - wanted
    z = (fitted - fitted.mean(0)) / fitted.std(0, unbiased=False)
    penalty = 0.02 * probe.weight * fitted.std(0, unbiased=False)[:, None]
    assert (z.T @ wrong / 60 + penalty).abs().max() < 1e-7
    assert wrong.sum(0).abs().max() / 60 < 1e-7


@pytest.mark.parametrize("method", METHODS)
def test_what_is_learned_by_heart_shows_in_the_control_task(method: Method) -> None:
    types = torch.arange(1200) % 40
    by_type = draw(40, 30, seed=5)
    x = by_type[types] + 0.05 * draw(1200, 30)
    probe = linear_probe(x, types % 2, method=method, types=types)  # a label that only the type tells
    assert probe.held_out > 0.8
    assert probe.control > 0.7
    assert abs(probe.selectivity) < 0.3
    x[:, 0] += 6 * (torch.arange(1200) // 40 % 2)  # one that is in the activation, whatever the type
    probe = linear_probe(x, torch.arange(1200) // 40 % 2, method=method, types=types)
    assert probe.held_out > 0.97
    assert linear_probe(draw(1200, 30), types % 2, method=method).held_out < 0.65
    assert linear_probe(draw(1200, 30), types % 2, method=method).selectivity is None


def test_groups_are_held_out_whole() -> None:
    groups = torch.arange(300) % 30
    x = draw(30, 20)[groups] + 0.01 * draw(300, 20)
    labels = (groups * 7 % 30) % 2  # each group has its own, and nothing else tells it
    apart, together = linear_probe(x, labels), linear_probe(x, labels, groups=groups)
    assert apart.held_out > 0.85
    assert together.held_out < 0.8
    assert (together.n_train, together.n_held_out) == (220, 80)


def test_a_coordinate_that_never_moves_is_left_alone() -> None:
    x = draw(800, 4)
    x[:, 2] = 3.0
    for method in METHODS:
        probe = linear_probe(x, (x[:, 0] > 0).long(), method=method)
        assert probe.weight.isfinite().all()
        assert probe.weight[2].abs().max() < 1e-9
        assert probe.held_out > 0.9


def test_what_makes_no_sense_is_refused() -> None:
    x, labels, unchecked = draw(20, 3), torch.arange(20) % 2, unwrap(linear_probe)
    calls: list[tuple[tuple[Any, ...], dict[str, Any], str]] = [
        ((x, labels), {"method": "svm"}, "method='svm'; allowed: 'closed_form', 'logistic'"),
        ((x, labels[:4]), {}, r"shape \[20, 3\] and labels \[4\]"),
        ((x, labels * 0 + 5), {}, "all 20 rows have the label 5"),
        ((x, labels), {"held_out": 0.01}, "held_out=0.01 of 20 rows leaves one side empty"),
        ((x, labels), {"groups": labels * 0}, "of 1 groups leaves one side empty"),
        ((x, labels), {"groups": labels[:3]}, "groups: 3 were given for 20 rows"),
        ((x, labels), {"l2": -1.0}, "l2=-1.0"),
        ((x, labels.double()), {"method": "logistic"}, "tells classes apart: give integer labels"),
        ((x.log(), labels), {}, "NaN or infinite"),
    ]
    for given, choices, message in calls:
        with pytest.raises(ValueError, match=message):
            unchecked(*given, **choices)
