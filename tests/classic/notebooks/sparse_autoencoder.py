"""A sparse autoencoder of a stream, spliced into the model: what it keeps, and which features say what."""

import torch
from torch import nn
from transformer_lens import HookedTransformer
from transformer_lens.hook_points import HookedRootModule, HookPoint


class SparseAutoencoder(HookedRootModule):
    def __init__(self, directions, mean):
        super().__init__()
        self.W_dec = nn.Parameter(torch.cat([directions, -directions]))
        self.b_dec = nn.Parameter(mean)
        self.hook_acts = HookPoint()
        self.hook_recons = HookPoint()
        self.setup()

    def forward(self, x):
        acts = self.hook_acts(((x - self.b_dec) @ self.W_dec.T).relu())
        return self.hook_recons(acts @ self.W_dec + self.b_dec)


torch.set_grad_enabled(False)
model = HookedTransformer.from_pretrained("stdlib-4l")
text = "import os\nimport sys\n\ndef main(path):\n    for name in os.listdir(path):\n        print(name)\n"
name = "blocks.2.hook_resid_pre"
loss, cache = model.run_with_cache(text, return_type="loss", names_filter=name)
x = cache[name][0, 1:]
mean = x.mean(0)
directions = torch.linalg.svd(x - mean, full_matrices=False).Vh[:-1]  # the mean took one


def spliced(sae, kept=slice(None)):
    drop = lambda acts, hook: torch.zeros_like(acts).index_add(-1, every[kept], acts[..., kept])

    def splice(resid, hook):
        resid[:, 1:] = sae.run_with_hooks(resid[:, 1:], fwd_hooks=[("hook_acts", drop)])
        return resid

    return model.run_with_hooks(text, return_type="loss", fwd_hooks=[(name, splice)]).item()


every = torch.arange(2 * len(directions))
whole = SparseAutoencoder(directions, mean)
narrow = SparseAutoencoder(directions[:4], mean)
_, inside = whole.run_with_cache(x)
n_active = (inside["hook_acts"] > 1e-4).sum(-1).float().mean().item()
reconstruction = (inside["hook_recons"] - x).norm() / x.norm()
losses = {
    "model": loss.item(),
    "whole": spliced(whole),
    "narrow": spliced(narrow, slice(8)),
    "half": spliced(whole, slice(len(directions))),
}
torch.set_grad_enabled(True)
print(losses, n_active)

assert reconstruction < 1e-3
assert abs(losses["whole"] - losses["model"]) < 1e-2
assert losses["narrow"] > losses["model"] + 0.5
assert losses["half"] > losses["model"] + 0.1
assert n_active <= len(directions)
assert list(whole.hook_dict) == ["hook_acts", "hook_recons"]
