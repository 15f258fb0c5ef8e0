"""The model in pieces: stopped at a layer, started from a stream, with a layer skipped or said twice."""

import torch
from transformer_lens import HookedTransformer

torch.set_grad_enabled(False)
model = HookedTransformer.from_pretrained("stdlib-4l")
tokens = model.to_tokens("import os\nimport sys\nimport os\nimport sys\nimport os\nimport")
logits, loss = model(tokens, return_type="both")
resid = model(tokens, stop_at_layer=2)
resumed = model(resid, start_at_layer=2)
between = model(resid, start_at_layer=2, stop_at_layer=3)
_, cache = model.run_with_cache(tokens, stop_at_layer=2)
by_hand = resid
for block in model.blocks[2:]:
    by_hand = block(by_hand)
by_hand = model.unembed(model.ln_final(by_hand))
per_token = model(tokens, return_type="loss", loss_per_token=True)
nothing = model(tokens, return_type=None)


def skipped(layer):
    swap = lambda resid, hook: kept["before"]
    keep = lambda resid, hook: kept.update(before=resid.clone())
    kept = {}
    hooks = [(f"blocks.{layer}.hook_resid_pre", keep), (f"blocks.{layer}.hook_resid_post", swap)]
    return model.run_with_hooks(tokens, return_type="loss", fwd_hooks=hooks).item()


costs = [skipped(layer) - loss.item() for layer in range(4)]
torch.set_grad_enabled(True)
print([round(cost, 2) for cost in costs])

assert torch.allclose(resumed, logits, atol=1e-4)
assert torch.allclose(by_hand, logits, atol=1e-4)
assert torch.allclose(between, model(tokens, stop_at_layer=3), atol=1e-4)
assert "blocks.1.hook_resid_post" in cache
assert "blocks.2.hook_resid_pre" not in cache
assert nothing is None
assert per_token.shape == (1, tokens.shape[1] - 1)
assert abs(per_token.mean().item() - loss.item()) < 1e-5
assert costs[0] == max(costs)
assert costs[0] > 2
assert costs[1] > max(costs[2:])
