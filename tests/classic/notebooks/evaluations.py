"""Small evaluations: repeats, and which of two names comes next, drawn from templates."""

import torch
from transformer_lens import HookedTransformer, evals, utils

model = HookedTransformer.from_pretrained("stdlib-attn-2l")
torch.manual_seed(0)
with torch.no_grad():
    tokens = torch.randint(100, 4000, (4, 60)).repeat(1, 2)
    tokens[:, 0] = model.tokenizer.bos_token_id
    logits = model(tokens)
    loss = utils.lm_cross_entropy_loss(logits, tokens, per_token=True)
    hits = utils.lm_accuracy(logits, tokens, per_token=True)
repeats, accuracy = loss[:, 61:].mean().item(), hits[:, 61:].float().mean().item()

choices = {
    "names": ["name", "value", "key"],
    "nouns": {"OBJECT": ["json", "time"]},
    "num_samples": 12,
    "symmetric": True,
}
copying = evals.IOIDataset(model.tokenizer, templates=["[OBJECT] [A] ( [B] ) [OBJECT] [A]"], seed=5, **choices)
reversing = evals.IOIDataset(model.tokenizer, templates=["for [B] in [A]:\n    [OBJECT]([B], [A]"], seed=5, **choices)


def in_tokens(sample):
    prompt = model.to_tokens(sample["text"])[0]
    return {"prompt": prompt} | {name: model.to_tokens(sample[name], prepend_bos=False)[0] for name in ("IO", "S")}


found = evals.ioi_eval(model, dataset=[in_tokens(sample) for sample in copying.samples], batch_size=4)
harder = evals.ioi_eval(model, dataset=[in_tokens(sample) for sample in reversing.samples], batch_size=4)
print(repeats, accuracy, found, harder, copying.samples[0])

assert repeats < 1
assert accuracy > 0.9
assert len(copying) == 12
assert copying.samples[0]["IO"] == copying.samples[1]["S"]
assert set(copying[0]) >= {"prompt", "IO", "S"}
assert found["Accuracy"] > 0.8
assert found["Logit Difference"] > 2
assert harder["Accuracy"] < 0.3
