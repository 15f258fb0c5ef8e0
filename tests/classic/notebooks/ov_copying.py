"""Do induction heads copy? The full OV circuit of each head, by its diagonal and by its eigenvalues."""

import torch
from transformer_lens import FactoredMatrix, HookedTransformer

model = HookedTransformer.from_pretrained("stdlib-attn-2l")
torch.manual_seed(0)
sample = torch.randperm(model.cfg.d_vocab)[:400]


def copying(layer, head):
    circuit = FactoredMatrix(model.W_E @ model.W_V[layer, head], model.W_O[layer, head] @ model.W_U)
    eigenvalues = circuit.eigenvalues
    small = circuit.A[sample] @ circuit.B[:, sample]
    top5 = small.topk(5, dim=1).indices == torch.arange(len(sample))[:, None]
    return top5.any(1).float().mean().item(), (eigenvalues.sum() / eigenvalues.abs().sum()).real.item()


top, positive = torch.tensor([copying(1, head) for head in range(model.cfg.n_heads)]).T
early_top, early_positive = copying(0, 1)
print(top, positive, early_top, early_positive)

induction = [0, 2, 4, 5, 7]
chance = 5 / len(sample)
assert (top[induction] > 8 * chance).all()
assert (positive[induction] > 0.7).all()
assert early_top < 2 * chance
assert early_positive < -0.4
assert top.min() > 2 * chance
