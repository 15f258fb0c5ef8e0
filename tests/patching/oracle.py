"""Sweeps written literally: one forward pass for each site, with a plain hook."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from interp import HookedGPT
from interp.metrics import AnyMetric, measured

Change = Callable[[Tensor], Tensor]


def one_by_one(
    model: HookedGPT,
    tokens: Tensor,
    metric: AnyMetric,
    sites: Iterable[Iterable[tuple[str, Change]]],
    attention_mask: Tensor | None = None,
) -> Tensor:
    """The metric of each prompt under each site's changes, `(hook name, what becomes of the value)`: [site prompt]."""
    found = []
    for changes in sites:
        hooks = [(name, lambda x, hook, change=change: change(x)) for name, change in changes]
        with model.hooks(hooks):
            found.append(measured(model, tokens, metric, attention_mask))
    return torch.stack(found)


def put(source: Tensor, *index: Any) -> Change:
    """What puts another run's value in at these indices."""

    def change(x: Tensor) -> Tensor:
        x[index] = source[index]
        return x

    return change
