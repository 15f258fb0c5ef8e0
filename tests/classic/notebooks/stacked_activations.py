"""Caches as tensors: stacks over layers, slices of positions and rows, and a stream that grows."""

import torch
from transformer_lens import HookedTransformer
from transformer_lens.utils import Slice

model = HookedTransformer.from_pretrained("stdlib-4l")
prompts = ["for line in file:\n    print(line)", "def f(x):\n    return x + 1"]
logits, cache = model.run_with_cache(prompts)
patterns = cache.stack_activation("pattern")
resid, labels = cache.accumulated_resid(layer=-1, incl_mid=False, return_labels=True)
at_two = cache.accumulated_resid(layer=2, pos_slice=(1, 4))
row = cache.apply_slice_to_batch_dim(1)
cache.compute_head_results()
heads = cache.stack_head_results(layer=2, pos_slice=Slice((2, 5)))
small, small_cache = model.run_with_cache(prompts[0], names_filter=lambda name: name.endswith("z"), pos_slice=-1)
_, alone = model.run_with_cache(prompts[0], remove_batch_dim=True)
norms = resid.norm(dim=-1).mean(dim=(1, 2))
print(dict(zip(labels, norms.tolist(), strict=True)))

n_pos = logits.shape[1]
assert patterns.shape == (4, 2, 8, n_pos, n_pos)
assert labels == ["0_pre", "1_pre", "2_pre", "3_pre", "final_post"]
assert (norms[1:] > norms[:-1]).all()
assert at_two.shape == (3, 2, 3, 256)
assert torch.equal(at_two[2], cache["resid_pre", 2][:, 1:4])
assert torch.equal(row["v", 2], cache["blocks.2.attn.hook_v"][1])
assert heads.shape == (16, 2, 3, 256)
assert torch.allclose(heads[8:].sum(0) + model.b_O[1], cache["attn_out", 1][:, 2:5], atol=1e-3)
assert len(small_cache) == 4
assert small_cache["z", 0].shape[-2:] == (8, 32)
assert alone["resid_post", -1].shape == (small.shape[1], 256)
assert len(cache) == len(list(cache.keys()))
assert "hook_embed" in cache
