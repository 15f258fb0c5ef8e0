"""Gradients at every hook point, beside finite differences."""

import torch
from transformer_lens import HookedTransformer

model = HookedTransformer.from_pretrained("stdlib-4l")
tokens = model.to_tokens("import os\nimport sys\nimport re\nimport os\nimport sys\nimport")
_, cache = model.run_with_cache(tokens, return_type="loss", incl_bwd=True)
plain = model(tokens, return_type="loss").item()

kept, forward, backward = model.get_caching_hooks(lambda name: name.endswith("mlp_out"), incl_bwd=True)
with model.hooks(fwd_hooks=forward, bwd_hooks=backward):
    model(tokens, return_type="loss").backward()
model.zero_grad()

torch.manual_seed(1)
agrees = []
for name in ("blocks.1.hook_resid_pre", "blocks.1.attn.hook_z", "blocks.2.hook_mlp_out", "blocks.3.attn.hook_q"):
    direction = torch.randn_like(cache[name]) * 1e-2
    losses = []
    for sign in (1, -1):
        push = lambda x, hook, sign=sign, direction=direction: x + sign * direction
        losses.append(model.run_with_hooks(tokens, return_type="loss", fwd_hooks=[(name, push)]).item())
    slope = (cache[name + "_grad"] * direction).sum().item()
    agrees.append(abs((losses[0] - losses[1]) / 2 - slope) < 0.05 * abs(slope))

names = sorted(name for name in cache if name.endswith("_grad"))
same = [(cache[name] - kept[name]).abs().max().item() for name in kept]
assert len(names) > 40
assert cache["resid_post_grad", 3].shape == cache["resid_post", 3].shape
assert all(agrees)
assert len(agrees) == 4
assert len(kept) == 8
assert max(same) < 1e-5
assert torch.allclose(cache["attn_out_grad", 1], cache["resid_mid_grad", 1], atol=1e-5)
assert (cache["resid_post_grad", 3][0, -1] == 0).all()
assert plain < 6
