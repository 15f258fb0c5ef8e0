"""Text to tokens and back, and what the token at the beginning does."""

import torch
from transformer_lens import HookedTransformer

model = HookedTransformer.from_pretrained("stdlib-4l")
text = "import os"
with_bos, without = model.to_tokens(text), model.to_tokens(text, prepend_bos=False)
strings = model.to_str_tokens(text)
several = model.to_tokens(["import os", "import os.path as p"])
left = model.to_tokens(["import os", "import os.path as p"], padding_side="left")
bos, pad = model.tokenizer.bos_token_id, model.tokenizer.pad_token_id
os_token = model.to_single_token(" os")
print(strings, several, left)

assert with_bos[0, 0] == bos
assert torch.equal(with_bos[:, 1:], without)
assert strings == [model.tokenizer.bos_token, "import", " os"]
assert model.to_str_tokens(text, prepend_bos=False) == ["import", " os"]
assert model.to_str_tokens(without) == model.to_str_tokens(without[0]) == ["import", " os"]
assert several.shape == left.shape
assert several[0, -1] == pad
assert left[0, 0] == pad
assert model.to_string(without[0]) == text
assert model.to_string(without) == [text]
assert model.to_single_str_token(os_token) == " os"
assert model.get_token_position(" os", text) == 2
assert model.get_token_position(" os", text, prepend_bos=False) == 1
assert model.get_token_position(" os", " os or os", mode="last") == 3
assert "".join(model.to_str_tokens("naïve — café", prepend_bos=False)).count("na") == 1
assert model.to_tokens("x = 1\n" * 200).shape == (1, model.cfg.n_ctx)

as_text, as_tokens = model(text), model(with_bos)
assert torch.allclose(as_text, as_tokens, atol=1e-5)
assert not torch.allclose(model(text, prepend_bos=False)[0, -1], as_text[0, -1], atol=0.1)
last = model(["import os", "import os.path as p"], padding_side="left")[:, -1]
assert torch.allclose(last[0], as_text[0, -1], atol=1e-3)
assert model.tokens_to_residual_directions(os_token).shape == (model.cfg.d_model,)
