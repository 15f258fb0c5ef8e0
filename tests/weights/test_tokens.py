"""What circuits say in tokens: the entries of the whole matrix, and the mechanisms of models set by hand."""

import math
from inspect import unwrap
from typing import Any

import numpy as np
import pytest
import torch

from interp import HookedGPT
from interp.patching.memory import Peak
from interp.weights import copying_scores, effective_embedding, ov_circuit, ov_cost, ov_top_tokens, svd_tokens, tokens
from interp.zoo import planted
from tests.variants import VARIANTS, config, variant
from tests.weights import by_hand

pytestmark = pytest.mark.slow

close = torch.testing.assert_close
SQUARE = [name for name in VARIANTS if "d_vocab_out" not in VARIANTS[name]]


def whole(model: HookedGPT, layer: int, head: int) -> torch.Tensor:
    return by_hand.embedded(model, layer) @ by_hand.ov(model, layer, head) @ by_hand.to_logits(model, layer)


@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize("name", VARIANTS)
def test_top_tokens_are_those_of_the_whole_matrix(name: str, largest: bool) -> None:
    model, sources = variant(name, torch.float64), torch.tensor([7, 0, 12, 3])
    found = ov_top_tokens(model, sources, 5, largest=largest)
    assert found.dims == ("layer", "head", "source", "rank")
    for layer in range(model.cfg.n_layers):
        for head in range(model.cfg.n_heads):
            expected = whole(model, layer, head)[sources].topk(5, largest=largest)
            close(torch.tensor(found[layer, head].values), expected.values)
            assert (found.token[layer, head].values == expected.indices.numpy()).all()


@pytest.mark.parametrize("chunk", [1, 40, 10_000])
@pytest.mark.parametrize("n_sources", [1, 13])
def test_chunks_and_both_orders_of_multiplication_give_the_same(
    monkeypatch: pytest.MonkeyPatch, chunk: int, n_sources: int
) -> None:
    model = variant("llama", torch.float64, d_head=4)
    by_head, by_token = tokens._products(model, n_sources)
    assert (by_head < by_token) == (n_sources == 13)
    monkeypatch.setattr(tokens, "_CHUNK", chunk)
    found = ov_top_tokens(model, list(range(n_sources)), 3, layers=[-1], heads=[2, 0])
    assert found["layer"].values.tolist() == [1]
    assert found["head"].values.tolist() == [2, 0]
    for i, head in enumerate((2, 0)):
        expected = whole(model, 1, head)[:n_sources].topk(3)
        close(torch.tensor(found[0, i].values), expected.values)
        assert (found.token[0, i].values == expected.indices.numpy()).all()
    for layer in range(2):
        circuit = ov_circuit(model, layer, vocab=True, effective_embedding=True).AB[:, :n_sources]
        found = ov_top_tokens(model, range(n_sources), 2, layers=[layer], effective_embedding=True)
        close(torch.tensor(found[0].values), circuit.topk(2).values.detach())


def test_texts_stand_beside_tokens() -> None:
    model = HookedGPT.from_pretrained("stdlib-attn-2l")
    found = ov_top_tokens(model, [" return", " self"], 4)
    assert found.text.shape == found.token.shape == found.shape
    assert found.source.values.tolist() == [model.to_single_token(" return"), model.to_single_token(" self")]
    assert found.text[1, 2, 0, 3] == model.to_single_str_token(int(found.token[1, 2, 0, 3]))
    assert found.attrs["model"] == model.fingerprint()
    one = ov_top_tokens(model, " self", 4)
    np.testing.assert_allclose(one[:, :, 0], found[:, :, 1], rtol=1e-4, atol=1e-5)


def test_memory_is_about_what_was_said_and_no_square_of_the_vocabulary() -> None:
    model = HookedGPT(config("gpt2", d_vocab=20_000, d_model=64, n_heads=4, d_head=16)).eval()
    model.fingerprint()
    for n in (10, 3000):
        cost = ov_cost(model, n)
        with Peak() as peak:
            ov_top_tokens(model, range(n), 10, progress=False)
        assert peak.bytes < 2.5 * cost.bytes < 256e6
    flops = 2 * 8 * (3000 * 64 * 16 + 16 * (64 + 3000) * 20_000)
    assert cost.flops == flops
    assert str(cost) == f"{flops / 1e12:.2g} TFLOP, {cost.bytes / 1e6:.0f} MB"


