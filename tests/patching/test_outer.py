"""Sweeps of models that somebody else edits or listens to, and of models that look ahead."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from interp import HookedGPT, metrics
from interp.interventions import Ablate, Edit, Patch, Scale, Site, Steer
from interp.patching import ablation, activation_patching, edge_patching, path_patching
from interp.patching.engine import Base, Row
from interp.patching.sweep import Sweep
from interp.results import Result
from tests.patching.oracle import one_by_one, put
from tests.patching.test_activation import assert_as_alone, padded
from tests.variants import SOLU, some_tokens, variant

pytestmark = pytest.mark.slow

Around = Callable[[HookedGPT], AbstractContextManager[Any]]


def outer_edits(model: HookedGPT, mask: Tensor | None = None) -> list[Edit]:
    """Of every kind, at positions counted from both ends, at the same points as the rows' own edits."""
    draw = torch.Generator().manual_seed(1)
    width = model.cfg.d_model
    _, cache = model.run_with_cache(some_tokens().roll(1, 0), attention_mask=mask)
    last = model.cfg.n_layers - 1
    return [
        Steer(Site("resid_pre", 0, pos=[1, 4]), torch.randn(width, generator=draw)),
        Steer(Site("resid_pre", last), torch.randn(width, generator=draw)),
        Patch(Site("z", 0, head=1, pos=-1), cache["z", 0]),
        Ablate(Site("mlp_out", last, pos=slice(2, 5))),
        Scale(Site("post", 0, neuron=[1, 4], pos=[2, -1]), 2),
        Steer(Site("ln_final.hook_normalized", pos=5), torch.randn(width, generator=draw)),
        Steer(Site("ln_final.hook_normalized"), torch.randn(width, generator=draw), keep_norm=True),
    ]


def rows_of(model: HookedGPT, mask: Tensor | None, draw: Callable[[list[Any]], Any]) -> list[Row]:
    points = [name for name in model.hook_dict if name.startswith("blocks.") and "ln" not in name]
    points += ["ln_final.hook_normalized", "unembed.hook_out"]
    _, cache = model.run_with_cache(some_tokens().roll(2, 0), attention_mask=mask, names_filter=points)
    positions = [None, 0, 3, 6, -1, -4, slice(1, 4)]
    rows = []
    for i in range(8):
        names = [draw(points) for _ in range(draw([0, 1, 2]))]
        rows.append(Row(i % 3, tuple(Patch(Site(name, pos=draw(positions)), cache[name]) for name in names)))
    return rows


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.data())
def test_rows_are_edited_as_runs_made_alone_within_the_same_edits(data: st.DataObject) -> None:
    model = variant(data.draw(st.sampled_from(["gpt2", "llama", "neox", "gemma2"])), torch.float64)
    mask = padded(data.draw(st.sampled_from([None, "left", "right"])))
    outer = [edit for edit in outer_edits(model, mask) if data.draw(st.booleans())]
    rows = rows_of(model, mask, lambda of: data.draw(st.sampled_from(of)))
    wanted = torch.tensor(data.draw(st.lists(st.tuples(*[st.integers(0, 6)] * 2), min_size=3, max_size=3)))
    with model.edit(outer):
        assert_as_alone(model, some_tokens(), mask, rows, wanted)


@pytest.mark.parametrize("side", [None, "left"])
def test_edits_around_act_before_those_of_rows_and_where_rows_have_not_begun(side: str | None) -> None:
    model, mask = variant("gpt2", torch.float64), padded(side)
    outer = outer_edits(model, mask)
    _, cache = model.run_with_cache(some_tokens().roll(2, 0), attention_mask=mask)
    steer = Steer(Site("resid_pre", 0, pos=5), torch.arange(14.0))
    patch = Patch(Site("z", 0, head=1, pos=-1), cache["z", 0])
    end = Steer(Site("ln_final.hook_normalized", pos=6), torch.arange(14.0).cos())
    rows = [Row(i % 3, edits) for i, edits in enumerate([(steer, patch), (patch, steer), (end, steer), (steer, end)])]
    with model.edit(outer):
        assert_as_alone(model, some_tokens(), mask, rows, torch.tensor([[1, 5, 6]] * 3))


