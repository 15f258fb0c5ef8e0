"""Composition of all pairs of heads beside a forward pass, and end-to-end OV circuits of a vocabulary: `make bench`."""

import resource
import time
from functools import partial

import torch

from interp import GPTConfig, HookedGPT
from interp.patching.memory import Peak
from interp.weights import composition_scores, copying_scores, ov_cost, ov_top_tokens
from tests.bench.timing import in_turn, report

SHAPE: dict[str, int] = {"n_layers": 12, "d_model": 768, "n_heads": 12, "n_ctx": 1024, "d_vocab": 50_257}
N_SOURCES, MOST_SECONDS, MOST_BYTES, MOST_OF_PROCESS = 1000, 60.0, 256e6, 2e9


def composition(model: HookedGPT) -> bool:
    tokens = torch.randint(0, model.cfg.d_vocab, (4, 128), generator=torch.Generator().manual_seed(0))

    def forward() -> None:
        with torch.no_grad():
            model(tokens)

    kinds = {kind: partial(composition_scores, model, kind, progress=False) for kind in ("Q", "K", "V", "all")}
    model.fingerprint()  # once for a model, and no part of this
    times = in_turn({"forward": forward} | kinds, rounds=5)
    ok = [
        report(f"{kind}-composition, all pairs of {12 * 12} heads, by a 4 × 128 pass", times[kind], times["forward"], 1)
        for kind in ("Q", "K", "V")
    ]
    return all([*ok, report("Q-, K- and V-composition together", times["all"], times["forward"], 1)])


def vocabulary(model: HookedGPT) -> bool:
    sources = torch.randperm(model.cfg.d_vocab, generator=torch.Generator().manual_seed(0))[:N_SOURCES]
    start = time.perf_counter()
    ov_top_tokens(model, sources, 10, progress=False)
    seconds = time.perf_counter() - start
    process = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    with Peak() as peak:
        ov_top_tokens(model, sources, 10, layers=range(2), progress=False)
    ok = seconds <= MOST_SECONDS and peak.bytes <= MOST_BYTES and process <= MOST_OF_PROCESS
    cost = ov_cost(model, N_SOURCES)
    print(
        f"top 10 of {N_SOURCES} source tokens × 144 heads, end to end: {seconds:.1f} s (≤ {MOST_SECONDS:.0f}), "
        f"{peak.bytes / 1e6:.0f} MB beside the model (≤ {MOST_BYTES / 1e6:.0f}; said before: {cost}), "
        f"{process / 1e9:.2f} GB the process in all (≤ {MOST_OF_PROCESS / 1e9:.0f}), "
        f"{cost.flops / seconds / 1e9:.0f} GFLOP/s {'ok' if ok else 'MISSED'}",
        flush=True,
    )
    for what, run in {
        "top 10 of 1 source token × 144 heads": partial(ov_top_tokens, model, sources[:1], 10, progress=False),
        "eigenvalue copying scores of 144 heads": partial(copying_scores, model),
    }.items():
        start = time.perf_counter()
        run()
        print(f"{what}: {time.perf_counter() - start:.2f} s", flush=True)
    return ok


def main() -> None:
    torch.manual_seed(0)
    model = HookedGPT(GPTConfig(seed=0, tie_word_embeddings=True, **SHAPE)).eval()  # type: ignore[arg-type]
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, GPT-2 small's shape; medians in turn")
    vocabulary(model)
    composition(model)


if __name__ == "__main__":
    main()
