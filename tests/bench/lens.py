"""Reading the stream beside the forward pass that made it: `make bench`."""

from collections.abc import Callable
from statistics import median
from typing import Any

import torch

from interp import GPTConfig, HookedGPT
from interp.lens import direct_logit_attribution, logit_lens
from tests.bench.patching import SHAPE, timed

LIMITS = {"head": 0.25}


def main(device: str = "cpu", rounds: int = 5) -> None:
    model = HookedGPT(GPTConfig(seed=0, tie_word_embeddings=True, **SHAPE)).eval().to(device)  # type: ignore[arg-type]
    tokens = torch.randint(0, model.cfg.d_vocab, (4, 128), generator=torch.Generator().manual_seed(0)).to(device)
    with torch.no_grad():
        _, cache = model.run_with_cache(tokens)

        def forward() -> Any:
            return model(tokens)

        reads: dict[str, Callable[[], Any]] = {
            by: lambda by=by: direct_logit_attribution(model, cache, 5, 7, by=by, pos=None)
            for by in ("component", "head", "neuron")
        }
        reads["logit lens, one layer in 13"] = lambda: logit_lens(model, cache, "next", progress=False)
        for what, read in reads.items():
            pairs = [(timed(forward)[0], timed(read)[0]) for _ in range(rounds)]
            passes, ours = (median(each) for each in zip(*pairs, strict=True))
            ratio = ours / passes / (13 if what.startswith("logit lens") else 1)
            limit = LIMITS.get(what)
            aim = "" if limit is None else f" (≤ {limit}) {'ok' if ratio <= limit else 'MISSED'}"
            print(f"{what}, 4 × 128, every position: {ours:.3f} s, {ratio:.3f} × a forward pass{aim}", flush=True)


if __name__ == "__main__":
    main()
