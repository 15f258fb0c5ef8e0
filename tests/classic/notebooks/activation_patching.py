"""Where does the answer come from? Clean activations into a corrupted run, by position, by layer, by head."""

import transformer_lens.patching as patching
from transformer_lens import HookedTransformer

model = HookedTransformer.from_pretrained("stdlib-4l")
clean = model.to_tokens("for key, value in items.items():\n    print(key,")
corrupted = model.to_tokens("for key, item in items.items():\n    print(key,")
assert clean.shape == corrupted.shape
changed = (clean != corrupted)[0].nonzero().item()
right, wrong = model.to_single_token(" value"), model.to_single_token(" item")


def logit_diff(logits):
    return logits[0, -1, right] - logits[0, -1, wrong]


clean_logits, clean_cache = model.run_with_cache(clean)
low, high = logit_diff(model(corrupted)).item(), logit_diff(clean_logits).item()


def metric(logits):
    return (logit_diff(logits) - low) / (high - low)


resid = patching.get_act_patch_resid_pre(model, corrupted, clean_cache, metric)
heads = patching.get_act_patch_attn_head_out_all_pos(model, corrupted, clean_cache, metric)
patterns = patching.get_act_patch_attn_head_pattern_all_pos(model, corrupted, clean_cache, metric)
attention = patching.get_act_patch_attn_out(model, corrupted, clean_cache, metric)
print(resid.round(decimals=2), heads.round(decimals=2), sep="\n")

assert high > 5
assert low < 0
assert abs(resid[0, changed] - 1) < 1e-3
assert resid[:, :changed].abs().max() < 1e-3
assert resid[2, -1] > 0.8 > 0.3 > resid[0, -1]
assert heads[1].sum() > heads[3].sum()
assert heads.max() > 0.15
assert attention[1, -1] > 0.3
assert attention[1, -1] == attention[1].max()
assert patterns.shape == heads.shape
assert patterns[1].max() > 0.05
