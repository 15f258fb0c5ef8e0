"""Which layers, and which heads, say `value` and not `item`? The stream taken apart in the direction of the answer."""

import torch
from transformer_lens import HookedTransformer

model = HookedTransformer.from_pretrained("stdlib-4l")
prompt = "for key, value in items.items():\n    print(key,"
logits, cache = model.run_with_cache(prompt)
right, wrong = model.to_single_token(" value"), model.to_single_token(" item")
logit_diff = (logits[0, -1, right] - logits[0, -1, wrong]).item()

direction = model.tokens_to_residual_directions(right) - model.tokens_to_residual_directions(wrong)
final = cache["resid_post", -1][0, -1] / cache["ln_final.hook_scale"][0, -1]
by_hand = (final @ direction).item()

layers, labels = cache.decompose_resid(layer=-1, pos_slice=-1, return_labels=True)
by_layer = cache.logit_attrs(layers, right, incorrect_tokens=wrong, pos_slice=-1)[:, 0]
heads, head_labels = cache.stack_head_results(layer=-1, pos_slice=-1, return_labels=True)
by_head = (cache.apply_ln_to_stack(heads, layer=-1, pos_slice=-1)[:, 0] @ direction).detach()
accumulated = cache.accumulated_resid(layer=-1, incl_mid=True, pos_slice=-1, apply_ln=False)
most = [head_labels[i] for i in by_head.topk(4).indices]
print(f"{logit_diff:.2f}", dict(zip(labels, by_layer.tolist(), strict=True)), most)

assert logit_diff > 3
assert abs(by_hand - logit_diff) < 1e-3
assert abs(by_layer.sum().item() - logit_diff) < 1e-2
assert labels[0] == "embed"
assert "1_attn_out" in labels
assert "3_mlp_out" in labels
assert by_head.view(4, 8).sum(1).argmax() == 1
assert most[0].startswith("L1")
assert len(accumulated) == 9
assert torch.allclose(accumulated[-1, 0], cache["resid_post", 3][0, -1], atol=1e-5)
