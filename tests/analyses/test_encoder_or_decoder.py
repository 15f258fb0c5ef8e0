"""The study of the causal mask: who sees the next token cannot write, who sees both sides fills gaps better."""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from xarray import load_dataset

from analyses import encoder_or_decoder
from analyses.build_a_gpt import Sizes
from analyses.encoder_or_decoder import asking, by_position, data, held_out, network, study
from analyses.trained import Characters, characters
from interp.training import IGNORED
from tests.analyses.commands import command

TINY = Sizes(d_model=8, n_heads=2, n_ctx=5, batch_size=4, steps=8)


@cache
def small_text() -> Characters:
    return characters(None, 3000)


@pytest.mark.slow
@pytest.mark.long
def test_the_encoder_cheats_on_the_next_token_and_is_better_on_masked_ones(tmp_path: Path) -> None:
    said = command("encoder_or_decoder", "--sizes.steps", "300", "--out", str(tmp_path))
    summary = json.loads((tmp_path / "summary.json").read_text())
    found = summary["findings"]
    loss, looks, gain = found["loss"], found["looks"], found["gain_on_masked"]
    assert loss["encoder"]["next"]["mean"] < 0.05 < 1.5 < loss["decoder"]["next"]["mean"] < 2.3
    assert loss["encoder"]["next, at the end"]["mean"] > loss["decoder"]["next, at the end"]["mean"] + 0.15
    assert gain["mean"] > 3 * gain["error"]
    for task in ("next", "masked"):
        assert looks[f"decoder, {task}"]["right"] == 0
    assert looks["encoder, next"]["right"] > 0.5
    assert looks["encoder, next"]["next"] > 0.7
    assert 0.3 < looks["encoder, masked"]["left"] < 0.6
    assert 0.3 < looks["encoder, masked"]["right"] < 0.6
    for shares in looks.values():
        assert shares["left"] + shares["itself"] + shares["right"] == pytest.approx(1, abs=1e-5)
    assert "does not generate" in found["written"]["encoder"]
    assert "does not generate" not in found["written"]["decoder"]
    assert f"{loss['decoder']['masked']['mean']:.3f}" in said
    result = load_dataset(tmp_path / "result.nc", engine="h5netcdf")
    assert dict(result.loss.sizes) == {"kind": 2, "task": 2, "seed": 3, "pos": 16}
    assert {each.stem for each in tmp_path.glob("*.html")} == {"next", "masked", "attention"}
    assert len(summary["models"]) == 4


def test_rows_ask_for_the_next_token_or_for_what_is_hidden() -> None:
    rows = torch.arange(60).view(10, 6)
    following = asking(rows, "next", 0.3, 99, torch.Generator())
    assert torch.equal(following.tokens + 1, following.targets)
    masked = asking(rows, "masked", 0.3, 99, torch.Generator().manual_seed(1))
    hidden = masked.tokens == 99
    assert torch.equal(masked.targets[hidden], rows[:, :-1][hidden])
    assert (masked.targets[~hidden] == IGNORED).all()
    assert torch.equal(masked.tokens[~hidden], rows[:, :-1][~hidden])
    assert hidden.any(1).all()
    assert 0.15 < float(hidden.float().mean()) < 0.5
    text = small_text()
    drawn = data(text, 5, "next", 0.3, 0).batch(3, 4)
    whole = text.tokenizer.decode(text.train.tolist())
    for row, target in zip(drawn.tokens.tolist(), drawn.targets[:, -1].tolist(), strict=True):
        assert text.tokenizer.decode([*row, target]) in whole


@torch.no_grad()
def test_both_kinds_begin_with_the_same_weights_and_losses_are_by_position() -> None:
    text = small_text()
    decoder, encoder = (network(text, TINY, kind, 3) for kind in ("decoder", "encoder"))
    for a, b in zip(decoder.parameters(), encoder.parameters(), strict=True):
        assert torch.equal(a, b)
    asked = held_out(text, 5, "masked", 0.4)
    rows = asked.rows
    assert (rows.tokens == text.tokenizer.d_vocab).any()
    found = by_position(encoder, asked)
    for pos in range(5):
        there = rows.targets[:, pos] != IGNORED
        logits = encoder(rows.tokens[there])[:, pos]
        torch.testing.assert_close(found[pos].float(), F.cross_entropy(logits, rows.targets[there, pos]))


@pytest.mark.slow
def test_what_is_trained_is_not_trained_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder_or_decoder, "_WRITTEN", 4)
    text, options = small_text(), dict[str, Any](seeds=(4, 7), progress=False)
    first = study(text, TINY, **options, folder=tmp_path)
    monkeypatch.setattr(torch.optim.AdamW, "step", None)
    again = study(text, TINY, **options, folder=tmp_path)
    assert all(again.result[name].equals(first.result[name]) for name in ("loss", "attention"))
    assert again.findings["written"] == first.findings["written"]
    with pytest.raises(ValueError, match="cannot be resumed with these choices"):
        study(text, replace(TINY, lr=1.0), **options, folder=tmp_path)


@pytest.mark.parametrize("wrong", [{"share": 0.0}, {"share": 1.0}, {"seeds": (0,)}, {"seeds": (1, 1)}])
def test_wrong_choices_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="a share is between 0 and 1, and two seeds differ"):
        study(small_text(), TINY, **wrong)
