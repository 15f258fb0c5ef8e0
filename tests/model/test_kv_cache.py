"""Reading a text in pieces, through a KV cache, equals reading it whole."""

import pytest
import torch
from torch import Tensor

from interp import KVCache
from tests.variants import VARIANTS, quick_of, some_tokens, variant

TOKENS = some_tokens(n_pos=9)
CAUSAL = [name for name in VARIANTS if VARIANTS[name].get("attention_dir") != "bidirectional"]
LEFT = torch.ones(3, 9, dtype=torch.long)
LEFT[0, :3] = 0
LEFT[2, :1] = 0


@pytest.mark.parametrize("with_gradients", quick_of([False, True], False), ids=["no_grad", "grad"])
@pytest.mark.parametrize("pieces", quick_of([[4, 1, 1, 3], [1] * 9, [2, 7]], [4, 1, 1, 3]), ids=str)
@pytest.mark.parametrize("mask", [None, LEFT], ids=["unpadded", "left"])
@pytest.mark.parametrize("name", quick_of(CAUSAL, "gpt2", "gemma2"))
def test_pieces_equal_the_whole_at_every_hook_point(
    name: str, mask: Tensor | None, pieces: list[int], with_gradients: bool
) -> None:
    model = variant(name, torch.float64)
    with torch.set_grad_enabled(with_gradients):
        _, whole = model.run_with_cache(TOKENS, attention_mask=mask)
        past = KVCache()
        start = 0
        for size in pieces:
            here = slice(start, start + size)
            part_mask = None if mask is None else mask[:, here]
            logits = model(TOKENS[:, here], attention_mask=part_mask, past_kv_cache=clone(past))
            _, part = model.run_with_cache(TOKENS[:, here], attention_mask=part_mask, past_kv_cache=past)
            if model.cfg.output_logits_soft_cap is None:
                torch.testing.assert_close(logits, part["unembed.hook_out"])
            for hook_name, value in part.items():
                axes = model.hook_dict[hook_name].axes
                wanted = whole[hook_name]
                if "query_pos" in axes:
                    wanted = wanted[:, :, here, : here.stop]
                elif "pos" in axes:
                    wanted = wanted[:, here]
                torch.testing.assert_close(value, wanted, rtol=1e-10, atol=1e-10, msg=hook_name)
            start += size
        assert past.length == 9


def clone(past: KVCache) -> KVCache:
    import copy

    return copy.deepcopy(past)


def test_an_edit_of_a_key_is_remembered() -> None:
    model = variant("llama", torch.float64)
    double = [("blocks.0.attn.hook_k", lambda x, hook: 2 * x)]
    whole = model.run_with_hooks(TOKENS, fwd_hooks=double)
    past = KVCache()
    with torch.no_grad(), model.hooks(double):
        steps = [model(TOKENS[:, i : i + 1], past_kv_cache=past) for i in range(9)]
    torch.testing.assert_close(torch.cat(steps, 1), whole)


def test_gradients_reach_the_new_tokens_and_later_steps_do_not_spoil_them() -> None:
    model = variant("gpt2", torch.float64)
    past = KVCache(room=9)
    model(TOKENS[:, :4], past_kv_cache=past)
    logits = model(TOKENS[:, 4:6], past_kv_cache=past)
    with torch.no_grad():
        model(TOKENS[:, 6:], past_kv_cache=past)
    logits.square().sum().backward()
    assert model.grad("W_K", 1).any()


def test_given_room_is_never_copied_and_missing_room_doubles() -> None:
    model = variant("gpt2")
    with torch.no_grad():
        roomy, tight = KVCache(room=9), KVCache()
        model(TOKENS[:, :2], past_kv_cache=roomy)
        where = [keys.data_ptr() for keys, _ in roomy._layers.values()]
        model(TOKENS[:, :2], past_kv_cache=tight)
        assert tight.room == 4
        for i in range(2, 9):
            model(TOKENS[:, i : i + 1], past_kv_cache=roomy)
            model(TOKENS[:, i : i + 1], past_kv_cache=tight)
    assert [keys.data_ptr() for keys, _ in roomy._layers.values()] == where
    assert tight.room == 10
    assert tight.length == roomy.length == 9


def test_a_failed_pass_leaves_the_past_as_it_was() -> None:
    model = variant("gpt2", torch.float64)
    past = KVCache()
    with torch.no_grad():
        model(TOKENS[:, :4], past_kv_cache=past)

        def fail(x: Tensor, hook: object) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            model.run_with_hooks(TOKENS[:, 5:7], fwd_hooks=[("blocks.1.hook_resid_mid", fail)], past_kv_cache=past)
        assert past.length == 4
        rest = model(TOKENS[:, 4:], past_kv_cache=past)
        torch.testing.assert_close(rest, model(TOKENS)[:, 4:])


def test_what_does_not_fit_is_refused() -> None:
    model = variant("gpt2")
    past = KVCache()
    model(TOKENS, past_kv_cache=past)
    with pytest.raises(ValueError, match=r"3 tokens after 9 in the KV cache.*n_ctx=11"):
        model(TOKENS[:, :3], past_kv_cache=past)
    with pytest.raises(ValueError, match="holds 3 rows; the input has 1"):
        model(TOKENS[:1, :1], past_kv_cache=past)
    with pytest.raises(ValueError, match=r"another model's keys.*layer 0"):
        variant("llama")(TOKENS[:, :1], past_kv_cache=past)
    with pytest.raises(ValueError, match=r"another model's keys.*layer 2"):
        variant("gpt2", n_layers=3)(TOKENS[:, :1], past_kv_cache=past)
    with pytest.raises(ValueError, match="attention_mask has shape"):
        model(TOKENS[:, :1], past_kv_cache=past, attention_mask=torch.ones(3, 10))
    with pytest.raises(ValueError, match="needs every layer"):
        model(TOKENS[:, :1], past_kv_cache=past, stop_at_layer=1)
    with pytest.raises(ValueError, match="attention_dir='causal'"):
        variant("encoder")(TOKENS, past_kv_cache=KVCache())
    assert past.length == 9
