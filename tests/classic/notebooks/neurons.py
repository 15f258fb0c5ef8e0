"""Neurons one by one: what each adds to an answer, and whether taking it away takes that away."""

import torch
from transformer_lens import HookedTransformer

torch.set_grad_enabled(False)
model = HookedTransformer.from_pretrained("stdlib-4l")
prompt = "try:\n    import json\nexcept"
right, wrong = model.to_single_token(" ImportError"), model.to_single_token(" Exception")
logits, cache = model.run_with_cache(prompt)
direction = model.W_U[:, right] - model.W_U[:, wrong]
diff = lambda logits: (logits[0, -1, right] - logits[0, -1, wrong]).item()

last = model.cfg.n_layers - 1
written = cache.get_neuron_results(last, pos_slice=-1)[0]
scale = cache["ln_final.hook_scale"][0, -1]
attribution = written @ direction / scale
stack, labels = cache.stack_neuron_results(-1, pos_slice=-1, return_labels=True, project_output_onto=direction)
parts, part_labels = cache.get_full_resid_decomposition(
    expand_neurons=True, apply_ln=True, pos_slice=-1, return_labels=True, project_output_onto=direction
)
best = attribution.argmax().item()


def silence(post, hook):
    post[:, -1, best] = 0
    return post


dropped = diff(logits) - diff(model.run_with_hooks(prompt, fwd_hooks=[(f"blocks.{last}.mlp.hook_post", silence)]))
torch.set_grad_enabled(True)
print(f"{diff(logits):.2f}", f"L{last}N{best}", attribution[best].item(), dropped)

assert diff(logits) > 2
assert written.shape == (1024, 256)
assert torch.allclose(written.sum(0), cache["mlp_out", last][0, -1], atol=1e-3)
assert len(labels) == 4096
assert labels[1024 + 3] == "L1N3"
assert torch.allclose(stack[-1024:].flatten() / scale, attribution, atol=1e-3)
assert abs(parts.sum().item() - diff(logits)) < 1e-2
assert len(part_labels) == len(parts)
assert abs(dropped - attribution[best].item()) < 0.3 * dropped
