"""What breaks without each head? Zero and mean ablation, on random tokens that repeat."""

import torch
from transformer_lens import HookedTransformer, utils

torch.set_grad_enabled(False)
model = HookedTransformer.from_pretrained("stdlib-attn-2l")
torch.manual_seed(0)
half = torch.randint(100, 4000, (4, 24))
tokens = torch.cat([torch.full((4, 1), model.tokenizer.bos_token_id), half, half], dim=1)


def copying_loss(logits):
    return utils.lm_cross_entropy_loss(logits, tokens, per_token=True)[:, 25:].mean().item()


def ablate(z, hook, head, mean=None):
    z[:, :, head] = 0 if mean is None else mean
    return z


logits, cache = model.run_with_cache(tokens)
base = copying_loss(logits)
zero, mean = torch.zeros(2, 8), torch.zeros(2, 8)
for layer in range(2):
    name = utils.get_act_name("z", layer)
    for head in range(8):
        average = cache[name][:, :, head].mean(dim=(0, 1))
        by_zero = lambda z, hook, head=head: ablate(z, hook, head)
        by_mean = lambda z, hook, head=head, average=average: ablate(z, hook, head, average)
        zero[layer, head] = copying_loss(model.run_with_hooks(tokens, fwd_hooks=[(name, by_zero)])) - base
        mean[layer, head] = copying_loss(model.run_with_hooks(tokens, fwd_hooks=[(name, by_mean)])) - base
torch.set_grad_enabled(True)
print(f"{base:.3f}", mean.round(decimals=2), sep="\n")

assert base < 0.5
assert mean[0].argmax() == zero[0].argmax() == 1  # who looks one back
assert mean[0, 1] > 2
assert mean[0, 1] > 2 * mean[1].max()
assert copying_loss(model(tokens).detach()) - base < 1e-5
