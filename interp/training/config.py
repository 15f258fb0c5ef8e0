"""How a model is trained: everything but the model and the data."""

from dataclasses import dataclass
from math import cos, pi
from typing import Literal

import torch

from interp.model.norms import HeadNorm, LayerNorm


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """The choices of a training run. Steps are updates of the weights; `batch_size` counts rows of all processes."""

    steps: int
    batch_size: int
    lr: float = 1e-3
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    final_lr: float = 0.1  # what the schedule ends at, as a share of lr
    warmup: int = 0  # steps over which lr rises from 0
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1
    decay: Literal["matrices", "all"] = "matrices"  # gains and biases are left alone unless "all"
    clip: float | None = 1.0  # the largest norm of the whole gradient
    accumulate: int = 1  # parts of a batch that go through the model in turn
    precision: Literal["float32", "bfloat16", "float16"] = "float32"  # of products; weights keep the model's own
    label_smoothing: float = 0.0
    loss_in_float64: bool = False  # log-softmax in double precision
    last_only: bool = False  # the loss is asked at the last position alone: the last block does not compute the others
    compile: bool = False
    activation_checkpointing: bool = False  # less memory, a third more time
    parallel: Literal["data", "fsdp"] = "data"  # under torchrun: whole models side by side, or one model in shards
    log_every: int = 1
    eval_every: int = 0  # 0: only at the end
    eval_batches: int | None = None  # None: all of the held-out data
    checkpoint_every: int = 0  # 0: only at the end
    keep: int = 2  # checkpoints beside the last that are kept; older ones are deleted
    measure_every: int = 0
    measures: int = 0  # so many measurements at log-spaced steps
    seed: int = 0

    def __post_init__(self) -> None:
        faults = []
        for name in ("steps", "batch_size", "lr", "eps", "accumulate", "log_every"):
            if not getattr(self, name) > 0:
                faults.append(f"{name}={getattr(self, name)}; it must be positive")
        for name in ("warmup", "weight_decay", "eval_every", "checkpoint_every", "keep", "measure_every", "measures"):
            if not getattr(self, name) >= 0:
                faults.append(f"{name}={getattr(self, name)}; it must not be negative")
        if not all(0 <= beta < 1 for beta in self.betas):
            faults.append(f"betas={self.betas}; each must be at least 0 and less than 1")
        if self.eval_batches is not None and self.eval_batches < 1:
            faults.append(f"eval_batches={self.eval_batches}; it must be positive, or None")
        if self.clip is not None and not self.clip > 0:
            faults.append(f"clip={self.clip}; it must be positive, or None")
        if not 0 <= self.label_smoothing < 1 or not 0 <= self.final_lr <= 1:
            faults.append(f"label_smoothing={self.label_smoothing}, final_lr={self.final_lr}; both are shares")
        if self.accumulate > 0 and self.batch_size % self.accumulate:
            faults.append(f"batch_size={self.batch_size} is no multiple of accumulate={self.accumulate}")
        allowed = {
            "schedule": ("cosine", "linear", "constant"),
            "decay": ("matrices", "all"),
            "precision": ("float32", "bfloat16", "float16"),
            "parallel": ("data", "fsdp"),
        }
        faults += [
            f"{name}={getattr(self, name)!r}; allowed: {list(values)}"
            for name, values in allowed.items()
            if getattr(self, name) not in values
        ]
        if self.compile and self.parallel == "fsdp":
            faults.append("compile with parallel='fsdp': a sharded model is not compiled whole; choose one")
        if faults:
            raise ValueError("TrainingConfig cannot be built:\n" + "\n".join(f"  - {fault}" for fault in faults))

    def lr_at(self, step: int) -> float:
        """The learning rate of a step."""
        if step < self.warmup:
            return self.lr * (step + 1) / (self.warmup + 1)
        if self.schedule == "constant":
            return self.lr
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        left = (1 + cos(pi * done)) / 2 if self.schedule == "cosine" else 1 - done
        return self.lr * (self.final_lr + (1 - self.final_lr) * left)

    def measured_at(self) -> set[int]:
        """The steps before which measures are taken, the end included."""
        spaced = {round(self.steps ** (i / max(1, self.measures - 1))) for i in range(self.measures)}
        every = set(range(0, self.steps + 1, self.measure_every)) if self.measure_every else set()
        return spaced | every | ({0, self.steps} if spaced or every else {self.steps})


def optimiser(model: torch.nn.Module, cfg: TrainingConfig) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter, 2019), with decay on matrices and none on gains and biases."""
    norms = [module for module in model.modules() if isinstance(module, LayerNorm | HeadNorm)]
    gains = {id(p) for norm in norms for p in norm.parameters()}  # those of heads are a table
    decays = lambda p: cfg.decay == "all" or (p.ndim >= 2 and id(p) not in gains)
    decaying = [p for p in model.parameters() if decays(p)]
    others = [p for p in model.parameters() if not decays(p)]
    groups = [{"params": decaying, "weight_decay": cfg.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]], lr=cfg.lr, betas=cfg.betas, eps=cfg.eps, fused=True
    )
