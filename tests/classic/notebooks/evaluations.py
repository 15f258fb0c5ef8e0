"""Small evaluations: repeats, and indirect objects drawn from templates."""

import torch
from transformer_lens import HookedTransformer, HookedTransformerConfig, evals, utils

model = HookedTransformer.from_pretrained("stdlib-attn-2l")
untrained = HookedTransformer(
    HookedTransformerConfig(
        n_layers=1, d_model=16, n_heads=2, d_head=8, n_ctx=128, d_vocab=4096, attn_only=True, seed=0, device="cpu"
    )
)
torch.manual_seed(0)
with torch.no_grad():
    tokens = torch.randint(100, 4000, (4, 60)).repeat(1, 2)
    tokens[:, 0] = model.tokenizer.bos_token_id
    losses = [utils.lm_cross_entropy_loss(each(tokens), tokens, per_token=True) for each in (model, untrained)]
    repeats, baseline = (loss[:, 61:].mean().item() for loss in losses)
    accuracy = utils.lm_accuracy(model(tokens), tokens, per_token=True)[:, 61:].float().mean().item()

templates = ["from [A] import [OBJECT]\nfrom [B] import [OBJECT]\nfrom [B] import [OBJECT]\nfrom [A]"]
data = evals.IOIDataset(
    model.tokenizer,
    templates=templates,
    names=["os", "sys", "re"],
    nouns={"OBJECT": ["path", "name"]},
    num_samples=12,
    symmetric=True,
)
found = evals.ioi_eval(model, dataset=data, batch_size=4)
sample = data[0]
print(repeats, baseline, accuracy, found)

assert accuracy > 0.9
assert repeats < 1
assert 7.5 < baseline < 9.5
assert len(data) == 12
assert set(sample) >= {"prompt", "IO", "S"}
assert sample["prompt"][0] == model.tokenizer.bos_token_id
assert 0 <= found["Accuracy"] <= 1
assert -3 < found["Logit Difference"] < 3
