"""Many processes as one: whole models side by side, or one model in shards, by PyTorch's own engine."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.utils.checkpoint import checkpoint

from interp.model import HookedGPT
from interp.training.config import TrainingConfig


class Ranks:
    """The processes that `torchrun` started; without it, this one alone."""

    def __init__(self) -> None:
        self.size = int(os.environ.get("WORLD_SIZE", 1))
        self.rank = int(os.environ.get("RANK", 0))
        self._local = int(os.environ.get("LOCAL_RANK", 0))
        self._started = False

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        return torch.device("cuda", self._local) if torch.cuda.is_available() else torch.device("cpu")

    @contextmanager
    def joined(self) -> Iterator["Ranks"]:
        """Within it, the processes can talk."""
        if self.size > 1 and not dist.is_initialized():
            if self.device.type == "cuda":
                torch.cuda.set_device(self.device)
            dist.init_process_group("nccl" if self.device.type == "cuda" else "gloo")
            self._started = True
        try:
            yield self
        finally:
            if self._started:
                dist.destroy_process_group()
                self._started = False

    def share(self, n_rows: int) -> slice:
        """This process's rows of a batch."""
        return slice(self.rank * n_rows // self.size, (self.rank + 1) * n_rows // self.size)

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            dist.barrier()


class Spread:
    """A model made ready for the loop: spread over the processes, compiled, its blocks recomputed in the backward."""

    def __init__(self, model: HookedGPT, ranks: Ranks, cfg: TrainingConfig) -> None:
        self.model, self.is_sharded = model, ranks.size > 1 and cfg.parallel == "fsdp"
        self.recomputed = list(model.blocks) if cfg.activation_checkpointing else []
        for block in self.recomputed:
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)
        self.is_compiled = cfg.compile
        if cfg.compile:
            model.compile(dynamic=False)  # batches are of one shape, or few
        self.call: nn.Module = model
        if self.is_sharded:
            for block in model.blocks:
                fully_shard(block)
            fully_shard(model)
        elif ranks.size > 1:
            self.call = nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True)

    def synchronised(self, is_last: bool) -> AbstractContextManager[None]:
        """Gradients are exchanged after the last part of a batch alone."""
        if self.is_sharded:
            self.model.set_requires_gradient_sync(is_last)  # type: ignore[operator]
        elif isinstance(self.call, nn.parallel.DistributedDataParallel) and not is_last:
            return self.call.no_sync()
        return nullcontext()

    def undo(self) -> None:
        """Blocks run once again, as they did. What belongs to the processes' exchange goes before the exchange does."""
        self.call = self.model
        if self.is_compiled:
            self.model.uncompile()
        for block in self.recomputed:
            del block.forward
