"""Toy models of superposition: five sparse features in two dimensions, in a module with hook points of its own."""

import torch
from torch import nn
from transformer_lens.hook_points import HookedRootModule, HookPoint


class ToyModel(HookedRootModule):
    def __init__(self, n_features, d_hidden):
        super().__init__()
        self.W = nn.Parameter(torch.randn(d_hidden, n_features) / 2)
        self.b = nn.Parameter(torch.zeros(n_features))
        self.hook_hidden = HookPoint()
        self.hook_pre = HookPoint()
        self.setup()

    def forward(self, x):
        hidden = self.hook_hidden(x @ self.W.T)
        return self.hook_pre(hidden @ self.W + self.b).relu()


def trained(sparsity):
    torch.manual_seed(2)
    model = ToyModel(5, 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    importance = 0.9 ** torch.arange(5)
    for _ in range(150):
        x = torch.rand(256, 5) * (torch.rand(256, 5) > sparsity)
        loss = (importance * (model(x) - x).square()).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


dense, sparse = trained(0.0), trained(0.95)
norms = torch.stack([model.W.detach().norm(dim=0) for model in (dense, sparse)])
_, cache = sparse.run_with_cache(torch.eye(5))
angles = cache["hook_hidden"].detach()
angles = torch.atan2(angles[:, 1], angles[:, 0]).sort().values
gaps = torch.cat([angles.diff(), angles[:1] + 2 * torch.pi - angles[-1:]])
blind = sparse.run_with_hooks(torch.eye(5), fwd_hooks=[("hook_hidden", lambda x, hook: 0 * x)])
print(norms, gaps.rad2deg())

assert (norms[0] > 0.5).sum() == 2  # a dense model keeps the two most important features
assert (norms[1] > 0.7).sum() == 5  # a sparse one all of them, as a pentagon
assert gaps.min() > 0.8
assert gaps.max() < 1.8
assert (sparse(torch.eye(5)).argmax(1) == torch.arange(5)).all()
assert not blind.any() or (blind == blind[0]).all()
