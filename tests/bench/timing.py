"""Fair timing on a busy machine: rivals run in turn, and only ratios of medians are claimed."""

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch


def in_turn(rivals: dict[str, Callable[[], Any]], rounds: int = 10, inner: int = 1) -> dict[str, float]:
    """Median seconds of each rival over `rounds`, each round running every rival once (`inner` calls)."""
    for run in rivals.values():
        run()
        run()
    times: dict[str, list[float]] = {name: [] for name in rivals}
    for round_ in range(rounds):
        names = list(rivals) if round_ % 2 else list(rivals)[::-1]
        for name in names:
            wait()
            start = time.perf_counter()
            for _ in range(inner):
                rivals[name]()
            wait()
            times[name].append((time.perf_counter() - start) / inner)
    return {name: median(seen) for name, seen in times.items()}


def wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def report(title: str, ours: float, theirs: float, target: float) -> bool:
    """Print one line; whether the ratio reaches its target."""
    ratio = ours / theirs
    verdict = "ok" if ratio <= target else "MISSED"
    print(f"{title:66} {ours * 1e3:10.3f} ms {theirs * 1e3:10.3f} ms  {ratio:6.3f} (≤ {target}) {verdict}", flush=True)
    return ratio <= target
