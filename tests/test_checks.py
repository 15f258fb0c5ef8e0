"""Identities as the dashboard shows them: they hold of every model, and a broken one is told."""

import pytest
import torch

from interp.checks import identities
from interp.weights import parameter_counts, stored
from tests.variants import VARIANTS, some_tokens, variant


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_keeps_what_it_claims(name: str) -> None:
    model = variant(name)
    found = {check.name: check for check in identities(model, some_tokens(n_rows=1))}
    assert all(check.holds for check in found.values()), found
    assert ("The future moves no past" in found) == (model.cfg.attention_dir == "causal")


def test_a_model_that_looks_ahead_is_told() -> None:
    model = variant("gpt2")
    leak = lambda tensor, hook: tensor + tensor.flip(1)
    with model.hooks(fwd_hooks=[("blocks.0.hook_attn_out", leak)]):
        found = {check.name: check for check in identities(model, some_tokens(n_rows=1))}
    assert not found["The future moves no past"].holds
    assert not found["In pieces as in one"].holds
    assert found["A cache changes nothing"].holds


def test_rows_that_do_not_sum_to_1_are_told() -> None:
    model = variant("gpt2")
    with model.hooks(fwd_hooks=[("blocks.1.attn.hook_pattern", lambda tensor, hook: tensor * 1.01)]):
        found = {check.name: check for check in identities(model, some_tokens(n_rows=1))}
    assert found["Rows sum to 1"].error == pytest.approx(0.01, rel=1e-3)


def test_one_token_is_enough() -> None:
    assert all(check.holds for check in identities(variant("gpt2"), torch.tensor([[3]])))


@pytest.mark.parametrize("name", VARIANTS)
def test_counts_sum_to_all_weights(name: str) -> None:
    model = variant(name)
    assert sum(parameter_counts(model).values()) == sum(weight.numel() for weight in model.parameters())
    assert {weight.name for weight in stored(model)} == {name for name, _ in model.named_parameters()}


def test_counts_are_told_by_part() -> None:
    counts = parameter_counts(variant("gpt2"))
    per_layer = 3 * (14 * 15 + 15) + 15 * 14 + 14
    assert counts["attention"] == 2 * per_layer
    assert counts["MLPs"] == 2 * (14 * 17 + 17 + 17 * 14 + 14)
    assert counts["embedding"] == 13 * 14
    assert counts["positions"] == 11 * 14
