"""The logit lens: what each layer would say if the model ended there."""

import torch
from transformer_lens import HookedTransformer

model = HookedTransformer.from_pretrained("stdlib-4l")
prompt = "try:\n    import json\nexcept"
answer = model.to_single_token(" ImportError")
logits, cache = model.run_with_cache(prompt)

stack, labels = cache.accumulated_resid(layer=-1, incl_mid=True, apply_ln=True, pos_slice=-1, return_labels=True)
lens = model.unembed(stack)[:, 0]
ranks = (lens > lens[:, [answer]]).sum(dim=-1)
probs = lens.softmax(dim=-1)[:, answer]
for label, rank, prob in zip(labels, ranks, probs, strict=True):
    print(f"{label:12} rank {rank.item():5d} p {prob.item():.3f}")

by_hand = model.unembed(model.ln_final(cache["resid_pre", 2][:, -1:]))[0, 0]
assert torch.allclose(lens[-1], logits[0, -1], atol=1e-3)
assert torch.allclose(lens[labels.index("2_pre")], by_hand, atol=1e-3)
assert ranks[-1] == 0
assert probs[-1] > 0.8
assert ranks[0] > 20
assert probs[0] < 0.01
assert probs[labels.index("1_mid")] > 100 * probs[labels.index("1_pre")]
