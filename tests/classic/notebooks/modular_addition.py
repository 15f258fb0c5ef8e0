"""A grokked transformer adds modulo 113: in which frequencies, and what do its neurons see?"""

import torch
from transformer_lens import HookedTransformer

p = 113
model = HookedTransformer.from_pretrained("modular-addition")
a, b = torch.meshgrid(torch.arange(p), torch.arange(0, p, 7), indexing="ij")
tokens = torch.stack([a.flatten(), b.flatten(), torch.full_like(a, p).flatten()], dim=1)
logits, cache = model.run_with_cache(tokens, names_filter=lambda name: "hook_post" in name or "pattern" in name)
accuracy = (logits[:, -1].argmax(-1) == tokens[:, :2].sum(1) % p).float().mean().item()

angles = 2 * torch.pi * torch.arange(1, 57)[:, None] * torch.arange(p) / p
cos, sin = (wave / wave.norm(dim=1, keepdim=True) for wave in (angles.cos(), angles.sin()))


def power(of_number):
    """The share of each frequency in functions [number function] of a number."""
    found = (cos @ of_number).square() + (sin @ of_number).square()
    return found / found.sum(0)


W_E = model.W_E[:p].detach()
share = ((cos @ W_E).square() + (sin @ W_E).square()).sum(1)
share = share / share.sum()
key = (share > 0.04).nonzero().flatten() + 1
post = cache["post", 0][:, -1].detach()
tuning = post.view(p, -1, model.cfg.d_mlp).mean(1)  # over the second number
busy = tuning.std(0) > 0.1 * tuning.std(0).max()
neuron_share, favourite = power(tuning[:, busy]).max(0)
favourite = favourite + 1
shifted = model(torch.stack([(a + 5) % p, (b - 5) % p, torch.full_like(a, p)], dim=-1).view(-1, 3))
print("key frequencies", key.tolist(), f"hold {share[key - 1].sum():.2f}", favourite.bincount(), neuron_share.median())

assert accuracy == 1.0
assert 3 <= len(key) <= 8
assert share[key - 1].sum() > 0.75
assert torch.isin(favourite, (share > 0.02).nonzero().flatten() + 1).float().mean() > 0.9
assert neuron_share.median() > 0.9
assert (shifted[:, -1].argmax(-1) == logits[:, -1].argmax(-1)).all()
assert cache["pattern", 0][:, :, -1, 2].mean() < 0.02  # nobody looks at the sign of equality
