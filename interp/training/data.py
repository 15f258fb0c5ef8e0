"""What a model is trained on. A batch is a function of the seed and the step alone, so that any run can be resumed."""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from interp.config import GPTConfig
from interp.corpus import token_file

IGNORED = -100  # the target of a position that is asked for nothing


@dataclass(frozen=True)
class Batch:
    """Tokens, and for each position the token to be predicted there, or `IGNORED`."""

    tokens: Int[Tensor, "batch pos"]
    targets: Int[Tensor, "batch pos"]

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, rows: slice) -> "Batch":
        return Batch(self.tokens[rows], self.targets[rows])

    def to(self, device: torch.device) -> "Batch":
        """On another device; the copy to a GPU does not hold up the CPU."""
        if device.type == "cpu" or self.tokens.device == device:
            return Batch(self.tokens.to(device), self.targets.to(device))
        copies = [each.pin_memory().to(device, non_blocking=True) for each in (self.tokens, self.targets)]
        return Batch(*copies)


@runtime_checkable
class Data(Protocol):
    """Where batches come from."""

    def batch(self, step: int, n_rows: int, mine: slice = slice(None)) -> Batch:
        """Rows `mine` of the step's `n_rows`: the same on every machine, whatever was asked before."""
        ...

    def check(self, cfg: GPTConfig) -> None:
        """Raise if a model of this shape cannot be trained on it."""
        ...

    def identity(self) -> str:
        """A digest by which a resumed run knows its data again."""
        ...


@runtime_checkable
class Held(Protocol):
    """Data with an end, for evaluation."""

    def whole(self, n_rows: int) -> Iterator[Batch]:
        """All of it once, in batches of `n_rows`."""
        ...

    def check(self, cfg: GPTConfig) -> None:
        """Raise if a model of this shape cannot read it."""
        ...


