"""From logits to a token, with the whole vocabulary, and on to the next over a KV cache."""

import numpy as np
import pytest
import torch

from interp.generation import Sampling
from interp.walk import choices, next_step, sampled
from tests.variants import EACH, some_tokens, variant

WAYS = [
    Sampling(),
    Sampling(temperature=0.5),
    Sampling(temperature=2, top_k=4),
    Sampling(top_p=0.6),
    Sampling(temperature=0.7, top_k=6, top_p=0.8),
    Sampling(temperature=0),
]


@pytest.mark.parametrize("how", WAYS, ids=str)
def test_choices_are_those_of_sampling_and_sum_to_one_over_the_vocabulary(how: Sampling) -> None:
    model, tokens = variant("gpt2"), some_tokens(1)
    logits = model(tokens)[0, -1].detach()
    found = choices(model, how, logits, tokens, top=5)
    wanted, ids = how.distribution(logits[None], tokens)[0], found.token_id.values
    np.testing.assert_allclose(found.probability, wanted[ids], atol=1e-6)
    np.testing.assert_allclose(found.own, logits.softmax(-1)[ids], atol=1e-6)
    stages = how.stages(logits[None], tokens)
    assert list(found.data_vars) == ["own", *stages]
    assert found.attrs["n_rest"] == len(logits) - 5
    assert found.attrs["n_left"] == int((wanted > 0).sum())
    for name in ("own", "probability"):
        assert float(found[name].sum()) + found.attrs["rest"][name] == pytest.approx(1, abs=1e-5)
    assert (np.diff(found.probability) <= 0).all()
    assert found.probability[0] == pytest.approx(float(wanted.max()))


def test_outputs_that_are_no_tokens_are_named_by_number() -> None:
    model, tokens = variant("sinusoidal"), some_tokens(1)
    found = choices(model, Sampling(), model(tokens)[0, -1].detach(), tokens)
    assert found.token.values.tolist() == [str(i) for i in found.token_id.values]
    assert found.sizes["token"] == 19
    assert found.attrs["n_rest"] == 0


@pytest.mark.parametrize("name", [name for name in EACH if name != "encoder" and "encoder" not in str(name)])
def test_one_query_over_kept_keys_has_what_a_pass_over_the_whole_text_has(name: str) -> None:
    model, tokens = variant(name), some_tokens(1)
    step = next_step(model, tokens, 3, 1, 2)
    d_head = model.cfg.d_head
    assert step.tokens.tolist() == [[*tokens[0].tolist(), 3]]
    assert [*step.q.shape] == [1, d_head]
    assert [*step.k.shape] == [*step.v.shape] == [8, d_head]
    assert [*step.scores.shape] == [*step.weights.shape] == [1, 8]
    assert set(step.errors) == {"q", "k", "v", "scores", "weights", "z", "logits"}
    assert max(step.errors.values()) < 2e-5
    longer = step.tokens
    with torch.no_grad():
        logits, cache = model.run_with_cache(
            longer, names_filter=["blocks.1.attn.hook_pattern", "blocks.1.attn.hook_z"]
        )
    torch.testing.assert_close(step.weights[0], cache["pattern", 1][0, 2, -1], atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(step.z[0], cache["z", 1][0, -1, 2], atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(step.logits, logits[0, -1], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(step.weights @ step.v, step.z, atol=2e-5, rtol=1e-4)


def test_a_full_context_has_no_next_step() -> None:
    model = variant("gpt2")
    with pytest.raises(ValueError, match="longer than the context"):
        next_step(model, some_tokens(1, 11), 3, 0, 0)


@pytest.mark.parametrize("how", WAYS, ids=str)
def test_the_token_drawn_is_that_which_generate_writes(how: Sampling) -> None:
    model, tokens = variant("gpt2"), some_tokens(1)
    logits = model(tokens)[0, -1].detach()
    given = {"temperature": how.temperature, "top_k": how.top_k, "top_p": how.top_p}
    for seed in range(8):
        choice = sampled(how, logits, tokens, seed)
        written = model.generate(tokens, 1, **given, seed=seed, return_type="full")
        assert choice.token == int(written.tokens[0, -1])
        assert choice.log_prob == pytest.approx(float(written.log_probs[0, 0]), abs=1e-5)
        if how.temperature == 0:
            assert np.isnan(choice.random)
            continue
        assert choice.random == float(written.random[0, 0])
        low = float(choice.below[choice.token])
        assert low <= choice.random <= low + float(choice.stages["probability"][choice.token]) + 1e-6
