"""Hooks that remember: contexts, levels, permanent hooks, and what a reset leaves."""

import torch
from transformer_lens import HookedTransformer, HookedTransformerConfig, utils

model = HookedTransformer(
    HookedTransformerConfig(n_layers=2, d_model=16, n_heads=2, d_head=8, n_ctx=8, d_vocab=10, act_fn="gelu", seed=0)
)
tokens = torch.arange(8)[None]
calls = []


def remember(x, hook):
    hook.ctx["seen"] = hook.ctx.get("seen", 0) + 1
    hook.ctx["largest"] = x.abs().max().item()


def halve(x, hook):
    return x / 2


def note(x, hook):
    calls.append((hook.name, hook.layer()))


plain = model(tokens)
name = utils.get_act_name("resid_pre", 1)
model.add_perma_hook(name, remember)
for _ in range(3):
    model(tokens)
seen_after_three = model.hook_dict[name].ctx["seen"]
with model.hooks(fwd_hooks=[(name, halve), (lambda n: n.endswith("hook_z"), note)]):
    inside = model(tokens)
after = model(tokens)
model.run_with_hooks(tokens, fwd_hooks=[(name, halve)], clear_contexts=True)
cleared = dict(model.hook_dict[name].ctx)

model.add_hook(name, halve, level=1)
lasting = model(tokens)
model.reset_hooks(level=1)
back = model(tokens)
has_permanent = model.hook_dict[name].has_hooks(including_permanent=True)
model.reset_hooks(including_permanent=True)

assert seen_after_three == 3
assert cleared == {}
assert not torch.allclose(inside, plain, atol=1e-4)
assert torch.allclose(after, plain, atol=1e-5)
assert calls == [("blocks.0.attn.hook_z", 0), ("blocks.1.attn.hook_z", 1)]
assert torch.allclose(lasting, inside, atol=1e-5)
assert torch.allclose(back, plain, atol=1e-5)
assert has_permanent
assert not any(point.has_hooks() for point in model.hook_points())
