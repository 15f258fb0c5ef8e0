"""The same heads by the head detector, on a text that repeats, beside a model that has learned nothing."""

import torch
from transformer_lens import HookedTransformer
from transformer_lens.head_detector import detect_head, get_induction_head_detection_pattern

text = " socket.bind weakref signal dict heapq raise" * 2
model = HookedTransformer.from_pretrained("stdlib-4l")
tokens = model.to_tokens(text)
wanted = get_induction_head_detection_pattern(tokens)

induction = detect_head(model, text, "induction_head", exclude_bos=True)
previous = detect_head(model, text, "previous_token_head", exclude_bos=True)
by_tensor = detect_head(model, text, wanted, exclude_bos=True)
_, cache = model.run_with_cache(text, remove_batch_dim=True)
some = detect_head(model, text, "previous_token_head", heads=[(0, 1), (1, 4)], cache=cache, exclude_bos=True)
print(induction, previous[0])

assert divmod(induction.argmax().item(), 8) == (1, 4)
assert induction[1, 4] > 0.5 > 0.05 > induction[0].max()
assert divmod(previous.argmax().item(), 8) == (0, 1)
assert previous[0, 1] > 0.9
assert torch.equal(by_tensor, induction)
assert abs(some[0, 1] - previous[0, 1]) < 1e-4
assert (some == -1).sum() == 30
assert wanted.sum(dim=1).max() >= 1
assert not wanted.triu(1).any()
