"""The small functions, by answers known."""

import numpy as np
import pytest
import torch

from interp import HookedGPT
from interp.classic import FactoredMatrix, utils
from interp.classic.utils import Slice
from interp.weights import composition_scores
from tests.classic.shapes import filled, rows


@pytest.mark.parametrize(
    ("given", "expected", "mode"),
    [
        (None, [0, 1, 2, 3, 4], "identity"),
        (3, [3], "int"),
        ((1, 3), [1, 2], "slice"),
        ((None, None, 2), [0, 2, 4], "slice"),
        ([4, 0], [4, 0], "array"),
        (np.array([1, 2]), [1, 2], "array"),
        (slice(-2, None), [3, 4], "slice"),
    ],
)
def test_a_slice_means_these_entries(given, expected: list[int], mode: str) -> None:
    cut = Slice(given)
    assert cut.mode == mode
    assert cut.indices(5).tolist() == expected  # type: ignore[union-attr]
    x = torch.arange(10).view(2, 5)
    assert cut.apply(x, dim=1).tolist() == (x[:, 3].tolist() if mode == "int" else x[:, expected].tolist())


def test_losses_are_those_of_the_model() -> None:
    model = filled("gpt2")
    logits, loss = model(rows(), return_type="both")
    torch.testing.assert_close(utils.lm_cross_entropy_loss(logits, rows()), loss)
    mask = torch.ones_like(rows())
    mask[:, 8:] = 0
    cut = utils.lm_cross_entropy_loss(logits[:, :8], rows()[:, :8])
    torch.testing.assert_close(utils.lm_cross_entropy_loss(logits, rows(), mask), cut)
    right = utils.lm_accuracy(logits, rows(), per_token=True)
    assert utils.lm_accuracy(logits, rows()) == right.float().mean()


def test_sampling_filters_and_penalises() -> None:
    logits = torch.tensor([[3.0, 2.0, 1.0, 0.0]])
    assert utils.sample_logits(logits, temperature=0.0).tolist() == [0]
    drawn = {utils.sample_logits(logits, top_k=2).item() for _ in range(200)}
    assert drawn == {0, 1}
    assert {utils.sample_logits(logits, top_p=0.7).item() for _ in range(200)} == {0, 1}  # 0.64, then 0.88
    seen = torch.tensor([[0, 0, 1]])
    punished = {utils.sample_logits(logits, freq_penalty=50.0, tokens=seen).item() for _ in range(200)}
    assert punished == {2, 3}
    assert utils.sample_logits(logits, temperature=0.0, repetition_penalty=9.0, tokens=seen).tolist() == [2]
    with pytest.raises(ValueError, match="tokens="):
        utils.sample_logits(logits, freq_penalty=1.0)
    with pytest.raises(ValueError, match="top_p=2"):
        utils.sample_logits(logits, top_p=2.0)


def test_composition_is_that_of_the_weights() -> None:
    model = filled("attention")
    scores = utils.composition_scores(model.OV, model.QK)
    native = composition_scores(model.native(), "Q", progress=False)
    torch.testing.assert_close(scores[0, :, 1], torch.from_numpy(native[0, :, 1].to_numpy()), atol=1e-5, rtol=1e-4)
    pairs = utils.composition_scores(model.OV[0], model.QK[1], broadcast_dims=False)
    torch.testing.assert_close(pairs, scores[0, :, 1].diagonal())


def test_factors_have_the_classic_names() -> None:
    m = FactoredMatrix(torch.randn(5, 3), torch.randn(3, 4))
    U, S, V = m.svd()
    torch.testing.assert_close(U @ S.diag() @ V.T, m.AB)
    assert m.Vh.shape == (4, 3)
    assert isinstance(m.T @ torch.ones(5, 2), FactoredMatrix)
    torch.testing.assert_close(m.make_even().AB, m.AB)
    torch.testing.assert_close(m.collapse_l().norm(), m.norm())
    assert m.pair[0].shape == (5, 3)
    assert torch.equal(FactoredMatrix(m.A, m.A.T).BA, m.A.T @ m.A)


def test_prompts_are_tested_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    model = HookedGPT.from_pretrained("stdlib-attn-2l")
    utils.test_prompt("def area(width, height):\n    return", "width", model, top_k=3)
    said = capsys.readouterr().out
    probs = model("def area(width, height):\n    return")[0, -1].softmax(-1)
    token = model.to_single_token(" width")
    assert f"Prob: {probs[token].item():6.2%} Token: | width|" in said
    assert f"[(' width', {int((probs > probs[token]).sum())})]" in said
    utils.test_prompt("x =", ["0", "1"], model, prepend_space_to_answer=True, print_details=False)
    assert "Ranks of the answer tokens: [[(' 0'," in capsys.readouterr().out


def test_tables_and_small_things() -> None:
    table = utils.logits_to_df(torch.tensor([0.0, 2.0, 1.0]), top_k=2)
    assert table["token_index"].tolist() == [1, 2]
    assert table["probability"].tolist() == pytest.approx(torch.tensor([0.0, 2.0, 1.0]).softmax(0)[[1, 2]].tolist())
    assert utils.remove_batch_dim(torch.zeros(1, 3)).shape == (3,)
    assert utils.is_lower_triangular(torch.ones(3, 3).tril())
    assert not utils.is_lower_triangular(torch.ones(3, 3))
    assert utils.get_cumsum_along_dim(torch.tensor([1, 2, 3]), 0, reverse=True).tolist() == [6, 5, 3]
    m = FactoredMatrix(torch.randn(2, 5, 3), torch.randn(2, 3, 6))
    torch.testing.assert_close(utils.get_corner(m, 2).AB, m.AB[:2, :2, :2])
    assert utils.filter_dict_by_prefix({"a.b": 1, "ab": 2}, "a") == {"b": 1}
    assert utils.repeat_along_head_dimension(torch.zeros(2, 3, 4), 5).shape == (2, 3, 5, 4)
    assert utils.to_numpy(torch.ones(2, dtype=torch.bfloat16)).tolist() == [1.0, 1.0]
    utils.check_structure(torch.eye(3), 2 * torch.eye(3))
    with pytest.raises(AssertionError, match="row mismatch"):
        utils.check_structure(torch.eye(3), -torch.eye(3))
    torch.testing.assert_close(utils.solu(torch.tensor([0.0, 1.0])), torch.tensor([0.0, 0.7310586]))


def test_texts_become_rows_of_tokens() -> None:
    tokenizer = HookedGPT.from_pretrained("stdlib-attn-2l").tokenizer
    assert tokenizer is not None
    found = utils.tokenize_and_concatenate([{"text": "x = 1\n" * 9}, {"text": "y"}], tokenizer, max_length=8)
    assert {len(row["tokens"]) for row in found} == {8}
    whole = [*tokenizer.encode("x = 1\n" * 9), tokenizer.eos_token_id, *tokenizer.encode("y"), tokenizer.eos_token_id]
    assert torch.cat([row["tokens"][1:] for row in found]).tolist() == whole[: 7 * len(found)]
    assert all(row["tokens"][0] == tokenizer.bos_token_id for row in found)
