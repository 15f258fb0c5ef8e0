"""Hooks belong to a call, act in order, and say what is wrong."""

import gc
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from interp import HookedGPT, HookedModule, HookPoint
from tests.variants import some_tokens, variant

TOKENS = some_tokens()
Z = "blocks.1.attn.hook_z"


@pytest.fixture
def model() -> HookedGPT:
    return variant("gpt2")


def zero(x: Tensor, hook: HookPoint) -> Tensor:
    return x * 0


def test_a_hook_sees_the_value_and_knows_where_it_is(model: HookedGPT) -> None:
    seen: list[tuple[str, int, list[int]]] = []
    model.run_with_hooks(TOKENS, fwd_hooks=[(Z, lambda x, hook: seen.append((hook.name, hook.layer(), list(x.shape))))])
    assert seen == [(Z, 1, [3, 7, 3, 5])]
    with pytest.raises(ValueError, match="belongs to no layer"):
        model.hook_dict["hook_embed"].layer()


def test_names_may_be_globs_lists_and_predicates(model: HookedGPT) -> None:
    for names, count in [
        (Z, 1),
        ("blocks.*.attn.hook_z", 2),
        ([Z, "hook_embed"], 2),
        (["blocks.*.attn.hook_z", Z], 2),
        (lambda name: name.endswith("hook_z"), 2),
        ("*", len(model.hook_dict)),
    ]:
        assert len(model.hook_names(names)) == count


def test_an_edit_in_place_equals_a_returned_one_gradients_included(model: HookedGPT) -> None:
    def in_place(x: Tensor, hook: HookPoint) -> None:
        x[:, 2] = 0
        x.mul_(3)

    def returned(x: Tensor, hook: HookPoint) -> Tensor:
        keep = torch.ones_like(x)
        keep[:, 2] = 0
        return x * keep * 3

    results = []
    for fn in (in_place, returned):
        loss = model.run_with_hooks(TOKENS, "loss", fwd_hooks=[("blocks.*.hook_resid_mid", fn)])
        results.append((loss, *torch.autograd.grad(loss, list(model.parameters()))))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


def test_edits_do_not_reach_other_activations_of_the_pass(model: HookedGPT) -> None:
    with torch.no_grad():
        _, clean = model.run_with_cache(TOKENS)

        def overwrite(x: Tensor, hook: HookPoint) -> None:
            x.fill_(7)

        _, edited = model.run_with_cache(TOKENS, fwd_hooks=[("blocks.1.hook_resid_pre", overwrite)])
    assert torch.equal(edited["resid_post", 0], clean["resid_post", 0])
    assert (edited["resid_pre", 1] == 7).all()


def test_order_is_lasting_then_outer_then_inner_then_list_then_cache(model: HookedGPT) -> None:
    order: list[str] = []

    def note(label: str) -> Any:
        def fn(x: Tensor, hook: HookPoint) -> Tensor:
            order.append(label)
            return x + len(order)

        return fn

    plain = model.run_with_cache(TOKENS, names_filter=Z)[1][Z]
    order.clear()
    with model.hooks([(Z, note("outer"))]):
        model.add_hook(Z, note("lasting"))
        with model.hooks([(Z, note("inner a")), ("*attn.hook_z", note("inner b"))]):
            _, cache = model.run_with_cache(TOKENS, names_filter=Z, fwd_hooks=[(Z, note("call"))])
    model.reset_hooks()
    at_z1 = [label for label in order if label != "inner b"] + ["inner b"]
    assert order[0] == "inner b", "the glob also matched layer 0, which comes first"
    assert order[1:] == ["lasting", "outer", "inner a", "inner b", "call"]
    torch.testing.assert_close(cache[Z], plain + sum(range(2, 7)) + 0 * len(at_z1), atol=10, rtol=10)
    assert model.run_with_cache(TOKENS, names_filter=Z)[1][Z].equal(plain)


