"""What must always hold, in the classic calls, at the tolerances of `tests/model/test_identities.py`."""

from typing import Any

import pytest
import torch
from torch import Tensor

from interp.classic import HookedTransformer, HookedTransformerConfig, patching
from interp.classic import config as fields
from tests.classic.shapes import KINDS, SIZES, filled, rows

CLEAN = rows()
CORRUPTED = (CLEAN + 5) % 29
WITH_MID = [kind for kind in KINDS if not KINDS[kind].get("parallel_attn_mlp") and not KINDS[kind].get("attn_only")]


def exact(kind: str) -> HookedTransformer:
    return filled(kind).to(torch.float64)


def relative(error: Tensor, whole: Tensor) -> float:
    return (error.norm() / whole.norm()).item()


def layers(model: HookedTransformer) -> range:
    return range(model.cfg.n_layers)


@pytest.mark.parametrize("kind", KINDS)
def test_the_whole_clean_stream_in_a_corrupted_run_gives_the_clean_logits(kind: str) -> None:
    model = exact(kind)
    logits, clean = model.run_with_cache(CLEAN)
    points = ["resid_pre", "resid_post", *(["resid_mid"] if kind in WITH_MID else [])]
    assert {name.rpartition("hook_")[2] for name in clean if "hook_resid_" in name} == set(points)
    for point in points:
        off = patching.generic_activation_patch(
            model,
            CORRUPTED,
            clean,
            lambda patched: relative(patched - logits, logits),
            patch_setter=lambda corrupted, index, cached: cached,
            activation_name=point,
            index_axis_names=["layer"],
        )
        assert off.shape == (2,)
        assert off.max() <= 1e-12, point
        for layer in layers(model):
            name = f"blocks.{layer}.hook_{point}"
            unchanged = model.run_with_hooks(CLEAN, fwd_hooks=[(name, lambda x, hook: clean[hook.name])])
            assert relative(unchanged - logits, logits) <= 1e-12, name
    assert relative(model(CORRUPTED) - logits, logits) > 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_a_sweep_by_position_ends_where_the_whole_stream_does(kind: str) -> None:
    """The last position of the last layer's stream is all that the last logits depend on."""
    model = exact(kind)
    logits, clean = model.run_with_cache(CLEAN)
    metric = lambda patched: relative(patched[:, -1] - logits[:, -1], logits[:, -1])
    at_the_end = patching.get_act_patch_resid_pre(model, CORRUPTED, clean, metric)
    same = patching.get_act_patch_resid_pre(model, CLEAN, clean, metric)
    assert same.max() <= 1e-12
    assert at_the_end[0, :-1].min() > 1e-4
    last = patching.generic_activation_patch(
        model,
        CORRUPTED,
        clean,
        metric,
        patching.layer_pos_patch_setter,
        "resid_post",
        index_axis_names=["layer", "pos"],
    )
    assert last[-1, -1] <= 1e-12
    assert last[-1, :-1].min() > 0.01


@pytest.mark.parametrize("kind", WITH_MID)
def test_an_edit_of_resid_mid_reaches_the_mlp_and_the_skip_connection(kind: str) -> None:
    model = exact(kind)
    _, before = model.run_with_cache(CLEAN)
    model.add_hook("blocks.0.hook_resid_mid", lambda x, hook: x + torch.linspace(-1, 1, 24, dtype=x.dtype))
    _, after = model.run_with_cache(CLEAN)
    model.reset_hooks()
    assert not torch.allclose(before["mlp_out", 0], after["mlp_out", 0])
    assert not torch.allclose(before["resid_mid", 0], after["resid_mid", 0])
    torch.testing.assert_close(after["resid_mid", 0] + after["mlp_out", 0], after["resid_post", 0])


