"""How much memory a call needs at its peak, counted from the allocator's own events: the same on every run."""

from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile


def peak_bytes(run: Callable[[], Any]) -> int:
    """The most bytes that tensors on the CPU held at once during `run`, above what was held before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        kept = run()
    del kept
    events = recorded.profiler.kineto_results.events()  # type: ignore[union-attr]
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    held = peak = 0
    for _, change in changes:
        held += change
        peak = max(peak, held)
    return peak


def self_check() -> None:
    """A known case: two tensors of 4 MB, of which one is freed before a third is made."""

    def three() -> torch.Tensor:
        first = torch.ones(2**20)
        second = first + 1
        del first
        return second + 1

    assert 8 * 2**20 <= peak_bytes(three) < 8.1 * 2**20
