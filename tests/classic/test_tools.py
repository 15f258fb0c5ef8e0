"""Head detection, singular vectors, evaluations and the plain training loop, by what they should be."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from interp.classic import HookedTransformer, SVDInterpreter, evals
from interp.classic.head_detector import detect_head, get_induction_head_detection_pattern
from interp.classic.train import HookedTransformerTrainConfig, train
from tests.classic.shapes import filled, rows

TEXT = "import os\nimport sys\nimport os\nimport sys\n"


def bundled() -> HookedTransformer:
    return HookedTransformer.from_pretrained_no_processing("stdlib-attn-2l")


def test_patterns_are_what_they_are_called() -> None:
    tokens = torch.tensor([[9, 1, 2, 1, 2]])
    expected = torch.zeros(5, 5)
    expected[3, 2] = expected[4, 3] = 1  # what followed the first 1, and the first 2
    assert torch.equal(get_induction_head_detection_pattern(tokens), expected)


def test_induction_heads_of_a_trained_model_score_where_their_pattern_is() -> None:
    model = bundled()
    scores = detect_head(model, TEXT, "induction_head", exclude_bos=True)
    assert scores[1].max() > 0.5 > scores[0].max()
    _, cache = model.run_with_cache(TEXT, remove_batch_dim=True)
    torch.testing.assert_close(detect_head(model, TEXT, "induction_head", cache=cache, exclude_bos=True), scores)
    some = detect_head(model, TEXT, "induction_head", heads={1: [4]}, exclude_bos=True)
    torch.testing.assert_close(some[1, 4], scores[1, 4])
    assert (some == -1).sum() == some.numel() - 1
    both = detect_head(model, [TEXT, TEXT[:20]], "previous_token_head")
    each = [detect_head(model, text, "previous_token_head") for text in (TEXT, TEXT[:20])]
    torch.testing.assert_close(both, (each[0] + each[1]) / 2)


def test_what_is_no_pattern_is_refused() -> None:
    model = bundled()
    with pytest.raises(ValueError, match="lower triangular"):
        detect_head(model, TEXT, torch.ones(3, 3))
    with pytest.raises(ValueError, match="at least 2"):
        detect_head(model, "", "induction_head")


def test_singular_vectors_are_those_of_the_matrices() -> None:
    model = filled("gpt2")
    found = SVDInterpreter(model).get_singular_vectors("OV", 1, 3, head_index=2)
    assert tuple(found.shape) == (29, 1, 3)
    V = torch.linalg.svd(model.W_V[1, 2] @ model.W_O[1, 2]).Vh
    torch.testing.assert_close(found[:, 0].abs().T, (V[:3] @ model.W_U).abs(), atol=1e-4, rtol=1e-3)
    with pytest.raises(ValueError, match="num_vectors=99"):
        SVDInterpreter(model).get_singular_vectors("w_out", 0, 99)
    with pytest.raises(IndexError, match="head_index=None"):
        SVDInterpreter(model).get_singular_vectors("OV", 0)


def test_repeats_are_easier_for_who_looks_back() -> None:
    model = bundled()
    loss = evals.induction_loss(model, subseq_len=60)
    assert loss < 2
    assert evals.induction_loss(HookedTransformer(model.cfg, model.tokenizer), subseq_len=60) > 6


def test_unseeded_sentences_are_drawn_from_the_state_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random, "sample", lambda names, n: list(names)[:n])
    names = ["a", "b", "c", "d", "e"]
    drawn = [evals.IOIDataset(None, names=names, num_samples=20, seed=seed) for seed in (None, 4)]
    assert {each["IO"] for each in drawn[0].samples} == {" a"}
    assert len({each["IO"] for each in drawn[1].samples}) > 1


def test_the_indirect_object_is_told_by_the_logits_where_the_names_part() -> None:
    tokenizer = bundled().tokenizer
    data = evals.IOIDataset(tokenizer, num_samples=6, symmetric=True, seed=3, names=["os", "sys", "re"])
    assert len(data) == 6
    assert data[0]["prompt"][0] == tokenizer.bos_token_id  # type: ignore[union-attr]
    assert torch.equal(data[0]["IO"], data[1]["S"])
    model = bundled()
    found = evals.ioi_eval(model, data, batch_size=4)
    differences = []
    for i in range(6):
        sample = data[i]
        n = len(sample["IO"])
        logits = model(sample["prompt"][None])[0, len(sample["prompt"]) - n - 1]
        differences.append((logits[sample["IO"][0]] - logits[sample["S"][0]]).item())
    assert found["Logit Difference"] == pytest.approx(sum(differences) / 6, abs=1e-4)
    assert found["Accuracy"] == sum(each > 0 for each in differences) / 6
    with pytest.raises(ValueError, match="two different"):
        evals.IOIDataset(tokenizer, names=["os", "os"])


@pytest.mark.parametrize("name", ["Adam", "AdamW", "SGD"])
def test_a_plain_loop_learns(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = filled("attention")
    before = model(rows(8), return_type="loss").item()
    data: Any = [{"tokens": row} for row in rows(8)]
    rate: dict[str, Any] = {"lr": 0.3, "max_grad_norm": 1.0} if name == "SGD" else {"lr": 1e-2, "weight_decay": 0.0}
    how: dict[str, Any] = {"optimizer_name": name, "warmup_steps": 2, "save_every": 2, "save_dir": str(tmp_path / name)}
    assert train(model, HookedTransformerTrainConfig(12, 4, **rate, **how), data) is model
    after = model(rows(8), return_type="loss").item()
    assert after < 0.8 * before
    assert "Epoch 12 Samples 4 Step 0 Loss" in capsys.readouterr().out
    kept = torch.load(tmp_path / name / "model_0.pt", weights_only=True)
    other = filled("attention", seed=5)
    other.load_state_dict(kept)
    assert other(rows(8), return_type="loss").item() < before


def test_what_cannot_be_done_is_refused() -> None:
    with pytest.raises(ValueError, match="wandb"):
        train(None, HookedTransformerTrainConfig(1, 1, wandb=True), [])
    with pytest.raises(ValueError, match="save_dir"):
        train(None, HookedTransformerTrainConfig(1, 1, save_every=1), [])
