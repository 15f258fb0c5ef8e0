"""Every variant against the network written out literally, in float64: values, edits, gradients, padding."""

import pytest
import torch
from torch import Tensor

from interp import HookPoint
from tests.reference import Reference
from tests.variants import EACH, VARIANTS, quick_of, some_tokens, variant

LEFT = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1, 1]])
RIGHT = torch.tensor([[1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1, 0]])


def close(ours: Tensor, theirs: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


def edit(x: Tensor) -> Tensor:
    """A change that no symmetry of the network undoes; finite where attention scores are not."""
    ramp = torch.linspace(0.5, 1.5, x.shape[-1], dtype=x.dtype)
    return torch.where(x.isfinite(), x * ramp + 0.1, x)


def own_node(x: Tensor) -> Tensor:
    return x * 1.0 if x.requires_grad else x.clone().requires_grad_()


@pytest.mark.parametrize("mask", [None, LEFT, RIGHT], ids=["unpadded", "left", "right"])
@pytest.mark.parametrize("name", EACH)
def test_every_activation_equals_the_literal_network(name: str, mask: Tensor | None) -> None:
    model = variant(name, torch.float64)
    tokens = some_tokens()
    reference = Reference(model, tokens, mask)
    logits, cache = model.run_with_cache(tokens, names_filter=lambda _: True, attention_mask=mask)
    assert set(cache) == set(reference.values)
    for hook_name, value in cache.items():
        close(value, reference.values[hook_name])
    close(logits, reference.logits)
    close(model(tokens, attention_mask=mask), reference.logits)
    assert model(tokens, attention_mask=mask).isfinite().all()


@pytest.mark.parametrize("name", EACH)
def test_unobserved_float32_pass_equals_the_literal_network(name: str) -> None:
    model = variant(name)
    tokens = some_tokens()
    ours = model(tokens).double()
    theirs = Reference(model.double(), tokens).logits
    assert (ours - theirs).norm() <= 1e-5 * theirs.norm()


@pytest.mark.parametrize("name", quick_of(VARIANTS, "llama"))
def test_an_edit_of_any_quantity_acts_as_if_it_were_always_explicit(name: str) -> None:
    model = variant(name, torch.float64)
    tokens = some_tokens()
    clean = model(tokens)
    for hook_name in model.hook_dict:
        edited = model.run_with_hooks(tokens, fwd_hooks=[(hook_name, lambda x, hook: edit(x))])
        close(edited, Reference(model, tokens, edits={hook_name: edit}).logits)
        assert not torch.allclose(edited, clean), f"an edit of {hook_name} changed nothing"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt2", "llama", "gptj", "encoder", "sandwich"])
def test_edits_act_under_padding_too(name: str) -> None:
    model = variant(name, torch.float64)
    tokens = some_tokens()
    for hook_name in model.hook_dict:
        with model.hooks([(hook_name, lambda x, hook: edit(x))]):
            edited = model(tokens, attention_mask=LEFT)
        close(edited, Reference(model, tokens, LEFT, edits={hook_name: edit}).logits)


@pytest.mark.parametrize("name", EACH)
def test_many_edits_at_once_act_together(name: str) -> None:
    model = variant(name, torch.float64)
    tokens = some_tokens()
    split = ("attn_in", "q_input", "k_input", "v_input", "mlp_in")
    names = [n for n in model.hook_dict if not n.endswith(split)]
    edited = model.run_with_hooks(tokens, fwd_hooks=[(names, lambda x, hook: edit(x))])
    close(edited, Reference(model, tokens, edits=dict.fromkeys(names, edit)).logits, 1e-9)
    names = [n for n in model.hook_dict if ".ln1." not in n]
    edited = model.run_with_hooks(tokens, fwd_hooks=[(names, lambda x, hook: edit(x))])
    close(edited, Reference(model, tokens, edits=dict.fromkeys(names, edit)).logits, 1e-9)


@pytest.mark.parametrize("name", EACH)
def test_parameter_gradients_equal_the_literal_networks(name: str) -> None:
    model = variant(name, torch.float64)
    tokens = some_tokens()
    weighing = torch.randn(3, 7, model.cfg.d_vocab_out, dtype=torch.float64)

    def gradients(logits: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad((logits * weighing).sum(), list(model.parameters())))

    reference = gradients(Reference(model, tokens).logits)
    floor = 1e-6 * sum(g.norm() ** 2 for g in reference) ** 0.5
    everything = lambda _: True
    for logits in (model(tokens), model.run_with_cache(tokens, names_filter=everything)[0]):
        for ours, theirs in zip(gradients(logits), reference, strict=True):
            assert (ours - theirs).norm() <= 1e-4 * theirs.norm() + floor


@pytest.mark.parametrize("name", EACH)
def test_gradients_at_every_hook_point_equal_the_literal_networks(name: str) -> None:
    model = variant(name, torch.float64)
    tokens = some_tokens()
    split = ("attn_in", "q_input", "k_input", "v_input", "mlp_in")
    names = [n for n in model.hook_dict if not n.endswith((*split, "attn_scores"))]
    reference = Reference(model, tokens, edits=dict.fromkeys(names, own_node))
    grads = torch.autograd.grad(reference.logits.square().sum(), [reference.values[n] for n in names])
    _, cache = model.run_with_cache(tokens, names_filter=names, incl_bwd=True, loss_fn=lambda x: x.square().sum())
    for hook_name, grad in zip(names, grads, strict=True):
        close(cache[f"{hook_name}_grad"], grad, 1e-8)


def test_the_gradient_of_a_split_input_is_that_of_its_own_path() -> None:
    model = variant("gpt2", torch.float64)
    tokens = some_tokens()
    names = [
        f"blocks.1.hook_{n}" for n in ("resid_pre", "attn_in", "q_input", "k_input", "v_input", "mlp_in", "resid_mid")
    ]
    loss = lambda logits: logits.square().sum()
    _, cache = model.run_with_cache(tokens, names_filter=names, incl_bwd=True, loss_fn=loss)
    step = torch.randn(3, 7, 14, dtype=torch.float64)
    for name in ("q_input", "k_input", "v_input", "attn_in", "mlp_in"):
        size = 1e-6
        delta = step[:, :, None] if name != "mlp_in" else step

        def moved(sign: int, name: str = name, delta: Tensor = delta, size: float = size) -> Tensor:
            hook = lambda x, hook: x + sign * size * delta
            return loss(model.run_with_hooks(tokens, fwd_hooks=[(f"blocks.1.hook_{name}", hook)]))

        slope = (moved(1) - moved(-1)) / (2 * size)
        predicted = (cache[f"blocks.1.hook_{name}_grad"] * delta).sum()
        torch.testing.assert_close(slope, predicted, rtol=1e-5, atol=1e-6)
    heads = cache["blocks.1.hook_attn_in_grad"].sum(2)
    close(cache["blocks.1.hook_resid_pre_grad"], heads + cache["blocks.1.hook_resid_mid_grad"])


def test_editing_a_norm_that_split_inputs_bypass_is_refused() -> None:
    model = variant("gptj")
    tokens = some_tokens()
    double = lambda x, hook: 2 * x
    for apart in ("hook_attn_in", "hook_q_input", "hook_mlp_in"):
        with pytest.raises(ValueError, match=rf"blocks.1.ln1.hook_scale.*blocks.1.{apart}"):
            model.run_with_hooks(tokens, fwd_hooks=[("blocks.1.ln1.hook_scale", double), (f"blocks.1.{apart}", double)])
        names = ["blocks.1.ln1.hook_scale", f"blocks.1.{apart}"]
        with pytest.raises(ValueError, match=rf"blocks.1.ln1.hook_scale.*blocks.1.{apart}"):
            model.run_with_cache(tokens, "loss", names_filter=names, incl_bwd=True)
    with model.hooks([("blocks.1.ln1.hook_scale", double), ("blocks.0.hook_q_input", double)]):
        assert model(tokens).isfinite().all()


@pytest.mark.parametrize("name", EACH)
def test_every_hook_point_has_the_axes_it_declares(name: str) -> None:
    model = variant(name)
    cfg = model.cfg
    sizes = {"batch": 3, "pos": 7, "query_pos": 7, "key_pos": 7, "head": cfg.n_heads, "kv_head": cfg.n_key_value_heads}
    sizes |= {"d_model": 14, "d_head": cfg.d_head, "d_mlp": cfg.d_mlp, "d_vocab_out": cfg.d_vocab_out, "1": 1}
    seen: list[str] = []

    def record(x: Tensor, hook: HookPoint) -> None:
        assert list(x.shape) == [sizes[axis] for axis in hook.axes.split()], hook.name
        seen.append(hook.name)

    with model.recording("*", record):
        model(some_tokens())
    assert sorted(seen) == sorted(model.hook_dict)


def test_the_hook_points_of_a_model_are_those_of_its_design() -> None:
    block = {"hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_attn_out", "hook_mlp_out", "hook_mlp_in"}
    block |= {"hook_q_input", "hook_k_input", "hook_v_input"}
    norms = {f"{ln}.hook_{x}" for ln in ("ln1", "ln2") for x in ("scale", "normalized")}
    attn = {f"attn.hook_{x}" for x in ("q", "k", "v", "attn_scores", "pattern", "z", "result")}
    mlp = {"mlp.hook_pre", "mlp.hook_post"}
    ends = {"hook_embed", "ln_final.hook_scale", "ln_final.hook_normalized", "unembed.hook_in", "unembed.hook_out"}
    rotary = {"attn.hook_rot_q", "attn.hook_rot_k"}
    outputs = {f"{ln}_post.hook_{x}" for ln in ("ln1", "ln2") for x in ("scale", "normalized")}
    expected = {
        "gpt2": (block | norms | attn | mlp | {"hook_attn_in"}, ends | {"hook_pos_embed"}),
        "llama": (block | norms | attn | mlp | rotary | {"mlp.hook_pre_linear"}, ends),
        "gptj": (
            (block | norms | attn | mlp | rotary | {"hook_attn_in"})
            - {"hook_resid_mid", "ln2.hook_scale", "ln2.hook_normalized"},
            ends,
        ),
        "post": (
            block | outputs | attn | mlp | {"hook_attn_in"},
            {"hook_embed", "hook_pos_embed", "unembed.hook_in", "unembed.hook_out"},
        ),
        "olmo2": (block | outputs | attn | mlp | rotary | {"mlp.hook_pre_linear"}, ends),
        "attn_only": (
            {
                "hook_resid_pre",
                "hook_resid_post",
                "hook_attn_out",
                "hook_attn_in",
                "hook_q_input",
                "hook_k_input",
                "hook_v_input",
            }
            | attn,
            {"hook_embed", "unembed.hook_in", "unembed.hook_out"},
        ),
    }
    for name, (in_block, outside) in expected.items():
        names = {f"blocks.{layer}.{n}" for layer in (0, 1) for n in in_block} | outside
        assert set(variant(name).hook_dict) == names, name
