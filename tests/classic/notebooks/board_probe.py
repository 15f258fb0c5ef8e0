"""A linear probe of a board that moves leave behind, and what happens to the legal moves when it is written to."""

import torch
from transformer_lens import HookedTransformer, HookedTransformerConfig

n_squares, d_model = 9, 24
cfg = HookedTransformerConfig(
    n_layers=1,
    d_model=d_model,
    n_heads=1,
    d_head=n_squares + 1,
    n_ctx=n_squares + 1,
    d_vocab=n_squares + 1,  # the squares, and a start
    attn_only=True,
    normalization_type=None,
    device="cpu",
    seed=0,
)
model = HookedTransformer(cfg)
torch.manual_seed(0)
basis = torch.linalg.qr(torch.randn(d_model, d_model)).Q
move, board = basis[: n_squares + 1], basis[n_squares + 1 : 2 * n_squares + 2]
weights = {name: torch.zeros_like(value) for name, value in model.state_dict().items() if "W_" in name or "b_" in name}
weights["embed.W_E"] = move.clone()
weights["blocks.0.attn.W_V"][0] = move.T
weights["blocks.0.attn.W_O"][0] = board
weights["unembed.W_U"] = -100 * board.T  # a square that is taken is no legal move
model.load_state_dict(weights, strict=False)

games = torch.cat([torch.full((200, 1), n_squares), torch.rand(200, n_squares).argsort(1)], dim=1)[:, :-1]
_, cache = model.run_with_cache(games)
state = torch.nn.functional.one_hot(games[:, 1:], n_squares).cumsum(1).float()  # [game move square]
steps = torch.arange(2, n_squares + 1)  # attention takes a mean over so many
resid = (cache["resid_post", 0][:, 1:] * steps[:, None]).detach()
train, test = slice(0, 150), slice(150, 200)
probe = torch.linalg.lstsq(resid[train].reshape(-1, d_model), state[train].reshape(-1, n_squares)).solution
accuracy = ((resid[test] @ probe > 0.5) == (state[test] > 0.5)).float().mean().item()


def legal(logits):
    return (logits[:, -1, :n_squares] > -10).nonzero()[:, 1].tolist()


game = games[:1, :5]
square = game[0, 2].item()
direction = probe[:, square] / probe[:, square].norm() ** 2


def take_back(resid, hook):
    resid[:, -1] -= direction / game.shape[1]
    return resid


before = legal(model(game))
after = legal(model.run_with_hooks(game, fwd_hooks=[("blocks.0.hook_resid_post", take_back)]))

assert accuracy > 0.99
assert before == [i for i in range(n_squares) if i not in game[0].tolist()]
assert after == sorted([*before, square])
