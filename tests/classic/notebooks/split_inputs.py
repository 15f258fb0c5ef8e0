"""What does an induction head read? Its queries', keys' and values' inputs, each replaced on its own."""

import torch
from transformer_lens import HookedTransformer

torch.set_grad_enabled(False)
model = HookedTransformer.from_pretrained("stdlib-attn-2l")
model.set_use_split_qkv_input(True)
model.set_use_attn_result(True)
torch.manual_seed(0)
half = torch.randint(100, 4000, (4, 20))
tokens = torch.cat([torch.full((4, 1), model.tokenizer.bos_token_id), half, half], dim=1)
_, cache = model.run_with_cache(tokens)
layer, head, previous = 1, 4, 1
from_previous = cache["result", 0][:, :, previous]


def stripe_without(letter):
    def remove(x, hook):
        x[:, :, head] -= from_previous
        return x

    name = f"blocks.{layer}.hook_{letter}_input"
    found = {}
    read = (f"blocks.{layer}.attn.hook_pattern", lambda pattern, hook: found.update(pattern=pattern[:, head].clone()))
    model.run_with_hooks(tokens, fwd_hooks=[(name, remove), read])
    return found["pattern"].diagonal(offset=1 - 20, dim1=-2, dim2=-1).mean().item()


base = cache["pattern", layer][:, head].diagonal(offset=1 - 20, dim1=-2, dim2=-1).mean().item()
stripes = {letter: stripe_without(letter) for letter in "qkv"}
sums = cache["result", layer].sum(2) + model.b_O[layer]
torch.set_grad_enabled(True)
print(base, stripes)

assert base > 0.8
assert stripes["k"] < 0.3 * base
assert stripes["q"] > 2 * stripes["k"]
assert abs(stripes["v"] - base) < 1e-3
assert cache["k_input", layer].shape == (4, 41, 8, 256)
assert torch.allclose(sums, cache["attn_out", layer], atol=1e-3)
