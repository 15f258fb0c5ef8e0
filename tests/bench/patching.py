"""Sweeps beside a loop of one full forward pass for each site: `make bench`."""

import time
from collections.abc import Callable
from functools import partial
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from statistics import median
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, register_flop_formula

from interp import GPTConfig, HookedGPT, metrics
from interp.patching import activation_patching
from tests.bench.timing import wait

SHAPE: dict[str, int] = {"n_layers": 12, "d_model": 768, "n_heads": 12, "n_ctx": 1024, "d_vocab": 50_257}
LARGE: dict[str, Any] = {  # a billion parameters, on a GPU alone
    "n_layers": 16, "d_model": 2048, "n_heads": 32, "n_key_value_heads": 8, "d_mlp": 8192, "n_ctx": 1024,
    "d_vocab": 128_256, "normalization_type": "RMS", "positional_embedding_type": "rotary", "gated_mlp": True,
    "act_fn": "silu", "bias_qkv": False, "bias_attn_out": False, "bias_mlp": False, "tie_word_embeddings": True,
}  # fmt: skip
SWEEPS: list[tuple[str, str | tuple[str, ...]]] = [("resid_pre", "pos"), ("z", "head"), ("z", ("head", "pos"))]
TARGETS = {16: 12.0, 40: 8.0}


@register_flop_formula(torch.ops.mkldnn._linear_pointwise)
def _of_onednn(x: Any, weight: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    rows = 1
    for size in x[:-1]:
        rows *= size
    return 2 * rows * x[-1] * weight[0]


def least(cfg: GPTConfig, boards: list[tuple[int, int]], n_pos: int) -> int:
    """Floating-point work that rows need, (layer, first position) each, of which two logits at one position are read.

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
        total += 2 * d * 2
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


def pair_of(model: HookedGPT, n_pos: int, n_different: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Two prompts that differ in their first so many tokens."""
    clean = torch.randint(0, model.cfg.d_vocab, (1, n_pos), generator=torch.Generator().manual_seed(n_pos))
    corrupted = clean.clone()
    corrupted[:, :n_different] = (clean[:, :n_different] + 1) % model.cfg.d_vocab
    return clean.to(model.device), corrupted.to(model.device)


def compare(
    model: HookedGPT, n_pos: int, n_different: int = 1, sweeps: Any = SWEEPS, rounds: int = 3, n_loop: int = 12
) -> None:
    clean, corrupted = pair_of(model, n_pos, n_different)
    metric = metrics.logit_diff(model, 5, 7)
    for site, by in sweeps:
        sweep = partial(activation_patching, model, clean, corrupted, site, metric, by=by, progress=False)  # type: ignore[arg-type]
        point = "hook_resid_pre" if site == "resid_pre" else "attn.hook_z"

        def loop(point: str = point) -> None:
            with torch.no_grad():
                _, cache = model.run_with_cache(clean, None, names_filter=f"*{point}")
                for i in range(n_loop):
                    name, pos = f"blocks.{i % model.cfg.n_layers}.{point}", i * n_pos // n_loop

                    def put(x: torch.Tensor, hook: Any, pos: int = pos) -> torch.Tensor:
                        x[:, pos] = cache[hook.name][:, pos]
                        return x

                    logits = model.run_with_hooks(corrupted, fwd_hooks=[(name, put)])
                    (logits[:, -1, 5] - logits[:, -1, 7]).cpu()

        ours, theirs, rates, n_sites = [], [], [], sweep().size
        for _ in range(rounds if n_sites < 5000 else 1):
            ours.append(timed(sweep)[0])
            theirs.append(timed(loop)[0] / n_loop)
            rates.append(rate() if model.device.type == "cpu" else float("nan"))
        ratio = median(theirs) * n_sites / median(ours)
        has_aim = site == "resid_pre" and model.device.type == "cpu"
        aim = f" (≥ {TARGETS[n_pos]}) {'ok' if ratio >= TARGETS[n_pos] else 'MISSED'}" if has_aim else ""
        line = (
            f"{site} by layer × {by}, {n_pos} tokens, {n_different} of them different, {n_sites} sites: "
            f"{median(ours):.2f} s, {n_sites / median(ours):,.0f} rows a second, {ratio:.1f} × a loop{aim}"
        )
        if has_aim:
            boards = [
                (layer, pos)
                for layer in range(model.cfg.n_layers)
                for pos in range(n_pos)
                if layer or pos < n_different
            ]
            with FlopCounterMode(display=False) as counter:
                sweep()
            needed, done = least(model.cfg, boards, n_pos), counter.get_total_flops()
            share = needed / median(ours) / median(rates)
            line += f"; {done / needed:.2f} of the least work, {share:.0%} of {median(rates) / 1e9:.0f} GFLOP/s"
        print(line, flush=True)


def beside_transformer_lens(model: HookedGPT, n_pos: int = 16) -> None:
    """The same sweep as `transformer_lens.patching` makes it, where that is installed."""
    if find_spec("transformer_lens") is None:
        print("transformer_lens is not installed: no comparison with it")
        return
    lens, patching = import_module("transformer_lens"), import_module("transformer_lens.patching")
    cfg = lens.HookedTransformerConfig(
        n_layers=12, d_model=768, d_head=64, n_heads=12, d_mlp=3072, n_ctx=1024, d_vocab=50_257, act_fn="gelu_new",
        normalization_type="LNPre", seed=0, device="cpu",
    )  # fmt: skip
    peer = lens.HookedTransformer(cfg).eval()
    clean, corrupted = pair_of(model, n_pos, 1)
    metric = metrics.logit_diff(model, 5, 7)

    def theirs() -> None:
        with torch.no_grad():
            _, cache = peer.run_with_cache(clean)
            patching.get_act_patch_resid_pre(peer, corrupted, cache, lambda logits: logits[0, -1, 5] - logits[0, -1, 7])

    def ours() -> None:
        activation_patching(model, clean, corrupted, "resid_pre", metric, by="pos", progress=False)

    times = [(timed(theirs)[0], timed(ours)[0]) for _ in range(3)]
    slow, fast = (median(each) for each in zip(*times, strict=True))
    aim = "ok" if slow / fast >= 35 else "MISSED"
    print(f"transformer_lens {version('transformer_lens')}, {n_pos} tokens, {12 * n_pos} sites: {slow:.1f} s, "
          f"{slow / fast:.0f} × ours (≥ 35) {aim}")  # fmt: skip


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
        compare(model, n_pos, n_pos, SWEEPS[:1])
    if device == "cpu":
        beside_transformer_lens(model)
    else:
        large = HookedGPT(GPTConfig(seed=0, device=device, dtype=dtype, **LARGE)).eval()  # type: ignore[arg-type]
        print(f"{sum(p.numel() for p in large.parameters()) / 1e9:.2f} billion parameters")
        for n_pos in (16, 40):
            compare(large, n_pos, sweeps=SWEEPS[:2])
    small = HookedGPT(GPTConfig(seed=0, n_layers=6, d_model=128, n_heads=4, n_ctx=64, d_vocab=1000)).eval().to(device)
    linear(small)


if __name__ == "__main__":
    main()
