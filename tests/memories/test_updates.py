"""Sub-updates add up to what their MLP adds, and a prediction is settled where the lens says so."""

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch

from interp import GPTConfig, HookedGPT
from interp.cache import ActivationCache
from interp.interventions import Ablate, Site
from interp.lens import direct_logit_attribution
from interp.memories import saturation, sub_updates
from tests.variants import VARIANTS, quick_of, some_tokens, variant

WITH_MLP = [name for name in VARIANTS if not VARIANTS[name].get("attn_only")]


def cached(model: HookedGPT, mask: torch.Tensor | None = None) -> ActivationCache:
    return model.run_with_cache(some_tokens(), attention_mask=mask)[1]


@pytest.mark.parametrize("dtype", quick_of([torch.float32, torch.float64], torch.float64))
@pytest.mark.parametrize("name", quick_of(WITH_MLP, "gpt2", "gemma2", "post"))
def test_the_memories_of_a_layer_sum_to_what_its_mlp_adds_without_its_bias(name: str, dtype: torch.dtype) -> None:
    model = variant(name, dtype)
    mask = torch.ones(3, 7, dtype=torch.bool)
    mask[1, :2] = False
    cache, tolerance = cached(model, mask), 1e-4 if dtype == torch.float32 else 1e-10
    for pos, wrong in ((-1, None), ([2, -1], 5)):
        whole = direct_logit_attribution(model, cache, 4, wrong, pos=pos)
        of_neurons = direct_logit_attribution(model, cache, 4, wrong, by="neuron", pos=pos)
        for layer in range(2):
            found = sub_updates(model, cache, 4, wrong, layer=layer, pos=pos, top=17)
            expected = whole.sel(component=f"L{layer} mlp")
            if f"L{layer} mlp bias" in of_neurons.component:
                expected = expected - of_neurons.sel(component=f"L{layer} mlp bias")
            close(found.sum("top"), expected, tolerance)
            close(found.memories, expected, tolerance)
            close(found.share.sum("top"), np.ones(expected.shape), tolerance)
        every = sub_updates(model, cache, 4, wrong, pos=pos, top=34)
        by_layer = [sub_updates(model, cache, 4, wrong, layer=layer, pos=pos, top=3).memories for layer in range(2)]
        close(every.memories, by_layer[0] + by_layer[1], tolerance)
        close(every.total, whole.total, tolerance)


def close(found: Any, expected: Any, tolerance: float = 1e-10) -> None:
    np.testing.assert_allclose(np.asarray(found), np.asarray(expected), rtol=tolerance, atol=tolerance)


def test_the_largest_stand_first_each_with_its_coefficient_and_value() -> None:
    model = variant("llama", torch.float64)
    cache = cached(model)
    found = sub_updates(model, cache, 4, layer=[1, -2], top=9)
    assert found.dims == ("top", "prompt")
    sizes = torch.stack([cache["post", layer][:, -1].abs() * model.W_out[layer].norm(dim=1) for layer in range(2)])
    for prompt in range(3):
        ordered = sizes[:, prompt].flatten().sort(descending=True)
        for i, memory in enumerate(ordered.indices[:9].tolist()):
            layer, neuron = divmod(memory, 17)
            one = found[i, prompt]
            assert one.memory == f"L{layer}N{neuron}"
            coefficient, value = cache["post", layer][prompt, -1, neuron], model.W_out[layer, neuron]
            close(one.coefficient, coefficient.detach())
            close(one.value_norm, value.norm().detach())
            close(one.share, (ordered.values[i] / ordered.values.sum()).detach())
            read = (coefficient * value / cache["scale", None, "ln_final"][prompt, -1]) * model.ln_final.w
            close(one, (read @ model.W_U[:, 4]).detach())
    assert found.attrs["layers"] == [0, 1]
    assert found.attrs["model"] == model.fingerprint()