@pytest.mark.parametrize("name", SQUARE)
def test_eigenvalue_scores_are_those_of_the_whole_matrix(name: str) -> None:
    model = variant(name, torch.float64)
    found = copying_scores(model)
    for layer in range(model.cfg.n_layers):
        for head in range(model.cfg.n_heads):
            eigenvalues = torch.linalg.eigvals(whole(model, layer, head))
            expected = eigenvalues.real.sum() / eigenvalues.abs().sum()
            np.testing.assert_allclose(found[layer, head], expected, atol=1e-6)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("name", ["gpt2", "llama", "post"])
def test_top_k_shares_are_those_of_the_whole_matrix(name: str, sign: Any) -> None:
    model = variant(name, torch.float64)
    found, of_some = (copying_scores(model, "top_k", k=4, sign=sign, tokens=some) for some in (None, [2, 9, 4]))
    for layer in range(model.cfg.n_layers):
        for head in range(model.cfg.n_heads):
            top = whole(model, layer, head).topk(4, largest=sign == 1).indices.tolist()
            copied = [token in top[token] for token in range(model.cfg.d_vocab)]
            assert math.isclose(found[layer, head], sum(copied) / len(copied), rel_tol=1e-6)
            assert math.isclose(of_some[layer, head], sum(copied[t] for t in (2, 9, 4)) / 3, rel_tol=1e-6)


@pytest.mark.parametrize("norm", [None, "RMS", "LN"])
def test_a_planted_copying_head_copies_and_a_suppressing_one_does_the_opposite(norm: str | None) -> None:
    copy = planted.copy(norm=norm, n_names=20).model
    assert float(copying_scores(copy)[0, 0]) > 0.95
    assert float(copying_scores(copy, "top_k", k=1)[0, 0]) == 1
    assert float(copying_scores(copy, "top_k", k=1, sign=-1)[0, 0]) == 0
    opposite = planted.copy_suppression(norm=norm).model
    assert float(copying_scores(opposite)[0, 0]) < -0.95
    words = range(1, 10)  # BOS predicts nothing
    assert float(copying_scores(opposite, "top_k", k=1, tokens=words)[0, 0]) == 0
    assert float(copying_scores(opposite, "top_k", k=1, sign=-1, tokens=words)[0, 0]) == 1
    induction = planted.induction(norm=norm, distractor_heads=2)
    scores = copying_scores(induction.model)
    role = max(induction.roles.values())
    assert float(scores[int(role[1]), int(role[3:])]) > 0.95


def test_a_head_that_writes_nothing_copies_nothing() -> None:
    model = variant("gpt2")
    with torch.no_grad():
        model.blocks[0].attn.W_O[1] = 0
    for method in ("eigenvalues", "top_k"):
        for sign in (1, -1) if method == "top_k" else (1,):
            assert copying_scores(model, method, sign=sign)[0, 1] == 0


def test_eigenvalues_through_the_effective_embedding() -> None:
    model = variant("gpt2", torch.float64)
    E = effective_embedding(model).double()
    for layer, rows in ((0, by_hand.embedded(model, 0)), (1, E)):
        eigenvalues = torch.linalg.eigvals(rows @ by_hand.ov(model, layer, 2) @ by_hand.to_logits(model, layer))
        expected = eigenvalues.real.sum() / eigenvalues.abs().sum()
        np.testing.assert_allclose(copying_scores(model, effective_embedding=True)[layer, 2], expected, atol=1e-6)


