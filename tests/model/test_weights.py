"""Weights: views that can be written, stacks, gradients, copies, devices and precisions, initialisation."""

import copy
import io
import pickle
from typing import Any

import pytest
import torch

from interp import HookedGPT
from interp.model.linear import product
from tests.variants import EACH, config, some_tokens, variant

TOKENS = some_tokens()
PER_BLOCK = {
    "attn": ["W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V", "b_O"],
    "mlp": ["W_in", "W_out", "b_in", "b_out"],
}


def prepared(model: HookedGPT, how: str) -> HookedGPT:
    if how == "after to":
        return model.to(torch.float64).to(torch.float32)
    if how == "after a step":
        optimiser = torch.optim.AdamW(model.parameters(), lr=0.1)
        model(TOKENS, "loss").backward()
        optimiser.step()
        model.zero_grad()
    if how == "a copy":
        return copy.deepcopy(model)
    return model


@pytest.mark.parametrize("how", ["fresh", "after to", "after a step", "a copy"])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_per_block_weights_are_views_that_can_be_written(name: str, how: str) -> None:
    model = prepared(variant(name), how)
    clean = model(TOKENS)
    names = PER_BLOCK if name == "gpt2" else {"attn": ["W_Q", "W_K", "W_V", "W_O"], "mlp": ["W_in", "W_out", "W_gate"]}
    for part, weights in names.items():
        for weight in weights:
            owner = getattr(model.blocks[1], part)
            before = getattr(owner, weight).detach().clone()
            with torch.no_grad():
                getattr(owner, weight).mul_(-2)
            assert torch.equal(getattr(owner, weight), -2 * before)
            assert torch.equal(getattr(model, weight)[1], -2 * before)
            if weight != "b_K":  # what every key has in common moves no softmax
                assert not torch.allclose(model(TOKENS), clean), f"writing {weight} changed nothing"
            with torch.no_grad():
                getattr(owner, weight)[:] = before
    assert torch.equal(model(TOKENS), clean)


def test_writing_one_head_through_its_view_silences_it() -> None:
    model = variant("gpt2")
    with torch.no_grad():
        model.blocks[0].attn.W_O[2] = 0
        _, cache = model.run_with_cache(TOKENS, names_filter="*hook_result")
    assert not cache["result", 0][:, :, 2].any()
    assert cache["result", 0][:, :, 1].any()


def test_stacked_weights_have_the_shapes_of_the_theory_and_carry_gradients() -> None:
    model = variant("llama")
    shapes = {"W_Q": (2, 4, 14, 6), "W_K": (2, 2, 14, 6), "W_V": (2, 2, 14, 6), "W_O": (2, 4, 6, 14)}
    shapes |= {"W_in": (2, 14, 17), "W_gate": (2, 14, 17), "W_out": (2, 17, 14), "W_E": (13, 14), "W_U": (14, 13)}
    shapes |= {
        "b_Q": (2, 4, 6),
        "b_K": (2, 2, 6),
        "b_V": (2, 2, 6),
        "b_O": (2, 14),
        "b_in": (2, 17),
        "b_out": (2, 14),
        "b_U": (13,),
    }
    for name, shape in shapes.items():
        assert getattr(model, name).shape == shape, name
        assert name.startswith("W") or not getattr(model, name).any(), "a bias that the model lacks is zeros"
    (model.W_Q.square().sum() + model.W_O.sum()).backward()
    assert torch.allclose(model.grad("W_Q", 1), 2 * model.W_Q[1])
    assert (model.grad("W_O", 0) == 1).all()
    assert not model.grad("W_K", 0).any()
    for missing in ("W_pos", "W_nonsense"):
        with pytest.raises(AttributeError, match=missing):
            getattr(model, missing)
    with pytest.raises(AttributeError, match="W_in"):
        _ = variant("attn_only").W_in