@pytest.mark.parametrize("name", ["olmo2", "sandwich", "output_ln"])
def test_behind_a_norm_on_outputs_a_value_is_as_long_as_what_it_adds(name: str) -> None:
    model = variant(name, torch.float64)
    cache = cached(model)
    found = sub_updates(model, cache, 4, layer=1, top=17, pos=None)
    norm, scale = model.blocks[1].ln2_post, cache["scale", 1, "ln2_post"]
    for prompt, pos, i in product(range(3), (0, 6), (0, 16)):
        neuron = int(str(found.memory[i, prompt, pos].values).split("N")[1])
        written = cache["post", 1][prompt, pos, neuron] * model.W_out[1, neuron]
        if model.cfg.normalization_type == "LN":
            written = written - written.mean()
        added = written / scale[prompt, pos] * norm.w
        one = found[i, prompt, pos]
        close(abs(one.coefficient) * one.value_norm, added.norm().detach())


@pytest.mark.parametrize("name", ["gpt2", "gptj", "post", "gemma2"])
def test_a_prediction_is_settled_where_its_token_is_on_top_for_good(name: str) -> None:
    model = variant(name, torch.float64)
    cache = cached(model)
    found = saturation(model, cache)
    said = model(some_tokens()).argmax(-1)
    assert (found.token_id.values == said.numpy()).all()

    def top(stream: torch.Tensor) -> torch.Tensor:
        return (model.ln_final.unheard(stream) @ model.W_U + model.b_U).argmax(-1)

    streams = [cache["resid_pre", 0], cache["resid_pre", 1], cache["resid_post", 1]]
    seen = torch.stack([top(stream) for stream in streams])
    for prompt, pos in product(range(3), range(7)):
        column = seen[:, prompt, pos].tolist()
        expected = next(i for i in range(3) if len(set(column[i:])) == 1)
        assert found.settled[prompt, pos] == expected
    for layer in range(2):
        without = cache["resid_post", layer] - cache["mlp_out", layer] if name != "post" else cache["resid_mid", layer]
        changed = top(without) != top(cache["resid_post", layer])
        assert (found.event[layer].values == changed.numpy()).all()
        assert ((found.before[layer] != found.after[layer]) == found.event[layer]).all()
    assert 0 < found.event.mean() < 1
    one = saturation(model, cache, pos=-1)
    assert (one.settled == found.settled[:, -1]).all()
    assert (one.event == found.event[..., -1]).all()


def test_edits_in_force_are_seen_in_what_is_read() -> None:
    model = variant("gpt2", torch.float64)
    with model.edit([Ablate(Site("post", 1, neuron=slice(16)))]):
        cache = cached(model)
    found = sub_updates(model, cache, 4, layer=1, top=2)
    assert (found.memory[0] == "L1N16").all()
    close(found.share[0], np.ones(3))


def test_an_attribution_that_is_known_is_not_made_again() -> None:
    model = variant("gpt2")
    _, cache = model.run_with_cache(some_tokens())
    parts = direct_logit_attribution(model, cache, 4, 5, by="neuron")
    for layer in (None, 1):
        known = sub_updates(model, cache, 4, 5, layer=layer, top=9, parts=parts)
        assert known.identical(sub_updates(model, cache, 4, 5, layer=layer, top=9))
        doubled = sub_updates(model, cache, 4, 5, layer=layer, top=9, parts=2 * parts)
        np.testing.assert_array_equal(doubled, 2 * known)
    for by in ("head", "component"):
        with pytest.raises(ValueError, match=f"parts are by='{by}' of"):
            sub_updates(model, cache, 4, 5, parts=direct_logit_attribution(model, cache, 4, 5, by=by))


def test_bad_input_is_refused() -> None:
    model = variant("gpt2")
    cache = cached(model)
    with pytest.raises(ValueError, match="top=35; allowed: 1 to 34, the memories of layers"):
        sub_updates(model, cache, 4, top=35)
    with pytest.raises(ValueError, match="layer=2; the model has 2"):
        sub_updates(model, cache, 4, layer=2)
    bare = HookedGPT(GPTConfig(n_layers=1, d_model=8, n_heads=2, n_ctx=8, d_vocab=13, attn_only=True, seed=0)).eval()
    for call in (lambda c: sub_updates(bare, c, 4), lambda c: saturation(bare, c)):
        with pytest.raises(ValueError, match="the model is attn_only"):
            call(cached(bare))
