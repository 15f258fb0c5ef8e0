"""A compiled model: run in a process of its own, as dynamo cannot trace functions whose annotations are checked."""

import copy

import pytest
import torch
from torch import Tensor

from interp import HookedGPT, KVCache
from tests.variants import some_tokens, variant

TOKENS = some_tokens()
MASK = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1, 1]])
n_graphs = 0


def counting(graph: torch.fx.GraphModule, example: list[Tensor]) -> torch.fx.GraphModule:
    global n_graphs
    n_graphs += 1
    return graph


def zero(x: Tensor, hook: object) -> Tensor:
    return x * 0


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def check_hooks_act(called: HookedGPT, model: HookedGPT, eager: HookedGPT) -> None:
    """`called` wraps or is `model`; `eager` is a twin that was never compiled."""
    clean = eager(TOKENS)
    close(called(TOKENS), clean)
    with eager.hooks([("blocks.0.attn.hook_pattern", zero)]):
        edited = eager(TOKENS)
    for _ in range(2):  # set after compiling, gone again, set again
        with model.hooks([("blocks.0.attn.hook_pattern", zero)]):
            close(called(TOKENS), edited)
        close(called(TOKENS), clean)
    model.add_hook("blocks.0.attn.hook_pattern", zero)
    close(called(TOKENS), edited)
    model.reset_hooks()
    close(called(TOKENS), clean)
    _, cache = model.run_with_cache(TOKENS)
    assert "blocks.1.attn.hook_pattern" in cache


def main() -> None:
    global n_graphs
    for name in ("gpt2", "llama", "gptj", "post", "sandwich", "attn_only"):
        torch._dynamo.reset()
        eager, model = variant(name), variant(name)
        model.compile(backend=counting)
        n_graphs = 0
        with torch.no_grad():
            check_hooks_act(model, model, eager)
        assert n_graphs == 1, f"{name}: one graph, and no new one for hooks; got {n_graphs}"
        close(model(TOKENS, attention_mask=MASK), eager(TOKENS, attention_mask=MASK))
        loss = model(TOKENS, "loss")
        close(loss, eager(TOKENS, "loss"))
        loss.backward()
        eager(TOKENS, "loss").backward()
        for ours, theirs in zip(model.parameters(), eager.parameters(), strict=True):
            close(ours.grad, theirs.grad)
        twin = copy.deepcopy(model)
        close(twin(TOKENS), eager(TOKENS))

        torch._dynamo.reset()
        hooked_before = variant(name)
        with torch.no_grad(), hooked_before.hooks([("hook_embed", zero)]):
            wrapped = torch.compile(hooked_before, backend=counting)
            close(wrapped(TOKENS), eager.run_with_hooks(TOKENS, fwd_hooks=[("hook_embed", zero)]))
        n_graphs = 0
        with torch.no_grad():
            check_hooks_act(wrapped, hooked_before, eager)
        assert n_graphs >= 1, "a plain torch.compile(model) compiles the unobserved pass"

    for how in ("in place", "wrapped"):
        model = variant("gpt2")
        if how == "in place":
            model.blocks[1].compile(backend=counting)
        else:
            model.blocks[1] = torch.compile(model.blocks[1], backend=counting)
        close(model(TOKENS), variant("gpt2")(TOKENS))
        with pytest.raises(ValueError, match=r"blocks.1 is compiled by itself"):
            model.run_with_hooks(TOKENS, fwd_hooks=[("blocks.0.attn.hook_pattern", zero)])

    past, eager_past, model, eager = KVCache(room=9), KVCache(room=9), variant("llama"), variant("llama")
    model.compile(backend=counting)
    with torch.no_grad():
        for i in range(7):
            step = model(TOKENS[:, i : i + 1], past_kv_cache=past)
            close(step, eager(TOKENS[:, i : i + 1], past_kv_cache=eager_past))

    torch._dynamo.reset()
    real, eager = variant("llama"), variant("llama")
    real.compile()  # with the compiler that users get
    with torch.no_grad():
        close(real(TOKENS), eager(TOKENS))
    print("compiled models hold")


if __name__ == "__main__":
    main()