def test_nothing_survives_the_context_however_it_is_left(model: HookedGPT) -> None:
    clean = model(TOKENS)
    with model.hooks([(Z, zero)]):
        assert not torch.allclose(model(TOKENS), clean)
    assert torch.equal(model(TOKENS), clean)
    for error in (ValueError, KeyboardInterrupt, SystemExit):

        def fail(x: Tensor, hook: HookPoint, error: type[BaseException] = error) -> None:
            raise error

        with pytest.raises(error):
            model.run_with_hooks(TOKENS, fwd_hooks=[("hook_embed", zero), (Z, fail)])
        with pytest.raises(error):
            model.run_with_cache(TOKENS, fwd_hooks=[(Z, fail)])
        with pytest.raises(error), model.hooks([(Z, zero)]), model.hooks([("hook_embed", zero)]):
            raise error
        assert torch.equal(model(TOKENS), clean)
    assert not model.is_observed()


def test_an_error_in_a_hook_names_the_hook(model: HookedGPT) -> None:
    def fail(x: Tensor, hook: HookPoint) -> None:
        raise RuntimeError("what I meant")

    with pytest.raises(RuntimeError, match="what I meant") as caught:
        model.run_with_hooks(TOKENS, fwd_hooks=[(Z, fail)])
    assert caught.value.__notes__ == [f"raised by the hook at {Z}"]


def test_lasting_hooks_act_until_reset(model: HookedGPT) -> None:
    clean = model(TOKENS)
    model.add_hook("blocks.*.attn.hook_z", zero)
    edited = model(TOKENS)
    assert not torch.allclose(edited, clean)
    assert torch.equal(edited, model(TOKENS))
    model.reset_hooks()
    assert torch.equal(model(TOKENS), clean)
    grads: list[Tensor] = []
    model.add_hook(Z, lambda grad, hook: grads.append(grad), dir="bwd")
    model(TOKENS, "loss").backward()
    assert len(grads) == 1


def test_hooks_of_one_model_do_not_touch_another() -> None:
    a, b = variant("gpt2"), variant("gpt2")
    with a.hooks([(Z, zero)]):
        assert torch.equal(b(TOKENS), variant("gpt2")(TOKENS))
        assert not b.is_observed()


def test_a_hook_may_call_the_model_it_hangs_on(model: HookedGPT) -> None:
    clean = model.run_with_cache(TOKENS, names_filter=Z)[1][Z]

    def from_a_clean_run(x: Tensor, hook: HookPoint) -> Tensor:
        return model.run_with_cache(TOKENS, names_filter=Z)[1][Z]

    with model.hooks([("blocks.0.hook_resid_pre", zero), (Z, from_a_clean_run)]):
        _, cache = model.run_with_cache(TOKENS, names_filter=Z)
    assert torch.equal(cache[Z], clean)


def test_a_lasting_hook_may_call_the_model_it_hangs_on(model: HookedGPT) -> None:
    clean = model.run_with_cache(TOKENS, names_filter=Z)[1][Z]
    model.add_hook(Z, lambda x, hook: 2 * model.run_with_cache(TOKENS, names_filter=Z)[1][Z])
    assert torch.equal(model.run_with_cache(TOKENS, names_filter=Z)[1][Z], 2 * clean)


def test_contexts_held_by_generators_may_end_out_of_order(model: HookedGPT) -> None:
    def within(factor: int) -> Iterator[None]:
        with model.hooks([("hook_embed", lambda x, hook: x * factor)]):
            yield

    double, triple = within(2), within(3)
    next(double)
    next(triple)
    double.close()
    tripled = model(TOKENS)
    triple.close()
    assert not model.is_observed()
    assert torch.equal(tripled, model.run_with_hooks(TOKENS, fwd_hooks=[("hook_embed", lambda x, hook: x * 3)]))


def test_a_lasting_backward_hook_leaves_passes_without_gradients_alone(model: HookedGPT) -> None:
    model.add_hook(Z, zero, dir="bwd")
    with torch.no_grad():
        assert model(TOKENS).isfinite().all()


