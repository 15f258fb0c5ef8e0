"""A shuffled twin has the model's numbers, and none of its circuits."""

import pytest
import torch

from interp import HookedGPT
from interp.tokenization import Tokenizer
from interp.training import repeated_tokens
from interp.training.measures import head_scores
from interp.zoo import planted, shuffled
from tests.variants import EACH, config, some_tokens, variant

NAMED = ("W_E", "W_pos", "W_Q", "W_K", "W_V", "W_O", "W_in", "W_gate", "W_out", "W_U")
BIASES = ("b_Q", "b_K", "b_V", "b_O", "b_in", "b_out", "b_U")
BY_LAYER = {"W_Q", "W_K", "W_V", "W_O", "W_in", "W_gate", "W_out", *BIASES} - {"b_U"}


def named(model: HookedGPT) -> dict[str, torch.Tensor]:
    """Each layer's weights by name, as far as the model has them."""
    found = {}
    for name in (*NAMED, *BIASES):
        try:
            whole = getattr(model, name).detach()
        except AttributeError:
            continue
        found |= {f"{name} {i}": part for i, part in enumerate(whole)} if name in BY_LAYER else {name: whole}
    return found


@pytest.mark.parametrize("name", EACH)
def test_every_matrix_keeps_its_entries_in_another_order(name: str) -> None:
    model = variant(name)
    before = {key: weight.clone() for key, weight in model.state_dict().items()}
    twin = shuffled(model)
    old, new = named(model), named(twin)
    assert old.keys() == new.keys()
    for key, weight in old.items():
        assert torch.equal(weight.flatten().sort().values, new[key].flatten().sort().values), key
        if weight.any() and weight.numel() > 3:  # what the model lacks is zeros; three may fall as they lay
            assert not torch.equal(weight, new[key]), key
    for key, weight in model.state_dict().items():
        assert torch.equal(weight, before[key]), key
        if ".ln" in f".{key}" or "_norm." in key:
            assert torch.equal(weight, twin.state_dict()[key]), key
    assert twin.cfg == model.cfg
    assert not torch.equal(model(some_tokens()), twin(some_tokens()))


def test_tied_embeddings_stay_tied() -> None:
    twin = shuffled(variant("gpt2"))
    assert twin.W_U.data_ptr() == twin.W_E.data_ptr()
    assert "unembed.weight" not in twin.state_dict()


def test_a_twin_depends_on_the_seed_alone() -> None:
    model = variant("llama")
    assert shuffled(model, 1).fingerprint() == shuffled(model, 1).fingerprint() != shuffled(model, 2).fingerprint()


def test_a_twin_keeps_the_tokenizer_the_precision_and_the_mode() -> None:
    tokenizer = Tokenizer.train(["the cat sat on the mat"] * 9, d_vocab=300, progress=False)
    model = HookedGPT(config("gpt2", d_vocab=300), tokenizer).to(torch.bfloat16).train()
    twin = shuffled(model)
    assert twin.tokenizer is tokenizer
    assert twin.dtype == torch.bfloat16
    assert twin.training
    assert not shuffled(model.eval()).training
    assert all(parameter.requires_grad for parameter in twin.parameters())


def test_nothing_of_induction_is_left_in_the_twins_of_a_planted_model() -> None:
    model = planted.induction(d_vocab=33, n_ctx=40, periods=(8, 20), distractor_heads=3).model
    tokens = repeated_tokens(33, 40, (8, 16), bos=0)(torch.Generator().manual_seed(0), 16).tokens
    assert head_scores(model, tokens)["induction"].max() > 0.99
    assert max(head_scores(shuffled(model, seed), tokens)["induction"].max() for seed in range(5)) < 0.3
