"""Hooks that last, by level and permanence; contexts; and any module as a root of hook points."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from interp.classic import HookedRootModule
from interp.classic.hook_points import HookPoint
from tests.classic.shapes import filled, rows

POINT = "blocks.1.hook_resid_pre"


class Sum(HookedRootModule):
    """x W and then its square, summed."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 4, bias=False)
        self.hook_product = HookPoint()
        self.hook_square = HookPoint()
        self.setup()

    def forward(self, x: Tensor) -> Tensor:
        return self.hook_square(self.hook_product(self.linear(x)).square()).sum()


def test_any_module_is_run_with_hooks_and_with_a_cache() -> None:
    model, x = Sum(), torch.randn(5, 3)
    out, cache = model.run_with_cache(x, incl_bwd=True)
    assert list(cache) == ["hook_product", "hook_square", "hook_square_grad", "hook_product_grad"]
    torch.testing.assert_close(cache["hook_product_grad"], 2 * cache["hook_product"])
    assert model.run_with_hooks(x, fwd_hooks=[("hook_product", lambda x, hook: 0 * x)]) == 0
    assert model(x) == out
    assert model.linear.weight.grad is None
    assert list(model.mod_dict) == ["linear", "hook_product", "hook_square"]
    _, one = model.run_with_cache(x[:1], names_filter=lambda name: "square" in name, remove_batch_dim=True)
    assert {name: tuple(tensor.shape) for name, tensor in one.items()} == {"hook_square": (4,)}


def test_hooks_last_until_they_are_reset_by_level_and_direction() -> None:
    model, seen = Sum(), list[str]()
    note = lambda name: lambda x, hook: seen.append(name)
    model.add_hook("hook_product", note("plain"))
    model.add_hook("hook_product", note("first"), prepend=True)
    model.add_hook(lambda name: "product" in name, note("level 2"), level=2)
    model.add_perma_hook("hook_product", note("for ever"))
    model.add_hook("hook_product", note("backward"), "bwd")
    model(torch.ones(1, 3)).backward()
    assert seen == ["first", "plain", "level 2", "for ever", "backward"]
    model.reset_hooks(level=2)
    model.reset_hooks(direction="bwd")
    seen.clear()
    model(torch.ones(1, 3)).backward()
    assert seen == ["first", "plain", "for ever"]
    assert model.hook_product.has_hooks("fwd")
    assert not model.hook_product.has_hooks("bwd")
    model.reset_hooks()
    assert [len(each) for each in model.list_hooks().values()] == [1]
    assert not model.list_hooks(including_permanent=False)
    model.reset_hooks(including_permanent=True)
    seen.clear()
    model(torch.ones(1, 3))
    assert seen == []


def test_hooks_remember_in_their_context_until_it_is_cleared() -> None:
    model = Sum()
    keep = lambda x, hook: hook.ctx.update(mean=x.mean().item())
    model.run_with_hooks(torch.ones(1, 3), fwd_hooks=[("hook_square", keep)])
    assert "mean" in model.hook_square.ctx
    model.run_with_hooks(torch.ones(1, 3), fwd_hooks=[("hook_square", keep)], clear_contexts=True)
    assert model.hook_square.ctx == {}


def test_hooks_of_a_block_may_outlive_it() -> None:
    model, x = Sum(), torch.ones(1, 3)
    whole = model(x)
    with model.hooks([("hook_square", lambda x, hook: 2 * x)], reset_hooks_end=False):
        pass
    torch.testing.assert_close(model(x), 2 * whole)
    model.reset_hooks()
    assert model(x) == whole


def test_caching_hooks_fill_a_dict() -> None:
    model, tokens = filled("gpt2"), rows()
    _, cache = model.run_with_cache(tokens)
    kept, forward, backward = model.get_caching_hooks(["blocks.0.attn.hook_z", POINT], incl_bwd=True)
    model.run_with_hooks(tokens, return_type="loss", fwd_hooks=forward, bwd_hooks=backward).backward()
    assert list(kept) == ["blocks.0.attn.hook_z", POINT, f"{POINT}_grad", "blocks.0.attn.hook_z_grad"]
    torch.testing.assert_close(kept[POINT], cache[POINT])
    lasting = model.add_caching_hooks("hook_embed")
    model(tokens)
    torch.testing.assert_close(lasting["hook_embed"], cache["hook_embed"])
    model.reset_hooks()
    lasting.clear()
    model(tokens)
    assert not lasting


def test_a_backward_hook_may_return_a_tuple() -> None:
    model, tokens = filled("gpt2"), rows()

    def gone(grad: Tensor, hook: Any) -> tuple[Tensor]:
        return (torch.zeros_like(grad),)

    model.run_with_hooks(tokens, return_type="loss", bwd_hooks=[(POINT, gone)]).backward()
    assert not model.W_E.grad.any()  # type: ignore[union-attr]
    assert model.blocks[1].attn.qkv.weight.grad.any()  # type: ignore[union-attr]


def test_what_does_not_exist_is_named() -> None:
    model = filled("gpt2")
    with pytest.raises(KeyError, match=r"blocks\.0\.hook_resid_pr"):
        model.add_hook("blocks.0.hook_resid_pr", lambda x, hook: None)
