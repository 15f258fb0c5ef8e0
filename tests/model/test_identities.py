"""What must always hold, on every variant."""

import pytest
import torch
from torch import Tensor

from interp import ActivationCache, GPTConfig, HookedGPT, HookPoint
from interp.config import RopeScaling
from tests.variants import EACH, VARIANTS, config, quick_of, some_tokens, variant

CLEAN = some_tokens()
CORRUPTED = (CLEAN + 5) % 13


def relative(error: Tensor, whole: Tensor) -> float:
    return (error.norm() / whole.norm()).item()


@pytest.mark.parametrize("dtype", quick_of([torch.float32, torch.float64], torch.float64))
@pytest.mark.parametrize("name", EACH)
def test_patching_the_whole_stream_into_a_corrupted_run_gives_the_clean_logits(name: str, dtype: torch.dtype) -> None:
    model = variant(name, dtype)
    logits, clean = model.run_with_cache(CLEAN)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    for hook_name in (n for n in clean if "hook_resid_" in n):
        patched = model.run_with_hooks(CORRUPTED, fwd_hooks=[(hook_name, lambda x, hook: clean[hook.name])])
        assert relative(patched - logits, logits) <= tolerance, hook_name
        unchanged = model.run_with_hooks(CLEAN, fwd_hooks=[(hook_name, lambda x, hook: clean[hook.name])])
        assert relative(unchanged - logits, logits) <= tolerance, hook_name
    assert relative(model(CORRUPTED) - logits, logits) > 0.01


@pytest.mark.parametrize(
    "name", quick_of([n for n in VARIANTS if not VARIANTS[n].get("parallel_attn_mlp")], "gpt2", "post", "gemma2")
)
def test_an_edit_of_resid_mid_reaches_the_mlp_and_the_skip_connection(name: str) -> None:
    model = variant(name, torch.float64)
    if model.cfg.attn_only:
        assert "blocks.0.hook_resid_mid" not in model.hook_dict
        return
    bump = lambda x, hook: x + torch.linspace(-1, 1, 14)
    _, before = model.run_with_cache(CLEAN)
    _, after = model.run_with_cache(CLEAN, fwd_hooks=[("blocks.0.hook_resid_mid", bump)])
    assert not torch.allclose(before["mlp_out", 0], after["mlp_out", 0])
    written = after["resid_mid", 0] + after["mlp_out", 0]
    if model.cfg.norm_position == "post":
        written = model.blocks[0].ln2_post(written)
    torch.testing.assert_close(written, after["resid_post", 0])


