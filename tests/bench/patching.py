"""Sweeps beside a loop of one full forward pass for each site: `make bench`."""

import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, register_flop_formula

from interp import GPTConfig, HookedGPT, metrics
from interp.patching import activation_patching
from tests.bench.timing import wait

SHAPE: dict[str, int] = {"n_layers": 12, "d_model": 768, "n_heads": 12, "n_ctx": 1024, "d_vocab": 50_257}
SWEEPS: list[tuple[str, str | tuple[str, ...], float]] = [
    ("resid_pre", "pos", 1.0),
    ("z", "head", 0.0),
    ("z", ("head", "pos"), 0.0),
]
TARGETS = {16: 12.0, 40: 8.0}


@register_flop_formula(torch.ops.mkldnn._linear_pointwise)
def _of_onednn(x: Any, weight: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    rows = 1
    for size in x[:-1]:
        rows *= size
    return 2 * rows * x[-1] * weight[0]


def least(cfg: GPTConfig, boards: list[tuple[int, int]], n_pos: int) -> int:
    """Floating-point work that rows need, (layer, first position) each, of which one position's logits are read.

    A patched stream is changed from its layer on; in the last layer only keys and values of all tokens are needed.
    """
    d, wide, total = cfg.d_model, cfg.d_mlp, 0
    for layer, first in boards:
        for at in range(layer, cfg.n_layers):
            tokens = n_pos - first
            asked = tokens if at < cfg.n_layers - 1 else 1
            total += 2 * (tokens * 2 * d * d + asked * (2 * d * d + 2 * d * wide))
            keys = sum(range(first + 1, n_pos + 1)) if asked == tokens else n_pos
            total += 2 * 2 * d * keys
        total += 2 * d * cfg.d_vocab_out
    return total


def rate() -> float:
    """The machine's matrix-product rate, at the sizes that a sweep has."""
    x, w = torch.randn(2048, 768), torch.randn(3072, 768)
    times = []
    with torch.no_grad():
        for _ in range(12):
            start = time.perf_counter()
            torch.ops.mkldnn._linear_pointwise(x, w, None, "none", [], "")
            times.append(time.perf_counter() - start)
    return 2 * 2048 * 768 * 3072 / median(times[2:])


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    wait()
    start = time.perf_counter()
    found = run()
    wait()
    return time.perf_counter() - start, found


def compare(model: HookedGPT, n_pos: int, rounds: int = 3, n_loop: int = 12) -> None:
    draw = torch.Generator().manual_seed(n_pos)
    clean = torch.randint(0, model.cfg.d_vocab, (1, n_pos), generator=draw).to(model.device)
    corrupted = clean.clone()
    corrupted[:, 0] = (clean[:, 0] + 1) % model.cfg.d_vocab
    metric = metrics.logit_diff(model, 5, 7)
    for site, by, aims in SWEEPS:
        sweep = partial(activation_patching, model, clean, corrupted, site, metric, by=by, progress=False)  # type: ignore[arg-type]
        point = "hook_resid_pre" if site == "resid_pre" else "attn.hook_z"

        def loop(point: str = point) -> None:
            with torch.no_grad():
                _, cache = model.run_with_cache(clean, None, names_filter=f"*{point}")
                for i in range(n_loop):
                    name, pos = f"blocks.{i % 12}.{point}", i * n_pos // n_loop

                    def put(x: torch.Tensor, hook: Any, pos: int = pos) -> torch.Tensor:
                        x[:, pos] = cache[hook.name][:, pos]
                        return x

                    logits = model.run_with_hooks(corrupted, fwd_hooks=[(name, put)])
                    (logits[:, -1, 5] - logits[:, -1, 7]).cpu()

        ours, theirs, rates, result = [], [], [], sweep()
        for _ in range(rounds):
            ours.append(timed(sweep)[0])
            theirs.append(timed(loop)[0] / n_loop)
            rates.append(rate() if model.device.type == "cpu" else float("nan"))
        with FlopCounterMode(display=False) as counter:
            sweep()
        n_sites = result.size
        ratio = median(theirs) * n_sites / median(ours)
        aim = (
            f" (≥ {TARGETS[n_pos]}) {'ok' if ratio >= TARGETS[n_pos] else 'MISSED'}"
            if aims and n_pos in TARGETS
            else ""
        )
        line = (
            f"{site} by layer × {by}, {n_pos} tokens, {n_sites} sites: {median(ours):.2f} s, {ratio:.1f} × a loop{aim}"
        )
        if site == "resid_pre" and model.device.type == "cpu":
            boards = [(layer, pos) for layer in range(12) for pos in range(n_pos)]
            needed, done = least(model.cfg, boards, n_pos), counter.get_total_flops()
            share = needed / median(ours) / median(rates)
            line += f"; {done / needed:.2f} of the least work, {share:.0%} of {median(rates) / 1e9:.0f} GFLOP/s"
        print(line, flush=True)


def linear(model: HookedGPT) -> None:
    """Time for more and more sites."""
    draw = torch.Generator().manual_seed(0)
    clean = torch.randint(0, model.cfg.d_vocab, (1, 16), generator=draw).to(model.device)
    metric = metrics.logit_diff(model, 5, 7)
    for n_prompts in (1, 10, 100):
        prompts = clean.expand(n_prompts, -1).clone()
        seconds, _ = timed(
            lambda prompts=prompts: activation_patching(
                model, prompts, prompts.roll(1, 1), "resid_pre", metric, layers=range(6), progress=False
            )
        )
        print(
            f"{96 * n_prompts} rows: {seconds * 1e3:.0f} ms, {seconds / n_prompts / 96 * 1e3:.3f} ms each", flush=True
        )


def main(device: str = "cpu", dtype: torch.dtype = torch.float32) -> None:
    torch.manual_seed(0)
    model = HookedGPT(GPTConfig(seed=0, tie_word_embeddings=True, **SHAPE)).eval().to(device, dtype)  # type: ignore[arg-type]
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, GPT-2 small's shape; medians in turn")
    for n_pos in (16, 40):
        compare(model, n_pos)
    small = HookedGPT(GPTConfig(seed=0, n_layers=6, d_model=128, n_heads=4, n_ctx=64, d_vocab=1000)).eval().to(device)
    linear(small)


if __name__ == "__main__":
    main()
