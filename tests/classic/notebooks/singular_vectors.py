"""What the strongest directions of weights say in tokens."""

import torch
from transformer_lens import HookedTransformer, SVDInterpreter

model = HookedTransformer.from_pretrained("stdlib-4l")
svd = SVDInterpreter(model)


def signed(vectors):
    """With the largest entry positive: the sign of a singular vector means nothing."""
    return vectors * vectors.gather(0, vectors.abs().argmax(0, keepdim=True)).sign()


heads = signed(svd.get_singular_vectors("OV", layer_index=1, num_vectors=5, head_index=4))
reads = signed(svd.get_singular_vectors("w_in", layer_index=2, num_vectors=3))
writes = signed(svd.get_singular_vectors("w_out", layer_index=2, num_vectors=3))

V = torch.linalg.svd(model.W_V[1, 4] @ model.W_O[1, 4]).Vh[:5]
by_hand = signed((V @ model.W_U).detach().T)
W_out = signed((torch.linalg.svd(model.W_out[2], full_matrices=False).Vh[:3] @ model.W_U).detach().T)
tops = [model.to_str_tokens(each[:, 0].topk(8).indices) for each in heads.permute(2, 0, 1)]
print(*tops, sep="\n")

assert heads.shape == (model.cfg.d_vocab, 1, 5)
assert torch.allclose(heads[:, 0], by_hand, atol=1e-3)
assert torch.allclose(writes[:, 0], W_out, atol=1e-3)
assert len({token for top in tops for token in top}) > 20
assert reads.shape == writes.shape == (model.cfg.d_vocab, 1, 3)
