"""A walk: every number is what `run_with_cache` has, and what its own code makes."""

from typing import Any

import pytest
import torch
from torch import Tensor

from interp import HookedGPT, heads
from interp.walk import STAGES, Walk, quantities, walk
from interp.zoo import planted
from tests.variants import EACH, some_tokens, variant

LAYER, HEAD, POS = 1, 2, 4


def walked(name: str) -> Walk:
    return walk(variant(name), some_tokens(1), LAYER, POS)


def close(found: Any, wanted: Tensor) -> None:
    torch.testing.assert_close(torch.as_tensor(found).to(wanted), wanted, atol=2e-5, rtol=1e-4)


@torch.no_grad()
def of_cache(model: HookedGPT, tokens: Tensor, hook: str) -> Tensor:
    """What a whole pass has at a hook point, of this head, at this position."""
    x = model.run_with_cache(tokens, names_filter=[hook])[1][hook][0]
    group = model.cfg.n_heads // model.cfg.n_key_value_heads
    axes = model.hook_dict[hook].axes.split()[1:]
    places = {"pos": POS, "query_pos": POS, "head": HEAD, "kv_head": HEAD // group}
    return x[tuple(places.get(axis, slice(None)) for axis in axes)]


@pytest.mark.parametrize("name", EACH)
def test_the_numbers_of_every_stage_are_those_of_run_with_cache(name: str) -> None:
    this, n_hooks = walked(name), 0
    for stage in STAGES:
        for each in quantities(this, stage, HEAD):
            if each.hook is None:
                continue
            wanted = of_cache(this.model, this.tokens, each.hook)
            if each.name.startswith("k of"):  # of another position
                wanted = torch.as_tensor(
                    heads.patterns(this.model, this.tokens).keys(LAYER, HEAD)[0, int(each.name[5:])]
                )
            close(each.values, wanted)
            n_hooks += 1
    assert n_hooks > 12


@pytest.mark.parametrize("name", EACH)
def test_the_code_of_every_stage_makes_its_numbers_again(name: str) -> None:
    this = walked(name)
    for stage in STAGES:
        found = quantities(this, stage, HEAD)
        assert len({each.name for each in found}) == len(found)
        scope: dict[str, Any] = {"model": this.model, "tokens": this.tokens, "heads": heads}
        with torch.no_grad():
            exec(this.code(found, HEAD), scope)
        for each in found:
            close(scope["numbers"][each.name], each.values)


@pytest.mark.parametrize("name", EACH)
def test_shapes_are_those_of_the_whole_and_end_in_the_axis_of_the_numbers(name: str) -> None:
    this = walked(name)
    cfg = this.model.cfg
    sizes = {"pos": 7, "query_pos": 7, "key_pos": 7, "1": 1} | {
        axis: getattr(cfg, axis) for axis in ("d_model", "d_head", "d_mlp", "d_vocab_out")
    }
    for stage in STAGES:
        for each in quantities(this, stage, HEAD):
            assert [sizes[axis] for axis in each.axes] == list(each.shape), (stage, each)
            assert each.values.shape == (sizes[each.along],)


def named(this: Walk, stage: str) -> dict[str, Tensor]:
    return {each.name: each.values for each in quantities(this, stage, HEAD)}


@pytest.mark.parametrize("name", EACH)
def test_each_stage_follows_from_the_one_before(name: str) -> None:
    this = walked(name)
    cfg = this.model.cfg
    of = named(this, "position")
    if of:
        close(of["embedding"] + of["position"], of["stream"])
    of = named(this, "scores")
    key = next(int(name[5:]) for name in of if name.startswith("k of"))
    close((of["q"] @ of[f"k of {key}"])[None], of["q · k"][key : key + 1])
    assert key == int(named(this, "softmax")["weights"].argmax())
    of = named(this, "scaling")
    if cfg.attn_scores_soft_cap is None and cfg.positional_embedding_type != "alibi":
        close(of["q · k"] / cfg.attn_scale, of["scaled"])
    of = named(this, "mask")
    if cfg.attention_dir == "causal":
        assert torch.isinf(of["masked"][POS + 1 :]).all()
    seen = torch.isfinite(of["masked"])
    close(of["masked"][seen], of["scaled"][seen])
    close(of["masked"].softmax(-1), named(this, "softmax")["weights"])
    of = named(this, "values")
    if seen.sum() <= 5:  # then all keys are told apart
        close(torch.stack([x for name, x in of.items() if "× v" in name]).sum(0), of["z"])
    for stage, added in (("attention added", "attention adds"), ("mlp added", "the MLP adds")):
        of = named(this, stage)
        parts = [x for name, x in of.items() if name == "stream" or name.endswith(" adds")]
        if of:
            close(torch.stack(parts).sum(0), of["sum" if "sum" in of else "stream after"])
            assert added in of


def test_what_a_model_lacks_has_no_numbers() -> None:
    lacking = {
        "llama": {"position"},
        "gpt2": {"turn"},
        "gptj": {"position", "attention added"},
        "output_ln": {"position", "attention norm", "mlp norm"},
        "post": {"attention norm", "mlp norm", "final norm", "turn"},
        "attn_only": {"position", "turn", "attention norm", "final norm"}
        | {"mlp norm", "expand", "activation", "contract", "mlp added"},
    }
    for name, lacks in lacking.items():
        this = walked(name)
        assert {stage for stage in STAGES if not quantities(this, stage, 0)} == lacks, name


def test_a_planted_head_is_seen_at_work() -> None:
    made = planted.previous_token(distractor_heads=2)
    layer, head = map(int, made.roles["previous"].removeprefix("L").split("H"))
    this = walk(made.model, made.sample(1).tokens, layer, 5)
    assert this.strongest(head, 1) == [4]
    weights = {each.name: each.values for each in quantities(this, "softmax", head)}["weights"]
    assert weights[4] > 0.9


def test_a_walk_of_a_text_is_that_of_its_tokens() -> None:
    model = HookedGPT.from_pretrained("stdlib-4l")
    text = "def area(width):"
    this, other = walk(model, text, 0, 3), walk(model, model.to_tokens(text), 0, 3)
    close(this.logits, model(text)[0, 3].detach())
    close(this.logits, other.logits)


def test_what_is_not_there_is_refused() -> None:
    model, tokens = variant("gpt2"), some_tokens(2)
    with pytest.raises(ValueError, match="one prompt"):
        walk(model, tokens, 0, 1)
    with pytest.raises(ValueError, match="pos=7"):
        walk(model, tokens[:1], 0, 7)
    with pytest.raises((ValueError, IndexError), match="layer"):
        walk(model, tokens[:1], 2, 1)
    with pytest.raises(ValueError, match=r"stage='soft'; allowed: \['embedding'"):
        quantities(walk(model, tokens[:1], 0, 1), "soft", 0)
