"""Parts of a model called on their own do what they do within it."""

import copy
import pickle

import pytest
import torch

from tests.classic.shapes import KINDS, filled, rows


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_one_by_one_are_the_model(kind: str) -> None:
    model = filled(kind)
    logits, cache = model.run_with_cache(rows())
    resid = model.embed(rows())
    if model.cfg.positional_embedding_type == "standard":
        resid = resid + model.pos_embed(rows())
        torch.testing.assert_close(model.pos_embed(rows()[:, 4:], 4), cache["hook_pos_embed"][:, 4:])
    is_shortformer = model.cfg.positional_embedding_type == "shortformer"
    beside = cache["hook_pos_embed"] if is_shortformer else torch.zeros(())
    for layer, block in enumerate(model.blocks):
        reads = block.ln1(resid)
        placed = reads + beside
        torch.testing.assert_close(block.attn(placed, placed, reads), cache["attn_out", layer])
        apart = {
            "query_input": placed[:, :, None].repeat(1, 1, model.cfg.n_heads, 1),
            "key_input": placed,
            "value_input": reads,
        }
        torch.testing.assert_close(block.attn(**apart), cache["attn_out", layer])
        resid = block(resid, shortformer_pos_embed=beside) if is_shortformer else block(resid)
        torch.testing.assert_close(resid, cache["resid_post", layer], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(model.unembed(model.ln_final(resid)), logits, atol=1e-4, rtol=1e-4)
    assert torch.equal(copy.deepcopy(model)(rows()), model(rows()))
    opened = pickle.loads(pickle.dumps(model))
    same = {"shortformer_pos_embed": beside} if is_shortformer else {}
    assert torch.equal(opened.blocks[1](resid, **same), model.blocks[1](resid, **same))
    if is_shortformer:
        with pytest.raises(ValueError, match="shortformer_pos_embed"):
            model.blocks[0](resid)


def test_hooks_hear_a_block_that_is_called_alone() -> None:
    model, heard = filled("gpt2"), list[str]()
    resid = model(rows(), stop_at_layer=1)
    with model.hooks([(lambda name: "pattern" in name, lambda x, hook: heard.append(hook.name))]):
        model.blocks[1](resid)
    assert heard == ["blocks.1.attn.hook_pattern"]
    with pytest.raises(ValueError, match="value_input"):
        model.blocks[0].attn(model.embed(rows()), model.embed(rows()))
