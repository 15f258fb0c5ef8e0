"""Memories, lenses and weights on a GPU: the CPU's values, and scans that find the CPU's triggers."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from interp import HookedGPT, metrics
from interp.lens import direct_logit_attribution, logit_lens
from interp.memories import (
    agreement,
    composition,
    insert,
    knowledge_neurons,
    memory_attribution,
    promoted,
    removal_test,
    saturation,
    sub_updates,
)
from interp.memories.triggers import Triggers
from interp.weights import composition_scores, ov_top_tokens, qk_circuit
from tests.memories.scanned import corpus, model_of, same, scanned
from tests.variants import some_tokens, variant

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")

READS: dict[str, Callable[[HookedGPT, torch.Tensor], Any]] = {
    "attribution": lambda model, tokens: direct_logit_attribution(model, cached(model, tokens), 4, 7, by="head"),
    "logit lens": lambda model, tokens: logit_lens(model, cached(model, tokens), 4, progress=False),
    "composition": lambda model, tokens: composition_scores(model, "Q", progress=False),
    "qk": lambda model, tokens: qk_circuit(model, 1, 2).AB.detach().cpu(),
    "ov": lambda model, tokens: ov_top_tokens(model, [3, 1], k=4, progress=False),
    "promoted": lambda model, tokens: promoted(model, 1, k=3).probability,
    "sub-updates": lambda model, tokens: sub_updates(model, cached(model, tokens), 4, top=5),
    "saturation": lambda model, tokens: saturation(model, cached(model, tokens)),
    "knowledge neurons": lambda model, tokens: knowledge_neurons(memory_attribution(model, tokens, 4, steps=3)),
}


def cached(model: HookedGPT, tokens: torch.Tensor) -> Any:
    return model.run_with_cache(tokens)[1]


def close(found: Any, expected: Any, atol: float = 1e-8) -> None:
    if hasattr(expected, "data_vars"):
        for name in expected.data_vars:
            close(found[name], expected[name], atol)
    elif np.asarray(expected).dtype.kind == "f":
        np.testing.assert_allclose(np.asarray(found), np.asarray(expected), rtol=atol, atol=atol)
    else:
        np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2"])
@pytest.mark.parametrize("what", READS)
def test_what_is_read_is_what_the_cpu_reads(what: str, name: str) -> None:
    model = variant(name, torch.float64)
    expected = READS[what](model, some_tokens())
    close(READS[what](model.cuda(), some_tokens().cuda()), expected)


@pytest.mark.parametrize("per", ["document", "position"])
@pytest.mark.parametrize("name", ["gpt2", "llama", "relu2"])
def test_a_scan_finds_the_triggers_of_the_cpu(name: str, per: str) -> None:
    expected, found = scanned(model_of(name), per=per), scanned(model_of(name).cuda(), per=per)
    for each in (expected, found):
        assert each.counts is not None
        assert (each.tensors.pop("counts").sum((-1, -2)) == sum(map(len, corpus()))).all()  # rounding may move one
    same(found, expected)


@pytest.mark.parametrize("per", ["document", "position"])
def test_a_scan_in_half_precision_finds_nearly_the_same(per: str, tmp_path: Any) -> None:
    exact, half = scanned(per=per), scanned(model_of().bfloat16().cuda(), per=per, folder=tmp_path)
    assert (half.value - exact.value).abs().max() < 0.05 * exact.value.max()
    same(Triggers.load(tmp_path), half)


def test_what_is_made_of_a_scan_is_what_the_cpu_makes_of_it() -> None:
    model, found = model_of("gpt2"), scanned()
    on_gpu = model_of("gpt2").cuda()
    for make in (
        lambda model: agreement(model, found),
        lambda model: removal_test(model, found, range(3), n_triggers=4, progress=False).change,
        lambda model: composition(model, corpus(), found=found, n_ctx=11, progress=False),
    ):
        close(make(on_gpu), make(model), 1e-4)


def test_an_insertion_is_made_and_taken_back_on_the_device() -> None:
    model, tokens = variant("gpt2").cuda(), some_tokens()[:1].cuda()
    before = model.blocks[1].mlp.W_out.detach().clone()
    first = metrics.measured(model, tokens, metrics.log_prob(model, 4)).item()
    with insert(model, 1, tokens, 4, at=-1):
        assert metrics.measured(model, tokens, metrics.log_prob(model, 4)).item() > first
    assert torch.equal(model.blocks[1].mlp.W_out, before)
