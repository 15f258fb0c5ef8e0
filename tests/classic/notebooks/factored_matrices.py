"""Low-rank matrices kept as factors: products, singular values, eigenvalues, norms, slices."""

import torch
from transformer_lens import FactoredMatrix, HookedTransformer, utils

model = HookedTransformer.from_pretrained("stdlib-attn-2l")
OV, QK = model.OV, model.QK
full = OV.AB.detach()
dense = torch.linalg.svdvals(full[1])[:, : model.cfg.d_head]


def put_together(matrix):
    U, S, V = matrix.svd()
    return U @ S.diag_embed() @ V.mT


eigenvalues = OV[1, 4].eigenvalues
trace = full[1, 4].trace()

assert OV.shape == (2, 8, 256, 256)
assert OV.mdim == 32
assert OV.ndim == 4
assert torch.allclose(OV[1].S, dense, rtol=1e-3, atol=1e-4)
assert torch.allclose(put_together(OV[1]), full[1], atol=1e-4)
assert abs(eigenvalues.sum().real - trace) < 1e-2 * trace.abs()
assert torch.allclose(OV.norm(), full.norm(dim=(-2, -1)), rtol=1e-4)

x = model.W_E[:5]
virtual = OV[0, 1] @ QK[1, 4].T
left, right = x @ OV[1, 4], OV[1, 4] @ model.W_U[:, :7]
even = QK[1, 4].make_even()
assert isinstance(virtual, FactoredMatrix)
assert torch.allclose(virtual.AB, full[0, 1] @ QK[1, 4].AB.T, atol=1e-4)
assert torch.allclose(left.AB if isinstance(left, FactoredMatrix) else left, x @ full[1, 4], atol=1e-4)
assert torch.allclose(
    right.AB if isinstance(right, FactoredMatrix) else right, full[1, 4] @ model.W_U[:, :7], atol=1e-4
)
assert torch.allclose(even.AB, QK[1, 4].AB, atol=1e-3)
assert torch.allclose(even.A.norm(dim=0), even.B.norm(dim=1), rtol=1e-3)
assert torch.allclose(utils.get_corner(OV[0, 0]).AB, full[0, 0, :3, :3], atol=1e-5)
assert torch.allclose((2 * OV[0, 0]).AB, 2 * full[0, 0], atol=1e-5)
assert torch.allclose(OV[:, 2:4].AB, full[:, 2:4], atol=1e-5)
assert torch.allclose(OV.T[0, 0].AB, full[0, 0].T, atol=1e-5)
