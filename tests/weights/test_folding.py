"""Folding leaves what a model computes as it is, on every kind of model, or is refused by the field that forbids it."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from interp import HookedGPT
from interp.weights import center_unembed, center_writes, fold_norms, fold_value_biases
from tests.variants import SOLU, VARIANTS, some_tokens, variant

pytestmark = pytest.mark.slow

close = torch.testing.assert_close
Fold = Callable[[HookedGPT], HookedGPT]

RMS = dict.fromkeys(("llama", "olmo2", "qwen3", "gemma2", "relu2"), "normalization_type")
REFUSED: dict[Fold, dict[str, str]] = {
    fold_norms: dict.fromkeys(
        ("post", "encoder", "olmo2", "sandwich", "gemma2", "output_ln", "attn_only_post"), "norm_position"
    ),
    center_writes: RMS
    | {"attn_only": "normalization_type"}
    | dict.fromkeys(("post", "encoder", "sandwich", "output_ln", "attn_only_post"), "norm_position"),
    center_unembed: {"gemma2": "output_logits_soft_cap"},
    fold_value_biases: {},
}
DTYPES = {torch.float32: 1e-5, torch.float64: 1e-12}


def output(model: HookedGPT, fold: Fold, tokens: Tensor) -> Tensor:
    logits = model(tokens).detach()
    return logits.log_softmax(-1) if fold is center_unembed else logits


def is_kept(fold: Fold, model: HookedGPT, new: HookedGPT) -> bool:
    """Whether the new model has what the fold promises."""
    if fold is fold_norms:
        return new.cfg.normalization_type in ("LNPre", "RMSPre", None) and not any(
            ".ln" in f".{name}" for name in new.state_dict()
        )
    if fold is center_writes:
        written = [new.W_E, new.W_O, new.b_O]
        written += [] if new.cfg.attn_only else [new.W_out, new.b_out]
        written += [new.W_pos] if new.cfg.positional_embedding_type == "standard" else []
        return all(weight.mean(-1).abs().max() < 1e-6 for weight in written)
    if fold is center_unembed:
        return bool(new.W_U.mean(1).abs().max() < 1e-6) and bool(new.b_U.mean().abs() < 1e-6)
    return bool((new.b_V == 0).all())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("fold", REFUSED)
def test_outputs_are_equal_or_the_fold_is_refused(fold: Fold, name: str, dtype: torch.dtype) -> None:
    model, tokens = variant(name, dtype), some_tokens()
    before = {key: weight.clone() for key, weight in model.state_dict().items()}
    cfg, expected, drawn = model.cfg, output(model, fold, tokens), torch.get_rng_state()
    if name in REFUSED[fold]:
        with pytest.raises(ValueError, match=f"^{REFUSED[fold][name]}="):
            fold(model)
        return
    new = fold(model)
    close(output(new, fold, tokens), expected, rtol=DTYPES[dtype], atol=DTYPES[dtype])
    assert is_kept(fold, model, new)
    assert not new.training
    assert new.dtype == dtype
    # the old model, and torch's generator, are as they were
    assert model.cfg is cfg
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(torch.equal(weight, before[key]) for key, weight in model.state_dict().items())
    with torch.no_grad():
        for parameter in new.parameters():
            parameter.zero_()
    assert all(torch.equal(weight, before[key]) for key, weight in model.state_dict().items())


@pytest.mark.parametrize("fold", [fold_norms, center_writes, center_unembed])
def test_tied_embeddings_come_apart(fold: Fold) -> None:
    model = variant("gpt2")
    new = fold(model)
    assert model.cfg.tie_word_embeddings
    assert not new.cfg.tie_word_embeddings
    assert new.unembed.weight is not None
    close(new.W_U, new.unembed.weight.T)
    assert fold_value_biases(model).cfg.tie_word_embeddings


MORE = [
    ("gpt2", {"bias_qkv": False, "bias_mlp": False, "bias_attn_out": False}),  # a norm's bias needs where to go
    ("gpt2", {"bias_norm": False, "embed_scale": 2.5}),
    ("gptj", {"n_heads": 4, "n_key_value_heads": 2, "bias_qkv": True}),
    ("neox", {"n_heads": 4, "n_key_value_heads": 1, "bias_mlp": False}),
    ("llama", {"tie_word_embeddings": True, "output_logits_soft_cap": 2.0, "embed_scale": 3.7}),
    ("llama", {"normalization_type": "LN", "bias_norm": False}),
    ("attn_only", {"normalization_type": "LN"}),
    ("width_norm", {"bias_attn_out": False}),
    ("gpt2", {"act_fn": "solu_ln"}),
    ("gpt2", {"act_fn": "solu_ln", "bias_mlp": False}),
    ("gpt2", {"act_fn": "solu_ln", "normalization_type": "RMS"}),
    ("gpt2", {"embed_norm": True}),
    ("llama", {"norm_gain_from_one": True, "use_qk_norm": True, "embed_norm": True, "embed_scale": 2.5}),
]


@pytest.mark.parametrize(("name", "changes"), MORE)
def test_folding_norms_and_value_biases_one_after_the_other_leaves_logits(name: str, changes: dict) -> None:
    model, tokens = variant(name, torch.float64, **changes), some_tokens()
    folded = fold_value_biases(fold_norms(model))
    close(folded(tokens), model(tokens), rtol=1e-12, atol=1e-12)
    assert (folded.b_V == 0).all()
    if model.cfg.normalization_type == "LN":
        all_folded = center_unembed(center_writes(folded))
        close(all_folded(tokens).log_softmax(-1), model(tokens).log_softmax(-1), rtol=1e-12, atol=1e-12)
        resid = all_folded.run_with_cache(tokens)[1]["resid_post", -1]
        close(resid.mean(-1), torch.zeros(resid.shape[:-1], dtype=torch.float64), atol=1e-12, rtol=0)


def test_value_biases_go_into_the_output_bias() -> None:
    model = variant("sandwich", torch.float64)
    expected = model.b_O.clone()
    for layer in range(model.cfg.n_layers):
        for head in range(model.cfg.n_heads):
            expected[layer] += model.b_V[layer, 0] @ model.W_O[layer, head]  # all four heads share one value head
    new = fold_value_biases(model)
    close(new.b_O, expected)
    close(new.b_Q, model.b_Q)
    close(new.b_K, model.b_K)


def test_a_new_model_saves_loads_and_trains(tmp_path) -> None:
    new = fold_norms(variant("gpt2"))
    new.save_pretrained(tmp_path)
    tokens = some_tokens()
    close(HookedGPT.from_pretrained(tmp_path)(tokens), new(tokens))
    new(tokens, return_type="loss").backward()
    assert all(parameter.grad is not None for parameter in new.parameters())


def test_training_mode_and_half_precision_are_kept() -> None:
    model = variant("neox", torch.bfloat16).train()
    new = fold_norms(model)
    assert new.training
    assert new.dtype == torch.bfloat16
    close(new(some_tokens()), model(some_tokens()), atol=0.3, rtol=0.1)


def test_positions_that_pass_no_norm_stay_as_they_are() -> None:
    model, tokens = variant("gpt2", torch.float64, **SOLU), some_tokens()
    with pytest.raises(ValueError, match=r"^positional_embedding_type='shortformer'"):
        fold_norms(model)
    close(center_writes(model)(tokens), model(tokens), rtol=1e-12, atol=1e-12)


def test_a_gate_without_bias_refuses_the_bias_of_a_norm() -> None:
    with pytest.raises(ValueError, match=r"^gated_mlp=True with bias_norm=True"):
        fold_norms(variant("llama", normalization_type="LN", bias_norm=True))
