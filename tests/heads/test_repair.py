"""Self-repair: the parts of a change in the logits sum to it, and a head that backs another up is found."""

import pytest
import torch

from interp import HookedGPT, heads, patching
from interp.interventions import Ablate, Scale, Site
from tests.variants import some_tokens, variant


@torch.no_grad()
@pytest.mark.parametrize("name", ["gpt2", "llama", "attn_only", "post"])
def test_all_parts_sum_to_the_change_of_the_logit_difference(name: str) -> None:
    model, tokens = variant(name), some_tokens()
    edits = [Ablate(Site("z", 0, head=1))]
    found = heads.self_repair(model, tokens, edits, 3, 5, pos=4)
    with model.edit(edits):
        after = model(tokens)[:, 4]
    before = model(tokens)[:, 4]
    change = (after[:, 3] - after[:, 5] - before[:, 3] + before[:, 5]).double()
    torch.testing.assert_close(torch.tensor(found.total.to_numpy()), change, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.tensor(found.sum("component").to_numpy()), change, rtol=1e-4, atol=1e-5)
    assert float(abs(found.remainder).max()) < 1e-6
    assert found.component.values[found.kind.values == "edited"].tolist() == ["L0H1"]


@torch.no_grad()
def test_each_part_is_a_dot_product_with_the_scale_as_it_was() -> None:
    model, tokens = variant("gpt2"), some_tokens()
    edits = [Scale(Site("z", 0, head=1), -2.0), Ablate(Site("post", 0, neuron=3))]
    found = heads.self_repair(model, tokens, edits, 3, 5)
    _, before = model.run_with_cache(tokens)
    with model.edit(edits):
        _, after = model.run_with_cache(tokens)
    toward = model.W_U[:, 3] - model.W_U[:, 5]
    toward = toward * model.ln_final.w  # type: ignore[operator]
    toward = (toward - toward.mean()) / before["ln_final.hook_scale"][:, -1]
    for layer, head in ((0, 1), (1, 0), (1, 2)):
        z = after["z", layer][:, -1, head] - before["z", layer][:, -1, head]
        wanted = (z @ model.W_O[layer, head] * toward).sum(-1).double()
        own = found.sel(component=f"L{layer}H{head}")
        torch.testing.assert_close(torch.tensor(own.to_numpy()), wanted, rtol=1e-4, atol=1e-5)
    wanted = ((after["mlp_out", 0] - before["mlp_out", 0])[:, -1] * toward).sum(-1).double()
    torch.testing.assert_close(torch.tensor(found.sel(component="L0 mlp").to_numpy()), wanted, rtol=1e-4, atol=1e-5)
    assert set(found.component.values[found.kind.values == "edited"]) == {"L0H1", "L0 mlp"}
    assert float(abs(found.sel(component="L0H0")).max()) < 1e-6, "earlier and unedited parts do as before"


@torch.no_grad()
def test_with_nothing_edited_nothing_changes_and_edits_of_the_stream_are_refused() -> None:
    model, tokens = variant("gpt2"), some_tokens()
    assert float(abs(heads.self_repair(model, tokens, [], 3)).max()) < 1e-6
    with pytest.raises(ValueError, match="hook_resid_post is neither"):
        heads.self_repair(model, tokens, [Scale(Site("resid_post", 0), 2.0)], 3)


@torch.no_grad()
def test_on_a_bundled_model_a_pattern_set_to_uniform_is_of_its_head() -> None:
    model = HookedGPT.from_pretrained("stdlib-4l")
    edits = patching.removals(model, "L0H1", "uniform")["L0H1"]
    found = heads.self_repair(model, "def area(width, height):\n    return width *", edits, " height", " width")
    assert found.component.values[found.kind.values == "edited"].tolist() == ["L0H1"]
    assert float(found.total[0]) < -0.5
