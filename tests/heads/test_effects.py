"""Heads' direct effects, and where they part from scores."""

import numpy as np
import pytest
import torch
from xarray import DataArray

from interp.heads import direct_effects, disagreement, effect_names, patterns
from interp.lens import direct_logit_attribution
from tests.variants import VARIANTS, quick_of, some_tokens, variant


@pytest.mark.parametrize("name", quick_of(VARIANTS, "gpt2", "llama", "post", "sandwich", "attn_only"))
def test_direct_effects_are_the_heads_parts_of_the_attribution(name: str) -> None:
    model, tokens = variant(name, torch.float64), some_tokens()
    mask = torch.ones(3, 7, dtype=torch.bool)
    mask[1, :2] = False
    mask[2, 5:] = False
    names = [each for each in model.hook_dict if "result" not in each and "input" not in each and "_in" not in each]
    with torch.no_grad():
        _, cache = model.run_with_cache(tokens, attention_mask=mask, names_filter=names)
        _, needed = model.run_with_cache(tokens, attention_mask=mask, names_filter=effect_names(model))
    for pos, wrong in ((-1, 2), (4, None), (-2, 5)):
        found = direct_effects(model, needed, 3, wrong, pos=pos)
        wanted = direct_logit_attribution(model, cache, 3, wrong, by="head", pos=pos)
        for layer in range(model.cfg.n_layers):
            for head in range(model.cfg.n_heads):
                own = wanted.sel(component=f"L{layer}H{head}")
                np.testing.assert_allclose(found.sel(layer=layer, head=head), own, atol=1e-12)


def test_heads_disagree_by_the_difference_of_their_ranks() -> None:
    axes = ("layer", "head")
    score = DataArray([[0.9, 0.1], [0.5, np.nan]], dims=axes, coords={"layer": [0, 1], "head": [0, 1]})
    effect = DataArray([[0.0, -3.0], [1.0, 5.0]], dims=axes, coords=score.coords)
    found = disagreement(score, effect)
    np.testing.assert_array_equal(found, [[1.0, -1.0], [0.0, np.nan]])
    of_prompts = effect.expand_dims(prompt=2)
    np.testing.assert_array_equal(disagreement(score, of_prompts), found)
    equal = disagreement(score, 0 * effect)
    np.testing.assert_array_equal(equal, [[0.5, -0.5], [0.0, np.nan]])
    with pytest.raises(ValueError, match=r"are \[layer head\]"):
        disagreement(score[0], effect)


def test_the_strongest_pairs_are_those_of_the_pattern_and_may_leave_out_the_first_token() -> None:
    found = patterns(variant("gpt2"), some_tokens())
    pattern = found[1, 2][1].detach().numpy()
    pairs = found.strongest(1, 2, 5, prompt=1)
    order = np.argsort(-pattern, axis=None)[:5]
    np.testing.assert_array_equal(pairs.query_pos * 7 + pairs.key_pos, order)
    np.testing.assert_array_equal(pairs.weight, pattern.flatten()[order])
    rest = found.strongest(1, 2, 100, prompt=1, first=False)
    assert len(rest.weight) == 21  # of 28 pairs that a causal pattern has, 7 have the first token as a key
    assert (rest.key_pos > 0).all()
    assert np.isclose(float(rest.weight.sum() + pattern[:, 0].sum()), 7)
