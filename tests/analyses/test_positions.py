"""The study of positions: what each kind does to heads, to longer rows, and to what the stream knows."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from xarray import load_dataset

from analyses.positions import Setting, attention, known, losses
from interp import GPTConfig, HookedGPT
from interp.training import Batch
from tests.analyses.commands import command


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Half of the small setting."""
    out = tmp_path_factory.mktemp("positions")
    command("positions", "--seeds", "1", "--out", str(out))
    return out


def _findings(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())["findings"]


@pytest.mark.slow
@pytest.mark.long
def test_no_positions_go_on_beyond_the_trained_length_and_all_others_fail_there(folder: Path) -> None:
    found = _findings(folder)
    loss = {kind: {name: of[0] for name, of in found[kind]["loss"].items()} for kind in found if kind != "runs"}
    for kind in ("learned", "sinusoidal"):
        assert loss[kind]["beyond"] - loss[kind]["within"] > 0.25
        assert loss[kind]["far beyond"] - loss[kind]["within"] > 0.35
    assert loss["rotary"]["far beyond"] - loss["rotary"]["within"] > 0.25
    assert loss["rotary"]["beyond"] < min(loss[kind]["beyond"] for kind in ("learned", "sinusoidal")) - 0.2
    assert abs(loss["none"]["far beyond"] - loss["none"]["within"]) < 0.15
    assert loss["none"]["far beyond"] < min(of["far beyond"] for kind, of in loss.items() if kind != "none") - 0.2
    assert loss["rotary"]["within"] < min(of["within"] for kind, of in loss.items() if kind != "rotary") - 0.05
    assert loss["none"]["within"] < 2.8, "of about 4.6 without any training"


@pytest.mark.slow
@pytest.mark.long
def test_heads_look_back_by_one_where_positions_tell_them_and_as_far_as_those_were_trained(folder: Path) -> None:
    found = _findings(folder)
    previous = {kind: found[kind]["previous"] for kind in ("learned", "sinusoidal", "rotary", "none")}
    assert previous["rotary"]["within"][0] > 0.3
    assert previous["sinusoidal"]["within"][0] > 0.15
    assert previous["none"]["within"][0] < 0.12
    for kind in ("sinusoidal", "rotary"):
        assert previous[kind]["beyond"][0] < previous[kind]["within"][0] / 2
    result = load_dataset(folder / "result.nc", engine="h5netcdf")
    most = result.attention.sel(place="within", distance=1).max(["layer", "head"])
    assert most.equals(result.looks_back.sel(place="within", distance=1))
    assert result.sizes["pos"] == 64


@pytest.mark.slow
@pytest.mark.long
def test_a_causal_stream_comes_to_know_its_position_without_being_told(folder: Path) -> None:
    found = {kind: of["known"] for kind, of in _findings(folder).items() if kind != "runs"}
    for kind in ("learned", "sinusoidal"):
        assert found[kind][0] > 0.85
    for kind in ("rotary", "none"):
        assert found[kind][0] < 0.03
    assert found["none"][-1] > 0.08
    assert found["none"][1] > 0.05


def _model(**choices: Any) -> HookedGPT:
    return HookedGPT(GPTConfig(n_layers=2, d_model=6, n_heads=3, n_ctx=16, d_vocab=11, seed=0, **choices))


def test_attention_by_distance_is_the_mean_over_the_queries_of_each_place() -> None:
    model = _model(positional_embedding_type="rotary")
    tokens = torch.randint(11, (4, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        _, cache = model.run_with_cache(tokens)
    found = attention(model, tokens, 8)
    assert list(found.shape) == [2, 2, 3, 4]
    for place, queries in enumerate((range(4, 8), range(12, 16))):
        weights = torch.stack([cache["pattern", 1][:, 2, query, query - 3] for query in queries])
        assert float(found[place, 1, 2, 3]) == pytest.approx(float(weights.mean()), rel=1e-5)


def test_losses_are_those_of_the_model_and_an_untrained_stream_knows_no_position_but_what_it_is_given() -> None:
    tokens = torch.randint(11, (40, 17), generator=torch.Generator().manual_seed(0))
    batch = Batch(tokens[:, :-1], tokens[:, 1:])
    model = _model(positional_embedding_type=None)
    with torch.no_grad():
        expected = torch.stack([-model(row[None, :-1]).log_softmax(-1)[0, range(16), row[1:]] for row in tokens])
    assert torch.allclose(losses(model, batch), expected.mean(0), atol=1e-5)
    assert float(known(model, batch, 16)[0]) < 0.1
    assert float(known(_model(positional_embedding_type="sinusoidal"), batch, 16)[0]) > 0.6


def test_wrong_settings_are_refused() -> None:
    for n_ctx in (4, 18):
        with pytest.raises(ValueError, match="a multiple of 4, and 8 at least"):
            Setting(n_ctx=n_ctx)
    with pytest.raises(ValueError, match="seeds=2, rows=3; one seed at least"):
        Setting(rows=3)
