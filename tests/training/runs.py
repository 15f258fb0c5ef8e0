"""A run so small that it can be killed, repeated and divided; as a script, a process of its own that trains it.

`python tests/training/runs.py OUT [name=value …]` takes choices of `TrainingConfig`, and `dropout`, `slow` (seconds a
batch), `resume`, `fail` (the step whose batch raises).
"""

import sys
import time
from pathlib import Path
from typing import Any

import torch

from interp import GPTConfig, HookedGPT
from interp.training import Batch, Task, TokenFile, TrainingConfig, repeated_tokens, train
from interp.training.measures import repeat_losses
from interp.training.parallel import Ranks


def tiny_model(**changes: Any) -> HookedGPT:
    sizes = {"n_layers": 2, "d_model": 12, "n_heads": 3, "n_ctx": 14, "d_vocab": 19, "d_mlp": 20}
    return HookedGPT(GPTConfig(**sizes | {"seed": 0} | changes))


class Slowly:
    """Data that takes its time, and may break."""

    def __init__(self, data: Task, seconds: float = 0, fail: int = -1) -> None:
        self.data, self.seconds, self.fail = data, seconds, fail

    def batch(self, step: int, n_rows: int, mine: slice = slice(None)) -> Batch:
        time.sleep(self.seconds)
        if step == self.fail:
            raise RuntimeError("the data broke")
        return self.data.batch(step, n_rows, mine)

    def check(self, cfg: GPTConfig) -> None:
        self.data.check(cfg)

    def identity(self) -> str:
        return self.data.identity()


def tiny_data(seconds: float = 0, fail: int = -1) -> Slowly:
    return Slowly(Task(repeated_tokens(19, 14, (3, 6)), seed=5), seconds, fail)


def tiny_config(**changes: Any) -> TrainingConfig:
    return TrainingConfig(**{"steps": 12, "batch_size": 8, "warmup": 3, "checkpoint_every": 3, "seed": 7} | changes)


def held_out() -> TokenFile:
    return TokenFile((torch.arange(200) * 7 % 19).numpy(), 14)


def curve(log: list[dict[str, Any]]) -> list[tuple[int, float, float]]:
    return [(row["step"], row["loss"], row["grad_norm"]) for row in log if "loss" in row]


def main(
    out: Path, dropout: float = 0.0, slow: float = 0, resume: bool = False, fail: int = -1, **changes: Any
) -> None:
    torch.set_num_threads(1)
    look = repeated_tokens(19, 14, (3, 6))(torch.Generator().manual_seed(0), 4).tokens
    train(
        tiny_model(dropout=dropout).to(Ranks().device),
        tiny_data(slow, fail),
        tiny_config(**changes),
        out,
        held_out=held_out(),
        measures={"repeats": lambda model: repeat_losses(model, look)},
        resume=resume,
        progress=False,
    )


if __name__ == "__main__":
    choices = dict(each.split("=") for each in sys.argv[2:])
    main(
        Path(sys.argv[1]),
        **{
            name: value if value.isalpha() and value not in ("True", "False") else eval(value)
            for name, value in choices.items()
        },
    )
