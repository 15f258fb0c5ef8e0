"""Any network can have hook points: a recurrent one that counts, with hooks forwards and backwards."""

import torch
from torch import nn
from transformer_lens.hook_points import HookedRootModule, HookPoint


class Cell(nn.Module):
    def __init__(self, d_state):
        super().__init__()
        self.W = nn.Parameter(torch.eye(d_state))
        self.hook_state = HookPoint()

    def forward(self, state, x):
        return self.hook_state(state @ self.W + x)


class Counter(HookedRootModule):
    def __init__(self, n_steps, d_state=3):
        super().__init__()
        self.cells = nn.ModuleList([Cell(d_state) for _ in range(n_steps)])
        self.hook_out = HookPoint()
        self.setup()

    def forward(self, xs):
        state = torch.zeros(xs.shape[0], xs.shape[2])
        for i, cell in enumerate(self.cells):
            state = cell(state, xs[:, i])
        return self.hook_out(state).square().sum()


model = Counter(4)
xs = torch.arange(24.0).view(2, 4, 3)
out, cache = model.run_with_cache(xs, incl_bwd=True)
names = [name for name in cache if not name.endswith("_grad")]
grads = []
halved = model.run_with_hooks(xs, fwd_hooks=[("cells.1.hook_state", lambda x, hook: x / 2)])
with model.hooks(bwd_hooks=[(lambda name: "cells" in name, lambda grad, hook: grads.append(hook.name))]):
    model(xs).backward()
some = model.run_with_cache(xs, names_filter=["hook_out"])[1]
model.add_hook("cells.0.hook_state", lambda x, hook: torch.zeros_like(x))
without_first = model(xs)
model.reset_hooks()

assert names == ["cells.0.hook_state", "cells.1.hook_state", "cells.2.hook_state", "cells.3.hook_state", "hook_out"]
assert torch.allclose(cache["hook_out"], xs.sum(1))
assert out == xs.sum(1).square().sum()
assert torch.allclose(cache["cells.0.hook_state_grad"], 2 * xs.sum(1))
assert halved == (xs.sum(1) - xs[:, :2].sum(1) / 2).square().sum()
assert grads == [f"cells.{i}.hook_state" for i in (3, 2, 1, 0)]
assert list(some) == ["hook_out"]
assert without_first == xs[:, 1:].sum(1).square().sum()
assert model(xs) == out
assert set(model.hook_dict) == set(names)
assert "cells.2" in model.mod_dict