def test_every_head_gets_the_keys_of_its_group() -> None:
    model = variant("llama")
    expanded = model.all_heads(model.W_K)
    assert expanded.shape == (2, 4, 14, 6)
    for head in range(4):
        assert torch.equal(expanded[:, head], model.W_K[:, head // 2])


def test_grad_has_the_layout_of_its_weight() -> None:
    model = variant("gpt2", torch.float64)
    assert model.grad("W_Q", 0) is None
    loss = model(TOKENS, "loss")
    loss.backward()
    step = 1e-6
    for name in ("W_Q", "W_V", "W_O", "b_V", "W_in", "W_out", "b_out"):
        grad = model.grad(name, 1)
        part = model.blocks[1].attn if hasattr(model.blocks[1].attn, name) else model.blocks[1].mlp
        direction = torch.randn(grad.shape, dtype=torch.float64)
        with torch.no_grad():
            getattr(part, name).add_(step * direction)
            slope = (model(TOKENS, "loss") - loss) / step
            getattr(part, name).sub_(step * direction)
        torch.testing.assert_close(slope, (grad * direction).sum(), rtol=1e-3, atol=1e-6)
    expected = model.grad("W_K", 1).clone()
    gradients = torch.cat([p.grad.flatten() for p in model.parameters()])  # as a distributed reducer lays them out
    start = 0
    for p in model.parameters():
        p.grad = gradients[start : start + p.numel()].view_as(p)
        start += p.numel()
    assert torch.equal(model.grad("W_K", 1), expected)
    assert model.grad("W_E").shape == (13, 14)
    assert model.grad("W_U").shape == (14, 13)
    with pytest.raises(KeyError, match=r"say which layer, as in model.grad\('W_Q', 0\)"):
        model.grad("W_Q")
    with pytest.raises(KeyError, match="no weight 'W_X'"):
        model.grad("W_X", 0)


def test_tied_embeddings_stay_tied_through_copies_and_moves() -> None:
    model = variant("gpt2")
    for same in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model)), variant("gpt2").double()):
        assert same.W_U.data_ptr() == same.W_E.data_ptr()
        assert "unembed.weight" not in same.state_dict()
    empty = HookedGPT(config("gpt2", device="meta")).to_empty(device="cpu")
    assert empty.W_U.data_ptr() == empty.W_E.data_ptr()


@pytest.mark.parametrize("name", EACH)
def test_copies_and_state_dicts_give_the_same_logits(name: str) -> None:
    model = variant(name)
    logits = model(TOKENS)
    twin = copy.deepcopy(model)
    thawed = pickle.loads(pickle.dumps(model))
    loaded = HookedGPT(model.cfg).eval()
    loaded.load_state_dict(model.state_dict())
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    from_file = HookedGPT(config(name, seed=9)).eval()
    from_file.load_state_dict(torch.load(file, weights_only=True))
    for other in (twin, thawed, loaded, from_file):
        torch.testing.assert_close(other(TOKENS), logits)  # not bit for bit: kernels look at where weights lie
        assert all(torch.equal(a, b) for a, b in zip(other.parameters(), model.parameters(), strict=True))
    assert not any(other.is_observed() for other in (twin, thawed))
    twin.add_hook("hook_embed", lambda x, hook: x * 0)
    assert torch.equal(model(TOKENS), logits), "a copy's hooks are its own"
    assert not torch.allclose(twin(TOKENS), logits)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", EACH)
def test_half_precision_runs_observed_or_not_and_keeps_its_dtype(name: str, dtype: torch.dtype) -> None:
    model = variant(name)
    exact = model(TOKENS)
    half = model.to(dtype)
    coarse = (variant(name).to(dtype).float()(TOKENS) - exact).norm()  # what rounding the weights alone does
    logits, cache = half.run_with_cache(TOKENS, names_filter=lambda _: True)
    for out in (half(TOKENS), logits):
        assert out.dtype == dtype
        assert (out.float() - exact).norm() <= 4 * coarse + 0.01 * exact.norm()
    assert {value.dtype for key, value in cache.items() if not key.endswith("hook_scale")} == {dtype}
    assert half.dtype == dtype
    assert half(TOKENS, "loss").isfinite()


def test_a_model_on_the_meta_device_costs_nothing() -> None:
    model = HookedGPT(config("gpt2", device="meta", d_model=14_000))
    assert model.device.type == "meta"
    with torch.device("meta"):
        assert HookedGPT(config("gpt2")).device.type == "meta"


