"""A training step beside the same step over a plain PyTorch GPT: `make bench`."""

from functools import partial
from statistics import median
from time import perf_counter
from typing import Any

import torch
import torch.nn.functional as F

from interp import GPTConfig, HookedGPT
from interp.training import Batch, Task, TrainingConfig, train
from tests.bench.plain_gpt import PlainGPT
from tests.bench.timing import report, wait

SHAPES: dict[str, tuple[dict[str, int], int, int]] = {  # sizes, rows, steps
    "4 layers, width 128, 12 × 64": (
        {"n_layers": 4, "d_model": 128, "n_heads": 4, "n_ctx": 64, "d_vocab": 65}, 12, 1000
    ),
    "4 layers, width 512, 8 × 128": (
        {"n_layers": 4, "d_model": 512, "n_heads": 8, "n_ctx": 128, "d_vocab": 4096}, 8, 40
    ),
}  # fmt: skip
NO_BIAS: dict[str, Any] = {"bias_qkv": False, "bias_attn_out": False, "bias_mlp": False, "bias_norm": False}


class Turns:
    """Data for our run that makes a plain loop's step before each batch: step by step, both meet the same machine."""

    def __init__(self, model: PlainGPT, shape: GPTConfig, cfg: TrainingConfig) -> None:
        self.model, self.cfg, self.source = model, cfg, Task(partial(draw, shape))
        self.check, self.identity = self.source.check, self.source.identity
        decay, none = [p for p in model.parameters() if p.ndim > 1], [p for p in model.parameters() if p.ndim == 1]
        groups = [{"params": decay, "weight_decay": 0.1}, {"params": none, "weight_decay": 0.0}]
        self.optimiser = torch.optim.AdamW(groups, lr=cfg.lr, betas=cfg.betas, fused=True)
        self.ours: list[float] = []
        self.plain: list[float] = []
        self.is_begun = False

    def batch(self, step: int, n_rows: int, mine: slice = slice(None)) -> Batch:
        wait()
        now = perf_counter()
        if self.is_begun:  # the loop asks once before it begins
            self.ours.append(now - self.left)
        self.plain_step(step)
        wait()
        self.left = perf_counter()
        self.plain.append(self.left - now)
        self.is_begun = True
        return self.source.batch(step, n_rows, mine)

    def plain_step(self, step: int) -> None:
        """A step as one writes it."""
        cfg, device = self.cfg, self.model.tokens.weight.device
        batch = self.source.batch(step, cfg.batch_size).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=cfg.precision == "bfloat16"):
            logits = self.model(batch.tokens)
            loss = F.cross_entropy(logits.float().flatten(0, 1), batch.targets.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for group in self.optimiser.param_groups:
            group["lr"] = cfg.lr_at(step)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        if device.type == "cpu":
            loss.item()


def draw(shape: GPTConfig, generator: torch.Generator, n_rows: int) -> Batch:
    rows = torch.randint(0, shape.d_vocab, (n_rows, shape.n_ctx + 1), generator=generator)
    return Batch(rows[:, :-1], rows[:, 1:])


def in_turns(model: HookedGPT, rival: PlainGPT, cfg: TrainingConfig) -> tuple[float, float]:
    """Seconds a step: ours, and plain."""
    turns = Turns(rival, model.cfg, cfg)
    train(model, turns, cfg, progress=False)
    warm = len(turns.ours) // 5
    return median(turns.ours[warm:]), median(turns.plain[warm:])


def compare(title: str, sizes: dict[str, int], n_rows: int, steps: int, device: str = "cpu") -> None:
    shape = GPTConfig(seed=0, tie_word_embeddings=True, **NO_BIAS, **sizes)  # type: ignore[arg-type]
    cfg = TrainingConfig(steps=steps, batch_size=n_rows)
    times = in_turns(HookedGPT(shape).to(device), PlainGPT(shape).to(device), cfg)
    report(f"training step, {title}, against plain PyTorch", *times, 1.0)


def main() -> None:
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; steps in turn, medians: ours, plain, ratio")
    for title, (sizes, n_rows, steps) in SHAPES.items():
        compare(title, sizes, n_rows, steps)


if __name__ == "__main__":
    main()
