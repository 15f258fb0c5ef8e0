"""Which heads attend to what came after this token the last time? Random tokens, twice; then the stripe."""

import torch
from transformer_lens import HookedTransformer, utils

model = HookedTransformer.from_pretrained("stdlib-attn-2l")
torch.manual_seed(0)
seq_len, batch = 40, 4
random_tokens = torch.randint(100, 4000, (batch, seq_len))
bos = torch.full((batch, 1), model.tokenizer.bos_token_id)
repeated = torch.cat([bos, random_tokens, random_tokens], dim=1)

induction_score = torch.zeros(model.cfg.n_layers, model.cfg.n_heads)
previous_score = torch.zeros(model.cfg.n_layers, model.cfg.n_heads)


def score_hook(pattern, hook):
    stripe = pattern.diagonal(dim1=-2, dim2=-1, offset=1 - seq_len)
    before = pattern.diagonal(dim1=-2, dim2=-1, offset=-1)
    induction_score[hook.layer()] = stripe.mean(dim=(0, 2)).detach()
    previous_score[hook.layer()] = before.mean(dim=(0, 2)).detach()


logits = model.run_with_hooks(repeated, fwd_hooks=[(lambda name: name.endswith("pattern"), score_hook)])
loss = utils.lm_cross_entropy_loss(logits, repeated, per_token=True)
first_half, second_half = loss[:, :seq_len].mean().item(), loss[:, seq_len + 1 :].mean().item()
best_layer, best_head = divmod(induction_score.argmax().item(), model.cfg.n_heads)
print(f"induction: L{best_layer}H{best_head}", utils.to_numpy(induction_score).round(2))

assert first_half > 8
assert second_half < 0.5
assert best_layer == 1
assert induction_score.max() > 0.8
assert induction_score[0].max() < 0.05
assert divmod(previous_score.argmax().item(), model.cfg.n_heads)[0] == 0
assert previous_score.max() > 0.85
assert (induction_score[1] > 0.5).sum() >= 4
