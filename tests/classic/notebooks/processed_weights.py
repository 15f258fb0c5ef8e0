"""Weights made simpler, one way at a time: other numbers, the same predictions."""

import torch
from transformer_lens import HookedTransformer, HookedTransformerConfig

cfg = HookedTransformerConfig(
    n_layers=2, d_model=24, n_heads=3, d_head=8, n_ctx=10, d_vocab=17, act_fn="gelu_new", device="cpu", seed=1
)
raw = HookedTransformer(cfg)
torch.manual_seed(0)
state = {
    name: value + 0.2 * torch.randn_like(value)
    for name, value in raw.state_dict().items()
    if not name.endswith(("mask", "IGNORE"))
}
raw.load_state_dict(state, strict=False)
tokens = torch.randint(0, 17, (4, 10))
expected = raw(tokens).log_softmax(-1)


def processed(**choices):
    every = ("fold_ln", "center_writing_weights", "center_unembed", "fold_value_biases")
    model = HookedTransformer(HookedTransformerConfig.from_dict(raw.cfg.to_dict()))
    weights = {name: value.clone() for name, value in state.items()}
    model.load_and_process_state_dict(weights, **dict.fromkeys(every, False) | choices)
    return model


folded, centred = processed(fold_ln=True), processed(fold_ln=True, center_writing_weights=True)
unembed, values = processed(center_unembed=True), processed(fold_value_biases=True)
whole = processed(fold_ln=True, center_writing_weights=True, center_unembed=True, fold_value_biases=True)
other = HookedTransformer(HookedTransformerConfig.from_dict(raw.cfg.to_dict()))
other.load_state_dict(raw.state_dict())

for model in (folded, centred, unembed, values, whole, other):
    assert torch.allclose(model(tokens).log_softmax(-1), expected, atol=1e-4)
assert raw.cfg.normalization_type == "LN"
assert folded.cfg.normalization_type == "LNPre"
assert not torch.allclose(folded.W_Q, raw.W_Q, atol=0.01)
assert folded.W_Q.mean(dim=2).abs().max() < 1e-5
assert centred.W_out.mean(dim=-1).abs().max() < 1e-5
assert centred.W_E.mean(dim=-1).abs().max() < 1e-5
assert unembed.W_U.mean(dim=-1).abs().max() < 1e-5
assert not values.b_V.any()
assert not torch.allclose(values.b_O, raw.b_O, atol=0.01)
assert torch.allclose(values.accumulated_bias(2), values.b_O.sum(0) + values.b_out.sum(0), atol=1e-5)
assert torch.equal(other.W_K, raw.W_K)