@pytest.mark.parametrize("mode", ["gpt2", "xavier", "kaiming", "mup"])
def test_initial_weights_have_the_documented_spread(mode: Any) -> None:
    sizes = {"n_layers": 8, "d_model": 96, "n_heads": 4, "d_head": 20, "d_mlp": 160, "d_vocab": 300}
    model = HookedGPT(config("gpt2", init_mode=mode, tie_word_embeddings=False, initializer_range=0.5, **sizes))
    r = 0.5
    expected = {
        "gpt2": {"W_E": r, "W_Q": r, "W_in": r, "W_O": r / 4, "W_out": r / 4, "W_U": r},
        "xavier": {
            "W_E": r / 96**0.5,
            "W_Q": r * (2 / (96 + 80)) ** 0.5,
            "W_in": r * (2 / 256) ** 0.5,
            "W_O": r * (2 / 176) ** 0.5,
            "W_out": r * (2 / 256) ** 0.5,
            "W_U": r * (2 / 396) ** 0.5,
        },
        "kaiming": {
            "W_E": r / 96**0.5,
            "W_Q": r / 96**0.5,
            "W_in": r / 96**0.5,
            "W_O": r / 80**0.5,
            "W_out": r / 160**0.5,
            "W_U": r / 96**0.5,
        },
        "mup": {
            "W_E": r,
            "W_Q": r / 96**0.5,
            "W_in": r / 96**0.5,
            "W_O": r / 80**0.5,
            "W_out": r / 160**0.5,
            "W_U": r / 96,
        },
    }[mode]
    for name, std in expected.items():
        assert getattr(model, name).std().item() == pytest.approx(std, rel=0.05), name
    assert not model.b_Q.any()
    assert (model.ln_final.w == 1).all()


def test_a_seed_fixes_the_weights_and_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    a, b = HookedGPT(config("gpt2", seed=3)), HookedGPT(config("gpt2", seed=3))
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(a.W_Q, b.W_Q)
    assert not torch.equal(a.W_Q, HookedGPT(config("gpt2", seed=4)).W_Q)
    unseeded = HookedGPT(config("gpt2", seed=None))
    assert not torch.equal(unseeded.W_Q, HookedGPT(config("gpt2", seed=None)).W_Q)
    torch.manual_seed(5)
    assert torch.equal(unseeded.W_Q, HookedGPT(config("gpt2", seed=None)).W_Q)


def test_blocks_begin_nearly_silent() -> None:
    model = HookedGPT(config("gpt2", n_layers=12, d_model=84, d_head=28, d_mlp=336, initializer_range=0.02))
    _, cache = model.run_with_cache(TOKENS)
    embed = (cache["embed"] + cache["pos_embed"]).norm()
    assert (cache["resid_post", -1] - cache["resid_pre", 0]).norm() < 2.5 * embed


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")  # torch's own, in jvp
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [(1,), (2,), (3, 7), (64,)])
def test_the_fast_product_is_the_product(rows: tuple[int, ...], bias: bool) -> None:
    draw = torch.Generator().manual_seed(0)
    x, weight = torch.randn(*rows, 200, generator=draw), torch.randn(400, 200, generator=draw)
    b = torch.randn(400, generator=draw) if bias else None
    exact = x.double() @ weight.double().T + (0 if b is None else b.double())
    with torch.no_grad():
        for w in (weight, weight.T.contiguous().T):
            assert (product(x, w, b) - exact).norm() <= 1e-6 * exact.norm()
        assert (
            product(x[..., ::2], weight[:, ::2], b) - product(x[..., ::2].contiguous(), weight[:, ::2].contiguous(), b)
        ).norm() < 1e-3
    learning = weight.clone().requires_grad_()
    product(x, learning, b).sum().backward()
    assert learning.grad is not None
    if b is not None:
        only_bias = b.clone().requires_grad_()
        product(x, weight, only_bias).sum().backward()
        assert only_bias.grad is not None
    with torch.no_grad():
        tangent = torch.func.jvp(lambda x: product(x, weight, b), (x,), (x,))[1]
        torch.testing.assert_close(tangent, x @ weight.T, rtol=1e-4, atol=1e-3)
        each = torch.func.vmap(lambda x: product(x[None], weight, b))(x.reshape(-1, 200))
        torch.testing.assert_close(each[:, 0], product(x, weight, b).reshape(-1, 400), rtol=1e-4, atol=1e-3)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert product(x, weight, b).dtype == torch.bfloat16


def test_autocast_trains_a_float32_model() -> None:
    for name in ("gpt2", "llama", "sandwich"):
        model = variant(name)
        exact = model(TOKENS, "loss")
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(TOKENS, "loss")
        loss.backward()
        assert loss.item() == pytest.approx(exact.item(), rel=0.05)
        assert model.grad("W_Q", 0).isfinite().all()