@pytest.mark.parametrize("is_factored", [True, False])
def test_singular_directions_are_read_in_the_tokens_at_their_ends(is_factored: bool) -> None:
    model = variant("gpt2", torch.float64)
    with torch.no_grad():
        circuit = ov_circuit(model, 1, 2)
    U, S, Vh = torch.linalg.svd(circuit.AB, full_matrices=False)
    matrix = circuit if is_factored else circuit.AB
    writes = svd_tokens(matrix, model, 3, n_directions=4)
    reads = svd_tokens(matrix, model, 3, side="reads", n_directions=4)
    assert writes.dims == reads.dims == ("direction", "sign", "rank")
    np.testing.assert_allclose(writes.singular_value, S[:4])
    for i in range(4):
        logits = Vh[i] @ by_hand.to_logits(model, 1)
        inputs = by_hand.embedded(model, 1) @ U[:, i]
        for found, expected in ((writes, logits), (reads, inputs)):
            ends = [expected.topk(3).indices.tolist(), (-expected).topk(3).indices.tolist()]
            ours = found.token[i].values.tolist()
            assert ours in (ends, ends[::-1])  # the sign of a direction is anyone's
            np.testing.assert_allclose(abs(found[i]), expected.detach()[torch.tensor(ours)].abs(), rtol=1e-6)
        pair = int(writes.token[i, 0, 0]), int(reads.token[i, 0, 0])
        assert float(logits[pair[0]] * inputs[pair[1]]) * float(writes[i, 0, 0] * reads[i, 0, 0]) > 0


def test_singular_directions_of_a_planted_copy_write_what_they_read() -> None:
    found = planted.copy(n_names=6)
    circuit = ov_circuit(found.model, 0, 0)
    n = int((circuit.S > 1e-3).sum())
    writes, reads = (svd_tokens(circuit, found.model, 1, side=side, n_directions=n) for side in ("writes", "reads"))
    assert (writes.token == reads.token).all()


def test_mlp_weights_and_the_effective_embedding_are_read_too() -> None:
    model = variant("gpt2", torch.float64)
    W_out = model.blocks[1].mlp.W_out.detach()
    found = svd_tokens(W_out, model, 2, n_directions=3)
    Vh = torch.linalg.svd(W_out).Vh
    expected = (Vh[0] @ by_hand.to_logits(model, 1)).abs().max()
    np.testing.assert_allclose(abs(found[0, :, 0]).max(), expected)
    W_in = model.blocks[1].mlp.W_in.detach()
    reads = svd_tokens(W_in, model, 2, side="reads", n_directions=3, effective_embedding=True)
    expected = (effective_embedding(model) @ torch.linalg.svd(W_in).U[:, 0]).abs().max()
    np.testing.assert_allclose(abs(reads[0, :, 0]).max(), expected)


def test_what_cannot_be_asked_is_refused() -> None:
    model, wide = variant("gpt2"), variant("sinusoidal")
    circuit = ov_circuit(model, 0, 0)
    W_in = model.blocks[0].mlp.W_in.detach()
    for wrong, message in [
        (lambda: ov_top_tokens(model, [13]), r"no such tokens: \[13\]; the model knows 0 to 12"),
        (lambda: ov_top_tokens(model, torch.tensor([], dtype=torch.long)), "no source token"),
        (lambda: ov_top_tokens(model, [1], 14), "k=14; allowed: 1 to 13"),
        (lambda: ov_top_tokens(model, [1], 2, layers=[2]), "layer=2"),
        (lambda: ov_top_tokens(model, [1], 2, heads=[]), "no head"),
        (lambda: ov_top_tokens(model, " text"), "tokenizer"),
        (lambda: copying_scores(wide), "d_vocab=13 but d_vocab_out=19"),
        (lambda: copying_scores(model, tokens=[1]), "top_k"),
        (lambda: copying_scores(model, "top_k", k=0), "k=0"),
        (lambda: svd_tokens(ov_circuit(model), model), "take one"),
        (lambda: svd_tokens(W_in, model), "the matrix has 17 columns"),
        (lambda: svd_tokens(circuit, model, n_directions=6), "1 to 5"),
        (lambda: svd_tokens(circuit, model, 20, n_directions=1, side="reads"), "k=20"),
        (lambda: svd_tokens(circuit, model, effective_embedding=True), "side='reads'"),
        (lambda: unwrap(copying_scores)(model, "top-k"), "method='top-k'; allowed"),
        (lambda: unwrap(copying_scores)(model, "top_k", sign=2), "sign=2; allowed"),
        (lambda: unwrap(svd_tokens)(circuit, model, side="left"), "side='left'; allowed"),
    ]:
        with pytest.raises(ValueError, match=message):
            wrong()
