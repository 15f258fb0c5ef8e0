"""A small sweep, run in a process of its own: one that is killed in the middle, or one of several."""

import os
import signal
import sys

import torch
import torch.distributed as dist

from interp import HookedGPT
from interp.interventions import Patch, Site
from interp.metrics import Logits, Values
from interp.patching.engine import Base, Row
from interp.patching.sweep import Sweep
from tests.variants import some_tokens, variant

MEMORY = 40_000  # bytes: a few rows


def first_logit(logits: Logits) -> Values:
    """The metric of these sweeps."""
    return logits[:, -1, 0]


def rows_of(model: HookedGPT, shift: int = 1) -> list[Row]:
    """Every position and head of every layer, for each of three prompts."""
    tokens = some_tokens()
    _, cache = model.run_with_cache(tokens.roll(shift, 0))
    layers = range(model.cfg.n_layers)
    streams = [
        Patch(Site("resid_pre", layer, pos=pos), cache["resid_pre", layer]) for layer in layers for pos in range(7)
    ]
    heads = [Patch(Site("z", layer, head=head), cache["z", layer]) for layer in layers for head in range(3)]
    return [Row(prompt, (edit,)) for edit in streams + heads for prompt in range(3)]


def small_sweep(dtype: torch.dtype = torch.float32, **choices: object) -> Sweep:
    """A sweep of those rows, in chunks of a few."""
    sweep = Sweep(Base(variant("gpt2", dtype), some_tokens()), first_logit, progress=False, **choices)  # type: ignore[arg-type]
    sweep.chunks.plan.largest = 30
    return sweep


def killed(path: str, n_chunks: int, dtype: str) -> None:
    """Dies when it has finished so many chunks, in the next one."""
    sweep = small_sweep(getattr(torch, dtype), file=path, memory=MEMORY)
    once = sweep._measured

    def measured(logits: torch.Tensor, prompts: torch.Tensor) -> torch.Tensor:
        if sweep.work["chunks"] == n_chunks:
            os.kill(os.getpid(), signal.SIGKILL)
        return once(logits, prompts)

    sweep._measured = measured  # type: ignore[method-assign]
    sweep.values(rows_of(sweep.base.model))


def fault(*_: object) -> None:
    """What goes wrong in one process alone."""
    raise ValueError("a fault of one")


def one_of_several(rank: int, n: int, meeting: str, failing: int) -> None:
    """Leaves its values beside the file by which the processes meet."""
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=n)
    sweep = small_sweep()
    rows = rows_of(sweep.base.model)
    if rank == failing:
        sweep._job = fault  # type: ignore[method-assign]
    said, kept = "", torch.empty(0)
    try:
        values = sweep.values(rows)
        kept = small_sweep(file=f"{meeting}.sweep").values(rows)
    except (RuntimeError, ValueError) as error:
        values, said = torch.empty(0), str(error)
    torch.save((values, sweep.work["rows"], said, kept), f"{meeting}.{rank}")
    dist.destroy_process_group()


if __name__ == "__main__":
    killed(sys.argv[1], int(sys.argv[2]), sys.argv[3])
