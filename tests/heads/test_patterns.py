"""Patterns made again from queries and keys are those of the pass."""

from typing import Any

import numpy as np
import pytest
import torch
import xarray

from interp import HookedGPT, heads
from interp.heads import patterns
from interp.interventions import Site, Steer
from tests.variants import EACH, some_tokens, variant

LEFT = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1] * 7, [0, 1, 1, 1, 1, 1, 1]])
MASKS = {"whole": None, "left": LEFT, "right": LEFT.flip(1)}


@pytest.mark.parametrize("padding", MASKS)
@pytest.mark.parametrize("name", EACH)
def test_every_pattern_is_that_of_the_pass(name: str, padding: str) -> None:
    model, tokens = variant(name), some_tokens()
    found = patterns(model, tokens, attention_mask=MASKS[padding])
    _, cache = model.run_with_cache(tokens, attention_mask=MASKS[padding])
    for layer in range(model.cfg.n_layers):
        for head in range(model.cfg.n_heads):
            torch.testing.assert_close(found[layer, head], cache["pattern", layer][:, head], atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["gpt2", "gemma2", "sandwich"])
def test_a_weighted_pattern_is_each_keys_share_of_what_is_written(name: str) -> None:
    model, tokens = variant(name), some_tokens()
    found = patterns(model, tokens)
    _, cache = model.run_with_cache(tokens)
    group = model.cfg.n_heads // model.cfg.n_key_value_heads
    for head in range(model.cfg.n_heads):
        wanted = torch.zeros(3, 7, 7)
        for row in range(3):
            for query in range(7):
                for key in range(7):
                    written = cache["v", 1][row, key, head // group] @ model.W_O[1, head]
                    wanted[row, query, key] = cache["pattern", 1][row, head, query, key] * written.norm()
        wanted = wanted / wanted.sum(-1, keepdim=True)
        torch.testing.assert_close(found.weighted(1, head), wanted)


def test_chosen_layers_and_heads_are_all_that_is_kept() -> None:
    model, tokens = variant("llama"), some_tokens()
    whole, part = patterns(model, tokens), patterns(model, tokens, layers=[-1], heads=[3, 1])
    assert (part.layers, part.heads) == ([1], [1, 3])
    assert torch.equal(part[1, 3], whole[1, 3])
    assert torch.equal(part[-1, -1], whole[1, 3])
    assert torch.equal(part.weighted(1, 1), whole.weighted(1, 1))
    assert whole.nbytes() == 2 * 3 * 7 * (4 + 2 + 2) * 6 * 4
    assert part.nbytes() == 3 * 7 * (2 + 2 + 2) * 6 * 4
    first = patterns(model, tokens, heads=[1])
    assert first.nbytes() == 2 * 3 * 7 * 3 * 6 * 4
    assert torch.equal(first[0, 1], whole[0, 1])
    for at, message in (((0, 1), r"layer 0: layers \[1\]"), ((1, 0), r"head 0: heads \[1, 3\]")):
        with pytest.raises(KeyError, match=message):
            part[at]


def test_the_pass_ends_with_the_last_layer_wanted() -> None:
    model, seen = variant("gpt2"), []

    def see(x: torch.Tensor, hook: Any) -> None:
        seen.append(hook.name)

    with model.hooks([("*hook_resid_post", see), ("unembed.hook_in", see)]):
        patterns(model, some_tokens(), layers=[0])
    assert seen == ["blocks.0.hook_resid_post"]


def test_edits_around_the_call_act() -> None:
    model, tokens = variant("gpt2"), some_tokens()
    with model.edit([Steer(Site("embed"), torch.arange(14.0))]):
        edited = patterns(model, tokens)
        _, cache = model.run_with_cache(tokens)
    torch.testing.assert_close(edited[1, 2], cache["pattern", 1][:, 2])
    assert not torch.allclose(edited[1, 2], patterns(model, tokens)[1, 2])

    def first_alone(pattern: torch.Tensor, hook: Any) -> torch.Tensor:
        pattern[:] = 0
        pattern[..., 0] = 1
        return pattern

    edits = [("blocks.0.attn.hook_pattern", first_alone)]
    with model.hooks(edits):
        edited = patterns(model, tokens)
        _, cache = model.run_with_cache(tokens)
    torch.testing.assert_close(edited[1, 0], cache["pattern", 1][:, 0])


def test_text_goes_in() -> None:
    model = HookedGPT.from_pretrained("stdlib-4l")
    text = "def area(width, height):\n    return width"
    found = patterns(model, text)
    _, cache = model.run_with_cache(text)
    assert torch.equal(found.tokens, model.to_tokens(text))
    torch.testing.assert_close(found[3, 2], cache["pattern", 3][:, 2], atol=1e-6, rtol=0)
    some = [text, "import os"]
    _, cache = model.run_with_cache(some)
    torch.testing.assert_close(patterns(model, some)[3, 2], cache["pattern", 3][:, 2], atol=1e-6, rtol=0)


def test_bfloat16_is_the_models_own() -> None:
    model, tokens = variant("llama", torch.bfloat16), some_tokens()
    _, cache = model.run_with_cache(tokens)
    torch.testing.assert_close(patterns(model, tokens)[1, 2], cache["pattern", 1][:, 2], atol=1e-2, rtol=0)


@pytest.mark.parametrize("choice", [{"layers": [2]}, {"heads": [3]}, {"layers": []}])
def test_layers_and_heads_that_are_not_there_are_refused(choice: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="allowed: some of"):
        patterns(variant("gpt2"), some_tokens(), **choice)


@pytest.mark.parametrize("name", EACH)
def test_steps_lead_from_queries_and_keys_to_what_the_model_itself_weighs_by(name: str) -> None:
    model, tokens = variant(name), some_tokens(2)
    _, cache = model.run_with_cache(tokens, names_filter=["*attn_scores", "*hook_pattern"])
    found = patterns(model, tokens, [1])
    whole = found.steps(1, 2, prompt=1)
    np.testing.assert_allclose(whole.masked, cache["attn_scores", 1][1, 2].detach(), atol=1e-5, rtol=1e-4)
    np.testing.assert_allclose(whole.weight, cache["pattern", 1][1, 2].detach(), atol=1e-5, rtol=1e-4)
    product = found.queries(1, 2)[1] @ found.keys(1, 2)[1].T
    np.testing.assert_allclose(whole["product"], product, atol=1e-4, rtol=1e-4)
    cap, scale = model.cfg.attn_scores_soft_cap, model.cfg.attn_scale
    scaled = product / scale if cap is None else cap * torch.tanh(product / scale / cap)
    if model.cfg.positional_embedding_type == "alibi":
        scaled = scaled + positional_lean(2)
    np.testing.assert_allclose(whole.score, scaled, atol=1e-5, rtol=1e-4)
    some = found.steps(1, 2, slice(3, 6), slice(1, 5), prompt=1)
    xarray.testing.assert_allclose(some, whole.isel(query_pos=slice(3, 6), key_pos=slice(1, 5)), atol=1e-6)
    assert some.query_pos.values.tolist() == [3, 4, 5]
    assert some.key_pos.values.tolist() == [1, 2, 3, 4]


def positional_lean(head: int) -> torch.Tensor:
    """Of three heads over seven positions."""
    places = torch.arange(7)
    return -((2**-4, 2**-8, 2**-2)[head]) * (places[:, None] - places)


def test_steps_leave_padding_out() -> None:
    model, tokens = variant("gpt2"), some_tokens(2)
    mask = torch.tensor([[1] * 7, [0, 0, 1, 1, 1, 1, 1]])
    found = patterns(model, tokens, attention_mask=mask)
    for prompt in (0, 1):
        np.testing.assert_allclose(found.steps(0, 1, prompt=prompt).weight, found[0, 1][prompt].detach(), atol=1e-6)


def test_heads_that_share_keys_say_whose() -> None:
    found = patterns(variant("llama"), some_tokens(1))
    assert [found.group(head) for head in range(4)] == [0, 0, 1, 1]
    assert [patterns(variant("gpt2"), some_tokens(1)).group(head) for head in range(3)] == [0, 1, 2]


@torch.no_grad()
def test_attention_between_places_is_that_of_each_prompts_own_pattern() -> None:
    model, tokens = variant("gpt2"), some_tokens()
    n = len(tokens)
    found = heads.patterns(model, tokens)
    queries, keys = torch.arange(n) + 2, torch.arange(n)
    pairs = {"back": (queries, keys), "ahead": (keys, queries)}
    between = heads.attention_between(found, pairs)
    assert between.dims == ("pair", "layer", "head", "prompt")
    for row in range(n):
        own = float(found[1, 2][row, row + 2, row])
        assert float(between.sel(pair="back", layer=1, head=2, prompt=row)) == pytest.approx(own)
    assert not between.sel(pair="ahead").any()
    with pytest.raises(ValueError, match=r"back: positions .* give one for each prompt"):
        heads.attention_between(found, {"back": (queries[:1], keys[:1])})
