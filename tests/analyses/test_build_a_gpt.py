"""The study of what each part of a transformer buys: the ladder falls, its networks are what they should be."""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from xarray import load_dataset

from analyses import build_a_gpt
from analyses.build_a_gpt import Sizes, networks, study
from analyses.trained import Characters, characters
from tests.analyses.commands import command

TINY = Sizes(d_model=8, n_heads=2, n_ctx=5, batch_size=4, steps=8)


@cache
def small_text() -> Characters:
    return characters(None, 3000)


@pytest.mark.slow
@pytest.mark.long
def test_each_part_buys_something_but_layers_without_a_stream_which_cost(tmp_path: Path) -> None:
    said = command("build_a_gpt", "--sizes.steps", "300", "--sizes.lr", "0.014", "--out", str(tmp_path))
    found = json.loads((tmp_path / "summary.json").read_text())["findings"]
    fall, loss = found["falls"], {name: of["mean"] for name, of in found["loss"].items()}
    for name in ("one head", "several heads", "feed-forward", "residual stream", "scale"):
        assert fall[name]["mean"] > 2 * fall[name]["error"] > 0, name
    assert fall["layers, no stream"]["mean"] < -4 * fall["layers, no stream"]["error"]
    assert loss["scale"] < loss["residual stream"] < loss["feed-forward"] < loss["bigram"] - 0.1
    assert loss["bigram"] == pytest.approx(_counted(), abs=0.1), "the table of pairs, learned"
    assert found["largest_rate"]["with"] >= 4 * found["largest_rate"]["without"]
    assert set(found["looking"]["one head"]) == {"0"}
    assert f"{loss['scale']:.3f}" in said
    result = load_dataset(tmp_path / "result.nc", engine="h5netcdf")
    assert dict(result.loss.sizes) == {"network": 8, "seed": 3}
    near = result.looks.sel(looking="several heads", layer=0)
    assert float(near.sel(offset=0).max()) > 0.3
    assert {each.stem for each in tmp_path.glob("*.html")} == {"ladder", "rates", "heads"}


def _counted() -> float:
    """The loss of pairs that were counted."""
    text = characters(None, 200_000)
    counts = np.full((text.tokenizer.d_vocab, text.tokenizer.d_vocab), 0.1)
    np.add.at(counts, (text.train[:-1], text.train[1:]), 1)
    p = counts / counts.sum(1, keepdims=True)
    return float(-np.log(p[text.held_out[:-1], text.held_out[1:]]).mean())


@torch.no_grad()
def test_the_bigram_reads_one_token_and_without_a_stream_parts_read_the_part_before() -> None:
    text = small_text()
    ladder = networks(TINY, replace(TINY, n_ctx=9))
    bigram = ladder["bigram"].model(text, 0, "cpu")
    tokens = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 4]])
    with bigram.hooks(ladder["bigram"].hooks()):
        logits = bigram(tokens)
    torch.testing.assert_close(logits[0, -1], logits[1, -1])
    torch.testing.assert_close(logits[0], bigram.W_E[tokens[0]] @ bigram.W_U)
    cut = ladder["layers, no stream"].model(text, 0, "cpu")
    with cut.hooks(ladder["layers, no stream"].hooks()):
        logits, cache = cut.run_with_cache(tokens)
    for layer in range(TINY.n_layers):
        assert torch.equal(cache["resid_mid", layer], cache["attn_out", layer])
        assert torch.equal(cache["resid_post", layer], cache["mlp_out", layer])
    torch.testing.assert_close(logits, cache["mlp_out", TINY.n_layers - 1] @ cut.W_U)
    assert not torch.equal(logits, cut(tokens))


@pytest.mark.slow
def test_what_is_trained_is_not_trained_again_and_rates_double_until_it_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build_a_gpt, "_WRITTEN", 4)
    monkeypatch.setattr(build_a_gpt, "_DOUBLINGS", 2)
    text, options = small_text(), dict[str, Any](seeds=(4, 7), progress=False)
    small = replace(TINY, lr=0.5)
    first = study(text, small, TINY.scaled(), **options, folder=tmp_path)
    bare, bound = first.result.tried.sel(norm="without").to_numpy(), first.result.attrs["frequencies"]
    fails = np.flatnonzero(~(bare < bound))
    assert fails.size
    assert np.isnan(bare[fails[0] + 1 :]).all()
    assert not np.isnan(bare[: fails[0]]).any()
    steps = dict[int, Any]()
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self, *_: steps.setdefault(id(self), self) and None)
    again = study(text, small, TINY.scaled(), **options, folder=tmp_path)
    assert again.result.loss.equals(first.result.loss)
    assert again.findings["samples"] == first.findings["samples"]
    assert len(steps) <= 2, "rates at which training failed, without a checkpoint, alone begin again"
    with pytest.raises(ValueError, match="cannot be resumed with these choices"):
        study(text, TINY, TINY.scaled(), **options, folder=tmp_path)


@pytest.mark.parametrize("seeds", [(0,), (1, 1)])
def test_one_seed_has_no_error(seeds: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="two at least, all different"):
        study(small_text(), TINY, TINY, seeds=seeds)