def test_positions_that_each_layer_reads_are_read_as_edited() -> None:
    model, mask = variant("gpt2", torch.float64, **SOLU), padded("left")
    moved = Steer(Site("pos_embed", pos=5), torch.arange(14.0).sin())
    steer = Steer(Site("resid_pre", 1, pos=5), torch.arange(14.0))
    rows = [Row(prompt, edits) for prompt in range(3) for edits in ((), (steer,))]
    with model.edit([moved]):
        assert_as_alone(model, some_tokens(), mask, rows, torch.tensor([[1, 5, 6]] * 3))


def streams(model: HookedGPT, mask: Tensor | None, around: Around, pos: int = -1, **how: Any) -> tuple[Result, Tensor]:
    """Every position of every layer's stream patched, in one sweep and one by one, within what is around it."""
    clean, corrupted = some_tokens(), (some_tokens() + 4) % 13
    metric = metrics.logit_diff(model, [1, 2, 3], 5, pos=pos)
    with around(model):
        found = activation_patching(
            model, clean, corrupted, "resid_pre", metric, attention_mask=mask, progress=False, **how
        )
        _, cache = model.run_with_cache(clean, attention_mask=mask)
        sites = [
            [(f"blocks.{i}.hook_resid_pre", put(cache["resid_pre", i], slice(None), p))]
            for i in range(model.cfg.n_layers)
            for p in range(7)
        ]
        alone = one_by_one(model, corrupted, metric, sites, mask).view(found.shape)
    return found, alone


