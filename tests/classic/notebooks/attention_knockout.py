"""Which token must be seen? Attention edges cut one by one, at the scores, before the softmax."""

import torch
from transformer_lens import HookedTransformer

torch.set_grad_enabled(False)
model = HookedTransformer.from_pretrained("stdlib-4l")
prompt = "for key, value in items.items():\n    print(key,"
tokens = model.to_tokens(prompt)
strings = model.to_str_tokens(prompt)
answer = model.to_single_token(" value")
source = model.get_token_position(" value", tokens)


def cut(positions):
    def hook(scores, hook):
        scores[:, :, -1, positions] = -torch.inf
        return scores

    return [(lambda name: name.endswith("attn_scores"), hook)]


prob = lambda logits: logits[0, -1].softmax(-1)[answer].item()
base = prob(model(tokens))
drops = torch.tensor([base - prob(model.run_with_hooks(tokens, fwd_hooks=cut([i]))) for i in range(len(strings) - 1)])
with model.hooks(fwd_hooks=cut([source])):
    _, cache = model.run_with_cache(tokens)
others = [i for i in range(len(strings) - 1) if i != source]
only_source = prob(model.run_with_hooks(tokens, fwd_hooks=cut(others)))
torch.set_grad_enabled(True)
print(dict(zip(strings, drops.tolist(), strict=False)), base)

assert base > 0.3
assert source in drops.topk(3).indices.tolist()
assert drops[source] > 0.7 * base
assert drops[others].median() < 0.05 * base
assert all(cache["pattern", layer][0, :, -1, source].max() == 0 for layer in range(4))
assert torch.allclose(cache["pattern", 2].sum(-1), torch.ones(1, 8, len(strings)), atol=1e-5)
assert only_source > drops.min()
assert len(strings) == tokens.shape[1]
