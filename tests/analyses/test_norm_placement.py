"""The study of the norm's place: gradients as the theory has them, and a warm-up that one order needs."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from xarray import load_dataset

from analyses.norm_placement import Setting, gradients, slopes
from interp import GPTConfig, HookedGPT
from tests.analyses.commands import command


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Half of the small setting."""
    out = tmp_path_factory.mktemp("norm_placement")
    command("norm_placement", "--seeds", "1", "--predictions", "12", "--out", str(out))
    return out


def _findings(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())["findings"]


@pytest.mark.slow
@pytest.mark.long
def test_the_last_gradient_falls_with_the_root_of_the_depth_before_sublayers_and_stays_behind_sums(
    folder: Path,
) -> None:
    found = _findings(folder)
    assert -0.7 < found["pre"]["slope"][0] < -0.35
    assert -0.15 < found["post"]["slope"][0] < 0.15
    gradient = load_dataset(folder / "result.nc", engine="h5netcdf").gradient.mean("seed")
    assert gradient.depth.values.tolist() == [4, 6, 8, 12, 16, 24]
    assert float(gradient.sel(placement="post", depth=24)) > 2.5 * float(gradient.sel(placement="pre", depth=24))
    assert found["pre"]["last_over_first_layer"] < 0.4 < found["post"]["last_over_first_layer"]


@pytest.mark.slow
@pytest.mark.long
def test_norms_behind_sums_need_a_warm_up_at_a_rate_at_which_norms_before_sublayers_do_not(folder: Path) -> None:
    pre, post = (_findings(folder)[place]["loss"]["0.003"] for place in ("pre", "post"))
    assert post["0"][0] - post["80"][0] > 0.1
    assert abs(pre["0"][0] - pre["80"][0]) < 0.08
    assert post["0"][0] - pre["0"][0] > 0.2
    summary = json.loads((folder / "summary.json").read_text())
    assert list(summary["models"]) == summary["findings"]["runs"]
    assert len(summary["models"]) == 4


def test_the_gradient_of_a_prediction_is_what_fires_times_what_is_asked_of_the_sum() -> None:
    sizes = {"n_layers": 2, "d_model": 6, "n_heads": 3, "n_ctx": 4, "d_vocab": 9, "act_fn": "relu"}
    model = HookedGPT(GPTConfig(**sizes, init_mode="xavier", seed=1))
    draw, expected = torch.Generator().manual_seed(5), []
    for n_read in (1, 2, 3):
        tokens = torch.randint(9, (1, n_read + 1), generator=draw)
        last = lambda logits, *_, token=tokens[0, -1:]: torch.nn.functional.cross_entropy(logits[0, -1:], token)
        _, cache = model.run_with_cache(tokens[:, :-1], incl_bwd=True, loss_fn=last)
        fired, asked = cache["blocks.1.mlp.hook_post"][0, -1], cache["blocks.1.hook_mlp_out_grad"][0, -1]
        expected.append(float((fired.norm() * asked.norm()).detach()))
    assert float(gradients(model, 3, 5)[1]) == pytest.approx(np.mean(expected), rel=1e-4)


def test_a_slope_is_the_power_of_the_depth() -> None:
    depths = [4, 9, 25]
    assert slopes(np.array([[1 / 2, 1 / 3, 1 / 5], [7.0, 7, 7]]), depths) == pytest.approx([-0.5, 0])


def test_wrong_settings_are_refused() -> None:
    for depths in ((4,), (8, 4), (4, 4)):
        with pytest.raises(ValueError, match="a slope is of two depths at least, the deepest last"):
            Setting(depths=depths)
    with pytest.raises(ValueError, match="warmup=160, steps=160; a warm-up ends before the training"):
        Setting(warmup=160)
    with pytest.raises(ValueError, match="seeds=0, predictions=8; one at least"):
        Setting(seeds=0)
