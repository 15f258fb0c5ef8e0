"""Causal tracing: noise on the words that matter, and where in the model a clean state brings the answer back."""

import torch
from transformer_lens import HookedTransformer, utils

torch.set_grad_enabled(False)
model = HookedTransformer.from_pretrained("stdlib-4l")
prompt = "try:\n    import json\nexcept"
answer = model.to_single_token(" ImportError")
tokens = model.to_tokens(prompt)
subject = model.get_token_position(" import", tokens)
logits, clean = model.run_with_cache(tokens)
torch.manual_seed(1)
noise = 10 * clean["hook_embed"].std() * torch.randn(8, model.cfg.d_model)
batch = tokens.expand(8, -1)
prob = lambda logits: logits[:, -1].softmax(-1)[:, answer].mean().item()


def corrupt(embed, hook):
    embed[:, subject] += noise
    return embed


def traced(name, pos):
    def restore(x, hook):
        x[:, pos] = clean[hook.name][:, pos]
        return x

    return prob(model.run_with_hooks(batch, fwd_hooks=[("hook_embed", corrupt), (name, restore)]))


high = prob(logits)
low = prob(model.run_with_hooks(batch, fwd_hooks=[("hook_embed", corrupt)]))
last = tokens.shape[1] - 1
grid = torch.tensor([[traced(utils.get_act_name("resid_pre", i), pos) for pos in (subject, last)] for i in range(4)])
torch.set_grad_enabled(True)
print(f"{high:.2f} with noise {low:.2f}", grid.round(decimals=2), sep="\n")

assert high > 0.8
assert low < high - 0.2
assert abs(grid[0, 0] - high) < 1e-3  # the word itself, before any layer
assert abs(grid[0, 1] - low) < 1e-3  # the last word knows nothing yet
assert grid[3, 1] > high - 0.1
assert grid[3, 0] < grid[0, 0]
