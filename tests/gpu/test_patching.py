"""Sweeps on a GPU: the CPU's values, in half precision too, and within a budget."""

from typing import Any

import pytest
import torch

from interp import HookedGPT, metrics
from interp.interventions import Site
from interp.patching import (
    ablation,
    activation_patching,
    attribution_patching,
    causal_tracing,
    edge_patching,
    fit_subspace,
    interchange,
    path_patching,
    subspace_controls,
)
from interp.patching.subspaces import _Swap
from tests.patching.oracle import one_by_one, put
from tests.variants import some_tokens, variant

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")


def sweeps(model: HookedGPT, clean: torch.Tensor, corrupted: torch.Tensor) -> list[Any]:
    runs, metric = (model, clean, corrupted), metrics.loss()
    return [
        activation_patching(*runs, "resid_pre", metric, progress=False),
        activation_patching(*runs, "z", metric, by=("head", "pos"), progress=False),
        ablation(model, clean, "pattern", metric, kind="mean_per_position", progress=False),
        path_patching(*runs, "heads", ["blocks.1.attn.hook_k", "logits"], metric, progress=False),
        edge_patching(*runs, "all", metric, progress=False),
        attribution_patching(*runs, "z", metric, method="integrated", progress=False),
        attribution_patching(*runs, "q", metric, method="atp*", verify=2, progress=False),
        attribution_patching(*runs, "k", metric, by=("head", "pos"), method="atp*", progress=False),
        causal_tracing(model, clean, [2, 3], metric, site="attn_out", window=2, samples=2, progress=False),
    ]


@pytest.mark.parametrize("name", ["gpt2", "llama", "neox"])
def test_every_sweep_has_the_values_of_the_cpu(name: str) -> None:
    tokens = some_tokens()
    on_cpu = sweeps(variant(name, torch.float64), tokens, tokens.roll(1, 0))
    on_gpu = sweeps(variant(name, torch.float64).cuda(), tokens.cuda(), tokens.roll(1, 0).cuda())
    for one, other in zip(on_cpu, on_gpu, strict=True):
        torch.testing.assert_close(torch.from_numpy(other.to_numpy()), torch.from_numpy(one.to_numpy()))


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 1e-4), (torch.bfloat16, 0.1)])
def test_a_sweep_equals_the_loop(dtype: torch.dtype, atol: float) -> None:
    model, tokens = variant("gemma2", dtype).cuda(), some_tokens().cuda()
    others, metric = tokens.roll(1, 0), metrics.loss()
    found = activation_patching(model, others, tokens, "resid_pre", metric, layers=[1], progress=False)
    _, cache = model.run_with_cache(others)
    name = "blocks.1.hook_resid_pre"
    sites = [[(name, put(cache[name], slice(None), pos))] for pos in range(7)]
    wanted = one_by_one(model, tokens, metric, sites).cpu().double()
    torch.testing.assert_close(torch.from_numpy(found[0].to_numpy()), wanted, rtol=0, atol=atol)


def test_a_subspace_is_fitted_as_on_the_cpu_and_without_waiting_for_the_gpu() -> None:
    site, answers, tokens = Site("resid_post", 0, pos=4), [1, 2, 3], some_tokens()
    model, found = variant("llama", torch.float64), []
    for device in ("cpu", "cuda"):
        of, base = model.to(device), tokens.to(device)
        runs = (of, base, base.roll(1, 0))
        fitted = fit_subspace(*runs, site, answers, dim=2, steps=3, batch=2, progress=False)
        swapped = interchange(*runs, site, fitted.basis, metrics.loss(), progress=False)
        controls = subspace_controls(*runs[:1], fitted, *runs[1:], answers, progress=False)
        assert fitted.basis.device.type == device
        found.append((torch.from_numpy(swapped.to_numpy()), torch.from_numpy(controls.to_numpy())))
    torch.testing.assert_close(found[1], found[0])
    swap, batch = _Swap.of(model, base, base.roll(1, 0), site, None), torch.arange(2, device="cuda")
    at = swap.where(-1)
    swap.logits(swap.within(fitted.basis, batch), batch, at)
    torch.cuda.set_sync_debug_mode("error")
    try:
        swap.logits(swap.within(fitted.basis, batch), batch, at)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_budget_is_kept() -> None:
    model, tokens = variant("gpt2").cuda(), some_tokens().cuda()
    runs = (model, tokens, tokens.roll(1, 0), "z", metrics.loss())
    free = activation_patching(*runs, by=("head", "pos"), progress=False)
    tight = activation_patching(*runs, by=("head", "pos"), memory=300_000, progress=False)
    assert tight.attrs["chunks"] > free.attrs["chunks"]
    torch.testing.assert_close(torch.from_numpy(tight.to_numpy()), torch.from_numpy(free.to_numpy()), rtol=0, atol=1e-4)
