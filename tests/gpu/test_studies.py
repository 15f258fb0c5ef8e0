"""The studies that train, on a GPU: the ladder is the CPU's, and its last step learns at the lecture's size."""

from dataclasses import replace

import pytest
import torch

pytest.importorskip("tyro")
from analyses.build_a_gpt import LECTURE, Sizes, networks, study
from analyses.trained import characters, trained

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")


def test_the_ladder_on_a_gpu_is_that_of_the_cpu() -> None:
    text, tiny = characters(None, 3000), Sizes(d_model=8, n_heads=2, n_ctx=5, batch_size=4, steps=8)
    one, other = (study(text, tiny, tiny.scaled(), seeds=(0, 1), device=on, progress=False) for on in ("cpu", "cuda"))
    # Each device draws its own weights of a seed; losses of so short a training hardly depend on them.
    assert other.result.loss.to_numpy() == pytest.approx(one.result.loss.to_numpy(), rel=0.1)


def test_the_last_step_learns_at_the_lectures_size() -> None:
    text = characters(None, 200_000)
    sizes = replace(LECTURE, steps=60)
    network = networks(Sizes(), sizes)["scale"]
    model = network.model(text, 0, "cuda")
    log = trained(model, text.read(sizes.n_ctx), sizes.training(0), None, held_out=text.asked(sizes.n_ctx, 2**14))
    losses = [row["loss"] for row in log if "loss" in row]
    assert log[-1]["held_out_loss"] < 0.8 * losses[0]
