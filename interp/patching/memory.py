"""How much memory a computation takes, measured, and how much there is; jobs in chunks that keep within it.

1. Of each kind of job the one that needs most runs first, alone and measured (with few others, if no budget was given).
   It holds what a chunk's jobs share, too.
2. A chunk is planned to need as much as that one, and for each more as much as one did in the chunk measured last; for
   one of more tokens, in proportion. So far as need grows no faster than tokens do, plans err on the safe side.
3. Chunks that memory cuts short are measured in their turn. One that runs out of memory all the same is halved.

What is planned depends on nothing but the jobs and what was learned so far (`Plan`): who takes both up again makes the
same chunks.
"""

import os
import weakref
from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_LARGEST = {"cpu": 2**11, "cuda": 2**14}  # tokens of a chunk: more make no product faster, and leave a CPU's cache
_SMALL = 2**8  # tokens of a chunk by which need is measured
_PLANNED = 7 / 8  # of the budget: jobs of a kind are not quite alike


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


@dataclass(frozen=True)
class Job:
    """Something to run together with others of its kind; `weight`: the heaviest of a kind needs most memory."""

    index: int
    kind: str
    n_tokens: int
    weight: tuple[int, ...] = ()


@dataclass
class Need:
    """What a chunk of a kind needs: its first job, with all that is shared, and each more of so many tokens."""

    first: float
    each: float
    tokens: float

    def more(self, job: Job) -> float:
        """What one more job adds, at most."""
        return self.each * max(1.0, job.n_tokens / self.tokens)


_UNKNOWN = Need(0.0, 0.0, 1.0)


@dataclass
class Plan:
    """What decides how jobs are put into chunks."""

    budget: int  # bytes
    largest: int  # tokens of a chunk
    needs: dict[str, Need] = field(default_factory=dict)  # of each kind that was measured

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, found: dict[str, Any]) -> "Plan":
        needs = {kind: Need(**need) for kind, need in found["needs"].items()}
        return cls(found["budget"], found["largest"], needs)


class Chunks:
    """Runs jobs in chunks that need no more memory than `given` (bytes); without it, half of what is free."""

    def __init__(self, device: torch.device, given: int | None = None) -> None:
        self.device, self.given = device, given
        budget = _budget_of(device) if given is None else given
        self.plan = Plan(budget, _LARGEST.get(device.type, 2**12))

    def take_up(self, plan: Plan) -> None:
        """Go on as planned before; a budget that was given holds all the same."""
        self.plan = deepcopy(plan)
        self.plan.budget = plan.budget if self.given is None else self.given

    def run(
        self, jobs: Iterable[Job], once: Callable[[list[int]], Tensor], are_small: bool = False
    ) -> Iterator[tuple[list[int], Tensor]]:
        """What `once` makes of the jobs, chunk by chunk; those of a kind stay in their order, but for its first.

        If no budget was given and all together `are_small`, nothing is measured: that would take a tenth of the time.
        """
        kinds = {kind: list(some) for kind, some in groupby(sorted(jobs, key=_kind), _kind)}  # sorting is stable
        is_unmeasured = are_small and self.given is None
        for kind, left in kinds.items():
            if kind not in self.plan.needs and not is_unmeasured:
                first = self._first(left)
                yield [job.index for job in first], self._run(first, once, is_measured=True)
        for left in kinds.values():
            at = 0
            while at < len(left):
                chunk, is_cut = self._planned(left[at:])
                yield [job.index for job in chunk], self._run(chunk, once, is_measured=is_cut)
                at += len(chunk)

    def _first(self, left: list[Job]) -> list[Job]:
        """The heaviest job, taken from those left; where no budget was given, with as many more as hardly matter."""
        chosen = [left.pop(max(range(len(left)), key=lambda i: left[i].weight))]
        n_tokens, most = chosen[0].n_tokens, min(_SMALL, self.plan.largest)
        while self.given is None and left and (n_tokens := n_tokens + left[0].n_tokens) <= most:
            chosen.append(left.pop(0))
        return chosen

    def _planned(self, left: list[Job]) -> tuple[list[Job], bool]:
        """As many of the jobs left as go together, and whether it was memory that allowed no more."""
        budget = _PLANNED * self.plan.budget
        need, n_tokens = self.plan.needs.get(left[0].kind, _UNKNOWN), left[0].n_tokens
        total = need.first
        for n, job in enumerate(left[1:], start=1):
            total, n_tokens = total + need.more(job), n_tokens + job.n_tokens
            if total > budget or n_tokens > self.plan.largest:
                return left[:n], total > budget
        return left, False

    def _run(self, chunk: list[Job], once: Callable[[list[int]], Tensor], is_measured: bool) -> Tensor:
        """A chunk; its halves, should memory run out."""
        indices = [job.index for job in chunk]
        try:
            if not is_measured:
                return once(indices)
            with Peak() as peak:
                found = once(indices)
            self._learn(chunk, peak.bytes)
            return found
        except RuntimeError as error:
            if not is_out_of_memory(error) or len(chunk) == 1:
                raise
        self.plan.largest = max(1, sum(job.n_tokens for job in chunk) // 2)
        half = len(chunk) // 2
        return torch.cat([self._run(some, once, is_measured) for some in (chunk[:half], chunk[half:])])

    def _learn(self, chunk: list[Job], needed: int) -> None:
        if len(chunk) == 1 and self.given is not None and needed > self.given:
            raise ValueError(f"memory={self.given:,} bytes is too little: one row alone needs {needed:,}")
        kind, each = chunk[0].kind, needed / len(chunk)
        first = max(each, self.plan.needs[kind].first) if kind in self.plan.needs else each
        self.plan.needs[kind] = Need(first, each, sum(job.n_tokens for job in chunk) / len(chunk))


def _kind(job: Job) -> str:
    return job.kind


def _budget_of(device: torch.device) -> int:
    """Half of the memory that is free."""
    if device.type == "cuda":
        # what torch holds for its next tensors is free too
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return (torch.cuda.mem_get_info(device)[0] + kept) // 2
    if not os.path.exists("/proc/meminfo"):  # not Linux: a quarter of all there is
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4 if hasattr(os, "sysconf") else 2**30
    with open("/proc/meminfo") as file:
        facts = dict(line.split(":") for line in file)
    return int(facts["MemAvailable"].split()[0]) * 1024 // 2


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether that is what an error says; on a CPU it has no type of its own."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
