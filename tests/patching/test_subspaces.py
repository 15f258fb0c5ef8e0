"""Interchange and fitted subspaces: between a patch and nothing; where a variable was put by hand, it is found."""

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, eye

from interp import HookedGPT, metrics
from interp.interventions import Site
from interp.patching import (
    Subspace,
    activation_patching,
    fit_subspace,
    interchange,
    null_space_check,
    subspace_controls,
)
from interp.zoo.planted.build import Build
from tests.patching.recalled import BEGINS, EITHER, MEMORY, pairs, questions, recalling
from tests.patching.test_activation import padded
from tests.variants import some_tokens, variant

AT = Site("resid_post", MEMORY, pos=BEGINS + 1)


@cache
def knowing() -> tuple[HookedGPT, Tensor]:
    """A model, and the direction in which its two answers lie apart where a fact was looked up."""
    model, spaces = recalling(EITHER, loudness=3.0)
    direction, first = torch.zeros(model.cfg.d_model), spaces["fact"].start
    direction[first], direction[first + 1] = 0.5**0.5, -(0.5**0.5)
    return model, direction


@cache
def fitted() -> Subspace:
    return fit_subspace(knowing()[0], *pairs()[:2], AT, pairs()[2], steps=50, progress=False)


def orthonormal(n: int, k: int) -> Tensor:
    return torch.linalg.qr(torch.randn(n, k, generator=torch.Generator().manual_seed(3)).double()).Q


@pytest.mark.parametrize(
    ("name", "site", "side"),
    [
        ("gpt2", Site("resid_post", 0, pos=4), None),
        ("llama", Site("z", 1, head=[0, 2]), "left"),
        ("neox", Site("post", 0), "right"),
    ],
)
def test_the_whole_space_is_a_patch_and_none_is_nothing(name: str, site: Site, side: str | None) -> None:
    model, mask, base = variant(name, torch.float64), padded(side), some_tokens()
    source, metric = base.roll(1, 0), metrics.logit_diff(model, [1, 2, 3], 5)
    n = {"resid_post": 14, "z": 6, "post": 17}[site.name]
    patch = activation_patching(model, source, base, [site], metric, attention_mask=mask, progress=False)
    some, whole = orthonormal(n, 2), orthonormal(n, n)
    every: dict[str, Any] = {"none": torch.zeros(n, 0), "some": some, "turned": whole, "whole": None}
    found = interchange(model, base, source, site, every, metric, attention_mask=mask, progress=False)
    assert found.dims == ("subspace", "prompt")
    assert found.subspace.values.tolist() == list(every)
    np.testing.assert_allclose(found.sel(subspace="none"), patch.base, rtol=0, atol=1e-12)
    np.testing.assert_allclose(found.sel(subspace="whole"), patch[0], rtol=0, atol=1e-12)
    np.testing.assert_allclose(found.sel(subspace="turned"), patch[0], rtol=0, atol=1e-12)
    _, values = model.run_with_cache(source, attention_mask=mask)
    place = slice(None) if site.pos is None else site.pos
    heads: tuple[Any, ...] = () if site.head is None else (site.head,)
    at: tuple[Any, ...] = (slice(None), place, *heads)

    def swap(x: Tensor, hook: Any) -> Tensor:
        x[at] += (values[hook.name][at] - x[at]) @ some @ some.T
        return x

    with model.hooks([(site.point(model).name, swap)]):
        by_hand = metrics.measured(model, base, metric, mask)
    np.testing.assert_allclose(found.sel(subspace="some"), by_hand, rtol=0, atol=1e-12)
    assert np.abs(found.sel(subspace="some") - found.base).max() > 1e-3
    alone = interchange(model, base, source, site, some, metric, attention_mask=mask, progress=False)
    assert alone.dims == ("prompt",)
    np.testing.assert_allclose(alone, by_hand, rtol=0, atol=1e-12)


@pytest.mark.slow
def test_the_planted_direction_is_found() -> None:
    (model, direction), found, (base, source, answers) = knowing(), fitted(), pairs()
    assert abs(float(found.basis[:, 0] @ direction)) >= 0.99
    torch.testing.assert_close(found.basis.T @ found.basis, eye(1))
    assert found.losses[-1] < 0.3 * found.losses[0]
    accuracy = metrics.accuracy(model, answers)
    swapped = interchange(model, base, source, AT, found.basis, accuracy, progress=False)
    assert swapped.base.mean() == 0.5, "half of the sources have the base's answer"
    assert swapped.mean() == 1.0
    assert found.work == {"runs up to the layer": 128, "runs from the layer": 50 * 64, "backward passes": 50 * 64}
    assert all(each.grad is None for each in model.parameters())


@pytest.mark.slow
def test_what_should_have_no_subspace_has_none() -> None:
    model, found, (base, source, answers) = knowing()[0], fitted(), pairs()
    controls = subspace_controls(model, found, base, source, answers, held_out=pairs(filler=6), progress=False)
    assert controls.dims == ("control", "prompts")
    assert (controls.sel(control="fitted") == 1.0).all(), "another filler changes nothing"
    assert (controls.sel(control="random") < 0.6).all()
    assert (controls.sel(control="arbitrary labels") < 0.7).all()
    assert (controls.sel(control="fresh weights") < 0.6).all()
    assert controls.attrs["commonest answer, held out"] == 0.5


