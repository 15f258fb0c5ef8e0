"""The control that every detector of induction must pass: a model that learned to predict repeats by position alone."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from interp import HookedGPT
from interp.training import PRESETS, Given, repeated_tokens, train

PERIOD = 24
NAME = "induction-toy-fixed"


@cache
def fixed_period(steps: int = 250, seed: int = 3) -> HookedGPT:
    """Two layers of attention, trained (once a process) on rows that all repeat with the same period.

    From this seed one head of the first layer does nearly all of the work; from others several may share it.
    """
    job = PRESETS[NAME].job(Given(Path(), seed=seed))
    train(job.model, job.data, replace(PRESETS[NAME].training, steps=steps, measure_every=0), progress=False)
    return job.model.eval()


def rows(name: str = NAME) -> Int[Tensor, "batch pos"]:
    """Fresh rows such as it was trained on; of "induction-toy", rows with random periods."""
    return PRESETS[name].job(Given(Path())).data.batch(10_001, 64).tokens


def repeats(period: int) -> Int[Tensor, "batch pos"]:
    """Rows with another period, which is the same in all of them."""
    return repeated_tokens(65, 64, (period, period), bos=64)(torch.Generator().manual_seed(1), 64).tokens
