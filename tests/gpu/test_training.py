"""Training on a GPU: the CPU's losses, half precision, compiled, resumed, and stopped by what is not finite."""

import math

import pytest
import torch

from interp.training import Run, train
from tests.training.runs import curve, held_out, tiny_config, tiny_data, tiny_model

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")


def losses(log: list[dict]) -> list[float]:
    return [loss for _, loss, _ in curve(log)]


def on_cpu(**changes: object) -> list[float]:
    return losses(train(tiny_model(), tiny_data(), tiny_config(**changes), progress=False))


@pytest.mark.parametrize("changes", [{}, {"accumulate": 2}, {"activation_checkpointing": True}, {"compile": True}])
def test_a_gpu_has_the_losses_of_the_cpu(changes: dict) -> None:
    log = train(tiny_model().cuda(), tiny_data(), tiny_config(**changes), held_out=held_out(), progress=False)
    assert losses(log) == pytest.approx(on_cpu(), rel=1e-4)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_learns_nearly_the_same(precision: str) -> None:
    choices = {"lr": 0.02, "steps": 40}
    log = train(tiny_model().cuda(), tiny_data(), tiny_config(precision=precision, **choices), progress=False)
    assert losses(log)[-1] == pytest.approx(on_cpu(**choices)[-1], rel=0.1)


def test_a_broken_run_goes_on_bit_for_bit(tmp_path) -> None:
    model = lambda: tiny_model(dropout=0.1).cuda()
    whole = train(model(), tiny_data(), tiny_config(), progress=False)
    with pytest.raises(RuntimeError, match=r"the data broke"):
        train(model(), tiny_data(fail=8), tiny_config(), tmp_path / "run", progress=False)
    log = train(model(), tiny_data(), tiny_config(), tmp_path / "run", resume=True, progress=False)
    assert losses(log) == losses(whole)
    assert Run(tmp_path / "run").model(12, device="cuda").device.type == "cuda"


def test_what_is_not_finite_is_named_though_the_gpu_had_gone_on() -> None:
    model = tiny_model(act_fn="relu2").cuda()
    with torch.no_grad():
        model.blocks[1].mlp.W_in.mul_(1e30)
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(FloatingPointError, match=r"step 0: .* first at blocks\.1\.mlp\.hook_post"):
        train(model, tiny_data(), tiny_config(), progress=False)
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))
    model = tiny_model().cuda()
    with torch.no_grad():
        model.blocks[0].attn.W_V[0, 0, 0] = math.nan
    with pytest.raises(FloatingPointError, match=r"the weight blocks\.0\.attn\.qkv\.weight"):
        train(model, tiny_data(), tiny_config(), progress=False)
