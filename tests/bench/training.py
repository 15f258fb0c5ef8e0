"""A training step beside the same step over a plain PyTorch GPT: `make bench`."""

from statistics import median
from time import perf_counter
from typing import Any

import torch
import torch.nn.functional as F

from interp import GPTConfig, HookedGPT
from interp.training import Batch, Task, TrainingConfig, train
from tests.bench.plain_gpt import PlainGPT
from tests.bench.timing import report, wait

SHAPES: dict[str, tuple[dict[str, int], int, int]] = {  # sizes, rows, rounds
    "4 layers, width 128, 12 × 64": ({"n_layers": 4, "d_model": 128, "n_heads": 4, "n_ctx": 64, "d_vocab": 65}, 12, 25),
    "4 layers, width 512, 8 × 128": (
        {"n_layers": 4, "d_model": 512, "n_heads": 8, "n_ctx": 128, "d_vocab": 4096}, 8, 9
    ),
}  # fmt: skip
NO_BIAS: dict[str, Any] = {"bias_qkv": False, "bias_attn_out": False, "bias_mlp": False, "bias_norm": False}


def data(cfg: GPTConfig) -> Task:
    def draw(generator: torch.Generator, n_rows: int) -> Batch:
        rows = torch.randint(0, cfg.d_vocab, (n_rows, cfg.n_ctx + 1), generator=generator)
        return Batch(rows[:, :-1], rows[:, 1:])

    return Task(draw)


def ours(model: HookedGPT, cfg: TrainingConfig) -> float:
    """Seconds a step, start and end of the run left out."""
    log = [row for row in train(model, data(model.cfg), cfg, progress=False) if "loss" in row]
    skipped = 1 + cfg.steps // 4
    return (log[-1]["seconds"] - log[skipped - 1]["seconds"]) / (cfg.steps - skipped)


def plain(model: PlainGPT, shape: GPTConfig, cfg: TrainingConfig) -> float:
    """The same loop as one writes it."""
    device, source, skipped = model.tokens.weight.device, data(shape), 1 + cfg.steps // 4
    optimiser = torch.optim.AdamW(model.parameters(), lr=cfg.lr, betas=cfg.betas, weight_decay=0.1, fused=True)
    half, start = cfg.precision == "bfloat16", 0.0
    for step in range(cfg.steps):
        if step == skipped:
            wait()
            start = perf_counter()
        batch = source.batch(step, cfg.batch_size).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            logits = model(batch.tokens)
            loss = F.cross_entropy(logits.float().flatten(0, 1), batch.targets.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        if device.type == "cpu":
            loss.item()
    wait()
    return (perf_counter() - start) / (cfg.steps - skipped)


def compare(title: str, sizes: dict[str, int], n_rows: int, rounds: int, steps: int = 16, device: str = "cpu") -> None:
    shape = GPTConfig(seed=0, tie_word_embeddings=True, **NO_BIAS, **sizes)  # type: ignore[arg-type]
    cfg = TrainingConfig(steps=steps, batch_size=n_rows)
    model, rival = HookedGPT(shape).to(device), PlainGPT(shape).to(device)
    times: dict[str, list[float]] = {"ours": [], "plain": []}
    for round_ in range(rounds):
        rivals = {"ours": lambda: ours(model, cfg), "plain": lambda: plain(rival, shape, cfg)}
        for name in list(rivals) if round_ % 2 else list(rivals)[::-1]:
            times[name].append(rivals[name]())
    report(f"training step, {title}, against plain PyTorch", median(times["ours"]), median(times["plain"]), 1.0)


def main() -> None:
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; medians a step: ours, plain, ratio")
    for title, (sizes, n_rows, rounds) in SHAPES.items():
        compare(title, sizes, n_rows, rounds)


if __name__ == "__main__":
    main()