@pytest.mark.slow
def test_a_subspace_that_knows_its_prompts_alone_fails_on_others() -> None:
    model, tokens = knowing()[0], questions(EITHER)[0]
    two, others, source = tokens[[0, 1, 0, 1]], tokens[[4, 5, 4, 5]], [1, 0, 2, 3]
    answers = [1, 0, 0, 1]
    site = Site("resid_pre", MEMORY, pos=BEGINS + 1)  # the fact is not looked up yet: of two facts one token tells
    found = fit_subspace(model, two, two[source], site, answers, steps=40, progress=False)
    held_out = (others, others[source], answers)
    controls = subspace_controls(model, found, two, two[source], answers, held_out=held_out, draws=1, progress=False)
    assert controls.sel(control="fitted").values.tolist() == [1.0, 0.5]  # half of the answers are the base's own


def idle_and_unread() -> tuple[HookedGPT, Tensor]:
    """And its neurons: one tells 1 from 0, and writes nothing; one tells it, and says so; one would, but is idle."""
    m = Build("idle_and_unread", d_vocab=2, n_ctx=2, spaces={"token": 2, "answer": 2})
    m.embed(token=eye(2))
    m.head("nothing", 0, attends={("token", "token"): 1}, moves={("answer", "answer"): 1})
    reads = torch.tensor([[0.0, 1.0], [0.0, 1.0], [0.0, 0.0]])
    m.neurons("neuron", 0, reads={"token": reads}, writes={"answer": torch.tensor([[-1.0, 1.0], [0, 0], [0, 4.0]])})
    m.unembed(answer=eye(2))
    model = m.model()
    drives = model.blocks[0].mlp.W_out.detach()[:, -2:]
    order = drives.abs().sum(1).argsort()  # places in the layer are dealt at random
    return model, order


def test_a_subspace_that_works_by_what_nothing_reads_is_told() -> None:
    model, (unread, reads, idle) = idle_and_unread()
    base, source = torch.tensor([[0, 0]]), torch.tensor([[0, 1]])
    metric = metrics.logit_diff(model, 1, 0)
    true, illusion = torch.zeros(3, 1), torch.zeros(3, 1)
    true[reads] = 1
    illusion[unread] = illusion[idle] = 0.5**0.5
    found = {
        name: null_space_check(model, Site("post", 0, pos=-1, subspace=each), base, source, metric, progress=False)
        for name, each in (("true", true), ("illusion", illusion))
    }
    assert found["true"].part.values.tolist() == ["subspace", "read", "unread"]
    np.testing.assert_allclose((found["true"] - found["true"].base)[:, 0], [2, 2, 0], atol=1e-6)
    np.testing.assert_allclose((found["illusion"] - found["illusion"].base)[:, 0], [2, 0, 0], atol=1e-6)
    assert found["true"].attrs["unread"] == pytest.approx(0, abs=1e-9)
    assert found["illusion"].attrs["unread"] == pytest.approx(0.5, abs=1e-6)


def test_of_a_head_what_its_output_matrix_reads_counts() -> None:
    model, base = variant("gpt2", torch.float64, d_head=20), some_tokens()
    W = model.blocks[1].attn.W_O[2].detach()
    assert W.shape == (20, 14)
    unread = torch.linalg.svd(W).U[:, 14:16]
    found = null_space_check(
        model, Site("z", 1, head=2, subspace=unread), base, base.roll(1, 0), metrics.logit_diff(model, 3, 5)
    )
    assert found.attrs["unread"] == pytest.approx(1)
    np.testing.assert_allclose(found, found.base.broadcast_like(found), rtol=0, atol=1e-12)


def test_what_cannot_be_interchanged_or_fitted_is_refused() -> None:
    model, base = variant("gpt2"), some_tokens()
    source, answers = base.roll(1, 0), [1, 2, 3]
    metric, site = metrics.accuracy(model, answers), Site("resid_post", 0, pos=2)
    half = Site("resid_post", 0, neuron=[1, 2])
    with pytest.raises(ValueError, match="without subspace= and neuron="):
        interchange(model, base, source, half, None, metric)
    with pytest.raises(ValueError, match="none are given"):
        interchange(model, base, source, site, {}, metric)
    with pytest.raises(ValueError, match="3 coordinates; d_model has 14"):
        interchange(model, base, source, site, eye(3), metric)
    with pytest.raises(ValueError, match="columns must be orthonormal"):
        interchange(model, base, source, site, torch.ones(14, 1), metric)
    refused: list[tuple[Site, Any, dict[str, Any], str]] = [
        (site, answers, {"dim": 0}, "dim=0"),
        (site, answers, {"dim": 15}, "dim is 1 to 14"),
        (site, answers, {"steps": 0}, "steps=0"),
        (site, answers, {"lr": 0.0}, "lr=0.0"),
        (half, answers, {}, "without subspace= and neuron="),
        (Site("ln_final.hook_normalized"), answers, {}, "a value in a layer"),
        (site, [1, 2], {}, "2 were given for 3 pairs"),
    ]
    for where, said, choices, told in refused:
        with pytest.raises(ValueError, match=told):
            fit_subspace(model, base, source, where, said, progress=False, **choices)
    one = Subspace(Site("resid_post", 0, pos=2, subspace=eye(14)[:, :1]), [], {}, {"pos": -1})
    with pytest.raises(ValueError, match="all answers are the same"):
        subspace_controls(model, one, base, source, 1)
    with pytest.raises(ValueError, match="draws=0"):
        subspace_controls(model, one, base, source, answers, draws=0)
    with pytest.raises(ValueError, match="no subspace to check"):
        null_space_check(model, site, base, source, metric)
    with pytest.raises(ValueError, match="one matrix reads 'post'"):
        null_space_check(model, one.site, base, source, metric)
    with torch.inference_mode(), pytest.raises(ValueError, match="inference_mode"):
        fit_subspace(model, base, source, site, answers, progress=False)
