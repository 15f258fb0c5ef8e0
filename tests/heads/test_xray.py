"""An edge's x-ray against hooks written out by hand."""

import numpy as np
import pytest
import torch
from torch import Tensor

from interp import HookedGPT
from interp.heads import edge_writes, edge_xray, patterns
from interp.lens import direct_logit_attribution
from interp.weights import ov_top_tokens
from tests.variants import VARIANTS, quick_of, some_tokens, variant

QUERY, KEY = 5, 3
ANSWER, WRONG = 4, 2


def difference(logits: Tensor) -> float:
    return float(logits[0, QUERY, ANSWER] - logits[0, QUERY, WRONG])


def cut(model: HookedGPT, tokens: Tensor, layer: int, head: int, name: str, value: float, key: int = KEY) -> float:
    def edit(x: Tensor, hook: object) -> None:
        x[:, head, QUERY, key] = value

    return difference(model.run_with_hooks(tokens, fwd_hooks=[(f"blocks.{layer}.attn.hook_{name}", edit)]))


@pytest.mark.parametrize("name", quick_of(VARIANTS, "llama", "gptj", "gemma2", "post", "sandwich", "attn_only"))
@torch.no_grad()
def test_an_edge_is_what_hooks_written_by_hand_say_of_it(name: str) -> None:
    model, tokens = variant(name, torch.float64), some_tokens(1)
    _, cache = model.run_with_cache(tokens)
    group = model.cfg.n_heads // model.cfg.n_key_value_heads
    q_name, k_name = ("rot_q", "rot_k") if model.cfg.is_rotary else ("q", "k")
    for layer in range(model.cfg.n_layers):
        head = 1 + layer
        found = edge_xray(model, tokens, layer, head, QUERY, KEY, ANSWER, WRONG)
        np.testing.assert_allclose(found.score, cache["attn_scores", layer][0, head, QUERY], atol=1e-12)
        np.testing.assert_allclose(found.weight, cache["pattern", layer][0, head, QUERY], atol=1e-12)
        if not model.cfg.use_qk_norm:
            q, k = cache[q_name, layer][0, QUERY, head], cache[k_name, layer][0, KEY, head // group]
            np.testing.assert_allclose(found.term, q * k / model.cfg.attn_scale, atol=1e-12)
        total, cap = float(found.term.sum()), model.cfg.attn_scores_soft_cap
        capped = total if cap is None else cap * np.tanh(total / cap)
        if model.cfg.positional_embedding_type == "alibi":
            capped -= (2**-4, 2**-8, 2**-2)[head] * (QUERY - KEY)
        assert capped == pytest.approx(float(found.score[KEY]), abs=1e-10)
        assert float(found.before_cap) == pytest.approx(total, abs=1e-10)
        assert abs(float(found.remainder)) < 1e-10
        by_key = direct_logit_attribution(model, cache, ANSWER, WRONG, by="source_position", pos=QUERY)
        np.testing.assert_allclose(found.direct, by_key.sel(component=f"L{layer}H{head}", prompt=0), atol=1e-12)
        written = cache["v", layer][0, KEY, head // group] @ model.W_O[layer, head]
        assert float(found.value_norm) == pytest.approx(float(written.norm()), abs=1e-10)
        assert float(found.base) == pytest.approx(difference(model(tokens)), abs=1e-10)
        assert float(found.zeroed) == pytest.approx(cut(model, tokens, layer, head, "pattern", 0), abs=1e-10)
        by_hand = cut(model, tokens, layer, head, "attn_scores", -torch.inf)
        without = [found.base - found.direct[KEY], found.zeroed, found.knocked_out]
        np.testing.assert_allclose(found.effect, [float(found.base - each) for each in without], atol=1e-12)
        assert float(found.knocked_out) == pytest.approx(by_hand, abs=1e-10)


@pytest.mark.parametrize("name", quick_of(VARIANTS, "llama", "gptj", "gemma2", "post", "sandwich", "attn_only"))
@torch.no_grad()
def test_what_an_edge_writes_is_what_its_source_raises_by_weights_and_what_the_value_adds_here(name: str) -> None:
    model, tokens = variant(name, torch.float64), some_tokens(1)
    _, cache = model.run_with_cache(tokens)
    for layer in range(model.cfg.n_layers):
        head, source = 1 + layer, int(tokens[0, KEY])
        found = edge_writes(model, tokens, layer, head, QUERY, KEY, 5)
        by_weights = ov_top_tokens(model, [source], 5, layers=[layer], heads=[head])[0, 0, 0]
        assert found.token_id.values.tolist() == by_weights.token.values.tolist()
        np.testing.assert_array_equal(found.logit, by_weights)
        for token, here in zip(found.token_id.values.tolist(), found.here.values, strict=True):
            parts = direct_logit_attribution(model, cache, token, by="source_position", pos=QUERY)
            assert here == pytest.approx(
                float(parts.sel(component=f"L{layer}H{head}", prompt=0, key_pos=KEY)), abs=1e-10
            )


def test_in_the_last_layer_of_a_model_without_norms_cutting_takes_away_what_is_added_directly() -> None:
    model, tokens = variant("attn_only", torch.float64), some_tokens(1)
    found = edge_xray(model, tokens, 1, 2, QUERY, KEY, ANSWER)
    assert float(found.base - found.zeroed) == pytest.approx(float(found.direct[KEY]), abs=1e-10)
    assert abs(float(found.knocked_out - found.zeroed)) > 1e-4


@pytest.mark.parametrize("name", ["gpt2", "gptj", "llama", "gemma2", "qwen3"])
def test_the_terms_of_every_pair_sum_to_its_score(name: str) -> None:
    model, tokens = variant(name, torch.float64), some_tokens()
    found = patterns(model, tokens)
    _, cache = model.run_with_cache(tokens)
    cap = model.cfg.attn_scores_soft_cap
    for query in range(7):
        for key in range(max(0, query - 2), query + 1):
            total = found.terms(1, 2, query, key).sum(-1)
            total = total if cap is None else cap * torch.tanh(total / cap)
            torch.testing.assert_close(total, cache["attn_scores", 1][:, 2, query, key])


def test_an_edge_that_is_not_there_is_refused() -> None:
    model, tokens = variant("qwen3"), some_tokens(1)
    for query, key, message in (
        (3, 4, "L1H2: query 3 does not see key 4"),
        (6, 3, "query 6 does not see key 3"),  # beyond the window
        (7, 0, "positions 0 to 6"),
        (3, -1, "positions 0 to 6"),
    ):
        with pytest.raises(ValueError, match=message):
            edge_xray(model, tokens, 1, 2, query, key, ANSWER)
    with pytest.raises(ValueError, match="3 prompts were given"):
        edge_xray(model, some_tokens(), 1, 2, 3, 2, ANSWER)


def test_the_only_key_that_a_query_sees_cannot_be_knocked_out() -> None:
    found = edge_xray(variant("gpt2"), some_tokens(1), 0, 1, 0, 0, ANSWER, WRONG)
    assert np.isnan(found.knocked_out)
    assert np.isfinite(found.zeroed)
    assert float(found.weight[0]) == 1
