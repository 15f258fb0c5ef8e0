"""The memory that a scan for triggers needs beside its model, for a corpus and for a much longer one: `make bench`."""

import re
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interp import GPTConfig, HookedGPT
from interp.memories import triggers
from tests.bench.patching import SHAPE

SMALL: dict[str, Any] = {"n_layers": 2, "d_model": 64, "d_mlp": 256, "n_heads": 4, "n_ctx": 256, "d_vocab": 1000}
CASES = {
    "GPT-2 small's shape, 12 layers": (SHAPE, (20_000, 100_000)),
    "2 layers, width 64": (SMALL, (1_000_000, 10_000_000)),
}
N_POS, LIMIT, SPREAD = 256, 1.05, 8e6  # bytes by which runs of the same differ


def documents(d_vocab: int, n_tokens: int) -> Iterator[Tensor]:
    """Random tokens, made when they are read."""
    draw = torch.Generator().manual_seed(0)
    for first in range(0, n_tokens, N_POS):
        yield torch.randint(0, d_vocab, (min(N_POS, n_tokens - first),), generator=draw)


def need(shape: dict[str, Any], n_tokens: int) -> tuple[int, int, float]:
    """Of a scan with k = 20: bytes beyond the loaded model at the peak, how many tokens it read, seconds."""
    model = HookedGPT(GPTConfig(seed=0, tie_word_embeddings=True, **shape)).eval()
    model.fingerprint()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again at what is held now
    before, start = resident("VmRSS"), time.perf_counter()
    found = triggers(model, documents(model.cfg.d_vocab, n_tokens), n_ctx=N_POS, progress=False)
    return resident("VmHWM") - before, found.about["tokens"], time.perf_counter() - start


def resident(which: str) -> int:
    found = re.search(rf"{which}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def main() -> None:
    """Measure each in a process of its own."""
    for what, (shape, lengths) in CASES.items():
        needs = []
        for n_tokens in lengths:
            with ProcessPoolExecutor(1, get_context("spawn")) as alone:
                needed, n_read, seconds = alone.submit(need, shape, n_tokens).result()
            assert n_read == n_tokens
            needs.append(needed)
            print(f"{what}, k = 20, {n_tokens:,} tokens: {needed / 1e6:.0f} MB, {seconds:.0f} s", flush=True)
        few, many = needs
        verdict = "ok" if many <= max(LIMIT * few, few + SPREAD) else "MISSED"
        print(
            f"… {(many - few) / 1e6:+.0f} MB (≤ {LIMIT - 1:.0%} of it, or {SPREAD / 1e6:.0f} MB) {verdict}", flush=True
        )


if __name__ == "__main__":
    main()