@pytest.mark.parametrize("name", [n for n in VARIANTS if "resid_mid" in str(list(variant(n).hook_dict))])
def test_the_gradient_at_resid_mid_is_that_at_attn_out(name: str) -> None:
    model = variant(name, torch.float64)
    _, cache = model.run_with_cache(CLEAN, incl_bwd=True, loss_fn=lambda logits: logits.square().sum())
    for layer in range(model.cfg.n_layers):
        at_mid = cache["resid_mid_grad", layer]
        if model.cfg.norm_position == "post":  # up to the norm of the sum
            total = (cache["resid_pre", layer] + cache["attn_out", layer]).detach().requires_grad_()
            (at_mid,) = torch.autograd.grad(model.blocks[layer].ln1_post(total), total, at_mid)
        torch.testing.assert_close(at_mid, cache["attn_out_grad", layer], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", EACH)
def test_parts_sum_to_the_stream_and_scores_become_the_pattern(name: str) -> None:
    model = variant(name, torch.float64)
    _, cache = model.run_with_cache(CLEAN, names_filter=lambda _: True)
    for layer, block in enumerate(model.blocks):
        torch.testing.assert_close(cache["attn_scores", layer].softmax(-1), cache["pattern", layer])
        assert cache["pattern", layer].sum(-1).allclose(torch.ones((), dtype=torch.float64))
        written = cache["result", layer].sum(2) + (0 if block.attn.b_O is None else block.attn.b_O)
        if model.cfg.norm_position in ("output", "both"):
            written = block.ln1_post(written)
        torch.testing.assert_close(written, cache["attn_out", layer])
        parts = cache["resid_pre", layer] + cache["attn_out", layer]
        if f"blocks.{layer}.hook_resid_mid" in cache:
            parts = block.ln1_post(parts) if model.cfg.norm_position == "post" else parts
            torch.testing.assert_close(parts, cache["resid_mid", layer])
        if not model.cfg.attn_only:
            parts = parts + cache["mlp_out", layer]
        last_norm = block.ln1_post if model.cfg.attn_only else getattr(block, "ln2_post", None)
        parts = last_norm(parts) if model.cfg.norm_position == "post" else parts
        torch.testing.assert_close(parts, cache["resid_post", layer])
    if model.cfg.attention_dir == "causal":
        assert not cache["pattern", 0].triu(1).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", EACH)
def test_the_full_decomposition_sums_to_the_stream(name: str, dtype: torch.dtype) -> None:
    model = variant(name, dtype)
    _, cache = model.run_with_cache(CLEAN)
    if model.cfg.norm_position == "post":
        with pytest.raises(ValueError, match="no sum of parts"):
            cache.get_full_resid_decomposition()
        return
    whole = cache["resid_post", -1]
    tolerance = 1e-4 if dtype == torch.float32 else 1e-12
    for expand in (True, False):
        parts, labels = cache.get_full_resid_decomposition(expand_neurons=expand, return_labels=True)
        assert relative(parts.sum(0) - whole, whole) <= tolerance
        assert len(parts) == len(labels) == len(set(labels))
    assert relative(cache.decompose_resid().sum(0) - whole, whole) <= tolerance


@pytest.mark.parametrize("name", quick_of([n for n in VARIANTS if n != "encoder"], "gpt2", "gptj", "gemma2"))
def test_the_future_does_not_move_the_past(name: str) -> None:
    model = variant(name, torch.float64)
    later = CLEAN.clone()
    later[:, 4:] = CORRUPTED[:, 4:]
    torch.testing.assert_close(model(later)[:, :4], model(CLEAN)[:, :4], rtol=1e-12, atol=1e-12)
    assert not torch.allclose(model(later)[:, 4:], model(CLEAN)[:, 4:])


@pytest.mark.parametrize("dtype", quick_of([torch.float32, torch.float64], torch.float64))
@pytest.mark.parametrize("name", EACH)
def test_padding_on_either_side_changes_nothing(name: str, dtype: torch.dtype) -> None:
    model = variant(name, dtype)
    short = CLEAN[:, :5]
    logits = model(short)
    for left in (True, False):
        pad = torch.full((3, 3), 9)
        tokens = torch.cat((pad, short) if left else (short, pad), 1)
        mask = torch.cat((0 * pad, 1 + 0 * short) if left else (1 + 0 * short, 0 * pad), 1)
        padded = model(tokens, attention_mask=mask)
        real = padded[:, 3:] if left else padded[:, :5]
        assert relative(real - logits, logits) <= (1e-5 if dtype == torch.float32 else 1e-12)
        assert padded.isfinite().all()
        torch.testing.assert_close(model(tokens, "loss", attention_mask=mask), model(short, "loss"))
        _, cache = model.run_with_cache(tokens, attention_mask=mask, names_filter="unembed.hook_out", pos_slice=-1)
        uncapped = model.run_with_cache(tokens, attention_mask=mask, names_filter="unembed.hook_out")[1][
            "unembed.hook_out"
        ]
        torch.testing.assert_close(cache["unembed.hook_out"], uncapped[:, -1] if left else uncapped[:, 4])


@pytest.mark.parametrize("name", EACH)
def test_recording_everything_changes_nothing(name: str) -> None:
    model = variant(name)
    logits, cache = model.run_with_cache(CLEAN)
    assert relative(model(CLEAN) - logits, logits) <= 1e-5
    seen: list[str] = []

    def note(x: Tensor, point: HookPoint) -> None:
        seen.append(point.name)

    with model.recording(list(cache), note):
        model(CLEAN)
    assert seen == list(cache), "cached names come in the order of computation"


LONG = RopeScaling(kind="longrope", original_n_ctx=3, short_factors=(1.0, 1.1, 1.2), long_factors=(2.0, 3.0, 4.0))
CHANGES = [
    ("gpt2", {"act_fn": "relu"}),
    ("gpt2", {"act_fn": "solu"}),
    ("width_norm", {"act_fn": "solu_ln"}),
    ("attn_only", {"positional_embedding_type": "shortformer"}),
    ("gpt2", {"act_fn": "solu_ln", "eps": 1e-2, "normalization_type": None}),
    ("gpt2", {"eps": 0.1}),
    ("gpt2", {"attn_scale": 1.0}),
    ("gpt2", {"n_layers": 3}),
    ("gpt2", {"attention_dir": "bidirectional"}),
    ("gpt2", {"normalization_type": "RMS"}),
    ("gpt2", {"normalization_type": None}),
    ("gpt2", {"norm_position": "post"}),
    ("gpt2", {"norm_position": "output"}),
    ("gpt2", {"norm_position": "both"}),
    ("gpt2", {"positional_embedding_type": "sinusoidal"}),
    ("gpt2", {"positional_embedding_type": "shortformer"}),
    ("gpt2", {"positional_embedding_type": None}),
    ("gpt2", {"parallel_attn_mlp": True}),
    ("gpt2", {"gated_mlp": True}),
    ("gpt2", {"tie_word_embeddings": False}),
    ("gpt2", {"bias_unembed": True}),
    ("gpt2", {"bias_qkv": False}),
    ("gpt2", {"bias_attn_out": False}),
    ("gpt2", {"bias_mlp": False}),
    ("gpt2", {"bias_norm": False}),
    ("gpt2", {"initializer_range": 0.1}),
    ("gpt2", {"init_mode": "xavier"}),
    ("gpt2", {"seed": 5}),
    ("gpt2", {"n_key_value_heads": 1}),
    ("gptj", {"rotary_adjacent_pairs": False}),
    ("gptj", {"rotary_base": 100.0}),
    ("gptj", {"rotary_dim": 2}),
    ("gptj", {"parallel_shared_norm": False}),
    ("sinusoidal", {"normalization_type": "RMSPre"}),
    ("gptj", {"rope_scaling": RopeScaling(kind="linear", factor=2.0)}),
    ("gemma2", {"rope_scaling": RopeScaling(kind="llama3", factor=2.0, original_n_ctx=9)}),
    ("gemma2", {"rope_scaling": RopeScaling(kind="llama3", factor=8.0, original_n_ctx=90)}),
    ("gemma2", {"embed_scale": 1.0}),
    ("gemma2", {"window_size": 2}),
    ("gemma2", {"attn_types": None}),
    ("gemma2", {"attn_scores_soft_cap": None}),
    ("gemma2", {"output_logits_soft_cap": None}),
    ("gemma2", {"local_rotary_base": None}),
    ("qwen3", {"use_qk_norm": False}),
    ("qwen3", {"qk_norm_over_width": True}),
    ("qwen3", {"rotary_layers": (False, True)}),
    ("output_ln", {"embed_norm": False}),
    ("output_ln", {"qk_layer_norm": False}),
    ("relu2", {"positional_embedding_type": None}),
    ("relu2", {"qkv_clip": None}),
    ("llama", {"rope_scaling": RopeScaling(kind="dynamic", factor=4.0, original_n_ctx=3)}),
    ("llama", {"rope_scaling": RopeScaling(kind="yarn", factor=4.0, original_n_ctx=9, attention_factor=1.2)}),
    ("llama", {"rope_scaling": LONG}),
]


@pytest.mark.parametrize(("name", "change"), CHANGES, ids=[str(c) for _, c in CHANGES])
def test_every_option_changes_the_model(name: str, change: dict[str, object]) -> None:
    base, changed = variant(name), variant(name, **change)
    own = dict(base.named_parameters())
    if "seed" not in change and not {"initializer_range", "init_mode"} & set(change):
        with torch.no_grad():  # the same weights wherever both have them, so that only the option differs
            for key, parameter in changed.named_parameters():
                if key in own and own[key].shape == parameter.shape:
                    parameter.copy_(own[key])
    assert relative(changed(CLEAN) - base(CLEAN), base(CLEAN)) > 1e-4


def test_dropout_acts_in_training_alone() -> None:
    model = variant("gpt2", dropout=0.5)
    assert torch.equal(model(CLEAN), model(CLEAN))
    model.train()
    torch.manual_seed(0)
    assert not torch.equal(model(CLEAN), model(CLEAN))
    with model.hooks([("blocks.0.attn.hook_pattern", lambda x, hook: x)]):
        torch.manual_seed(1)
        assert not torch.equal(model(CLEAN), model(CLEAN))


def test_every_config_field_is_tried_somewhere() -> None:
    tried = {key for changes in VARIANTS.values() for key in changes} | {key for _, change in CHANGES for key in change}
    sizes = {"n_layers", "d_model", "n_heads", "d_head", "d_mlp", "n_ctx", "d_vocab"}
    elsewhere = {"dropout", "dtype", "device", "default_prepend_bos"}
    assert set(GPTConfig.__dataclass_fields__) <= tried | sizes | elsewhere


def test_labels_of_a_decomposition_name_its_parts() -> None:
    cache: ActivationCache = variant("gpt2").run_with_cache(CLEAN)[1]
    _, labels = cache.get_full_resid_decomposition(expand_neurons=False, return_labels=True)
    assert labels == ["L0H0", "L0H1", "L0H2", "L1H0", "L1H1", "L1H2", "L0 mlp", "L1 mlp", "embed", "pos_embed", "bias"]
    _, labels = cache.accumulated_resid(incl_mid=True, return_labels=True)
    assert labels == ["L0 pre", "L0 mid", "L1 pre", "L1 mid", "final"]
    _, labels = cache.decompose_resid(1, mlp_input=True, return_labels=True)
    assert labels == ["embed", "pos_embed", "L0 attn", "L0 mlp", "L1 attn"]
    assert isinstance(HookedGPT(config("gpt2")), HookedGPT)
