"""A previous-token head written by hand into W_Q and W_K, found by its score, and used to copy one back."""

import torch
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformer_lens.head_detector import compute_head_attention_similarity_score

n_ctx, n_tokens = 10, 6
d_model = n_ctx + 2 * n_tokens
cfg = HookedTransformerConfig(
    n_layers=1,
    d_model=d_model,
    n_heads=2,
    d_head=n_ctx,
    n_ctx=n_ctx,
    d_vocab=n_tokens,
    attn_only=True,
    normalization_type=None,
    device="cpu",
    seed=0,
)
model = HookedTransformer(cfg)
state = {name: torch.zeros_like(value) for name, value in model.state_dict().items() if "W_" in name or "b_" in name}
where, token, before = slice(0, n_ctx), slice(n_ctx, n_ctx + n_tokens), slice(n_ctx + n_tokens, d_model)
state["pos_embed.W_pos"][:, where] = torch.eye(n_ctx)
state["embed.W_E"][:, token] = torch.eye(n_tokens)
state["blocks.0.attn.W_K"][0, where] = 40 * torch.eye(n_ctx)
state["blocks.0.attn.W_Q"][0, where] = 4 * torch.eye(n_ctx).roll(-1, dims=1).roll(0)  # asks for the place before
state["blocks.0.attn.W_V"][0, token, :n_tokens] = torch.eye(n_tokens)
state["blocks.0.attn.W_O"][0, :n_tokens, before] = torch.eye(n_tokens)
state["unembed.W_U"][before] = torch.eye(n_tokens)
model.load_state_dict(state, strict=False)

torch.manual_seed(0)
tokens = torch.randint(0, n_tokens, (1, n_ctx))
logits, cache = model.run_with_cache(tokens, remove_batch_dim=True)
wanted = torch.eye(n_ctx).roll(-1, dims=1).tril()
options = {"exclude_bos": False, "exclude_current_token": False, "error_measure": "mul"}
scores = [compute_head_attention_similarity_score(pattern, wanted, **options) for pattern in cache["pattern", 0]]
spare_head = model.run_with_hooks(
    tokens, fwd_hooks=[("blocks.0.attn.hook_z", lambda z, hook: z[:, :, :1].repeat(1, 1, 2, 1))]
)
print(scores)

assert scores[0] > 0.85
assert scores[1] < 0.4
assert torch.equal(logits[0, 1:].argmax(-1), tokens[0, :-1])
assert torch.allclose(spare_head, logits, atol=1e-5)
assert torch.allclose(cache["pattern", 0][1, -1], torch.full((n_ctx,), 1 / n_ctx), atol=1e-6)
