"""Generation: greedy and drawn, ends, text in and text out, and a prompt put to the test."""

import contextlib
import io

import torch
from transformer_lens import HookedTransformer, utils

model = HookedTransformer.from_pretrained("stdlib-4l")
prompt = "class Foo(object):\n    def __init__(self, name):\n        self.name ="
tokens = model.to_tokens(prompt)
text = model.generate(prompt, max_new_tokens=2, do_sample=False, verbose=False)
as_tokens = model.generate(tokens, max_new_tokens=2, do_sample=False, verbose=False)
by_hand = tokens
for _ in range(2):
    by_hand = torch.cat([by_hand, model(by_hand)[:, -1:].argmax(-1)], dim=1)

torch.manual_seed(0)
hot = {model.generate(tokens, max_new_tokens=1, temperature=3.0, verbose=False)[0, -1].item() for _ in range(8)}
nucleus = {model.generate(tokens, max_new_tokens=1, top_p=0.5, verbose=False)[0, -1].item() for _ in range(8)}
top1 = model.generate(tokens, max_new_tokens=1, top_k=1, verbose=False)[0, -1].item()
comma = model.to_single_token(" name")
stopped = model.generate(tokens, max_new_tokens=6, do_sample=False, eos_token_id=comma, verbose=False)

said = io.StringIO()
with contextlib.redirect_stdout(said):
    utils.test_prompt(prompt, " name", model, top_k=3)
logits = model(tokens)[0, -1]
drawn = utils.sample_logits(logits[None].expand(50, -1), top_k=2)
print(text, hot, said.getvalue())

assert text.startswith(prompt)
assert text[len(prompt) :].startswith(" name")
assert torch.equal(as_tokens, by_hand)
assert model.to_string(as_tokens[0, 1:]) == text
assert len(hot) > 3
assert len(nucleus) == 1
assert nucleus == {top1} == {comma}
assert stopped.shape[1] == tokens.shape[1] + 1
assert "Ranks of the answer tokens: [(' name', 0)]" in said.getvalue().replace("\x1b[1m", "").replace("\x1b[0m", "")
assert set(drawn.tolist()) <= set(logits.topk(2).indices.tolist())
