"""`train` on rows of tokens: a ring of numbers, learned from and tested."""

import torch
from torch.utils.data import Dataset
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformer_lens.train import HookedTransformerTrainConfig, train


class Rings(Dataset):
    def __init__(self, n_rows, seed):
        start = torch.randint(0, 11, (n_rows, 1), generator=torch.Generator().manual_seed(seed))
        self.tokens = (start + 3 * torch.arange(8)) % 11

    def __len__(self):
        return len(self.tokens)

    def __getitem__(self, i):
        return {"tokens": self.tokens[i]}


cfg = HookedTransformerConfig(
    n_layers=1, d_model=24, n_heads=2, d_head=12, d_mlp=32, n_ctx=8, d_vocab=11, act_fn="relu", seed=0, device="cpu"
)
model = HookedTransformer(cfg)
held_out = Rings(20, seed=1).tokens
before = model(held_out, return_type="loss").item()
config = HookedTransformerTrainConfig(
    num_epochs=3, batch_size=16, lr=1e-2, weight_decay=0.01, optimizer_name="AdamW", warmup_steps=5, device="cpu"
)
trained = train(model, config, Rings(160, seed=0))
after = model(held_out, return_type="loss").item()
choices = {"do_sample": False, "stop_at_eos": False, "verbose": False, "use_past_kv_cache": False}
written = model.generate(held_out[:, :2], max_new_tokens=5, **choices)
print(f"{before:.2f} -> {after:.4f}", written[0].tolist())

assert before > 2
assert after < 0.3
assert trained is model
assert torch.equal(written, held_out[:, :7])
