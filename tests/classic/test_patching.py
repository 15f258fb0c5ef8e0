"""Sweeps with the known setters are the runs made one by one with the same setter as one's own."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from interp.classic import patching
from tests.classic.shapes import filled, rows

NAMES = [name for name in dir(patching) if name.startswith("get_act_patch") and not name.endswith("_every")]


def runs(kind: str) -> tuple[Any, Any, Any]:
    model, clean = filled(kind), rows(n_pos=6)
    corrupted = clean.clone()
    corrupted[:, 2] = (corrupted[:, 2] + 3) % 29
    return model, corrupted, model.run_with_cache(clean)[1]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("name", NAMES)
def test_many_at_a_time_are_one_by_one(kind: str, name: str) -> None:
    model, corrupted, cache = runs(kind)
    sweep: Any = getattr(patching, name)
    setter: Callable[..., Any] = sweep.keywords["patch_setter"]
    mine = lambda *args: setter(*args)
    last = lambda logits: (logits[:, -1, 3] - logits[:, -1, 4]).mean()
    everywhere = lambda logits: logits.log_softmax(-1)[:, :-1].gather(-1, corrupted[:, 1:, None]).mean().item()
    for metric in (last,) if "dest_src" in name else (last, everywhere):
        many = sweep(model, corrupted, cache, metric)
        single = sweep(model, corrupted, cache, metric, patch_setter=mine)
        assert many.shape == single.shape
        torch.testing.assert_close(many, single, atol=1e-5, rtol=1e-4)
        assert many.std() > 1e-4


def test_indices_may_be_given_as_a_table() -> None:
    model, corrupted, cache = runs("gpt2")
    metric = lambda logits: logits[:, -1, 3].mean()
    whole, index = patching.get_act_patch_resid_pre(model, corrupted, cache, metric, return_index_df=True)
    assert list(index.columns) == ["layer", "pos"]
    some = index.iloc[[3, 8]]
    choices: dict[str, Any] = {"index_axis_names": None, "index_df": some}
    found = patching.get_act_patch_resid_pre(model, corrupted, cache, metric, **choices)
    torch.testing.assert_close(found, torch.stack([whole[0, 3], whole[1, 2]]))
    with pytest.raises(ValueError, match="one of the two"):
        patching.get_act_patch_resid_pre(model, corrupted, cache, metric, index_df=some)
    with pytest.raises(KeyError, match="neuron"):
        patching.get_act_patch_resid_pre(model, corrupted, cache, metric, index_axis_names=("layer", "neuron"))


@pytest.mark.slow
def test_stacks_are_the_sweeps_they_name() -> None:
    model, corrupted, cache = runs("llama")
    metric = lambda logits: logits[:, -1, 3].mean()
    what = (model, corrupted, cache, metric)
    every = patching.get_act_patch_attn_head_all_pos_every(*what)
    assert tuple(every.shape) == (5, 2, 4)
    assert torch.equal(every[2, :, :2], patching.get_act_patch_attn_head_k_all_pos(*what))
    assert not every[2, :, 2:].any()
    by_pos = patching.get_act_patch_attn_head_by_pos_every(*what)
    assert torch.equal(by_pos[4], patching.get_act_patch_attn_head_pattern_by_pos(*what).transpose(1, 2))
    blocks = patching.get_act_patch_block_every(*what)
    assert torch.equal(blocks[2], patching.get_act_patch_mlp_out(*what))
