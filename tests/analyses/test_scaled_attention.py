"""The study of scaled attention: the softmax as the theory has it, at first and over training."""

import json
from itertools import pairwise
from math import log
from pathlib import Path
from typing import Any

import pytest
import torch
from xarray import load_dataset

from analyses.scaled_attention import Setting, initial, main, of_softmax

D_HEADS = ("4", "16", "64", "256")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Half of the small setting."""
    out = tmp_path_factory.mktemp("scaled_attention")
    main(Setting(seeds=1, rows=8), out)
    return out


def _findings(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())["findings"]


@pytest.mark.slow
@pytest.mark.long
def test_undivided_scores_have_the_variance_d_head_and_saturate_the_softmax_the_more_the_larger_it_is(
    folder: Path,
) -> None:
    divided, undivided = _findings(folder)["at_first"].values()
    for d_head in D_HEADS:
        assert divided[d_head]["variance"][0] == pytest.approx(1, rel=0.2)
        assert undivided[d_head]["variance"][0] == pytest.approx(int(d_head), rel=0.2)
        assert divided[d_head]["entropy"][0] == pytest.approx(log(64) - 1 / 2, abs=0.1), "that of Gaussian scores"
        assert divided[d_head]["largest"][0] < 0.15
        assert divided[d_head]["response"][0] > 0.94
    for less, more in pairwise(D_HEADS):
        assert undivided[more]["entropy"][0] < 0.6 * undivided[less]["entropy"][0]
        assert undivided[more]["response"][0] < 0.75 * undivided[less]["response"][0]
        assert undivided[more]["largest"][0] > undivided[less]["largest"][0] + 0.08
    assert undivided["256"]["largest"][0] > 0.8
    assert undivided["256"]["response"][0] < 0.25


@pytest.mark.slow
@pytest.mark.long
def test_the_gradient_that_most_queries_get_vanishes_though_its_mean_does_not(folder: Path) -> None:
    divided, undivided = _findings(folder)["at_first"].values()
    for d_head in D_HEADS:
        each = divided[d_head]
        assert each["typical_q_gradient"][0] > 0.8 * each["q_gradient"][0]
    each = undivided["256"]
    assert each["typical_q_gradient"][0] < 0.3 * each["q_gradient"][0]
    assert each["typical_q_gradient"][0] < 0.6 * divided["256"]["typical_q_gradient"][0]
    assert each["q_gradient"][0] > divided["256"]["q_gradient"][0], "what is not divided is not divided in the gradient"


@pytest.mark.slow
@pytest.mark.long
def test_training_does_not_free_a_saturated_softmax_and_the_loss_stays_higher(folder: Path) -> None:
    divided, undivided = _findings(folder)["trained"].values()
    for d_head in ("16", "64"):
        assert undivided[d_head]["response"][1] < undivided[d_head]["response"][0] + 0.1
        assert undivided[d_head]["response"][1] < divided[d_head]["response"][1] - 0.2
    assert undivided["64"]["loss"][0] > divided["64"]["loss"][0] + 0.08
    result = load_dataset(folder / "result.nc", engine="h5netcdf")
    assert result.trained_entropy.dims == ("trained_d_head", "scale", "seed", "step", "layer")
    assert result.step.values[[0, -1]].tolist() == [0, 200]
    assert len(json.loads((folder / "summary.json").read_text())["models"]) == 4


def test_of_a_softmax_known_by_hand() -> None:
    found = of_softmax(torch.tensor([[0.25, 0.25, 0.25, 0.25], [1, 0, 0, 0], [0.5, 0.5, 0, 0]]))
    assert found["entropy"].tolist() == pytest.approx([log(4), 0, log(2)])
    assert found["largest"].tolist() == [0.25, 1, 0.5]
    assert found["response"].tolist() == [0.75, 0, 0.5]
    scores = torch.randn(5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda x: x.softmax(-1), scores)
    assert isinstance(jacobian, torch.Tensor)
    assert float(of_softmax(scores.softmax(-1))["response"]) == pytest.approx(float(jacobian.diagonal().sum()))


def test_a_new_layer_reads_distinct_tokens_through_a_norm() -> None:
    setting = Setting(n_keys=8, rows=2)
    found = initial(setting, 16, "1", 3)
    assert found["variance"] == pytest.approx(16 * initial(setting, 16, "√d_head", 3)["variance"], rel=1e-4)


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="measures=1, n_keys=64, n_ctx=32; two measures at least"):
        Setting(measures=1)
    with pytest.raises(ValueError, match="seeds=0, rows=4; one at least"):
        Setting(seeds=0)
