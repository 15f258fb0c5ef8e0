"""Composition is the ratio of norms that its definition says, finds a planted one, and is known where all is random."""

from inspect import unwrap

import numpy as np
import pytest
import torch

from interp.weights import composition, composition_scores, random_composition, virtual_weights
from interp.zoo import planted
from tests.variants import VARIANTS, variant
from tests.weights import by_hand

pytestmark = pytest.mark.slow

close = torch.testing.assert_close
DTYPES = {torch.float32: 1e-5, torch.float64: 1e-12}


def dense(model, kind: str, sender: tuple[int, int], receiver: tuple[int, int]) -> float:
    """By definition, with whole matrices."""
    sent = by_hand.ov(model, *sender) @ by_hand.on_the_way(model, sender[0], receiver[0])
    read = by_hand.ov(model, *receiver) if kind == "V" else by_hand.qk(model, *receiver)
    read = read.T if kind == "K" else read
    return float((sent @ read).norm() / (sent.norm() * read.norm()))


def take(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(composition, "_is_cheaper_by_grams", lambda *given: way == "grams")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", VARIANTS)
def test_scores_are_those_of_the_definition(name: str, dtype: torch.dtype) -> None:
    model = variant(
        name, dtype, n_layers=3, **({"attn_types": ("local", "global", "local")} if name == "gemma2" else {})
    )
    scores = composition_scores(model)
    assert scores.dims == ("kind", "sender_layer", "sender", "receiver_layer", "receiver")
    n_heads = model.cfg.n_heads
    for kind in ("Q", "K", "V"):
        alone = composition_scores(model, kind)
        np.testing.assert_allclose(alone, scores.sel(kind=kind), rtol=1e-5)
        for i in range(3):
            for j in range(3):
                found = alone.sel(sender_layer=i, receiver_layer=j)
                if i >= j:
                    assert found.isnull().all()
                    continue
                for a in range(n_heads):
                    for b in range(n_heads):
                        expected = dense(model, kind, (i, a), (j, b))
                        np.testing.assert_allclose(found[a, b], expected, rtol=10 * DTYPES[dtype])


@pytest.mark.parametrize("way", ["grams", "direct"])
@pytest.mark.parametrize("name", ["gpt2", "llama", "sandwich", "post", "attn_only_post"])
def test_both_ways_are_the_definition_in_parts_of_any_size(
    name: str, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = variant(name, torch.float64, n_layers=4)
    take(way, monkeypatch)
    whole = composition_scores(model)
    assert float(whole.sel(kind="K")[0, 1, 3, 2]) == pytest.approx(dense(model, "K", (0, 1), (3, 2)), rel=1e-11)
    for n_rows, held in [(4, 2**28), (5, 10_000), (64, 1)]:
        monkeypatch.setattr(composition, "_ROWS", n_rows)
        monkeypatch.setattr(composition, "_HELD", held)
        monkeypatch.setattr(composition, "_SENDERS", 2)
        np.testing.assert_allclose(composition_scores(model), whole, rtol=1e-11)


@pytest.mark.parametrize("kind", ["Q", "K", "V"])
def test_few_wide_heads_go_by_grams_and_many_narrow_ones_directly(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ways: list[bool] = []
    choose = composition._is_cheaper_by_grams
    monkeypatch.setattr(composition, "_is_cheaper_by_grams", lambda *given: ways.append(choose(*given)) or ways[-1])
    for sizes in ({"d_model": 24, "d_head": 12, "n_heads": 6}, {"d_model": 60, "d_head": 3, "n_heads": 9}):
        model = variant("gpt2", torch.float64, n_layers=3, **sizes)
        found = float(composition_scores(model, kind)[1, 3, 2, 4])
        assert found == pytest.approx(dense(model, kind, (1, 3), (2, 4)), rel=1e-11)
    assert ways == [True, False]


@pytest.mark.parametrize("overlap", [0.3, 0.1, 0.03, 0.01, 1e-3, 1e-5])
def test_small_scores_are_as_exact_as_large_ones(overlap: float) -> None:
    """What is read lies nearly, but for a share, across the directions that are written."""
    draw = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(96, 96, generator=draw, dtype=torch.float64)).Q
    writes, reads = torch.randn(2, 10, 16, 96, generator=draw, dtype=torch.float64)
    writes[..., 48:] = 0
    reads[..., :48] *= overlap
    writes, reads = (writes @ basis).float(), (reads @ basis).float()
    exact = torch.stack([torch.stack([(L @ R.T).norm() for R in reads.double()]) for L in writes.double()])
    found = composition._squares_by_grams(writes, reads[None], [10])[0].sqrt()
    close(found.double(), exact, rtol=1e-5, atol=1e-7 * float(exact.max()) / overlap)


@pytest.mark.parametrize("way", ["grams", "direct"])
@pytest.mark.parametrize("norm", [None, "RMS"])
def test_planted_induction_is_composition_of_keys_alone(
    norm: str | None, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    take(way, monkeypatch)
    model = planted.induction(norm=norm).model
    scores = composition_scores(model).sel(sender_layer=0, receiver_layer=1)
    assert float(scores.sel(kind="K")[0, 0]) > 1.5 * scores.attrs["baseline"]
    assert not scores.sel(kind=["Q", "V"]).any()


def test_the_planted_pair_stands_out_among_distractors() -> None:
    found = planted.induction(distractor_heads=3)
    layer_0, layer_1 = sorted(found.roles.values())
    scores = composition_scores(found.model, "K").sel(sender_layer=0, receiver_layer=1)
    best = np.unravel_index(scores.values.argmax(), scores.shape)
    assert (f"L0H{best[0]}", f"L1H{best[1]}") == (layer_0, layer_1)


@pytest.mark.parametrize(("d_model", "d_head"), [(48, 4), (48, 16), (150, 7)])
def test_random_heads_score_one_by_the_root_of_d_model_whatever_their_rank(d_model: int, d_head: int) -> None:
    sampled = random_composition(d_model, d_head, 200)
    assert sampled.shape == (200,)
    assert abs(float(sampled.mean()) * d_model**0.5 - 1) < 0.03
    assert torch.equal(sampled, random_composition(d_model, d_head, 200))
    assert not torch.equal(sampled, random_composition(d_model, d_head, 200, seed=1))


def test_a_random_models_scores_are_at_the_baseline() -> None:
    model = variant("attn_only", torch.float64, d_model=90, d_head=9, n_layers=4)
    scores = composition_scores(model)
    assert abs(float(scores.mean()) / scores.attrs["baseline"] - 1) < 0.1


def test_a_head_that_writes_nothing_scores_zero() -> None:
    model = variant("gpt2")
    with torch.no_grad():
        model.blocks[0].attn.W_O[1] = 0
    scores = composition_scores(model).sel(sender_layer=0, receiver_layer=1)
    assert (scores[:, 1] == 0).all()
    assert (scores[:, [0, 2]] > 0).all()


@pytest.mark.parametrize("name", ["gpt2", "llama", "post", "gemma2", "attn_only_post"])
def test_virtual_weights_are_the_products_along_the_path(name: str) -> None:
    changes = {"attn_types": ("local", "global", "local")} if name == "gemma2" else {}
    model = variant(name, torch.float64, n_layers=3, **changes)
    first = by_hand.ov(model, 0, 2) @ by_hand.on_the_way(model, 0, 1)
    two = first @ by_hand.ov(model, 1, 1)
    three = two @ by_hand.on_the_way(model, 1, 2)
    for path, expected in {
        "L0H2->L1H1": two,
        "L0H2->L1H1.v": two,
        "L0H2->L1H1.q": first @ by_hand.qk(model, 1, 1),
        "L0H2->L1H1.k": first @ by_hand.qk(model, 1, 1).T,
        "L0H2->L1H1->L2H0.k": three @ by_hand.qk(model, 2, 0).T,
        "L0H2->L2H0": first @ by_hand.on_the_way(model, 1, 2) @ by_hand.ov(model, 2, 0),
    }.items():
        found = virtual_weights(model, path)
        assert found.mdim == model.cfg.d_head
        close(found.AB, expected)


def test_what_cannot_be_asked_is_refused() -> None:
    model = variant("gpt2")
    for wrong, message in [
        (lambda: unwrap(composition_scores)(model, "q"), r"kind='q'; allowed"),
        (lambda: virtual_weights(model, "L0H1"), "it must look like"),
        (lambda: virtual_weights(model, "L0H1.q->L1H0"), "it must look like"),
        (lambda: virtual_weights(model, "L1H1->L0H1"), "later layer"),
        (lambda: virtual_weights(model, "L0H1->L1H3"), "head=3"),
        (lambda: random_composition(0, 3), "positive"),
    ]:
        with pytest.raises(ValueError, match=message):
            wrong()
