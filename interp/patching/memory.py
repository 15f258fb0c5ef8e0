"""How much memory a computation takes, measured, and how much there is."""

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Peak(TorchDispatchMode):
    """Within it, the most bytes that new tensors held at once, on whatever device."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes, self._now, self._seen = 0, 0, set[int]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {_key(leaf.untyped_storage()) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor) and _key(storage := leaf.untyped_storage()) not in given:
                self._count(storage)
        self.bytes = max(self.bytes, self._now)
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = _key(storage), storage.nbytes()
        if key in self._seen:
            return
        self._seen.add(key)
        self._now += size
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self._now -= size


def _key(storage: torch.UntypedStorage) -> int:
    return storage._cdata


def budget_of(device: torch.device) -> int:
    """Half of the memory that is free."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] // 2
    with open("/proc/meminfo") as file:
        facts = dict(line.split(":") for line in file)
    return int(facts["MemAvailable"].split()[0]) * 1024 // 2


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether that is what an error says; on a CPU it has no type of its own."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
