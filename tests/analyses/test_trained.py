"""What studies of training share: runs that are kept and not repeated; a text as characters."""

from pathlib import Path

import pytest
import torch

from analyses.trained import characters, mean_and_error, trained
from interp import GPTConfig, HookedGPT
from interp.corpus import standard_library
from interp.training import Run, TrainingConfig


def _model(d_vocab: int) -> HookedGPT:
    return HookedGPT(GPTConfig(n_layers=1, d_model=6, n_heads=2, n_ctx=9, d_vocab=d_vocab, seed=0))


def test_a_second_look_trains_nothing_and_has_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = characters(None, 3000)
    cfg = TrainingConfig(steps=4, batch_size=5)
    first = _model(text.tokenizer.d_vocab)
    log = trained(first, text.read(9), cfg, tmp_path / "run", held_out=text.asked(9, 200))
    assert Run(tmp_path / "run").steps == [4]
    monkeypatch.setattr(torch.optim.AdamW, "step", None)  # calling it fails
    again = _model(text.tokenizer.d_vocab)
    assert not torch.equal(again.W_E, first.W_E)
    second = trained(again, text.read(9), cfg, tmp_path / "run", held_out=text.asked(9, 200))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert second[-1] == log[-1]
    assert [row["loss"] for row in second[:4]] == [row["loss"] for row in log[:4]]


def test_without_a_folder_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = characters(None, 3000)
    assert len(trained(_model(text.tokenizer.d_vocab), text.read(9), TrainingConfig(steps=2, batch_size=5), None)) == 2
    assert not list(tmp_path.iterdir())


def test_a_text_is_its_characters_and_its_end_is_held_out(tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text("abcdé" * 40 + "z" * 20, encoding="utf-8")
    text = characters(file, 210)
    assert text.tokenizer.decode(text.train.tolist()) == ("abcdé" * 40)[:189]
    assert text.tokenizer.decode(text.held_out.tolist()) == "é" + "abcdé" * 2 + "z" * 10
    assert text.asked(4, 9).tokens.tolist() == text.held_out[:9].tolist()
    of_library = characters(None, 5000)
    assert len(of_library.train) + len(of_library.held_out) == 5000
    assert next(filter(str.isascii, standard_library())).startswith(
        of_library.tokenizer.decode(of_library.train[:50].tolist())
    )


def test_the_standard_error_is_that_of_the_mean() -> None:
    mean, error = mean_and_error([1.0, 2.0, 6.0])
    assert (mean, error) == (3.0, pytest.approx((7 / 3) ** 0.5))  # variance 7, of three
    assert mean_and_error([2.0])[0] == 2.0
