import os
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from interp import HookedGPT, zoo
from interp.lens import TunedLens, logit_lens, tuned, tuned_lens
from interp.training.data import IGNORED, Batch, FullBatch, Rows
from tests.variants import some_tokens, variant


def batch() -> Batch:
    tokens = some_tokens(6, 7)
    targets = tokens.roll(-1, 1)
    targets[:, -1] = IGNORED
    targets[2, :3] = IGNORED
    return Batch(tokens, targets)


def literal(model: HookedGPT, rows: Batch, steps: int, lr: float) -> tuple[list[Tensor], list[list[float]]]:
    """One layer's map after the other, with plain autograd."""
    _, cache = model.run_with_cache(rows.tokens)
    asked, last = rows.targets != IGNORED, model.cfg.n_layers - 1

    def said(stream: Tensor) -> Tensor:
        return model.read_off(model.ln_final(stream)).log_softmax(-1)

    own = said(cache["resid_post", last][asked][None]).detach()
    found, log = [], []
    for layer in range(model.cfg.n_layers):
        weight = torch.zeros(14, 14, dtype=torch.float64, requires_grad=True)
        bias = torch.zeros(14, dtype=torch.float64, requires_grad=True)
        optimiser = torch.optim.Adam([weight, bias], lr)
        stream, log_of_layer = cache["resid_pre", layer][asked][None].detach(), []
        for step in range(steps):
            lens = said(stream + stream @ weight + bias)
            kl = (own.exp() * (own - lens)).sum() / asked.sum()
            optimiser.zero_grad()
            kl.backward()
            optimiser.param_groups[0]["lr"] = lr * (1 - step / steps)
            optimiser.step()
            log_of_layer.append(kl.item())
        found.append(weight.detach())
        log.append(log_of_layer)
    return found, log


@pytest.mark.parametrize("at_once", [2**24, 60])
@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2"])
def test_each_layer_learns_as_it_would_alone(name: str, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuned, "_AT_ONCE", at_once)
    model = variant(name, torch.float64)
    lens, log = tuned_lens(model, FullBatch(batch()), steps=5, batch_size=6, lr=0.01, progress=False)
    assert all(parameter.grad is None for parameter in model.parameters())
    weights, kl = literal(model, batch(), 5, 0.01)
    for layer, weight in enumerate(weights):
        torch.testing.assert_close(lens.weight[layer], weight, rtol=1e-7, atol=1e-9)
        assert [row[f"kl_{layer}"] for row in log] == pytest.approx(kl[layer])
    _, cache = model.run_with_cache(batch().tokens)
    plain, better = (logit_lens(model, cache, translate=each, progress=False) for each in (None, lens))
    assert (better.kl.mean(("prompt", "pos"))[:-1] < plain.kl.mean(("prompt", "pos"))[:-1]).all()
    assert better.attrs["method"] == "tuned lens"


def test_a_lens_is_the_logit_lens_at_first_and_comes_back_from_its_file(tmp_path: Path) -> None:
    model = variant("llama")
    _, cache = model.run_with_cache(some_tokens())
    at_first = TunedLens(torch.zeros(2, 14, 14), torch.zeros(2, 14), model.fingerprint())
    plain, same = (logit_lens(model, cache, translate=each, progress=False) for each in (None, at_first))
    np.testing.assert_array_equal(plain.kl, same.kl)
    lens, _ = tuned_lens(model, FullBatch(batch()), steps=2, batch_size=6, progress=False)
    lens.save(tmp_path / "lens.safetensors")
    again = TunedLens.load(tmp_path / "lens.safetensors", model)
    assert torch.equal(lens.weight, again.weight)
    assert torch.equal(lens.bias, again.bias)
    with pytest.raises(ValueError, match="is the lens of another model"):
        TunedLens.load(tmp_path / "lens.safetensors", variant("llama", seed=5))
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="holds no tuned lens"):
        TunedLens.load(tmp_path / "model" / "model.safetensors", model)
    (tmp_path / "lens.safetensors").write_bytes((tmp_path / "lens.safetensors").read_bytes()[:-1])
    with pytest.raises(ValueError, match="is no complete safetensors file"):
        TunedLens.load(tmp_path / "lens.safetensors", model)


def one_of_two(rank: int, port: int, out: str) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    lens, log = tuned_lens(
        variant("gpt2", torch.float64), FullBatch(batch()), steps=3, batch_size=6, lr=0.01, progress=False
    )
    torch.save((lens.weight, log), f"{out}.{rank}")


@pytest.mark.slow
def test_two_processes_share_each_batch_and_learn_the_same(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    spawn(one_of_two, (port, str(tmp_path / "lens")), nprocs=2)
    lens, log = tuned_lens(
        variant("gpt2", torch.float64), FullBatch(batch()), steps=3, batch_size=6, lr=0.01, progress=False
    )
    for rank in range(2):
        weight, own_log = torch.load(tmp_path / f"lens.{rank}", weights_only=True)
        torch.testing.assert_close(weight, lens.weight, rtol=1e-7, atol=1e-10)
        for own, row in zip(own_log, log, strict=True):
            assert own == pytest.approx(row)


def test_choices_that_make_no_sense_are_refused() -> None:
    model, data = variant("gpt2"), FullBatch(batch())
    for choice in ({"steps": 0}, {"batch_size": 0}, {"lr": 0.0}):
        with pytest.raises(ValueError, match="all must be above 0"):
            tuned_lens(model, data, progress=False, **choice)
    with torch.no_grad():
        model.blocks[1].mlp.up.weight[3] = torch.nan
    with pytest.raises(ValueError, match=r"KL is .*nan.* at step 0"):
        tuned_lens(model, data, batch_size=6, progress=False)


@pytest.mark.slow
def test_the_bundled_models_lens_is_nearer_than_the_logit_lens_on_text_held_out() -> None:
    model = HookedGPT.from_pretrained("stdlib-4l")

    def rows(split: str, n: int) -> Tensor:
        texts = zoo.standard_library(n * 128, split=split)
        return torch.cat([model.to_tokens(text, prepend_bos=False)[0] for text in texts])[: n * 128].view(n, 128)

    lens, log = tuned_lens(model, Rows(list(rows("train", 400))), steps=40, batch_size=8, lr=2e-3, progress=False)
    assert log[-1]["kl_2"] < log[0]["kl_2"]
    held = rows("held_out", 12)
    _, cache = model.run_with_cache(held)
    plain, better = (
        logit_lens(model, cache, translate=each, progress=False).kl.mean(("prompt", "pos")) for each in (None, lens)
    )
    assert (better[:-1] < plain[:-1]).all()
    assert abs(better[-1]) < 1e-5
