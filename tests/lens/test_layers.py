from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from interp import HookedGPT
from interp.lens import layers, logit_lens
from interp.tokenization import Tokenizer
from tests.lens.test_attribution import padding
from tests.variants import EACH, some_tokens, variant


def by_hand(model: HookedGPT, stream: Tensor) -> Tensor:
    """Probabilities of one stream, written out."""
    norm, x = model.ln_final, stream
    if hasattr(norm, "centred"):
        x = norm.centred(x)
        x = x / (x.square().mean(-1, keepdim=True) + norm.eps).sqrt()
        x = x if norm.w is None else x * norm.w
        x = x if norm.b is None else x + norm.b
    logits = x @ model.W_U
    logits = logits if model.b_U is None else logits + model.b_U
    cap = model.cfg.output_logits_soft_cap
    return (logits if cap is None else cap * (logits / cap).tanh()).softmax(-1)


@pytest.mark.parametrize("name", EACH)
def test_each_layer_is_the_stream_read_by_hand(name: str) -> None:
    model, mask = variant(name, torch.float64), padding()
    logits, cache = model.run_with_cache(some_tokens(), attention_mask=mask)
    target = torch.randint(0, 13, (3, 7), generator=torch.Generator().manual_seed(0))
    found = logit_lens(model, cache, target, k=3, progress=False)
    n_layers = model.cfg.n_layers
    assert dict(found.sizes) == {"layer": n_layers + 1, "prompt": 3, "pos": 7, "top": 3}
    own = logits.softmax(-1)
    for layer in range(n_layers + 1):
        stream = cache["resid_pre", layer] if layer < n_layers else cache["resid_post", n_layers - 1]
        p, one = by_hand(model, stream), found.sel(layer=layer)
        best = p.sort(-1, descending=True)
        close(one.probability, best.values[..., :3])
        assert (one.token_id.values == best.indices[..., :3].numpy()).all()
        close(one.entropy, -(p * p.log()).sum(-1))
        close(one.kl, (own * (own.log() - p.log())).sum(-1))
        close(one.target_probability, p.gather(-1, target[..., None])[..., 0])
        assert (one.target_rank.values == (p > p.gather(-1, target[..., None])).sum(-1).numpy()).all()
    close(found.kl.sel(layer=n_layers), torch.zeros(3, 7))
    assert (found.kl.sel(layer=0) > 1e-6).all()


def test_readings_that_are_asked_for_are_those_of_all() -> None:
    model = variant("gpt2")
    _, cache = model.run_with_cache(some_tokens())
    every = logit_lens(model, cache, 4, 5, halves=True, progress=False)
    for asked in ([2], [0, 1.5], [1]):
        some = logit_lens(model, cache, 4, 5, halves=True, layers=asked, progress=False)
        assert some.identical(every.sel(layer=asked))
    with pytest.raises(ValueError, match=r"layers=\[0\.5\]; the readings are \[0, 1, 2\]"):
        logit_lens(model, cache, layers=[0.5])
    with pytest.raises(ValueError, match=r"layers=\[\]; the readings are"):
        logit_lens(model, cache, layers=[])


def close(found: Any, wanted: Tensor) -> None:
    np.testing.assert_allclose(found.to_numpy(), wanted.detach().numpy(), rtol=1e-8, atol=1e-10)


def test_the_token_that_follows_is_asked_for_where_there_is_one() -> None:
    model, tokens, mask = variant("llama"), some_tokens(), padding()
    mask[2, -2:] = False
    _, cache = model.run_with_cache(tokens, attention_mask=mask)
    found = logit_lens(model, cache, "next", progress=False)
    is_asked = ~found.target_probability.isnull().values[0]
    assert (is_asked[:, :-1] == mask[:, 1:].numpy()).all()
    assert not is_asked[:, -1].any()
    given = logit_lens(model, cache, torch.cat((tokens[:, 1:], tokens[:, :1]), 1), progress=False)
    np.testing.assert_array_equal(found.target_rank.values[:, is_asked], given.target_rank.values[:, is_asked])
    one = logit_lens(model, cache, [4, 5, 6], pos=-1, progress=False)
    assert dict(one.sizes) == {"layer": 3, "prompt": 3, "top": 5}
    last = found.pos.values[[6, 6, 4]]
    for prompt, (pos, token) in enumerate(zip(last, (4, 5, 6), strict=True)):
        alone = logit_lens(model, cache, token, progress=False).sel(prompt=prompt, pos=pos)
        np.testing.assert_allclose(one.sel(prompt=prompt).target_probability, alone.target_probability, rtol=1e-5)


def test_positions_go_in_parts_and_no_more_than_these_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    model = variant("gpt2")
    _, cache = model.run_with_cache(some_tokens())
    whole = logit_lens(model, cache, "next", progress=False)
    sizes, log_probs = [], layers.log_probs

    def watched(model: HookedGPT, stream: Tensor) -> Tensor:
        sizes.append(len(stream))
        return log_probs(model, stream)

    monkeypatch.setattr(layers, "log_probs", watched)
    monkeypatch.setattr(layers, "_AT_ONCE", 4 * 13 + 5)
    parts = logit_lens(model, cache, "next", progress=False)
    assert max(sizes) == 4
    for name, values in whole.items():
        if name == "token":
            assert (values == parts[name]).all()
        else:
            np.testing.assert_allclose(values, parts[name], rtol=1e-5, atol=1e-6)


