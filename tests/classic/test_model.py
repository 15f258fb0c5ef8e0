"""HookedTransformer is HookedGPT: the same weights and numbers, in the classic layout and by the classic calls."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from interp import HookedGPT
from interp.classic import (
    ActivationCache,
    HookedTransformer,
    HookedTransformerConfig,
    TransformerLensKeyValueCache,
)
from interp.config import RopeScaling
from interp.tokenization import Tokenizer
from tests.classic.shapes import KINDS, SIZES, filled, rows

PROMPT = "def area(width, height):"


def bundled(**choices: Any) -> HookedTransformer:
    return HookedTransformer.from_pretrained("stdlib-attn-2l", **choices)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_come_and_go_by_their_classic_names(kind: str) -> None:
    model, other = filled(kind), HookedTransformer(HookedTransformerConfig(**KINDS[kind]))
    state = {name: weight.clone() for name, weight in model.state_dict().items()}
    shared = "_" if kind == "llama" else ""
    assert tuple(state["blocks.1.attn.W_Q"].shape) == (model.cfg.n_heads, 24, model.cfg.d_head)
    assert tuple(state[f"blocks.1.attn.{shared}W_K"].shape) == (model.cfg.n_key_value_heads, 24, model.cfg.d_head)
    other.load_state_dict(state)
    assert torch.equal(other(rows()), model(rows()))
    other.load_state_dict(model.native().state_dict())
    assert torch.equal(other(rows()), model(rows()))
    with pytest.raises(ValueError, match="W_E"):
        other.load_state_dict(state | {"embed.W_E": state["embed.W_E"][:5]})
    with pytest.raises(ValueError, match=r"missing \['unembed.W_U'\], not known \['unembed.W_X'\]"):
        other.load_state_dict(
            {**{k: v for k, v in state.items() if k != "unembed.W_U"}, "unembed.W_X": state["embed.W_E"]}
        )


def test_gains_that_are_stored_less_one_come_and_go_too() -> None:
    cfg = KINDS["llama"] | {"norm_gain_from_one": True, "use_qk_norm": True, "embed_norm": True}
    model, other = (HookedTransformer(HookedTransformerConfig(**cfg, seed=seed)) for seed in (1, 2))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("excess"):
                parameter.normal_()
    state = model.state_dict()
    assert {"embed.ln.w", "blocks.1.ln2.w", "blocks.0.attn.q_norm.w", "ln_final.w"} <= set(state)
    other.load_state_dict(state)
    torch.testing.assert_close(other(rows()), model(rows()), atol=1e-5, rtol=1e-4)


def test_it_is_the_same_model_natively(tmp_path: Path) -> None:
    model = filled("gpt2")
    native = model.native()
    assert type(native) is HookedGPT
    assert torch.equal(native(rows()), model(rows()))
    assert native.W_E is model.W_E
    model.save_pretrained(tmp_path)
    opened = HookedGPT.from_pretrained(tmp_path)
    assert torch.equal(opened(rows()), model(rows()))
    assert opened.fingerprint() == model.fingerprint()
    again = HookedTransformer.from_pretrained_no_processing(str(tmp_path))
    assert torch.equal(again(rows()), model(rows()))


def test_a_checkpoint_is_processed_by_default_and_says_the_same() -> None:
    model, native = bundled(), HookedGPT.from_pretrained("stdlib-attn-2l")
    assert model.cfg.normalization_type == "RMSPre"
    assert native.cfg.normalization_type == "RMS"
    ours, theirs = (each(PROMPT).log_softmax(-1) for each in (model, native))
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(model.W_U.mean(1), torch.zeros(model.cfg.d_model), atol=1e-6, rtol=0)
    plain = HookedTransformer.from_pretrained_no_processing("stdlib-attn-2l")
    assert torch.equal(plain(PROMPT), native(PROMPT))
    short = HookedTransformer.from_pretrained_no_processing("stdlib-attn-2l", first_n_layers=1)
    stop = native(PROMPT, stop_at_layer=1)
    torch.testing.assert_close(short(PROMPT, stop_at_layer=1), stop)
    assert short.cfg.n_layers == 1


def test_a_model_of_transformers_is_taken_as_it_is() -> None:
    theirs = GPT2LMHeadModel(GPT2Config(n_embd=24, n_layer=2, n_head=3, n_positions=16, vocab_size=29)).eval()
    model = HookedTransformer.from_pretrained("gpt2-small", hf_model=theirs)
    with torch.no_grad():
        expected = theirs(rows()).logits.log_softmax(-1)
    torch.testing.assert_close(model(rows()).log_softmax(-1), expected, atol=1e-5, rtol=1e-4)
    about = model.cfg.described()
    assert (about["model_name"], about["original_architecture"]) == ("gpt2", "GPT2LMHeadModel")


def test_switches_put_what_is_always_there_into_a_whole_cache() -> None:
    model = filled("gpt2")
    assert ("result", 0) not in model.run_with_cache(rows())[1]
    model.set_use_attn_result(True)
    model.set_use_split_qkv_input(True)
    model.set_use_hook_mlp_in(True)
    model.set_use_attn_in(True)
    _, cache = model.run_with_cache(rows())
    torch.testing.assert_close(cache["result", 0].sum(2) + model.b_O[0], cache["attn_out", 0])
    assert all(name in cache for name in ("blocks.0.hook_q_input", "blocks.1.hook_mlp_in", "blocks.1.hook_attn_in"))
    model.set_use_attn_result(False)
    assert ("result", 0) not in model.run_with_cache(rows())[1]
    with pytest.raises(ValueError, match="by group"):
        filled("llama").set_ungroup_grouped_query_attention(True)


def test_calls_take_the_classic_arguments() -> None:
    model, tokens = filled("gpt2"), rows()
    logits, loss = model(tokens, return_type="both")
    torch.testing.assert_close(loss, model.loss_fn(logits, tokens))
    per_token = model(tokens, return_type="loss", loss_per_token=True)
    torch.testing.assert_close(per_token.mean(), loss)
    resid = model(tokens, stop_at_layer=1)
    torch.testing.assert_close(model(resid, start_at_layer=1), logits)
    torch.testing.assert_close(model(resid, return_type="loss", start_at_layer=1, tokens=tokens), loss)
    with pytest.raises(ValueError, match="needs tokens="):
        model(resid, return_type="loss", start_at_layer=1)
    out, cache = model.run_with_cache(tokens, return_type="loss", loss_per_token=True, names_filter="hook_embed")
    torch.testing.assert_close(out, per_token)
    assert isinstance(cache, ActivationCache)
    _, plain = model.run_with_cache(tokens[:1], return_cache_object=False, remove_batch_dim=True, pos_slice=-1)
    assert plain["hook_embed"].shape == (24,)


def test_text_goes_in_and_out() -> None:
    model = bundled()
    assert model.to_str_tokens(PROMPT)[0] == "<|endoftext|>"
    assert model.to_str_tokens([PROMPT, "x"], prepend_bos=False)[1] == ["x"]
    assert model.to_tokens("x " * 999).shape[1] == model.cfg.n_ctx
    assert model.to_tokens("x " * 999, truncate=False).shape[1] > model.cfg.n_ctx
    left = model.to_tokens([PROMPT, "x"], padding_side="left")
    assert left[1, -1] == model.to_single_token("x")
    torch.testing.assert_close(model(["x", PROMPT])[0, 1], model("x")[0, 1], atol=1e-4, rtol=1e-4)
    direction = model.tokens_to_residual_directions("x")
    assert torch.equal(direction, model.W_U[:, model.to_single_token("x")])
    written = model.generate(PROMPT, 4, do_sample=False, verbose=False)
    assert written.startswith(PROMPT)
    tokens = model.to_tokens(PROMPT)
    expected = tokens
    for _ in range(4):
        expected = torch.cat((expected, model(expected)[:, -1:].argmax(-1)), 1)
    choices: dict[str, Any] = {"do_sample": False, "stop_at_eos": False}
    assert torch.equal(model.generate(tokens, 4, verbose=False, **choices), expected)
    streamed = list(model.generate_stream(tokens, 4, max_tokens_per_yield=3, **choices))
    assert [each.shape[1] for each in streamed] == [tokens.shape[1] + 1, 3]
    assert torch.equal(torch.cat(streamed, 1), expected)


def test_a_stream_comes_as_it_is_made_under_the_hooks_of_its_call() -> None:
    model, passes = filled("gpt2"), list[int]()
    count = lambda x, hook: passes.append(x.shape[1])
    with model.hooks([("hook_embed", count)]):
        stream = model.generate_stream(rows(n_pos=4), 6, 5, do_sample=False, stop_at_eos=False)
    assert not passes
    assert next(stream).shape[1] == 5
    assert passes == [4]
    assert next(stream).shape[1] == 5
    assert passes == [4, 1, 1, 1, 1, 1]
    assert not list(stream)


@pytest.mark.parametrize("n_ends", [1, 2])
def test_what_follows_the_end_of_a_row_is_its_end_or_the_tokenizers(n_ends: int) -> None:
    model, choices = bundled(), {"do_sample": False, "verbose": False}
    free = model.generate(rows(n_pos=4), 9, stop_at_eos=False, **choices)[:, 4:]
    ends = [int(free[0, 2]), int(free[1, 4])][:n_ends]
    found = model.generate(rows(n_pos=4), 9, eos_token_id=ends, **choices)[:, 4:]
    assert model.tokenizer is not None
    fill = ends[0] if n_ends == 1 else model.tokenizer.eos_token_id
    for row, whole in zip(found.tolist(), free.tolist(), strict=True):
        n = next((i + 1 for i, token in enumerate(whole) if token in ends), len(row))
        assert row == (whole[:n] + [fill] * 9)[: len(row)]
    assert (found == fill).sum() > n_ends


def test_sums_of_weights_are_those_of_the_theory() -> None:
    model = filled("llama")
    group = model.cfg.n_heads // model.cfg.n_key_value_heads
    for layer, block in enumerate(model.blocks):
        for head in range(model.cfg.n_heads):
            assert torch.equal(model.W_K[layer, head], block.attn.W_K[head // group])
            torch.testing.assert_close(
                model.OV.AB[layer, head], block.attn.W_V[head // group] @ block.attn.W_O[head], atol=1e-5, rtol=1e-5
            )
    assert torch.equal(filled("gpt2").W_E_pos, torch.cat((filled("gpt2").W_E, filled("gpt2").W_pos)))


def test_a_config_is_written_in_the_classic_names_and_refuses_what_would_have_no_effect() -> None:
    cfg = HookedTransformerConfig(n_layers=2, d_model=24, d_head=8, n_ctx=16, act_fn="relu")
    assert (cfg.n_heads, cfg.d_vocab, cfg.d_mlp) == (3, -1, 96)
    cfg.n_ctx = 20
    assert cfg.n_ctx == 20
    model = HookedTransformer(cfg, Tokenizer.characters("abc"))
    assert model.cfg.d_vocab == model.cfg.d_vocab_out == 4
    with pytest.raises(AttributeError, match="n_ctx is settled"):
        model.cfg.n_ctx = 30
    with pytest.raises(ValueError, match=r"\['final_rms=True', 'num_experts=8'\]"):
        HookedTransformerConfig(**SIZES, final_rms=True, num_experts=8)
    with pytest.raises(ValueError, match="no_such_field"):
        HookedTransformerConfig(**SIZES, no_such_field=1)
    with pytest.raises(ValueError, match="tokenizer"):
        HookedTransformer(HookedTransformerConfig(n_layers=2, d_model=24, d_head=8, n_ctx=16))
    whole = HookedTransformerConfig(**KINDS["llama"])
    assert HookedTransformerConfig.from_dict(whole.to_dict()) == whole
    assert HookedTransformerConfig.unwrap(KINDS["llama"]) == whole
    assert whole.native().to_dict() == whole.to_dict()
    assert HookedTransformerConfig(**SIZES, use_attn_scale=False).attn_scale == 1.0
    assert HookedTransformerConfig(**SIZES).__dict__["n_params"] == 2 * 24 * (4 * 24 + 2 * 40)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "shortformer"])
def test_a_frozen_cache_serves_many_calls_after_the_same_beginning(kind: str) -> None:
    model = filled(kind)
    cache = TransformerLensKeyValueCache.init_cache(model.cfg, model.cfg.device, 3)
    assert cache[0].past_keys.shape == (3, 0, model.cfg.n_key_value_heads, model.cfg.d_head)
    model(rows()[:, :6], past_kv_cache=cache)
    assert len(cache.entries) == 2
    torch.testing.assert_close(cache[1].past_values, model.run_with_cache(rows()[:, :6])[1]["v", 1])
    cache.freeze()
    for _ in range(2):
        rest = model(rows()[:, 6:], past_kv_cache=cache)
        torch.testing.assert_close(rest, model(rows())[:, 6:], atol=1e-4, rtol=1e-4)
    assert cache.previous_attention_mask.shape == (3, 6)
    cache.unfreeze()
    model(rows()[:, 6:], past_kv_cache=cache)
    assert cache.length == 11


def test_what_later_families_have_is_known_by_its_classic_names() -> None:
    bloom = HookedTransformerConfig(**SIZES, positional_embedding_type="alibi", post_embedding_ln=True, clip_qkv=2)
    assert (bloom.native().embed_norm, bloom.native().qkv_clip) == (True, 2.0)
    yarn = {"use_yarn_rope": True, "yarn_factor": 4.0, "yarn_attention_factor": 1.2, "yarn_beta_fast": 8.0}
    windows = {"use_local_attn": True, "window_size": 4, "attn_types": ["local", "global"], "rotary_base_local": 50}
    cfg = HookedTransformerConfig(**SIZES, positional_embedding_type="rotary", rotary_dim=8, **yarn, **windows)
    slower = RopeScaling(kind="yarn", factor=4.0, high_freq_factor=8.0, original_n_ctx=4096, attention_factor=1.2)
    assert cfg.native().rope_scaling == slower
    assert cfg.native().local_rotary_base == 50.0
    with pytest.raises(ValueError, match=r"no effect: \['yarn_factor=4.0'\]"):
        HookedTransformerConfig(**SIZES, positional_embedding_type="rotary", yarn_factor=4.0)
