"""Bad input gets one clear error that says what was given and what is allowed."""

import json
import subprocess
import sys
from functools import cache

import pytest
import torch

from interp import GPTConfig, HookedGPT
from tests.variants import config, some_tokens, variant

TOKENS = some_tokens()


@pytest.fixture
def model() -> HookedGPT:
    return variant("gpt2")


@cache
def errors() -> dict[str, tuple[str, str]]:
    run = subprocess.run([sys.executable, "-m", "tests.wrong_types"], capture_output=True, text=True, check=True)
    return json.loads(run.stdout)


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        ("float tokens", "TypeError", "integer token ids, not torch.float32"),
        ("bool tokens", "TypeError", "integer token ids, not torch.bool"),
        ("text", "ValueError", "this model has no tokenizer: give tokens, or set model.tokenizer"),
        ("a list of ids", "TypeError", "token ids as a tensor [batch pos] or [pos], not a list of int"),
        ("bos of tokens", "ValueError", "prepend_bos is for text; these are tokens already"),
        ("stream without start_at_layer", "TypeError", "goes in with start_at_layer="),
        ("tokens at start_at_layer", "TypeError", "residual stream [batch pos d_model] of floats, not torch.int64"),
        ("hook without function", "TypeError", "a hook is a pair (name, function), not 'hook_embed'"),
        ("hook name of another type", "TypeError", "a hook name is a string, not 3"),
        ("hook direction", "ValueError", "dir='both'; allowed: 'fwd', 'bwd'"),
        ("return type", "ValueError", "return_type='logit'; allowed: 'logits', 'loss', 'both', None"),
        ("config types", "ValueError", "n_layers=2.5 is a float"),
        ("config types", "ValueError", "act_fn='tanh'; allowed: ['gelu', 'gelu_new'"),
        ("config types", "ValueError", "gated_mlp=1 is a int"),
        ("config types", "ValueError", "d_head='5' is a str"),
        ("config layers", "ValueError", "attn_types has 'far'; allowed: ['global', 'local']"),
        ("attention types", "ValueError", "it must be a tuple, one entry a layer"),
        ("rope kind", "ValueError", "kind='ntk'; allowed: 'linear', 'llama3', 'yarn'"),
        ("config dtype", "ValueError", "dtype=torch.int8; allowed:"),
    ],
)
def test_the_wrong_type_is_named(call: str, kind: str, message: str) -> None:
    seen_kind, seen_message = errors()[call]
    assert seen_kind == kind
    assert message in seen_message


@pytest.mark.parametrize("bad", [-1, 13, 10**12])
def test_a_token_out_of_range(model: HookedGPT, bad: int) -> None:
    tokens = TOKENS.clone()
    tokens[1, 4] = bad
    with pytest.raises(ValueError, match=rf"token id {bad} is out of range: d_vocab=13 allows 0 to 12"):
        model(tokens)


@pytest.mark.parametrize("shape", [(0,), (1, 0), (0, 4)])
def test_empty_input(model: HookedGPT, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="input is empty"):
        model(torch.zeros(shape, dtype=torch.long))


def test_input_longer_than_the_context(model: HookedGPT) -> None:
    with pytest.raises(ValueError, match=r"12 tokens are longer than the context, n_ctx=11"):
        model(torch.zeros(1, 12, dtype=torch.long))
    assert model(torch.zeros(1, 11, dtype=torch.long)).shape == (1, 11, 13)


@pytest.mark.parametrize("shape", [(3, 6), (2, 7), (7,), (3, 7, 7)])
def test_a_mask_of_another_shape(model: HookedGPT, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"attention_mask has shape .*\[3, 7\]"):
        model(TOKENS, attention_mask=torch.ones(shape))


def test_one_token_works_and_has_no_loss(model: HookedGPT) -> None:
    assert model(TOKENS[:1, :1]).shape == (1, 1, 13)
    assert model(torch.tensor([4])).shape == (1, 1, 13)
    for return_type in ("loss", "both"):
        with pytest.raises(ValueError, match="at least 2 tokens; 1 was given"):
            model(TOKENS[:, :1], return_type)


def test_a_stream_of_another_shape(model: HookedGPT) -> None:
    for shape in [(3, 7, 15), (0, 7, 14)]:
        with pytest.raises(ValueError, match=r"residual stream has shape .*must be \[batch pos 14\]"):
            model(torch.randn(shape), start_at_layer=1)
    with pytest.raises(ValueError, match="needs tokens"):
        model(torch.randn(3, 7, 14), "loss", start_at_layer=1)


@pytest.mark.parametrize(("start", "stop"), [(3, None), (None, 3), (None, -3), (-5, None), (2, 1)])
def test_layers_that_do_not_exist(model: HookedGPT, start: int | None, stop: int | None) -> None:
    source = TOKENS if start is None else torch.randn(3, 7, 14)
    with pytest.raises(ValueError, match=r"allowed: -2 to 2|lies behind"):
        model(source, start_at_layer=start, stop_at_layer=stop)


