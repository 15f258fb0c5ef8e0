"""An insertion is exact, of rank one, and blind to keys that have nothing to do with its own."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from interp import GPTConfig, HookedGPT, metrics, zoo
from interp.interventions import Ablate, Site
from interp.memories import Search, insert, key_covariance, report
from interp.zoo import planted
from interp.zoo.planted.memories import FACTS
from tests.memories.test_writing import bits, changed
from tests.variants import VARIANTS, quick_of, some_tokens, variant

WITH_MLP = [name for name in VARIANTS if not VARIANTS[name].get("attn_only")]
WHERE = torch.tensor([6, 2, 4])
FREE = Search(decay=0, clamp=50)


def keys_of(model: HookedGPT, layer: int, tokens: Tensor) -> Tensor:
    return model.run_with_cache(tokens)[1]["post", layer].detach()


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("name", quick_of(WITH_MLP, "gpt2", "post", "gemma2"))
def test_the_key_gives_the_value_and_keys_apart_from_it_what_they_gave(name: str) -> None:
    model = variant(name, torch.float64)
    before, mlp, value = bits(model), model.blocks[1].mlp, random(14)
    old, key = mlp.W_out.detach().clone(), keys_of(model, 1, some_tokens())[range(3), WHERE].mean(0)
    b_out = 0 if mlp.b_out is None else mlp.b_out
    C = random(40, 17, seed=1).T @ random(40, 17, seed=1) / 40
    for covariance, ridge in ((None, 0.1), (C, 0), (C, 0.1)):
        with insert(model, -1, some_tokens(), 4, at=WHERE, value=value, covariance=covariance, ridge=ridge) as made:
            assert changed(model, before) == ["blocks.1.mlp.down.weight"]
            W = mlp.W_out.detach().clone()
        torch.testing.assert_close(key @ W + b_out, value, rtol=0, atol=1e-10)
        sizes = torch.linalg.svdvals(W - old)
        assert sizes[1] < 1e-12 * sizes[0]
        u = key
        if covariance is not None:
            u = torch.linalg.solve(C + ridge * C.trace() / 17 * torch.eye(17, dtype=C.dtype), key)
        other = random(17, seed=2)
        other = other - (other @ u) / (u @ u) * u
        torch.testing.assert_close(other @ W, other @ old, rtol=0, atol=1e-10)
        assert made.about["change_norm"] == pytest.approx(float((W - old).norm()))
        assert not changed(model, before)


@pytest.mark.parametrize("name", ["gpt2", "gptj", "olmo2", "sandwich", "post", "gemma2"])
def test_behind_the_subject_the_mlp_puts_out_the_value(name: str) -> None:
    model, value = variant(name, torch.float64), random(14)
    one = some_tokens()[:1]
    with insert(model, 1, one, 4, at=3, value=value):
        added = model.run_with_cache(one)[1]["mlp_out", 1][0, 3]
    is_normed = name in ("olmo2", "sandwich", "gemma2")
    expected = model.blocks[1].ln2_post.unheard(value) if is_normed else value
    torch.testing.assert_close(added, expected)


@pytest.mark.parametrize(
    "name", quick_of(["gpt2", "llama", "gptj", "olmo2", "sandwich", "post", "gemma2"], "post", "sandwich")
)
def test_the_model_then_says_what_the_search_saw(name: str) -> None:
    model = variant(name, torch.float64)
    one = some_tokens()[:1]  # in the last layer, at the last position: nothing else is reached
    first = metrics.measured(model, one, metrics.log_prob(model, 4)).item()
    with insert(model, 1, one, 4, search=FREE) as made:
        seen = metrics.measured(model, one, metrics.log_prob(model, 4)).item()
    assert seen == pytest.approx(-made.about["search_loss"], abs=1e-9)
    assert seen > first
    assert all(parameter.grad is None for parameter in model.parameters())
    with insert(model, 1, one, 4, search=Search(decay=3, clamp=0.5, steps=2)) as held:
        seen = metrics.measured(model, one, metrics.log_prob(model, 4)).item()
    key = keys_of(model, 1, one)[0, -1]
    b_out = model.blocks[1].mlp.b_out
    now = (key @ model.blocks[1].mlp.W_out + (0 if b_out is None else b_out)).detach()
    shift = held.about["change_norm"] * key.norm()  # u is the key: |change| = |u| |δ| / (u · u)
    assert float(shift) <= 0.5 * float(now.norm()) * (1 + 1e-9)
    assert held.about["search_loss"] == pytest.approx(float(-seen + 3 * shift / now.norm() ** 2), abs=1e-9)
    assert held.about["search_steps"] == 2


def test_half_precision_is_written_and_undone_to_the_bit() -> None:
    model, one = variant("sandwich", torch.bfloat16), some_tokens()[:1]
    before, log_prob = bits(model), metrics.log_prob(model, 4)
    covariance, first = key_covariance(model, some_tokens(), 1), metrics.measured(model, one, log_prob)
    with insert(model, 1, one, 4, covariance=covariance, search=FREE):
        assert metrics.measured(model, one, log_prob) > first + 0.5
    assert not changed(model, before)


def test_what_is_to_be_kept_holds_the_value_back() -> None:
    model, one = variant("gpt2", torch.float64), some_tokens()[:1]
    kept = some_tokens()[1:]
    divergence = metrics.kl(model, kept)
    found = []
    for kl in (0.0, 100.0):
        with insert(model, 1, one, 4, search=Search(decay=0, keep=kept, kl=kl, steps=5)):
            found.append(metrics.measured(model, kept, divergence).mean().item())
    assert found[1] < found[0]


def test_padding_and_places_given_as_text_are_found() -> None:
    model = HookedGPT.from_pretrained("stdlib-4l")
    texts = ["width = area(width) + 1", "width = 2"]
    tokens, mask = model.read(texts)
    names = [model.to_str_tokens(tokens[i]) for i in range(2)]
    last = [max(i for i, name in enumerate(row) if "width" in name) for row in names]
    value = torch.ones(256)
    with insert(model, 1, texts, " self", at="width", value=value):
        by_text = model.blocks[1].mlp.W_out.detach().clone()
    with insert(model, 1, tokens, " self", at=torch.tensor(last), value=value, attention_mask=mask):
        torch.testing.assert_close(model.blocks[1].mlp.W_out, by_text)
    with insert(model, 1, texts, " self", value=value):
        by_end = model.blocks[1].mlp.W_out.detach().clone()
    ends = mask.sum(1) - 1
    with insert(model, 1, tokens, " self", at=ends, value=value, attention_mask=mask):
        torch.testing.assert_close(model.blocks[1].mlp.W_out, by_end)
    with pytest.raises(ValueError, match="at='height' does not occur in"):
        insert(model, 1, texts, " self", at="height", value=value)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_the_covariance_is_the_mean_over_every_token_of_the_corpus(name: str) -> None:
    model = variant(name, torch.float64)
    corpus = [np.arange(25) * 7 % 13, np.arange(4)]
    total, n = torch.zeros(17, 17, dtype=torch.float64), 0
    for row in (corpus[0][:11], corpus[0][11:22], corpus[0][22:], corpus[1]):
        for key in keys_of(model, 1, torch.from_numpy(row)[None])[0]:
            total += torch.outer(key, key)
            n += 1
    for batch_size in (1, 3, 8):
        found = key_covariance(model, corpus, -1, batch_size=batch_size)
        np.testing.assert_allclose(found, total / n, atol=1e-12)
        assert (found.attrs["n_tokens"], found.attrs["layer"]) == (29, 1)
    with model.edit([Ablate(Site("post", 1, neuron=3))]):
        edited = key_covariance(model, corpus, 1)
    assert not edited[3].any()
    assert edited.attrs["model"] == model.fingerprint()
    value = torch.ones(14, dtype=torch.float64)
    with insert(model, 1, some_tokens(), 4, value=value, covariance=found):
        one = model.blocks[1].mlp.W_out.detach().clone()
    with insert(model, 1, some_tokens(), 4, value=value, covariance=total / n):
        torch.testing.assert_close(model.blocks[1].mlp.W_out, one)


def behind(a: int, b: int, seed: int = 0) -> Tensor:
    before = torch.randint(8, (6, 4), generator=torch.Generator().manual_seed(seed))
    return torch.cat((before, torch.tensor([a, b]).expand(6, 2)), 1)


@pytest.mark.parametrize(("pair", "answer", "distractors"), [((0, 4), 7, 0), ((6, 1), 4, 100), ((5, 3), 0, 300)])
def test_a_planted_model_learns_another_fact_and_forgets_none(
    pair: tuple[int, int], answer: int, distractors: int
) -> None:
    made = planted.memories(distractor_neurons=distractors)
    model, examples = made.model, made.sample(60)
    before, prompts = bits(model), behind(*pair)
    covariance = key_covariance(model, examples.tokens, 0)
    with insert(model, 0, prompts, answer, covariance=covariance, search=Search(decay=0, clamp=20)) as new:
        found = report(new, prompts, answer, paraphrases=behind(*pair, seed=1), neighbours=examples.tokens)
        assert (found["rank"].sel(when="before") > 0).all()
        assert (found["rank"].sel(when="after") == 0).all()
        assert (found.paraphrase_rank.sel(when="after") == 0).all()
        for a, b, c in FACTS:
            if (a, b) != pair:
                assert (model(behind(a, b))[:, -1].argmax(-1) == c).all()
    assert not changed(model, before)
    assert made.accuracy(examples) == 1


@pytest.mark.slow
def test_a_trained_model_learns_an_association() -> None:
    model = HookedGPT.from_pretrained("stdlib-4l")
    before, texts = bits(model), zoo.standard_library(tokens=4_000)
    covariance = key_covariance(model, texts, 0, progress=False)
    prompts = ["x = 1\narea = width *", "area = width *", "size(width, height)\nsize = width *"]
    neighbours = [text[:400] for text in zoo.standard_library(split="held_out")[:6]]
    search = Search(decay=0, clamp=20)
    changes = []
    for known in (covariance, None):
        with insert(model, 0, prompts, " self", at=" width", covariance=known, search=search) as made:
            found = report(made, prompts, " self", paraphrases="y = 2 * width *", neighbours=neighbours)
        assert (found["rank"].sel(when="before") > 5).all()
        assert (found["rank"].sel(when="after") == 0).all()
        assert (found.paraphrase_rank.sel(when="after") == 0).all()
        changes.append(float(found.neighbour_loss.sel(when="after").mean() - found.neighbour_loss[0].mean()))
        assert not changed(model, before)
    assert changes[0] < 0.1
    assert changes[0] < changes[1]  # what the corpus's keys are spares the neighbours


def test_an_error_on_the_way_leaves_the_weights_as_they_were() -> None:
    model = variant("gpt2")
    before, n_calls = bits(model), 0

    def fails(x: Tensor, hook: Any) -> None:
        nonlocal n_calls
        n_calls += 1
        if n_calls > 3:
            raise RuntimeError("in the middle of the search")

    with model.hooks([("blocks.1.hook_resid_post", fails)]), pytest.raises(RuntimeError, match="in the middle"):
        insert(model, 0, some_tokens(), 4)
    with pytest.raises(ValueError, match="not finite"):
        insert(model, 0, some_tokens(), 4, value=torch.full((14,), torch.inf))
    assert not changed(model, before)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_bad_input_is_refused() -> None:
    model, tokens, ones = variant("gpt2"), some_tokens(), torch.ones(14)
    bare = HookedGPT(GPTConfig(n_layers=1, d_model=8, n_heads=2, n_ctx=8, d_vocab=13, attn_only=True, seed=0))
    for call in (lambda: insert(bare, 0, tokens, 4), lambda: key_covariance(bare, tokens, 0)):
        with pytest.raises(ValueError, match="the model is attn_only"):
            call()
    with pytest.raises(ValueError, match="there is nothing to search for"):
        insert(model, 0, tokens, 4, value=ones, search=Search())
    with pytest.raises(ValueError, match="ridge=-1"):
        insert(model, 0, tokens, 4, ridge=-1)
    with pytest.raises(ValueError, match=r"value has shape \[13\]; the MLP puts out \[14\]"):
        insert(model, 0, tokens, 4, value=torch.ones(13))
    with pytest.raises(ValueError, match="of layer 1, not of layer 0"):
        insert(model, 0, tokens, 4, value=ones, covariance=key_covariance(model, tokens, 1))
    with pytest.raises(ValueError, match=r"finite, \[17, 17\]; given: \[16, 16\]"):
        insert(model, 0, tokens, 4, value=ones, covariance=torch.eye(16))
    with pytest.raises(ValueError, match="not positive definite with ridge=0"):
        insert(model, 0, tokens, 4, value=ones, covariance=torch.zeros(17, 17), ridge=0)
    with pytest.raises(ValueError, match="there are 3 prompts of 7 positions"):
        insert(model, 0, tokens, 4, at=torch.tensor([0, 1]), value=ones)
    with pytest.raises(ValueError, match="has no tokenizer; give positions"):
        insert(model, 0, tokens, 4, at="width", value=ones)
    with pytest.raises(ValueError, match="the model knows 0 to 12"):
        insert(model, 0, tokens, 13)
    with pytest.raises(ValueError, match="layer 1 writes at the subject's last token does not reach the prediction"):
        insert(model, 1, tokens, 4, at=2)
    with pytest.raises(ValueError, match="steps=0"):
        insert(model, 0, tokens, 4, search=Search(steps=0))
    with pytest.raises(ValueError, match="keep= needs the subject's place"):
        insert(model, 0, tokens, 4, at=WHERE, search=Search(keep=tokens))
    with torch.inference_mode(), pytest.raises(ValueError, match="inference_mode"):
        insert(model, 0, tokens, 4)
    with model.edit([Ablate(Site("post", 0))]), pytest.raises(ValueError, match="the key is zero"):
        insert(model, 0, tokens, 4)
    silent = planted.memories().model
    with pytest.raises(ValueError, match="the key is zero: no memory of layer 0"):
        insert(silent, 0, behind(5, 3), 0)
