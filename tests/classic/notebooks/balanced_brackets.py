"""A bracket classifier, set by hand: one head takes the mean of +1 and -1, the MLP asks whether it is 0."""

import torch
from transformer_lens import HookedTransformer, HookedTransformerConfig

START, OPEN, CLOSE = 0, 1, 2
cfg = HookedTransformerConfig(
    n_layers=1,
    d_model=4,
    n_heads=1,
    d_head=2,
    d_mlp=2,
    n_ctx=13,
    d_vocab=3,
    d_vocab_out=2,
    act_fn="relu",
    normalization_type=None,
    attention_dir="bidirectional",
    device="cpu",
    seed=0,
)
model = HookedTransformer(cfg)
weights = {name: torch.zeros_like(value) for name, value in model.state_dict().items() if "W_" in name or "b_" in name}
weights["embed.W_E"][OPEN, 0], weights["embed.W_E"][CLOSE, 0] = 1.0, -1.0
weights["blocks.0.attn.W_V"][0, 0, 0] = 1.0
weights["blocks.0.attn.W_O"][0, 0, 1] = 1.0  # the elevation, into direction 1
weights["blocks.0.mlp.W_in"][1] = torch.tensor([1.0, -1.0])
weights["blocks.0.mlp.W_out"][:, 2] = 13.0  # its distance from 0, into direction 2
weights["unembed.W_U"][2, 0] = 1.0
weights["unembed.b_U"][1] = 0.5
model.load_state_dict(weights, strict=False)


def tokens_of(text):
    return torch.tensor([[START] + [OPEN if char == "(" else CLOSE for char in text]])


def says_balanced(text):
    return bool(model(tokens_of(text))[0, 0].argmax())


_, cache = model.run_with_cache(tokens_of("((()))()(())"))
elevation = model.run_with_cache(tokens_of("(((((("))[1]["attn_out", 0][0, 0, 1].item()
without_mlp = model.run_with_hooks(tokens_of("(("), fwd_hooks=[("blocks.0.hook_mlp_out", lambda x, hook: 0 * x)])

assert all(map(says_balanced, ["()", "(())", "()()", "((()))()(())"]))
assert not any(map(says_balanced, ["(", "((", "())", "()((", "))))"]))
assert says_balanced(")(")  # an adversarial example: it counts, and sees no order
assert torch.allclose(cache["pattern", 0], torch.full((1, 1, 13, 13), 1 / 13))
assert abs(elevation - 6 / 7) < 1e-5
assert without_mlp[0, 0].argmax() == 1
