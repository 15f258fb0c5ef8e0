from itertools import product

import numpy as np
import pytest
import torch

from interp import metrics
from interp.patching import ablation, interaction, summary
from interp.results import Result, labelled
from tests.variants import some_tokens, variant


def effects(n: int, *means: float) -> tuple[Result, np.ndarray]:
    draw = torch.Generator().manual_seed(n)
    values = torch.randn(len(means), n, generator=draw, dtype=torch.float64) + torch.tensor(means)[:, None].double()
    base = torch.randn(n, generator=draw, dtype=torch.float64)
    result = labelled(values + base, {"head": range(len(means)), "prompt": range(n)}, "metric", {"metric": "m"}, base)
    return result, values.numpy()


def test_means_and_standard_errors_are_those_of_the_effects() -> None:
    result, values = effects(9, 0.0, 1.0, -2.0)
    found = summary(result)
    np.testing.assert_allclose(found["mean"], values.mean(1))
    np.testing.assert_allclose(found["standard_error"], values.std(1, ddof=1) / 3)
    assert found["mean"].dims == ("head",)
    assert found.attrs["n"] == 9
    assert list(found.coords) == ["head"]


def test_the_interval_is_the_bootstraps() -> None:
    result, values = effects(40, 0.3, 3.0)
    found = summary(result, n_resamples=20_000, level=0.9)
    draw = np.random.default_rng(0)
    for i, row in enumerate(values):
        means = [draw.choice(row, len(row)).mean() for _ in range(20_000)]
        np.testing.assert_allclose([found["low"][i], found["high"][i]], np.quantile(means, [0.05, 0.95]), atol=0.02)


def test_few_prompts_are_tossed_in_every_way() -> None:
    result, values = effects(6, 0.0, 1.5)
    tosses = np.array(list(product((1, -1), repeat=6)))
    wanted = [(np.abs(tosses @ row) >= abs(row.sum()) - 1e-12).mean() for row in values]
    np.testing.assert_allclose(summary(result)["p"], wanted)


def test_many_prompts_are_tossed_at_random() -> None:
    result, _ = effects(14, 0.0, 0.4, 5.0)
    every, some = summary(result, n_resamples=2**14)["p"], summary(result, n_resamples=9_999)["p"]
    np.testing.assert_allclose(some, every, atol=0.02)
    assert some[2] >= 1e-4  # never 0: the seen signs are one of the tosses


def test_one_prompt_tells_no_spread() -> None:
    result, _ = effects(1, 2.0)
    found = summary(result)
    assert np.isnan(found["standard_error"]).all()
    assert found["p"] == 1


def test_prompts_may_be_any_axis() -> None:
    result, _ = effects(9, 0.0, 1.0)
    assert summary(result.T).identical(summary(result))


def test_what_has_no_prompts_has_no_summary() -> None:
    result, _ = effects(4, 1.0)
    with pytest.raises(ValueError, match="over prompts"):
        summary(result.mean("prompt"))
    with pytest.raises(ValueError, match=r"level=1\.5"):
        summary(result, level=1.5)


def test_an_effect_that_was_taken_already_is_not_taken_again() -> None:
    model, tokens = variant("gpt2"), some_tokens()
    found = ablation(model, tokens, "mlp_out", metrics.loss(), by=(), mode="pairs", progress=False)
    effect = summary(found)["mean"]
    np.testing.assert_allclose(summary(found - found.base)["mean"], effect)
    np.testing.assert_allclose(summary(interaction(found))["mean"], interaction(found).mean("prompt"))
    assert "base" not in interaction(found).coords