class TokenFile:
    """Chunks of a long row of tokens: a `.npy` file, which stays on disk, or an array.

    Each epoch visits every chunk once, in an order of its own and cut at a place of its own. With `bos`, each chunk is
    read behind that token, as a prompt is.
    """

    def __init__(
        self, tokens: str | os.PathLike[str] | np.ndarray, n_ctx: int, *, bos: int | None = None, seed: int = 0
    ):
        self.name = "tokens" if isinstance(tokens, np.ndarray) else os.fspath(tokens)
        self.tokens = tokens if isinstance(tokens, np.ndarray) else token_file(Path(tokens))
        self.n_ctx, self.bos, self.seed = n_ctx, bos, seed
        self._need = n_ctx + (bos is None)
        if n_ctx < 1 or (bos is not None and bos < 0):
            raise ValueError(f"n_ctx={n_ctx}, bos={bos}: a context is of at least 1 token, and ids are not negative")
        if self.tokens.ndim != 1 or self.tokens.dtype.kind not in "iu":
            raise ValueError(f"{self.name} must hold one row of integers, not {self.tokens.dtype} {self.tokens.shape}")
        if len(self.tokens) < self._need:
            raise ValueError(f"{self.name} has {len(self.tokens)} tokens; a context of {n_ctx} needs {self._need}")
        self.n_chunks = max(1, (len(self.tokens) - self._need - (n_ctx - 1)) // n_ctx + 1)

    def batch(self, step: int, n_rows: int, mine: slice = slice(None)) -> Batch:
        """See `Data`."""
        first = step * n_rows
        return self._read([self._start(first + row) for row in range(n_rows)[mine]])

    def whole(self, n_rows: int) -> Iterator[Batch]:
        """See `Held`. The last row is filled with what is asked for nothing."""
        starts = range(0, len(self.tokens) - (self.bos is None), self.n_ctx)
        for i in range(0, len(starts), n_rows):
            yield self._read(list(starts[i : i + n_rows]))

    def check(self, cfg: GPTConfig) -> None:
        """See `Data`."""
        if self.n_ctx > cfg.n_ctx:
            raise ValueError(f"chunks of {self.n_ctx} tokens are longer than the context, n_ctx={cfg.n_ctx}")
        largest = max(int(self.tokens.max()), -1 if self.bos is None else self.bos)
        if largest >= min(cfg.d_vocab, cfg.d_vocab_out) or self.tokens.min() < 0:
            raise ValueError(
                f"{self.name} has token ids from {int(self.tokens.min())} to {largest}; "
                f"the model knows 0 to {min(cfg.d_vocab, cfg.d_vocab_out) - 1}"
            )

    def identity(self) -> str:
        """See `Data`. Of a large file, 64 blocks are read."""
        digest = hashlib.sha256(f"{len(self.tokens)} {self.n_ctx} {self.bos} {self.seed}".encode())
        for start in np.linspace(0, max(0, len(self.tokens) - 2**16), 64, dtype=np.int64):
            digest.update(np.ascontiguousarray(self.tokens[start : start + 2**16], dtype=np.int64).tobytes())
        return digest.hexdigest()[:16]

    def _start(self, row: int) -> int:
        epoch, place = divmod(row, self.n_chunks)
        order, shift = _epoch(self.seed, epoch, self.n_chunks, self._slack())
        return shift + int(order[place]) * self.n_ctx

    def _slack(self) -> int:
        return min(len(self.tokens) - self._need - (self.n_chunks - 1) * self.n_ctx, self.n_ctx - 1)

    def _read(self, starts: list[int]) -> Batch:
        rows = np.full((len(starts), self.n_ctx + 1), IGNORED, dtype=np.int64)
        first = int(self.bos is not None)
        for row, start in zip(rows, starts, strict=True):
            chunk = self.tokens[start : start + self._need]
            row[first : first + len(chunk)] = chunk
        if self.bos is not None:
            rows[:, 0] = self.bos
        tokens = torch.from_numpy(rows)
        return Batch(tokens[:, :-1].clamp(min=0), tokens[:, 1:].contiguous())


class Task:
    """An endless supply of batches drawn by a function of a random generator and the number of rows."""

    def __init__(self, draw: Callable[[torch.Generator, int], Batch], seed: int = 0) -> None:
        self.draw, self.seed = draw, seed

    def batch(self, step: int, n_rows: int, mine: slice = slice(None)) -> Batch:
        """See `Data`."""
        rows = self.draw(_generator(self.seed, step), n_rows)
        if len(rows) != n_rows:
            raise ValueError(f"the task drew {len(rows)} rows; it was asked for {n_rows}")
        return rows[mine]

    def check(self, cfg: GPTConfig) -> None:
        """See `Data`."""
        _check_batch(self.batch(0, 2), cfg, "the task")

    def identity(self) -> str:
        """See `Data`."""
        return _digest(self.batch(0, 2), self.seed)


class FullBatch:
    """The same rows at every step, all of them."""

    def __init__(self, rows: Batch) -> None:
        self.rows = rows

    def batch(self, step: int, n_rows: int, mine: slice = slice(None)) -> Batch:
        """See `Data`."""
        if n_rows != len(self.rows):
            raise ValueError(f"a full batch has {len(self.rows)} rows; batch_size={n_rows} was asked for")
        return self.rows[mine]

    def whole(self, n_rows: int) -> Iterator[Batch]:
        """See `Held`."""
        for start in range(0, len(self.rows), n_rows):
            yield self.rows[start : start + n_rows]

    def check(self, cfg: GPTConfig) -> None:
        """See `Data`."""
        _check_batch(self.rows, cfg, "the data")

    def identity(self) -> str:
        """See `Data`."""
        return _digest(self.rows)


class Mixture:
    """Rows from several sources, in fixed shares of every batch."""

    def __init__(self, parts: Sequence[tuple[Data, int | float]]) -> None:
        self.parts = list(parts)

    def batch(self, step: int, n_rows: int, mine: slice = slice(None)) -> Batch:
        """See `Data`."""
        total, before, done, drawn = sum(share for _, share in self.parts), 0.0, 0, []
        for data, share in self.parts:
            before += share
            upto = round(n_rows * before / total)
            if upto == done:
                raise ValueError(f"a share of {share} in {total} is less than one of {n_rows} rows")
            drawn.append(data.batch(step, upto - done))
            done = upto
        if {each.tokens.shape[1] for each in drawn} != {drawn[0].tokens.shape[1]} or sum(map(len, drawn)) != n_rows:
            raise ValueError(
                f"sources of a mixture give rows of one width, not {[tuple(b.tokens.shape) for b in drawn]}"
            )
        tokens, targets = (torch.cat([getattr(each, name) for each in drawn]) for name in ("tokens", "targets"))
        return Batch(tokens, targets)[mine]

    def check(self, cfg: GPTConfig) -> None:
        """See `Data`."""
        for data, _ in self.parts:
            data.check(cfg)

    def identity(self) -> str:
        """See `Data`."""
        return " ".join(f"{share}×{data.identity()}" for data, share in self.parts)


class Shorter:
    """In place of each row, `times` rows, for data whose rows are so much shorter."""

    def __init__(self, data: Data, times: int) -> None:
        self.data, self.times = data, times

    def batch(self, step: int, n_rows: int, mine: slice = slice(None)) -> Batch:
        """See `Data`."""
        start, stop, _ = mine.indices(n_rows)
        return self.data.batch(step, n_rows * self.times, slice(start * self.times, stop * self.times))

    def check(self, cfg: GPTConfig) -> None:
        """See `Data`."""
        self.data.check(cfg)

    def identity(self) -> str:
        """See `Data`."""
        return f"{self.times}×({self.data.identity()})"


class Stages:
    """One source after another: `[(500, first), (None, then)]` reads `first` for 500 steps, and then the other."""

    def __init__(self, stages: Sequence[tuple[int | None, Data]]) -> None:
        self.stages = list(stages)

    def batch(self, step: int, n_rows: int, mine: slice = slice(None)) -> Batch:
        """See `Data`."""
        begun = 0
        for n_steps, data in self.stages:
            if n_steps is None or step < begun + n_steps:
                return data.batch(step - begun, n_rows, mine)
            begun += n_steps
        raise ValueError(f"the data ended with step {begun - 1}; step {step} was asked for")

    def check(self, cfg: GPTConfig) -> None:
        """See `Data`."""
        for _, data in self.stages:
            data.check(cfg)

    def identity(self) -> str:
        """See `Data`."""
        return " ".join(f"{n_steps}:{data.identity()}" for n_steps, data in self.stages)


class Rows:
    """Rows of tokens from any iterable, in its order. A resumed run reads on where it stopped, from the beginning."""

    def __init__(self, rows: Iterable[Sequence[int] | Tensor]) -> None:
        self._source = rows
        self._rows: Iterator[Tensor] = iter(())
        self._next: int | None = None
        self._last: tuple[int, Tensor] | None = None

    def batch(self, step: int, n_rows: int, mine: slice = slice(None)) -> Batch:
        """See `Data`."""
        first = step * n_rows
        if self._last is None or self._last[0] != first or len(self._last[1]) != n_rows:
            self._last = first, self._read(first, n_rows)
        rows = self._last[1][mine]
        return Batch(rows[:, :-1].contiguous(), rows[:, 1:].contiguous())

    def _read(self, first: int, n_rows: int) -> Tensor:
        if self._next is None or first < self._next:
            if self._next and iter(self._source) is self._source:  # type: ignore[call-overload]
                raise ValueError("this iterator was read already; give something that can be read from the beginning")
            self._rows, self._next = (torch.as_tensor(row) for row in self._source), 0
        rows = list(islice(self._rows, first - self._next, first - self._next + n_rows))
        if len(rows) < n_rows:
            raise ValueError(f"the data ended at row {first + len(rows)}; rows up to {first + n_rows} are needed")
        if len({len(row) for row in rows}) > 1:
            raise ValueError(f"rows of one batch must be of one length, not {sorted({len(row) for row in rows})}")
        self._next = first + n_rows
        return torch.stack(rows).long()

    def check(self, cfg: GPTConfig) -> None:
        """See `Data`. Only what can be read from the beginning again is looked at."""
        if iter(self._source) is not self._source:  # type: ignore[call-overload]
            _check_batch(self.batch(0, 1), cfg, "the data")

    def identity(self) -> str:
        """See `Data`. An iterable cannot tell."""
        return "rows"


@lru_cache(maxsize=8)
def _epoch(seed: int, epoch: int, n_chunks: int, slack: int) -> tuple[np.ndarray, int]:
    """The order of an epoch's chunks, and by how many tokens they are shifted."""
    generator = _generator(seed, epoch)
    shift = int(torch.randint(slack + 1, (), generator=generator))
    return torch.randperm(n_chunks, generator=generator).numpy(), shift


def _generator(seed: int, number: int) -> torch.Generator:
    mixed = hashlib.sha256(f"{seed} {number}".encode()).digest()[:8]  # neighbours draw alike without it
    return torch.Generator().manual_seed(int.from_bytes(mixed, "little") >> 1)


def _check_batch(batch: Batch, cfg: GPTConfig, name: str) -> None:
    if batch.tokens.shape[1] > cfg.n_ctx:
        raise ValueError(f"{name}: rows of {batch.tokens.shape[1]} tokens; the context has n_ctx={cfg.n_ctx}")
    asked = batch.targets[batch.targets != IGNORED]
    if asked.numel() == 0:
        raise ValueError(f"{name}: no position is asked for anything")
    for what, ids, n_known in (("token ids", batch.tokens, cfg.d_vocab), ("targets", asked, cfg.d_vocab_out)):
        if ids.min() < 0 or ids.max() >= n_known:
            raise ValueError(f"{name}: {what} from {ids.min()} to {ids.max()}; the model knows 0 to {n_known - 1}")


def _digest(batch: Batch, *more: object) -> str:
    digest = hashlib.sha256(repr(more).encode())
    for each in (batch.tokens, batch.targets):
        digest.update(each.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