def test_choices_that_would_be_ignored_are_refused(model: HookedGPT) -> None:
    with pytest.raises(ValueError, match="loss_fn is what incl_bwd=True differentiates"):
        model.run_with_cache(TOKENS, loss_fn=lambda logits: logits.sum())
    with pytest.raises(ValueError, match="loss_per_token is for return_type 'loss' or 'both', not 'logits'"):
        model(TOKENS, loss_per_token=True)
    with pytest.raises(ValueError, match="stop_at_layer=1 returns the stream"):
        model(TOKENS, "loss", stop_at_layer=1)
    with torch.inference_mode(), pytest.raises(ValueError, match="inference_mode allows none"):
        model.run_with_cache(TOKENS, "loss", incl_bwd=True)
    with pytest.raises(TypeError, match=r"hook_embed has no torch hooks: use model.hooks"):
        model.hook_embed.register_forward_hook(print)
    with pytest.raises(TypeError, match=r"residual stream is torch.float64; the model is torch.float32"):
        model(torch.randn(3, 7, 14, dtype=torch.float64), start_at_layer=1)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16])
def test_any_integer_type_will_do(model: HookedGPT, dtype: torch.dtype) -> None:
    assert torch.equal(model(TOKENS.to(dtype), "loss"), model(TOKENS, "loss"))


def test_a_loss_over_a_smaller_output_vocabulary() -> None:
    with pytest.raises(ValueError, match="d_vocab_out=7 is less than d_vocab=13"):
        variant("gpt2", tie_word_embeddings=False, d_vocab_out=7)(TOKENS, "loss")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_check_names_the_first_weight_that_is_not_finite(model: HookedGPT, value: float) -> None:
    assert model.check() is model
    with torch.no_grad():
        model.blocks[1].mlp.W_in[3, 4] = value
        model.ln_final.w[0] = value
    with pytest.raises(ValueError, match=r"blocks.1.mlp.up.weight has 1 of 238 values that are NaN or infinite"):
        model.check()


@pytest.mark.parametrize(
    ("base", "change", "message"),
    [
        ("gpt2", {"n_heads": 0}, "n_heads=0; it must be positive"),
        ("gpt2", {"n_ctx": -1}, "n_ctx=-1; it must be positive"),
        ("gpt2", {"dropout": 1.0}, "dropout=1.0"),
        ("gpt2", {"n_key_value_heads": 2}, "n_heads=3 is no multiple of n_key_value_heads=2"),
        ("gpt2", {"d_vocab_out": 5}, "tie_word_embeddings with d_vocab=13 but d_vocab_out=5"),
        ("gpt2", {"rotary_base": 5.0}, "rotary_base=5.0 would have no effect: the positions are not rotary"),
        ("gpt2", {"parallel_shared_norm": True}, "attention and MLP are not parallel"),
        ("gpt2", {"normalization_type": None, "eps": 0.1}, "eps=0.1 would have no effect: there is no norm"),
        ("gemma2", {"window_size": None}, "would have no effect: there is no window"),
        ("gemma2", {"attn_types": ("local",)}, "attn_types names 1 layers; n_layers=2"),
        ("gemma2", {"attn_types": ("global", "global")}, "window_size=4 would have no effect"),
        ("encoder", {"window_size": 3}, "window_size needs attention_dir='causal'"),
        ("gpt2", {"qk_norm_over_width": True}, "queries and keys are not normed"),
        ("gptj", {"rotary_dim": 3}, "rotary_dim=3; it must be even"),
        ("gptj", {"rotary_dim": 6}, "between 2 and d_head=5"),
        ("gptj", {"norm_position": "post"}, "parallel_attn_mlp needs norm_position='pre'"),
        ("llama", {"bias_norm": True}, "bias_norm=True would have no effect: only 'LN' has a norm bias"),
        ("output_ln", {"gated_mlp": True}, "gated_mlp needs an act_fn of each neuron alone, not 'solu_ln'"),
        ("attn_only", {"gated_mlp": True}, "gated_mlp=True would have no effect: attn_only has no MLP"),
        ("attn_only", {"d_mlp": 8}, "d_mlp=8 would have no effect"),
        ("attn_only", {"act_fn": "relu"}, "act_fn='relu' would have no effect"),
    ],
)
def test_a_contradictory_config_says_why(base: str, change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match="GPTConfig cannot be built") as caught:
        config(base, **change)
    assert message in str(caught.value)


def test_a_head_size_is_not_rounded() -> None:
    with pytest.raises(ValueError, match="d_model=14 is no multiple of n_heads=3: say which d_head"):
        GPTConfig(n_layers=1, d_model=14, n_heads=3, n_ctx=4, d_vocab=5)


def test_all_faults_of_a_config_are_in_one_error() -> None:
    with pytest.raises(ValueError, match="GPTConfig cannot be built") as caught:
        config("gpt2", dropout=-0.1, rotary_dim=4, n_key_value_heads=2, parallel_shared_norm=True)
    assert str(caught.value).count("\n  - ") == 4


def test_a_config_goes_through_json_unchanged() -> None:
    for name in ("gpt2", "llama", "attn_only", "gemma2"):
        cfg = config(name, dtype=torch.bfloat16)
        assert GPTConfig.from_dict(json.loads(json.dumps(cfg.to_dict()))) == cfg


def test_a_config_refuses_unknown_and_missing_fields_by_name() -> None:
    values = config("gpt2").to_dict()
    with pytest.raises(ValueError, match=r"unknown config fields: \['n_embd'\]; GPTConfig has"):
        GPTConfig.from_dict(values | {"n_embd": 3})
    with pytest.raises(ValueError, match=r"missing config fields: \['n_ctx'\]"):
        GPTConfig.from_dict({k: v for k, v in values.items() if k != "n_ctx"})
    with pytest.raises(ValueError, match="unknown dtype 'int8'"):
        GPTConfig.from_dict(values | {"dtype": "int8"})
