"""Text token by token with past keys and values, and one prefix for many continuations."""

import torch
from transformer_lens import HookedTransformer, TransformerLensKeyValueCache

torch.set_grad_enabled(False)
model = HookedTransformer.from_pretrained("stdlib-4l")
tokens = model.to_tokens("def read(path):\n    with open(path) as file:\n        return file")
whole = model(tokens)

past = TransformerLensKeyValueCache.init_cache(model.cfg, model.cfg.device, 1)
steps = [model(tokens[:, :2], past_kv_cache=past)]
steps += [model(tokens[:, i : i + 1], past_kv_cache=past) for i in range(2, tokens.shape[1])]
step_by_step = torch.cat(steps, dim=1)

greedy = tokens
for _ in range(4):
    best = (model(greedy) if greedy is tokens else model(greedy[:, -1:], past_kv_cache=past))[:, -1].argmax(-1)
    greedy = torch.cat([greedy, best[:, None]], dim=1)
generated = model.generate(tokens, max_new_tokens=4, do_sample=False, stop_at_eos=False, verbose=False)

prefix = TransformerLensKeyValueCache.init_cache(model.cfg, model.cfg.device, 1)
model(tokens, past_kv_cache=prefix)
prefix.freeze()
endings = [model.to_tokens(text, prepend_bos=False) for text in (".read()", ".close()", "name")]
continued = [model(ending, past_kv_cache=prefix)[0, -1] for ending in endings]
afresh = [model(torch.cat([tokens, ending], dim=1))[0, -1] for ending in endings]
torch.set_grad_enabled(True)

assert torch.allclose(step_by_step, whole, atol=1e-3)
assert past[0].past_keys.shape == (1, tokens.shape[1] + 3, 8, 32)
assert torch.equal(greedy, generated)
assert prefix[3].past_values.shape[1] == tokens.shape[1]  # frozen: as long as the prefix
assert all(torch.allclose(a, b, atol=1e-3) for a, b in zip(continued, afresh, strict=True))
assert not torch.allclose(continued[0], continued[1], atol=0.1)
