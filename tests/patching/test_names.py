"""Parts by name: one notation, whichever way a part is named."""

import pytest
import torch

from interp import metrics, patching
from tests.variants import some_tokens, variant

HEADS = "L0H0, L0H1, L0H2, L1H0, L1H1, L1H2"


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ("all", f"{HEADS}, L0 mlp, L1 mlp"),
        ("heads", HEADS),
        ("L*H1, 1.0-1", "L0H1, L1H1, L1H0"),
        ("L1N2-4", "L1N2, L1N3, L1N4"),
        ("l* attn", "L0 attn, L1 attn"),
        ("layers", "L0, L1"),
        ("blocks.*.hook_mlp_out", "L0 mlp, L1 mlp"),
        ("mlp_out layer 1", "L1 mlp"),
        ("z head *", HEADS),
        ("hook_z layer 1 head 2", "L1H2"),
        ("z layer 0", "L0 attn"),
        ("post layer 1 neuron 5", "L1N5"),
        ("resid_pre layer 1 pos -1", "resid_pre layer 1 pos -1"),
        ("resid_mid pos *", ", ".join(f"resid_mid layer {i} pos {j}" for i in (0, 1) for j in range(3))),
        ("z layer 1 head 0 pos 0-1", "z layer 1 head 0 pos 0, z layer 1 head 0 pos 1"),
        ("blocks.1.ln2.hook_scale", "blocks.1.ln2.hook_scale"),
        ("ln_final.hook_normalized", "ln_final.hook_normalized"),
    ],
)  # fmt: skip
def test_a_name_means_these_parts_and_each_is_known_by_its_own_name(names: str, said: str) -> None:
    model = variant("gpt2")
    found = patching.parts_named(model, names, n_pos=3)
    assert list(found) == said.split(", ")
    again = patching.parts_named(model, list(found))
    assert list(again) == list(found)
    for name, sites in found.items():
        assert [(s.point(model).name, s.head, s.pos, s.neuron) for s in sites] == [
            (s.point(model).name, s.head, s.pos, s.neuron) for s in again[name]
        ]


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ("heds", "'heds' is no part: they are named .* nearest: heads"),
        ("resid_prr pos 1", "is no part.*nearest: resid_pre"),
        ("z layer 2", "z layer 2: there are 2 layers"),
        ("z layer one", "there are 2 layers; an index is a number"),
        ("z head 3", "of head there are 3"),
        ("resid_pre head 0", "has no heads"),
        ("resid_pre pos 7", "there are 7 positions"),
        ("post neuron 99999", "of neuron there are"),
        ("z head", "behind a hook stand layer, head, pos, neuron, each with its index"),
        ("z tail 1", "behind a hook stand"),
        ("blocks.0.hook_mlp_out layer 1", "is in no such layer"),
        ("L0N3-1", "neurons in a layer"),
        ("z " * 200, "is no part"),
    ],
)
def test_a_name_that_means_nothing_here_is_refused(names: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        patching.parts_named(variant("gpt2"), names, n_pos=7)


def test_every_position_is_meant_where_it_is_known_how_many_there_are() -> None:
    with pytest.raises(ValueError, match="how many positions there are is not known here"):
        patching.parts_named(variant("gpt2"), "resid_pre pos *")


def test_all_of_a_model_without_mlps_is_its_heads() -> None:
    model = variant("attn_only")
    assert list(patching.parts_named(model, "all")) == list(patching.parts_named(model, "heads"))


def test_the_keys_of_grouped_queries_have_fewer_heads() -> None:
    model = variant("llama")
    assert model.cfg.n_key_value_heads < model.cfg.n_heads
    assert len(patching.parts_named(model, "k layer 0 head *")) == model.cfg.n_key_value_heads
    assert len(patching.parts_named(model, "q layer 0 head *")) == model.cfg.n_heads


def test_parts_of_every_kind_are_taken_away() -> None:
    model, tokens = variant("gpt2"), some_tokens()
    parts = patching.parts_named(model, "L0H1, L1N3, L1 mlp, resid_pre layer 1 pos 2, pattern layer 0 head 1", 7)
    found = patching.ablation(model, tokens, list(parts.values()), metrics.loss(), progress=False)
    for i, sites in enumerate(parts.values()):
        with model.edit(patching.removals(model, {"it": sites})["it"]):
            one = metrics.measured(model, tokens, metrics.loss())
        torch.testing.assert_close(torch.from_numpy(found[i].to_numpy()).float(), one, rtol=1e-4, atol=1e-4)
