"""Statistics of every pattern of a corpus beside the forward passes that they come with: `make bench`."""

from functools import partial
from typing import Any

import torch

from interp import GPTConfig, HookedGPT
from interp.heads import corpus_statistics
from interp.passages import passages
from tests.bench.patching import SHAPE, timed

LIMITS = {256: 1.3, 1024: 2.6}
N_TOKENS = 10_000


def forward(model: HookedGPT, corpus: torch.Tensor, choices: dict[str, Any]) -> None:
    for passage in passages(model, corpus, **choices):
        tokens, mask = passage.tokens.to(model.device), None if passage.mask.all() else passage.mask
        model(tokens, None, attention_mask=mask, stop_at_layer=model.cfg.n_layers)


def main(device: str = "cpu") -> None:
    model = HookedGPT(GPTConfig(seed=0, tie_word_embeddings=True, **SHAPE)).eval().to(device)  # type: ignore[arg-type]
    corpus = torch.randint(0, model.cfg.d_vocab, (N_TOKENS,), generator=torch.Generator().manual_seed(0))
    for n_ctx, limit in LIMITS.items():
        choices = {"n_ctx": n_ctx, "batch_size": 2048 // n_ctx}
        scan = partial(corpus_statistics, model, corpus, progress=False, **choices)  # type: ignore[arg-type]
        with torch.no_grad():
            scan(max_tokens=2048)
            passes, ours = timed(lambda: forward(model, corpus, choices))[0], timed(scan)[0]  # noqa: B023
        verdict = "ok" if ours / passes <= limit else "MISSED"
        print(
            f"all patterns of {N_TOKENS} tokens, rows of {n_ctx}: {ours:.1f} s, "
            f"{ours / passes:.2f} × the passes (≤ {limit}) {verdict}",
            flush=True,
        )


if __name__ == "__main__":
    main()
