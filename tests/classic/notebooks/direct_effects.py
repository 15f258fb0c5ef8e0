"""Direct and total effects of heads: into the logits alone, or through everything that comes later."""

import torch
from transformer_lens import HookedTransformer, utils

torch.set_grad_enabled(False)
model = HookedTransformer.from_pretrained("stdlib-4l")
clean = model.to_tokens("for key, value in items.items():\n    print(key,")
corrupted = model.to_tokens("for key, item in items.items():\n    print(key,")
right, wrong = model.to_single_token(" value"), model.to_single_token(" item")
diff = lambda logits: (logits[0, -1, right] - logits[0, -1, wrong]).item()
clean_logits, clean_cache = model.run_with_cache(clean)
bad_logits, bad_cache = model.run_with_cache(corrupted)
final = utils.get_act_name("resid_post", 3)


def direct(layer, head):
    change = (clean_cache["z", layer] - bad_cache["z", layer])[:, :, head] @ model.W_O[layer, head]
    return diff(model.run_with_hooks(corrupted, fwd_hooks=[(final, lambda resid, hook: resid + change)]))


def total(layer, head):
    def patch(z, hook):
        z[:, :, head] = clean_cache[hook.name][:, :, head]
        return z

    return diff(model.run_with_hooks(corrupted, fwd_hooks=[(utils.get_act_name("z", layer), patch)]))


base = diff(bad_logits)
directs = torch.tensor([[direct(layer, head) - base for head in range(8)] for layer in (0, 1)])
totals = torch.tensor([[total(layer, head) - base for head in range(8)] for layer in (0, 1)])
torch.set_grad_enabled(True)
print(directs.round(decimals=2), totals.round(decimals=2), sep="\n")

assert diff(clean_logits) - base > 5
assert directs[1].max() > 2
assert abs(totals[1].max() - directs[1].max()) < 0.5
assert totals[0].max() > 2
assert directs[0].abs().max() < 0.3
assert directs[1].argmax() == totals[1].argmax()