def test_activation_checkpointing_replays_the_hooks_of_the_call() -> None:
    def gradients(model: HookedGPT) -> list[Tensor]:
        hooks = [(Z, lambda x, hook: x * 3), ("blocks.0.attn.hook_pattern", lambda x, hook: x * 0.5)]
        with model.hooks(hooks):
            loss, _ = model.run_with_cache(TOKENS, "loss", names_filter="*hook_pattern")
        return list(torch.autograd.grad(loss, list(model.parameters())))

    model, twin = variant("llama", torch.float64), variant("llama", torch.float64)
    for block in twin.blocks:
        run = block.forward
        block.forward = lambda *args, run=run: checkpoint(run, *args, use_reentrant=False)
    for ours, theirs in zip(gradients(twin), gradients(model), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_backward_hooks_see_and_change_gradients_also_after_the_context(model: HookedGPT) -> None:
    order: list[str] = []
    with model.hooks(bwd_hooks=[("blocks.*.hook_resid_post", lambda grad, hook: order.append(hook.name))]):
        loss = model(TOKENS, "loss")
    loss.backward()
    assert order == ["blocks.1.hook_resid_post", "blocks.0.hook_resid_post"]
    model.zero_grad()
    model.run_with_hooks(TOKENS, "loss", bwd_hooks=[("blocks.1.hook_resid_pre", zero)]).backward()
    assert not model.grad("W_Q", 0).any()
    assert model.grad("W_Q", 1).any()


def test_a_backward_hook_on_one_name_of_a_tensor_leaves_its_other_name_alone(model: HookedGPT) -> None:
    """`resid_post` of a layer and `resid_pre` of the next are one tensor, and two nodes of the graph."""
    seen: dict[str, Tensor] = {}

    def keep(grad: Tensor, hook: HookPoint) -> None:
        seen[hook.name] = grad

    hooks = [("blocks.0.hook_resid_post", keep), ("blocks.1.hook_resid_pre", zero)]
    model.run_with_hooks(TOKENS, "loss", bwd_hooks=hooks).backward()
    assert not seen["blocks.0.hook_resid_post"].any()


def test_backward_hooks_fire_on_a_frozen_model_and_refuse_where_they_cannot(model: HookedGPT) -> None:
    seen: list[Tensor] = []
    hooks = [(Z, lambda grad, hook: seen.append(grad))]
    model.requires_grad_(False)
    model.run_with_hooks(TOKENS, "loss", bwd_hooks=hooks).backward()
    assert seen[0].any()
    with torch.no_grad(), pytest.raises(RuntimeError, match=rf"{Z} cannot fire: gradients are switched off"):
        model.run_with_hooks(TOKENS, bwd_hooks=hooks)
    _, cache = model.run_with_cache(TOKENS, "loss", incl_bwd=True)
    assert cache["resid_pre_grad", 0].any()


def test_unknown_names_are_refused_with_the_nearest(model: HookedGPT) -> None:
    with pytest.raises(KeyError, match=r"hook_resid_prr.*did you mean.*blocks.0.hook_resid_pre"):
        model.run_with_hooks(TOKENS, fwd_hooks=[("blocks.0.hook_resid_prr", zero)])
    with pytest.raises(KeyError, match=r"blocks.9.\*"):
        model.run_with_cache(TOKENS, names_filter="blocks.9.*")
    with pytest.raises(KeyError, match="accepts no hook point"), model.hooks([(lambda name: False, zero)]):
        pass
    with pytest.raises(KeyError, match="nonsense"):
        model.add_hook([Z, "nonsense"], zero)
    assert torch.equal(model(TOKENS), variant("gpt2")(TOKENS)), "nothing was half attached"


def test_a_hook_that_could_not_fire_is_refused(model: HookedGPT) -> None:
    for names in (Z, ["blocks.*.attn.hook_z", Z]):
        with pytest.raises(ValueError, match=r"would never fire.*blocks.1.attn.hook_z.*stop_at_layer=1"):
            model.run_with_hooks(TOKENS, fwd_hooks=[(names, zero)], stop_at_layer=1)
    with pytest.raises(ValueError, match="would never fire"):
        model.run_with_cache(TOKENS, names_filter="ln_final.hook_scale", stop_at_layer=1)
    with pytest.raises(ValueError, match="would never fire"):
        model.run_with_hooks(torch.randn(3, 7, 14), fwd_hooks=[("hook_embed", zero)], start_at_layer=1)
    model.run_with_hooks(TOKENS, fwd_hooks=[("blocks.*.attn.hook_z", zero)], stop_at_layer=1)


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        (
            lambda x, hook: x[:, :3],
            ValueError,
            r"hook_z returned \[3, 3, 3, 5\].*\[batch pos head d_head\].*\[3, 7, 3, 5\]",
        ),
        (lambda x, hook: x.long(), ValueError, r"hook_z returned .*torch.int64.*torch.float32"),
        (lambda x, hook: x.to("meta"), ValueError, r"hook_z returned .*on meta.*on cpu"),
        (lambda x, hook: 3, TypeError, r"hook_z returned a int"),
    ],
)
def test_a_hook_that_returns_something_else_is_refused(model: HookedGPT, bad: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        model.run_with_hooks(TOKENS, fwd_hooks=[(Z, bad)])


def test_a_hook_may_return_another_precision(model: HookedGPT) -> None:
    half = model.bfloat16()
    out = half.run_with_hooks(TOKENS, fwd_hooks=[(Z, lambda x, hook: x.float() * 2)])
    assert out.dtype == torch.bfloat16


@pytest.mark.slow
def test_sixteen_threads_share_one_model_each_with_hooks_of_its_own() -> None:
    model = variant("gpt2")
    inputs = [torch.roll(TOKENS, i, 1) for i in range(16)]

    def work(i: int) -> tuple[Tensor, list[Tensor]]:
        names = list(model.hook_dict)[i::5]
        edits = [(f"blocks.{i % 2}.attn.hook_z", lambda x, hook: x * i), ("hook_embed", lambda x, hook: x + i / 10)]
        with torch.no_grad(), model.hooks(edits[: i % 3]):
            names = [name for name in names if ".ln1." not in name]
            logits, cache = model.run_with_cache(inputs[i], names_filter=names)
        return logits, list(cache.values())

    alone = [work(i) for i in range(16)]
    failures: list[str] = []

    def repeat(i: int) -> None:
        for _ in range(100):
            logits, values = work(i)
            same = torch.equal(logits, alone[i][0])
            same &= all(torch.equal(a, b) for a, b in zip(values, alone[i][1], strict=True))
            if not same:
                failures.append(f"thread {i}")

    threads = [threading.Thread(target=repeat, args=(i,)) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert not model.is_observed()


def test_a_cache_is_freed_with_its_last_reference(model: HookedGPT) -> None:
    with torch.no_grad():
        _, cache = model.run_with_cache(TOKENS)
    tensor = weakref.ref(cache["pattern", 0])
    del cache
    gc.collect()
    assert tensor() is None


def test_describe_hooks_has_a_row_for_every_hook_point(model: HookedGPT) -> None:
    table = model.describe_hooks()
    assert repr(table) == str(table)
    names = {line.split("  ")[0] for line in table.splitlines()[1:]}
    assert names == {
        name.replace("blocks.0.", "blocks.{layer}.").replace("blocks.1.", "blocks.{layer}.") for name in model.hook_dict
    }
    assert "on demand" in next(line for line in table.splitlines() if "hook_pattern" in line)


def test_any_network_can_have_hook_points() -> None:
    class Two(HookedModule):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.ModuleList([HookPoint("batch", "x"), HookPoint("batch", "2x")])
            self.setup()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner[1](2 * self.inner[0](x))

    two = Two()
    assert list(two.hook_dict) == ["inner.0", "inner.1"]
    edited = two.run_with_hooks(torch.ones(2), fwd_hooks=[("inner.0", lambda x, hook: x + 1)])
    assert edited.tolist() == [4, 4]
