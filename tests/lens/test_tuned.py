import os
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
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


def test_a_file_that_is_no_lens_of_this_model_is_refused_by_what_is_wrong_with_it(tmp_path: Path) -> None:
    model, path = variant("llama"), tmp_path / "lens.safetensors"
    about = {"format": "interp tuned lens", "model": model.fingerprint()}
    right = {"weight": torch.zeros(2, 14, 14), "bias": torch.zeros(2, 14)}
    broken = torch.zeros(2, 14)
    broken[1, 3] = torch.inf
    wrong: list[tuple[dict[str, Tensor], dict[str, str], str]] = [
        (right, {"model": model.fingerprint()}, "holds no tuned lens"),
        (right, {"format": about["format"]}, "does not say of which model it is the lens"),
        (
            {**right, "weight": torch.zeros(3, 14, 14)},
            about,
            r"has tensors of shapes .*\[3, 14, 14\].* has .*\[2, 14, 14\]",
        ),
        ({"weight": right["weight"]}, about, "has tensors of shapes"),
        ({**right, "more": torch.zeros(1)}, about, "has tensors of shapes .*more"),
        ({**right, "bias": torch.zeros(2, 14, dtype=torch.int64)}, about, "numbers of another kind .*int64"),
        ({**right, "bias": broken}, about, "NaN or infinite, in bias"),
    ]
    for tensors, said, message in wrong:
        save_file(tensors, path, metadata=said)
        with pytest.raises(ValueError, match=message):
            TunedLens.load(path, model)
    for content in (b"", b"no safetensors file at all", bytes(7), b"\xff" * 400):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="is no complete safetensors file"):
            TunedLens.load(path, model)


def test_a_lens_says_what_it_was_trained_on_and_training_tells_how_far_it_is(tmp_path: Path) -> None:
    model, told = variant("gpt2"), list[tuple[int, int]]()
    more = {"trained_on": "six rows", "progress": lambda done, total: told.append((done, total))}
    lens, _ = tuned_lens(model, FullBatch(batch()), steps=3, batch_size=6, **more)
    assert told == [(1, 3), (2, 3), (3, 3)]
    lens.save(tmp_path / "lens.safetensors")
    assert TunedLens.load(tmp_path / "lens.safetensors", model).trained_on == "six rows"


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


@pytest.mark.long
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
