"""Steering: the difference of two prompts' streams, added to a third's, moves what comes next, and what is written."""

import torch
from transformer_lens import HookedTransformer, utils

torch.set_grad_enabled(False)
model = HookedTransformer.from_pretrained("stdlib-4l")
layer = 2
name = utils.get_act_name("resid_pre", layer)
_, plus = model.run_with_cache("try:\n    import json\nexcept", names_filter=name)
_, minus = model.run_with_cache("for i in range(10):\n    print", names_filter=name)
direction = plus[name][0, -1] - minus[name][0, -1]
prompt = model.to_tokens("x = 1\nwhile x")
token = model.to_single_token(" ImportError")


def steered(strength):
    def add(resid, hook):
        resid[:, -1] += strength * direction
        return resid

    return model.run_with_hooks(prompt, fwd_hooks=[(name, add)])[0, -1].log_softmax(-1)[token].item()


strengths = [-1.0, 0.0, 0.5, 1.0, 2.0]
log_probs = [steered(strength) for strength in strengths]
everywhere = lambda resid, hook: resid + direction
choices = {"max_new_tokens": 3, "do_sample": False, "stop_at_eos": False, "verbose": False}
plain = model.generate(prompt, **choices)
with model.hooks(fwd_hooks=[(name, everywhere)]):
    moved = model.generate(prompt, **choices)
again = model.generate(prompt, **choices)
torch.set_grad_enabled(True)
print([round(value, 1) for value in log_probs], model.to_string(plain[0]), model.to_string(moved[0]))

assert log_probs == sorted(log_probs)
assert log_probs[-1] > log_probs[1] + 4
assert not torch.equal(plain, moved)
assert torch.equal(plain, again)
assert abs(log_probs[1] - model(prompt)[0, -1].log_softmax(-1)[token].item()) < 1e-3
