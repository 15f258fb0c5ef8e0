"""Attribution patching: (clean - corrupted) * gradient, beside what patching really does."""

import torch
from transformer_lens import HookedTransformer, patching

model = HookedTransformer.from_pretrained("stdlib-4l")
clean = model.to_tokens("for key, value in items.items():\n    print(key,")
corrupted = model.to_tokens("for key, item in items.items():\n    print(key,")
right, wrong = model.to_single_token(" value"), model.to_single_token(" item")


def metric(logits):
    return logits[0, -1, right] - logits[0, -1, wrong]


def run_with_grads(tokens):
    model.reset_hooks()
    forward, backward = {}, {}
    names = lambda name: name.endswith(("hook_z", "resid_pre"))
    model.add_hook(names, lambda x, hook: forward.update({hook.name: x.detach()}), "fwd")
    model.add_hook(names, lambda grad, hook: backward.update({hook.name: grad.detach()}), "bwd")
    value = metric(model(tokens))
    value.backward()
    model.reset_hooks()
    model.zero_grad()
    return value.item(), forward, backward


high, clean_acts, clean_grads = run_with_grads(clean)
low, bad_acts, bad_grads = run_with_grads(corrupted)
z_names = [f"blocks.{layer}.attn.hook_z" for layer in range(4)]
changes = {name: clean_acts[name] - bad_acts[name] for name in z_names}
guess = torch.stack([(changes[name] * bad_grads[name]).sum(dim=(0, 1, 3)) for name in z_names])
backwards = torch.stack([(changes[name] * clean_grads[name]).sum(dim=(0, 1, 3)) for name in z_names])
_, clean_cache = model.run_with_cache(clean)
truth = patching.get_act_patch_attn_head_out_all_pos(model, corrupted, clean_cache, metric) - low
both = torch.stack([guess.flatten(), (guess + backwards).flatten() / 2, truth.flatten()])
match, match_of_mean = torch.corrcoef(both)[-1, :2].tolist()
print(f"{low:.2f} -> {high:.2f}, correlation {match:.3f}, {match_of_mean:.3f}")

assert high > low + 4
assert match > 0.6
assert match_of_mean > match + 0.03
assert divmod(guess.argmax().item(), 8)[0] == divmod(truth.argmax().item(), 8)[0] == 1
assert set(bad_grads) == set(bad_acts)
assert len(bad_grads) == 8
assert all(parameter.grad is None or not parameter.grad.any() for parameter in model.parameters())
