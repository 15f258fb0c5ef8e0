"""A one-layer attention-only model learns to say at the last position what stood at the first."""

import torch
from transformer_lens import HookedTransformer, HookedTransformerConfig

cfg = HookedTransformerConfig(
    n_layers=1,
    d_model=32,
    n_heads=2,
    d_head=16,
    n_ctx=6,
    d_vocab=8,
    attn_only=True,
    normalization_type=None,
    seed=3,
    device="cpu",
)
model = HookedTransformer(cfg)
optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
torch.manual_seed(0)
losses = []
for _ in range(60):
    tokens = torch.randint(0, 8, (64, 6))
    loss = torch.nn.functional.cross_entropy(model(tokens)[:, -1], tokens[:, 0])
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    losses.append(loss.item())

tokens = torch.randint(0, 8, (200, 6))
logits, cache = model.run_with_cache(tokens)
accuracy = (logits[:, -1].argmax(-1) == tokens[:, 0]).float().mean().item()
looks_at = cache["pattern", 0][:, :, -1].mean(0)
copies = model.W_E @ model.OV[0, looks_at[:, 0].argmax()].AB @ model.W_U
print(f"loss {losses[0]:.2f} -> {losses[-1]:.3f}, accuracy {accuracy:.2f}", looks_at.detach())

assert losses[0] > 1.9
assert losses[-1] < 0.2
assert accuracy > 0.97
assert looks_at[:, 0].max() > 0.6
assert (copies.argmax(-1) == torch.arange(8)).float().mean() > 0.8
