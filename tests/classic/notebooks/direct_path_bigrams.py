"""Without its attention a transformer learns bigrams: the direct path W_E W_U becomes their log-probabilities."""

import torch
from transformer_lens import HookedTransformer, HookedTransformerConfig, utils

n_tokens = 6
cfg = HookedTransformerConfig(
    n_layers=1,
    d_model=12,
    n_heads=1,
    d_head=12,
    n_ctx=12,
    d_vocab=n_tokens,
    attn_only=True,
    normalization_type=None,
    seed=0,
    device="cpu",
)
model = HookedTransformer(cfg)
torch.manual_seed(0)
chain = torch.full((n_tokens, n_tokens), 0.04)
chain[torch.arange(n_tokens), (torch.arange(n_tokens) * 5 + 1) % n_tokens] = 0.8  # each has one usual successor
text = torch.zeros(150, 12, dtype=torch.long)
text[:, 0] = torch.randint(0, n_tokens, (150,))
for i in range(1, 12):
    text[:, i] = torch.multinomial(chain[text[:, i - 1]], 1)[:, 0]

no_attention = [("blocks.0.hook_attn_out", lambda x, hook: torch.zeros_like(x))]
model.pos_embed.W_pos.data.zero_()
model.pos_embed.W_pos.requires_grad = False
optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
for _ in range(50):
    loss = model.run_with_hooks(text, return_type="loss", fwd_hooks=no_attention)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()

learned = (model.W_E @ model.W_U + model.b_U).softmax(-1).detach()
best = -(chain * chain.log()).sum(-1).mean().item()
print(f"{loss.item():.3f} nats, {best:.3f} at best", learned.round(decimals=2))

assert abs(loss.item() - best) < 0.05
assert (learned - chain).abs().max() < 0.08
assert abs(utils.lm_accuracy(model.run_with_hooks(text, fwd_hooks=no_attention), text).item() - 0.8) < 0.04