def assert_real_ones_alike(found: Result, alone: Tensor, mask: Tensor | None) -> None:
    is_real = torch.ones(3, 7, dtype=torch.bool) if mask is None else mask
    for prompt, pos in is_real.nonzero().tolist():
        values = torch.from_numpy(found.values[:, pos, prompt])
        torch.testing.assert_close(values.float(), alone[:, pos, prompt].float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("side", [None, "left"])
@pytest.mark.parametrize("name", ["gpt2", "gemma2"])
def test_a_sweep_within_edits_is_packed(name: str, side: str | None) -> None:
    model, mask = variant(name), padded(side)
    edits = outer_edits(model, mask)
    found, alone = streams(model, mask, lambda model: model.edit(edits))
    assert found.attrs["full runs"] == 0
    assert_real_ones_alike(found, alone, mask)
    bare, _ = streams(model, mask, lambda model: model.edit([]))
    assert abs(found.base - bare.base).min() > 1e-3
    assert abs(found - bare).max() > 1e-2


def doubled(model: HookedGPT) -> AbstractContextManager[Any]:
    """What only works on whole prompts, in their order."""
    _, cache = model.run_with_cache(some_tokens().roll(1, 0))

    def mix(x: Tensor, hook: Any) -> Tensor:
        return x + x.flip(1) / 2 + cache[hook.name] * torch.tensor([0.0, 1.0, 2.0]).view(3, 1, 1)

    return model.hooks([("blocks.1.hook_attn_out", mix), ("blocks.0.hook_mlp_out", mix)])


def lasting(model: HookedGPT) -> AbstractContextManager[Any]:
    model.add_hook("ln_final.hook_normalized", lambda x, hook: x * torch.arange(7).view(1, 7, 1))
    return model.edit(outer_edits(model))


@pytest.mark.parametrize("side", [None, "left"])
@pytest.mark.parametrize("around", [doubled, lasting])
def test_within_other_functions_each_pass_is_of_all_prompts(around: Around, side: str | None) -> None:
    model, mask = variant("llama", seed=3), padded(side)
    try:
        found, alone = streams(model, mask, around)
    finally:
        model.reset_hooks()
    assert found.attrs["full runs"] == found.attrs["rows"] > 0
    assert found.attrs["chunks"] >= 14
    assert_real_ones_alike(found, alone, mask)


def test_whole_passes_have_every_prompt_in_its_place_and_functions_may_mix_positions() -> None:
    model, clean = variant("llama", seed=3), some_tokens()
    corrupted = clean.clone()
    corrupted[0, 5] = (clean[0, 5] + 1) % 13
    corrupted[2, 1] = (clean[2, 1] + 1) % 13
    metric = metrics.logit_diff(model, [1, 2, 3], 5)
    with doubled(model):
        sites = [Site("resid_pre", 1, pos=2), Site("mlp_out", 0)]
        found = activation_patching(model, clean, corrupted, sites, metric, progress=False)
        _, cache = model.run_with_cache(clean)
        changes = [
            [("blocks.1.hook_resid_pre", put(cache["resid_pre", 1], slice(None), 2))],
            [("blocks.0.hook_mlp_out", put(cache["mlp_out", 0], slice(None)))],
        ]
        alone = one_by_one(model, corrupted, metric, changes)
        few = Sweep(Base(model, corrupted), metric, progress=False)
        rows = [Row(2, (Ablate(Site("z", 0, head=1)),)), Row(0, (Ablate(Site("z", 1)),)), Row(2, ())]
        values = few.values(rows)
        literal = [
            one_by_one(model, corrupted, metric, [[(f"blocks.{i}.attn.hook_z", zeros(heads))]])[0, row.prompt]
            for row, i, heads in zip(rows, (0, 1, 0), (slice(1, 2), slice(None), slice(0, 0)), strict=True)
        ]
    torch.testing.assert_close(torch.from_numpy(found.values).float(), alone.float(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(values.float(), torch.stack(literal), rtol=1e-5, atol=1e-5)


def zeros(heads: slice) -> Callable[[Tensor], Tensor]:
    def change(x: Tensor) -> Tensor:
        x[:, :, heads] = 0
        return x

    return change


def test_who_records_around_a_sweep_sees_whole_prompts() -> None:
    model, seen = variant("gpt2"), []

    def recording(model: HookedGPT) -> AbstractContextManager[Any]:
        return model.recording("blocks.1.hook_resid_post", lambda x, point: seen.append(tuple(x.shape)))

    found, alone = streams(model, None, recording)
    assert_real_ones_alike(found, alone, None)
    assert set(seen) == {(3, 7, 14)}


@pytest.mark.parametrize("side", [None, "left", "right"])
def test_models_that_look_ahead_are_swept_in_full_runs(side: str | None) -> None:
    model, mask = variant("encoder"), padded(side)
    found, alone = streams(model, mask, lambda model: model.edit([]), pos=2)
    assert_real_ones_alike(found, alone, mask)
    found, alone = streams(model, mask, lambda model: model.edit([]))
    assert found.attrs["full runs"] == found.attrs["rows"] > 0
    assert found.attrs["chunks"] < 14
    assert_real_ones_alike(found, alone, mask)
    edits = outer_edits(model, mask)
    within, alone = streams(model, mask, lambda model: model.edit([edits[0], *edits[2:4]]))
    assert_real_ones_alike(within, alone, mask)
    assert abs(within - found).max() > 1e-3
    little, _ = streams(model, mask, lambda model: model.edit([]), memory=60_000)
    assert little.attrs["chunks"] > found.attrs["chunks"]
    torch.testing.assert_close(torch.from_numpy(little.values), torch.from_numpy(found.values), rtol=1e-5, atol=1e-5)


def test_what_cannot_be_kept_within_other_functions_is_refused(tmp_path: Path) -> None:
    model, metric = variant("gpt2"), metrics.logit(variant("gpt2"), 3)
    heads = [(Site("z", 1, head=0))]
    with doubled(model):
        for choice in ({"memory": 10**9}, {"file": tmp_path / "sweep"}):
            with pytest.raises(
                ValueError, match=r"functions are hooked in around this sweep.*leave out memory= and file="
            ):
                ablation(model, some_tokens(), heads, metric, progress=False, **choice)
        with pytest.raises(ValueError, match="heard by nobody else: others listen to it"):
            path_patching(model, some_tokens(), some_tokens().roll(1, 0), "heads", ["logits"], metric, progress=False)
        with pytest.raises(ValueError, match="others listen to them: leave their hooks or edits"):
            edge_patching(model, some_tokens(), some_tokens().roll(1, 0), "all", metric, progress=False)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="its attention looks ahead"):
        path_patching(
            variant("encoder"), some_tokens(), some_tokens().roll(1, 0), "heads", ["logits"], metric, progress=False
        )


def test_a_file_of_a_sweep_within_other_edits_is_refused(tmp_path: Path) -> None:
    model, tokens, file = variant("gpt2"), some_tokens(), tmp_path / "sweep"
    rows = [Row(prompt, (Ablate(Site("z", 1, head=0)),)) for prompt in range(3)]

    def swept(scale: float) -> Tensor:
        with model.edit([Steer(Site("resid_post", 0), torch.ones(14), scale)]):
            return Sweep(Base(model, tokens), lambda logits: logits[:, -1, 0], file=file, progress=False).values(rows)

    first = swept(1.0)
    assert torch.equal(swept(1.0), first)
    with pytest.raises(ValueError, match="another sweep: not the same sites"):
        swept(1.001)
