from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from interp.lens import TunedLens, patchscope
from interp.tokenization import Tokenizer
from tests.lens.test_attribution import padding
from tests.variants import some_tokens, variant

TARGET = torch.tensor([[4, 9, 1, 7, 2]])


@pytest.mark.parametrize("name", ["gpt2", "llama", "gptj", "gemma2"])
def test_a_stream_is_put_into_another_prompt(name: str) -> None:
    model = variant(name, torch.float64)
    _, cache = model.run_with_cache(some_tokens(), attention_mask=padding())
    found = patchscope(model, cache, TARGET, pos=-2, target_pos=2, target_layer=1, k=3, progress=False)
    assert found.token_id.dims == ("layer", "prompt", "top")
    for layer in range(2):
        for prompt in range(3):
            stream = cache["resid_pre", layer][prompt, 5]

            def put(x: Tensor, hook: Any, stream: Tensor = stream) -> Tensor:
                x[:, 2] = stream
                return x

            logits = model.run_with_hooks(TARGET, fwd_hooks=[("blocks.1.hook_resid_pre", put)])[0, -1]
            best = logits.detach().softmax(-1).topk(3)
            one = found.sel(layer=layer, prompt=prompt)
            assert one.token_id.values.tolist() == best.indices.tolist()
            np.testing.assert_allclose(one.probability, best.values, rtol=1e-5)
            assert one.token.values.tolist() == list(map(str, best.indices.tolist()))


def test_put_back_where_it_was_the_prompt_goes_on_as_ever() -> None:
    tokenizer = Tokenizer.train(["the cat sat on the mat, and the dog on the log"] * 9, d_vocab=280, progress=False)
    model = variant("llama", d_vocab=280)
    model.tokenizer = tokenizer
    text = "the cat sat"
    _, cache = model.run_with_cache(text)
    found = patchscope(model, cache, text, k=4, max_new_tokens=3, progress=False)
    own = model(text)[0, -1].softmax(-1).topk(4)
    wanted = model.generate(model.to_tokens(text), max_new_tokens=3, temperature=0.0, progress=False)[0, -3:]
    for layer in range(2):
        assert found.token_id.sel(layer=layer, prompt=0).values.tolist() == own.indices.tolist()
        assert found.text.sel(layer=layer, prompt=0) == "".join(tokenizer.token_strings(wanted.tolist()))
    assert found.attrs["target"] == "".join(model.to_str_tokens(text))


def test_a_translated_stream_is_put_there() -> None:
    model = variant("gpt2", torch.float64)
    _, cache = model.run_with_cache(some_tokens(), attention_mask=padding())

    def same(stream: Tensor, layer: int) -> Tensor:
        return stream

    def told(translate: Any) -> Any:
        return patchscope(model, cache, TARGET, target_pos=2, target_layer=1, translate=translate, progress=False)

    plain, unchanged = told(None), told(same)
    assert "translate" not in plain.attrs
    assert unchanged.attrs["translate"] == "same"
    np.testing.assert_array_equal(unchanged.probability, plain.probability)
    draw, d_model = torch.Generator().manual_seed(0), model.cfg.d_model
    weight, bias = (torch.randn(2, *shape, generator=draw).double() for shape in ((d_model, d_model), (d_model,)))
    tuned = told(TunedLens(weight, bias, model.fingerprint()))
    assert tuned.attrs["translate"] == "TunedLens"
    assert not np.allclose(tuned.probability, plain.probability, atol=1e-3)
    for layer in range(2):
        last = cache["resid_pre", layer][:, -1]
        stream = last + last @ weight[layer] + bias[layer]

        def put(x: Tensor, hook: Any, stream: Tensor = stream) -> Tensor:
            x[:, 2] = stream
            return x

        logits = model.run_with_hooks(TARGET.expand(3, -1), fwd_hooks=[("blocks.1.hook_resid_pre", put)])[:, -1]
        best = logits.detach().softmax(-1).topk(5)
        assert tuned.token_id.sel(layer=layer).values.tolist() == best.indices.tolist()
        np.testing.assert_allclose(tuned.probability.sel(layer=layer), best.values, rtol=1e-5)
    with pytest.raises(ValueError, match=r"a stream \[3, 14\] became \[14\]; it keeps its shape"):
        told(lambda stream, layer: stream[0])


def test_what_makes_no_sense_is_refused() -> None:
    model = variant("gpt2")
    _, cache = model.run_with_cache(some_tokens())
    with pytest.raises(ValueError, match="target: 3 prompts were given; it is one"):
        patchscope(model, cache, some_tokens())
    with pytest.raises(IndexError, match="out of range: there are 5 positions"):
        patchscope(model, cache, TARGET, target_pos=5)
    with pytest.raises(IndexError, match="out of range: there are 7 positions"):
        patchscope(model, cache, TARGET, pos=7)
    with pytest.raises(ValueError, match="layer=2; allowed: -2 to 1"):
        patchscope(model, cache, TARGET, layers=[2])
    with pytest.raises(ValueError, match="layer=9; allowed: -2 to 1"):
        patchscope(model, cache, TARGET, target_layer=9)
    with pytest.raises(ValueError, match="k=0; allowed: 1 to 13"):
        patchscope(model, cache, TARGET, k=0)
