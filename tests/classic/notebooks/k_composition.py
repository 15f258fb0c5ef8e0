"""Which heads of layer 0 does an induction head read its keys from? Composition scores, then a cut of the weights."""

import torch
from transformer_lens import FactoredMatrix, HookedTransformer, utils

model = HookedTransformer.from_pretrained("stdlib-attn-2l")
torch.manual_seed(0)
scores = model.all_composition_scores("K")
induction_head = 4
into = scores[0, :, 1, induction_head]
print(dict(zip(model.all_head_labels()[:8], utils.to_numpy(into).round(3), strict=True)))

OV = FactoredMatrix(model.W_V[0], model.W_O[0])
QK = model.QK[1, induction_head]
by_hand = utils.composition_scores(OV, QK.T)[:, ...].squeeze()
random = torch.randn_like(model.W_K[0, 0]) / 16
baseline = utils.composition_scores(OV, FactoredMatrix(random, model.W_Q[1, induction_head].T)).squeeze()

assert into.argmax() == 1
assert into[1] > 1.5 * into[[0, 2, 3, 4, 5, 6, 7]].max()
assert torch.allclose(by_hand, into, atol=1e-4)
assert into[1] > 1.5 * baseline.max()
assert not scores[1].any()
assert scores.shape == (2, 8, 2, 8)

full_OV = model.OV[0, 1]
assert isinstance(full_OV, FactoredMatrix)
assert full_OV.rdim == full_OV.ldim == model.cfg.d_model
