"""A scan for the triggers of all keys beside the forward pass without unembedding: `make bench`."""

from functools import partial
from statistics import median

import torch

from interp import GPTConfig, HookedGPT
from interp.memories import triggers
from tests.bench.patching import SHAPE, timed

PARTS = {"top-k alone": ({"reservoir": 0, "histogram": False}, 0.9), "with reservoir and histogram": ({}, 0.75)}


def main(device: str = "cpu", n_batches: int = 10, rounds: int = 3) -> None:
    """Time the layers on some batches, and the scans of the same batches, in turn."""
    model = HookedGPT(GPTConfig(seed=0, tie_word_embeddings=True, **SHAPE)).eval().to(device)  # type: ignore[arg-type]
    draw = torch.Generator().manual_seed(0)
    corpus = torch.randint(0, model.cfg.d_vocab, (8 * n_batches, 256), generator=draw)

    @torch.no_grad()
    def forward() -> None:
        for tokens in corpus.split(8):
            model(tokens.to(device), return_type=None, stop_at_layer=12)

    for per in ("document", "position"):
        scans = {
            what: partial(triggers, model, corpus, n_ctx=256, per=per, progress=False, **choices)  # type: ignore[arg-type]
            for what, (choices, _) in PARTS.items()
        }
        times: dict[str, list[float]] = {"": [], **{what: [] for what in scans}}
        for _ in range(rounds):
            times[""].append(timed(forward)[0])
            for what, scan in scans.items():
                times[what].append(timed(scan)[0])
        for what, (_, limit) in PARTS.items():
            ratio = median(times[""]) / median(times[what])
            aim = ""
            if per == "document":
                limit = limit if device == "cpu" else 0.85
                aim = f" (≥ {limit}) {'ok' if ratio >= limit else 'MISSED'}"
            print(
                f"triggers of 12 layers per {per}, k = 20, {n_batches} batches of 8 × 256, {what}: "
                f"{median(times[what]):.2f} s, {ratio:.2f} × the speed of a forward pass{aim}",
                flush=True,
            )


if __name__ == "__main__":
    main()
