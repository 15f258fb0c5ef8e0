"""Path patching by hand: a clean head of layer 0 into the keys of one head of layer 1, and nowhere else."""

import torch
from transformer_lens import HookedTransformer, utils
from transformer_lens.hook_points import HookPoint

model = HookedTransformer.from_pretrained("stdlib-attn-2l")
torch.manual_seed(0)
half = torch.randint(100, 4000, (4, 20))
clean = torch.cat([torch.full((4, 1), model.tokenizer.bos_token_id), half, half], dim=1)
corrupted = clean.clone()
corrupted[:, 1:21] = torch.randint(100, 4000, (4, 20))  # nothing to copy from
_, clean_cache = model.run_with_cache(clean)
_, bad_cache = model.run_with_cache(corrupted)
receiver = (1, 4)


def patch_z(z, hook: HookPoint, sender, cache):
    layer, head = sender
    frozen = bad_cache[hook.name].clone()
    if hook.layer() == layer:
        frozen[:, :, head] = cache[hook.name][:, :, head]
    return frozen


def stripe(pattern):
    return pattern[:, receiver[1]].diagonal(dim1=-2, dim2=-1, offset=1 - 20).mean().item()


def attention_with(sender, cache):
    hook = (lambda name: name.endswith("hook_z"), lambda z, hook: patch_z(z, hook, sender, cache))
    model.reset_hooks()
    model.add_hook(*hook, level=1)
    _, patched = model.run_with_cache(corrupted, names_filter=lambda name: "1.attn.hook_k" in name)
    model.reset_hooks()
    found = {}
    read = ("blocks.1.attn.hook_pattern", lambda pattern, hook: found.update(pattern=pattern.detach()))
    swap = (utils.get_act_name("k", 1), lambda k, hook: patched[hook.name])
    into = (utils.get_act_name("q", 1), lambda q, hook: clean_cache[hook.name])
    model.run_with_hooks(corrupted, fwd_hooks=[swap, into, read])
    return stripe(found["pattern"])


before = attention_with((0, 0), bad_cache)
effect = torch.tensor([attention_with((0, head), clean_cache) - before for head in range(8)])
print(stripe(clean_cache["pattern", 1]), before, effect)

assert stripe(clean_cache["pattern", 1]) > 0.8
assert before < 0.1
assert effect.argmax() == 1
assert effect[1] > 5 * effect[[0, 2, 3, 4, 5, 6, 7]].abs().max()
assert not any(point.has_hooks() for point in model.hook_points())
