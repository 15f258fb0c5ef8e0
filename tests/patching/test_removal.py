"""Named parts taken away, and the metric with one set of edits after another."""

from pathlib import Path
from typing import Any

import pytest
import torch

from interp import HookedGPT, metrics, patching
from interp.interventions import Attend, Site, load, save
from interp.patching.removal import How
from tests.variants import some_tokens, variant

HOWS: list[How] = ["zero", "mean", "resample", "uniform", "first"]


def reference() -> torch.Tensor:
    return torch.randint(0, 11, (4, 9), generator=torch.Generator().manual_seed(3))


def test_names_are_those_of_parts_however_they_are_written() -> None:
    named = patching.parts_named(variant("gpt2"), " l1h2,0.1 , L1N4, L0, L1 attn,L1 MLP, L1H2,")
    assert list(named) == ["L1H2", "L0H1", "L1N4", "L0", "L1 attn", "L1 mlp"]
    said = {name: [(s.name, s.layer, s.head, s.neuron) for s in sites] for name, sites in named.items()}
    assert said["L1H2"] == [("z", 1, 2, None)]
    assert said["L0H1"] == [("z", 0, 1, None)]
    assert said["L1N4"] == [("post", 1, None, 4)]
    assert said["L0"] == [("z", 0, None, None), ("mlp_out", 0, None, None)]
    assert said["L1 mlp"] == [("mlp_out", 1, None, None)]


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ("L2", "L2: there are 2 layers"),
        ("L0H3", "L0H3: there are 3 heads"),
        ("L0N99999", "there are .* neurons"),
        ("banana, L0H1; L1", "'banana' is no part.*'L0H1; L1' is no part"),
        ("L1H", "is no part: they are named L5H1"),
        ("L-1", "is no part"),
        ("L0H1" * 30, "is no part"),
    ],
)
def test_what_is_no_part_is_refused_with_its_name(names: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        patching.parts_named(variant("gpt2"), names)


def test_a_model_without_mlps_has_only_its_heads_taken_away() -> None:
    model = variant("attn_only")
    assert [s.name for s in patching.parts_named(model, "L1")["L1"]] == ["z"]
    for name in ("L0 mlp", "L0N1"):
        with pytest.raises(ValueError, match="the model has no MLPs"):
            patching.parts_named(model, name)


@pytest.mark.parametrize("how", HOWS)
def test_with_edits_is_the_metric_of_a_run_with_them(how: How, tmp_path: Path) -> None:
    model, tokens = variant("gpt2"), some_tokens()
    parts = "L0H1, L1H2, L1 attn" if how in ("uniform", "first") else "L0H1, L1N3, L1, L0 mlp"
    edits = patching.removals(model, parts, how, reference(), row=2)
    together = [edit for some in edits.values() for edit in some]
    found = patching.with_edits(model, tokens, edits | {"all": together, "none": []}, metrics.loss(), progress=False)
    assert found.dims == ("edits", "prompt")
    save(together, tmp_path / "edits.json")
    for name, some in (edits | {"all": load(tmp_path / "edits.json"), "none": []}).items():
        with model.edit(some):
            loss = model(tokens, return_type="loss", loss_per_token=True).mean(1)
        torch.testing.assert_close(
            torch.tensor(found.sel(edits=name).to_numpy()), loss.double().detach(), rtol=1e-5, atol=1e-5
        )
    assert (found.sel(edits="none") == found.base).all()
    assert (abs(found.sel(edits="all") - found.base) > 1e-6).all()


@torch.no_grad()
def test_means_and_other_values_are_those_of_the_reference() -> None:
    model = variant("gpt2")
    _, cache = model.run_with_cache(reference())
    seen: dict[str, Any] = {}
    for how, wanted in (("mean", cache["z", 1][:, :, 2].mean((0, 1))), ("resample", cache["z", 1][3, :7, 2])):
        with model.edit(patching.removals(model, "L1H2", how, reference(), row=3)["L1H2"]):  # type: ignore[arg-type]
            _, seen = model.run_with_cache(some_tokens())  # type: ignore[assignment]
        torch.testing.assert_close(seen["z", 1][:, :, 2], wanted.expand(3, 7, -1))  # type: ignore[index]
    with pytest.raises(ValueError, match="needs reference="):
        patching.removals(model, "L1H2", "mean")
    with pytest.raises(ValueError, match="for heads, and not for L1N3"):
        patching.removals(model, "L0H1, L1N3", "uniform")


@torch.no_grad()
def test_attention_that_was_set_reads_all_tokens_alike_or_the_first() -> None:
    model, tokens = variant("gpt2"), some_tokens()
    uniform = torch.ones(7, 7).tril() / torch.arange(1, 8)[:, None]
    first = torch.zeros(7, 7)
    first[:, 0] = 1
    for to, wanted in (("uniform", uniform), ("first", first)):
        with model.edit([Attend(Site("pattern", 1, head=[0, 2]), to)]):  # type: ignore[arg-type]
            _, cache = model.run_with_cache(tokens)
        torch.testing.assert_close(cache["pattern", 1][:, [0, 2]], wanted.expand(3, 2, -1, -1))
        _, plain = model.run_with_cache(tokens)
        torch.testing.assert_close(cache["pattern", 1][:, 1], plain["pattern", 1][:, 1])
    for bad, said in (
        (lambda: Attend(Site("z", 1)), "for the pattern, not for z"),
        (lambda: Attend(Site("pattern", 1, neuron=2)), "leave out neuron="),
    ):
        with pytest.raises(ValueError, match=said):
            bad()


@torch.no_grad()
@pytest.mark.parametrize("to", ["uniform", "first"])
def test_attention_that_was_set_is_the_same_over_a_cache_of_keys(to: Any) -> None:
    model, tokens = variant("gpt2"), some_tokens()[:1, :4]
    with model.edit([Attend(Site("pattern", 0), to), Attend(Site("pattern", 1, head=1), to)]):
        found = model.generate(tokens, 3, temperature=0, return_type="tokens", stop_at_eos=False)
        for n in range(4, 7):
            assert model(found[:, :n])[0, -1].argmax() == found[0, n]


@pytest.mark.slow
def test_a_sample_is_of_the_models_kind() -> None:
    model = HookedGPT.from_pretrained("stdlib-4l")
    found = patching.sample(model, 3, 20)
    assert found.shape == (3, 20)
    assert len(found.unique(dim=0)) == 3
    assert torch.equal(found, patching.sample(model, 3, 20))
    assert not torch.equal(found, patching.sample(model, 3, 20, seed=1))
    ids = patching.sample(variant("gpt2"), 5, 1000)
    assert ids.shape == (5, variant("gpt2").cfg.n_ctx)
    assert ids.max() < variant("gpt2").cfg.d_vocab