def test_a_translation_stands_before_the_norm_of_all_layers_but_the_last() -> None:
    model = variant("gpt2", torch.float64)
    _, cache = model.run_with_cache(some_tokens())
    seen = []

    def last_instead(stream: Tensor, layer: int) -> Tensor:
        seen.append(layer)
        return cache["resid_post", -1].flatten(0, 1)

    found = logit_lens(model, cache, translate=last_instead, progress=False)
    assert seen == [0, 1]
    np.testing.assert_allclose(found.kl, 0, atol=1e-12)
    assert found.attrs["method"] == "tuned lens"


@pytest.mark.parametrize("name", ["gpt2", "gemma2"])
def test_readings_after_attention_stand_between_those_of_layers(name: str) -> None:
    model = variant(name, torch.float64)
    _, cache = model.run_with_cache(some_tokens())
    found = logit_lens(model, cache, 4, halves=True, progress=False)
    whole = logit_lens(model, cache, 4, progress=False)
    assert found.layer.values.tolist() == [0, 0.5, 1, 1.5, 2]
    for number in ("kl", "target_rank", "probability"):
        np.testing.assert_array_equal(found[number].values[::2], whole[number].values)
    for layer in range(2):
        p = by_hand(model, cache["resid_mid", layer])
        close(found.target_probability.sel(layer=layer + 0.5), p[..., 4])


def test_the_logit_difference_is_that_of_each_layers_logits() -> None:
    model = variant("gpt2", torch.float64)
    logits, cache = model.run_with_cache(some_tokens())
    found = logit_lens(model, cache, 4, 6, progress=False).logit_difference
    close(found.isel(layer=-1), logits[..., 4] - logits[..., 6])
    first = by_hand(model, cache["resid_pre", 0]).log()
    close(found.isel(layer=0), first[..., 4] - first[..., 6])


def test_the_ranks_of_tokens_are_known_one_reading_earlier(monkeypatch: pytest.MonkeyPatch) -> None:
    model = variant("gpt2", torch.float64)
    _, cache = model.run_with_cache(some_tokens())
    monkeypatch.setattr(layers, "_AT_ONCE", 4 * 13)
    found = logit_lens(model, cache, k=5, ranks_before=True, progress=False)
    assert found.rank_before.dims == ("layer", "prompt", "pos", "top")
    assert np.isnan(found.rank_before.isel(layer=0)).all()
    p = by_hand(model, cache["resid_pre", 1])
    order = p.argsort(-1, descending=True).argsort(-1)
    np.testing.assert_array_equal(
        found.rank_before.isel(layer=2), order.gather(-1, torch.tensor(found.token_id.isel(layer=2).values))
    )
    assert "rank_before" not in logit_lens(model, cache, progress=False)


def test_tokens_are_shown_as_text() -> None:
    tokenizer = Tokenizer.train(["the cat sat on the mat"] * 4, d_vocab=270, progress=False)
    model = variant("gpt2", d_vocab=270)
    model.tokenizer = tokenizer
    _, cache = model.run_with_cache("the cat")
    found = logit_lens(model, cache, " cat", k=2, progress=False)
    for text, token in zip(found.token.values.ravel(), found.token_id.values.ravel(), strict=True):
        assert text == tokenizer.token_strings([int(token)])[0]
    cat = model.to_single_token(" cat")
    same = logit_lens(model, cache, cat, k=2, progress=False)
    np.testing.assert_array_equal(found.target_rank, same.target_rank)


def test_what_makes_no_sense_is_refused() -> None:
    model = variant("gpt2")
    _, cache = model.run_with_cache(some_tokens())
    with pytest.raises(ValueError, match="k=14; allowed: 1 to 13, the tokens that the model knows"):
        logit_lens(model, cache, k=14)
    with pytest.raises(ValueError, match=r"target: ids have shape \[3, 6\]; \[prompt pos\] is \[3, 7\]"):
        logit_lens(model, cache, torch.zeros(3, 6, dtype=torch.long))
    with pytest.raises(ValueError, match=r"one token for all prompts, or one for each of 3; given: \[1, 2\]"):
        logit_lens(model, cache, [1, 2])
    with pytest.raises(ValueError, match="answers are tokens 13 to 13"):
        logit_lens(model, cache, 13)
    cache.tokens = None
    with pytest.raises(ValueError, match=r"does not know its tokens; give ids \[prompt pos\]"):
        logit_lens(model, cache, "next")
    with pytest.raises(ValueError, match="give both"):
        logit_lens(model, cache, wrong=4)
    with pytest.raises(ValueError, match="no translator was trained"):
        logit_lens(model, cache, halves=True, translate=lambda stream, _: stream)
    parallel = variant("neox")
    with pytest.raises(ValueError, match="this model has no stream there"):
        logit_lens(parallel, parallel.run_with_cache(some_tokens())[1], halves=True)