@pytest.mark.parametrize("kind", WITH_MID)
def test_the_gradient_at_resid_mid_is_that_at_attn_out(kind: str) -> None:
    model, by_hook = exact(kind), dict[str, Tensor]()
    _, cache = model.run_with_cache(CLEAN, return_type="loss", incl_bwd=True)
    take = lambda grad, hook: by_hook.update({hook.name: grad.clone()})
    model.add_hook(lambda name: name.endswith(("resid_mid", "attn_out")), take, dir="bwd")
    model(CLEAN, return_type="loss").backward()
    for layer in layers(model):
        mid, out = cache["resid_mid_grad", layer], cache["attn_out_grad", layer]
        assert mid.abs().max() > 1e-6
        torch.testing.assert_close(mid, out, rtol=1e-10, atol=1e-12)
        for point, grad in (("resid_mid", mid), ("attn_out", out)):
            torch.testing.assert_close(by_hook[f"blocks.{layer}.hook_{point}"], grad, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_parts_sum_to_the_stream_and_scores_become_the_pattern(kind: str) -> None:
    model = exact(kind)
    model.set_use_attn_result(True)
    _, cache = model.run_with_cache(CLEAN)
    model.set_use_attn_result(False)
    _, plain = model.run_with_cache(CLEAN)
    plain.compute_head_results()
    for layer in layers(model):
        torch.testing.assert_close(cache["attn_scores", layer].softmax(-1), cache["pattern", layer])
        assert not cache["pattern", layer].triu(1).any()
        torch.testing.assert_close(cache["result", layer], plain["result", layer])
        torch.testing.assert_close(cache["result", layer].sum(2) + model.b_O[layer], cache["attn_out", layer])
        parts = cache["resid_pre", layer] + cache["attn_out", layer]
        if kind in WITH_MID:
            torch.testing.assert_close(parts, cache["resid_mid", layer])
        parts = parts if kind == "attention" else parts + cache["mlp_out", layer]
        torch.testing.assert_close(parts, cache["resid_post", layer])


@pytest.mark.parametrize("kind", KINDS)
def test_decompositions_sum_to_the_stream(kind: str) -> None:
    model = exact(kind)
    _, cache = model.run_with_cache(CLEAN)
    whole = cache["resid_post", -1]
    for expand in (True, False):
        parts, labels = cache.get_full_resid_decomposition(expand_neurons=expand, return_labels=True)
        assert relative(parts.sum(0) - whole, whole) <= 1e-12
        assert len(parts) == len(labels)
    assert relative(cache.decompose_resid().sum(0) - whole, whole) <= 1e-12
    heads = cache.stack_head_results(incl_remainder=True)
    assert relative(heads.sum(0) - whole, whole) <= 1e-12


CHANGES: list[tuple[str, dict[str, Any]]] = [
    ("gpt2", {"n_layers": 3}),
    ("gpt2", {"act_fn": "relu"}),
    ("gpt2", {"eps": 0.1}),
    ("gpt2", {"use_attn_scale": False}),
    ("gpt2", {"attn_scale": 1.0}),
    ("gpt2", {"attention_dir": "bidirectional"}),
    ("gpt2", {"normalization_type": "RMS"}),
    ("gpt2", {"normalization_type": "RMSPre"}),
    ("gpt2", {"normalization_type": None}),
    ("gpt2", {"uses_rms_norm": True}),
    ("gpt2", {"use_normalization_before_and_after": True}),
    ("gpt2", {"positional_embedding_type": "rotary"}),
    ("gpt2", {"parallel_attn_mlp": True}),
    ("gpt2", {"gated_mlp": True}),
    ("gpt2", {"attn_only": True}),
    ("gpt2", {"tie_word_embeddings": True}),
    ("gpt2", {"n_key_value_heads": 1}),
    ("gpt2", {"use_qk_norm": True}),
    ("gpt2", {"use_local_attn": True, "window_size": 3}),
    ("gpt2", {"use_local_attn": True, "window_size": 3, "attn_types": ["global", "local"]}),
    ("gpt2", {"attn_scores_soft_cap": 0.5}),
    ("gpt2", {"output_logits_soft_cap": 0.5}),
    ("gpt2", {"initializer_range": 0.5}),
    ("gpt2", {"init_mode": "xavier"}),
    ("gpt2", {"seed": 5}),
    ("gpt2", {"dtype": "bfloat16"}),
    ("neox", {"rotary_dim": 2}),
    ("neox", {"rotary_base": 100}),
    ("neox", {"rotary_adjacent_pairs": True}),
    ("neox", {"rotary_scaling_factor": 2.0}),
    ("neox", {"rotary_base_local": 50.0, "use_local_attn": True, "window_size": 8, "attn_types": ["local", "local"]}),
    ("neox", {"use_NTK_by_parts_rope": True, "NTK_original_ctx_len": 8}),
    ("neox", {"use_yarn_rope": True, "yarn_factor": 4.0, "yarn_original_max_position_embeddings": 8}),
    ("gpt2", {"positional_embedding_type": "alibi"}),
    ("gpt2", {"post_embedding_ln": True}),
    ("gpt2", {"clip_qkv": 0.1}),
]
NTK: dict[str, Any] = {"use_NTK_by_parts_rope": True, "NTK_original_ctx_len": 8}
DETAILS = {"NTK_by_parts_low_freq_factor": 0.5, "NTK_by_parts_high_freq_factor": 9.0, "NTK_by_parts_factor": 2.0}
DETAILS |= {"NTK_original_ctx_len": 90}
YARN: dict[str, Any] = {"use_yarn_rope": True, "yarn_factor": 4.0, "rotary_dim": 8}
DETAILS |= {"yarn_factor": 2.0, "yarn_attention_factor": 1.3, "yarn_beta_fast": 2.0, "yarn_beta_slow": 0.1}
DETAILS |= {"yarn_original_max_position_embeddings": 90}


def logits(kind: str, **changes: Any) -> Tensor:
    model = HookedTransformer(HookedTransformerConfig(**KINDS[kind] | {"seed": 0, "initializer_range": 0.3} | changes))
    return model(CLEAN).detach().double()


@pytest.mark.parametrize(("kind", "change"), CHANGES, ids=[str(change) for _, change in CHANGES])
def test_every_option_changes_the_model(kind: str, change: dict[str, Any]) -> None:
    assert relative(logits(kind, **change) - logits(kind), logits(kind)) > 1e-4


@pytest.mark.parametrize("name", DETAILS)
def test_every_detail_of_slower_rotation_changes_the_model(name: str) -> None:
    way = NTK if name.startswith("NTK") else YARN
    one, other = logits("neox", **way), logits("neox", **way | {name: DETAILS[name]})
    assert relative(one - other, one) > 1e-4


IDLE: list[tuple[str, dict[str, Any]]] = [
    ("gpt2", {"use_local_attn": True}),
    ("gpt2", {"attn_types": ["global", "local"]}),
    ("gpt2", {"rotary_dim": 4}),
    ("gpt2", {"rotary_base": 500}),
    ("gpt2", {"rotary_adjacent_pairs": True}),
    ("neox", {"NTK_by_parts_factor": 2.0}),
    ("neox", {"NTK_original_ctx_len": 90}),
    ("neox", {"yarn_factor": 2.0}),
    ("gpt2", {"use_yarn_rope": True}),
    ("gpt2", {"n_devices": 2}),
    ("llama", {"use_attn_in": True}),
    ("attention", {"use_hook_mlp_in": True}),
]


@pytest.mark.parametrize(("kind", "change"), IDLE, ids=[f"{kind} {change}" for kind, change in IDLE])
def test_an_option_that_would_change_nothing_is_refused_by_name(kind: str, change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        logits(kind, **change)


@pytest.mark.parametrize("name", fields._MISSING)
def test_what_is_not_here_is_refused_by_name(name: str) -> None:
    idle = fields._MISSING[name]
    wrong = not idle if isinstance(idle, bool) else 2 if idle is None else idle + 1
    with pytest.raises(ValueError, match=name):
        HookedTransformerConfig(**SIZES, **{name: wrong})


@pytest.mark.parametrize("switch", ["use_attn_result", "use_split_qkv_input", "use_hook_mlp_in", "use_attn_in"])
def test_a_switch_in_the_config_puts_more_into_a_whole_cache(switch: str) -> None:
    names = [
        set(HookedTransformer(HookedTransformerConfig(**KINDS["gpt2"], **{switch: on})).run_with_cache(CLEAN)[1])
        for on in (False, True)
    ]
    assert names[0] < names[1]


def test_every_classic_field_that_computes_is_tried_above() -> None:
    tried = {name for _, change in (*CHANGES, *IDLE) for name in change} | set(DETAILS) | set(fields._MISSING)
    assert set(fields._TRANSLATED) <= tried | {"n_params"}
