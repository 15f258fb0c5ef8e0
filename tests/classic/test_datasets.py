"""Texts of the hub, rows of tokens, and what is measured on them. No test asks the hub."""

import sys
from types import ModuleType
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from interp.classic import HookedTransformer, evals, utils
from interp.classic.datasets import TokenRows
from tests.classic.shapes import filled, rows

TEXTS = [{"text": f"x = {i}\n" * 400, "content": f"y = {i}\n" * 400, "url": "no"} for i in range(12)]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The names of the data sets that were asked for."""
    asked: list[Any] = []
    library: Any = ModuleType("datasets")
    library.__spec__ = pytest.__spec__
    library.load_dataset = lambda *name, **how: (asked.append((*name, how)), TEXTS)[1]
    monkeypatch.setitem(sys.modules, "datasets", library)
    return asked


def bundled() -> HookedTransformer:
    return HookedTransformer.from_pretrained("stdlib-attn-2l")


def test_rows_are_read_as_those_of_the_library() -> None:
    found = TokenRows(torch.arange(12).view(4, 3))
    assert found[1]["tokens"].tolist() == [3, 4, 5]
    assert found[:2]["tokens"].shape == (2, 3)
    assert found["tokens"].shape == (4, 3)
    assert len(list(found)) == 4
    assert sorted(found.shuffle(seed=1)["tokens"][:, 0].tolist()) == [0, 3, 6, 9]
    assert torch.equal(found.shuffle(1)["tokens"], found.shuffle(1)["tokens"])
    assert next(iter(DataLoader(found, batch_size=4)))["tokens"].shape == (4, 3)
    with pytest.raises(IndexError, match="row 4 of 4"):
        found[4]
    with pytest.raises(KeyError):
        found["text"]


def test_a_model_is_measured_on_texts_of_the_hub(hub: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model = bundled()
    cut = lambda data, tokenizer, **how: utils.tokenize_and_concatenate(data, tokenizer, max_length=32, **how)
    monkeypatch.setattr(evals, "tokenize_and_concatenate", cut)
    batches = list(evals.make_code_data_loader(model.tokenizer, batch_size=4))[:3]
    assert all(batch["tokens"].shape == (4, 32) for batch in batches)
    losses = [model(batch["tokens"], return_type="loss").item() for batch in batches]
    assert evals.evaluate_on_dataset(model, batches, truncate=2) == pytest.approx(sum(losses[:2]) / 2)
    found = evals.evaluate(model, truncate=1, batch_size=2)
    assert list(found) == ["wiki_loss", "owt_loss", "pile_loss", "code_loss"]
    assert [name for name, *_ in hub[1:]] == [
        "wikitext",
        "stas/openwebtext-10k",
        "NeelNanda/pile-10k",
        "codeparrot/codeparrot-valid-v2-near-dedup",
    ]
    with pytest.raises(ValueError, match="no batch"):
        evals.evaluate_on_dataset(model, [])
    assert 1 < evals.sanity_check(model) < 9


def test_texts_are_drawn_from_what_a_model_was_trained_on(hub: list[Any]) -> None:
    model = bundled()
    with pytest.raises(ValueError, match=r"set model\.dataset"):
        model.sample_datapoint()
    model.cfg.original_architecture = "GPTNeoXForCausalLM"  # type: ignore[attr-defined]
    np.random.seed(3)
    text = model.sample_datapoint()
    assert hub == [("NeelNanda/pile-10k", {"split": "train"})]
    np.random.seed(3)
    assert torch.equal(model.sample_datapoint(tokenize=True, prepend_bos=False), model.to_tokens(text, False))
    assert len(hub) == 1
    assert utils.get_dataset("c4_code") is TEXTS
    with pytest.raises(ValueError, match="Dataset c5 not supported"):
        utils.get_dataset("c5")


@pytest.mark.skipif(utils.is_library_available("datasets"), reason="the library is installed")
def test_without_the_library_an_error_names_it() -> None:
    with pytest.raises(ImportError, match="library datasets, which is not installed"):
        utils.get_dataset("pile")


def test_a_file_of_the_hub_is_what_it_holds(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.json").write_text('{"n": 3}')
    torch.save({"w": torch.ones(2)}, tmp_path / "b.pth")
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda repo, file, **_: str(tmp_path / file))
    assert utils.download_file_from_hf("some/repo", "a.json") == {"n": 3}
    assert torch.equal(utils.download_file_from_hf("some/repo", "b.pth")["w"], torch.ones(2))
    assert utils.download_file_from_hf("some/repo", "c.txt") == str(tmp_path / "c.txt")


def test_defaults_hold_within_their_block() -> None:
    model = bundled()
    with utils.LocallyOverridenDefaults(model, prepend_bos=False, padding_side="left"):
        assert model.to_str_tokens("x") == ["x"]
        assert model.to_tokens(["x", "x = y"])[0, -1] == model.to_single_token("x")
    assert len(model.to_str_tokens("x")) == 2
    assert model.default_padding_side == "right"
    model.cfg.default_prepend_bos = False
    assert model.to_str_tokens("x") == ["x"]
    assert not model.native().cfg.default_prepend_bos
    assert utils.get_input_with_manually_prepended_bos("<s>", ["a", "b"]) == ["<s>a", "<s>b"]
    with pytest.raises(ValueError, match="no defaults"):
        utils.LocallyOverridenDefaults(model, truncate=True)


def test_positions_of_a_shortformer_can_be_given() -> None:
    model = filled("shortformer")
    resid, tokens, pos, mask = model.input_to_embed(rows())
    assert mask is None
    assert pos is not None
    assert torch.equal(tokens, rows())
    assert torch.equal(resid, model.W_E[rows()])
    close = torch.testing.assert_close
    close(model(resid, start_at_layer=0), model(rows()))
    close(model(resid, start_at_layer=0, shortformer_pos_embed=pos), model(rows()))
    moved = model(resid, start_at_layer=0, shortformer_pos_embed=pos.roll(1, 1))
    assert (moved - model(rows())).abs().max() > 0.1
    with pytest.raises(ValueError, match="no shortformer's"):
        filled("gpt2")(rows(), shortformer_pos_embed=pos)
