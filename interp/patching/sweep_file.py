"""The values of a sweep on disk, chunk by chunk: one that was killed goes on where it stood.

The file is lines of JSON: first what decides the numbers, then the rows and the values of each finished chunk, and how
the chunks after it are planned: the composition of a chunk decides how its numbers are rounded.
"""

import hashlib
import json
import math
import os
from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import fields
from inspect import unwrap
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from interp.interventions import Edit, Site
from interp.metrics import AnyMetric, Metric
from interp.patching.engine import Base, Row
from interp.patching.memory import Plan

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None

_FORMAT = {"format": "interp sweep", "version": 1}
_BEGIN = json.dumps(_FORMAT)[:-1].encode()


class SweepFile:
    """The values of some rows, in a file of their own; `saved`: those that it holds already.

    A file that belongs to another model, other prompts, sites or another metric is refused and left as it is. Tensors
    that edits bring along are compared bit by bit, so a sweep goes on where these are computed alike: on like machines.
    Each chunk is on disk before the next one starts.
    """

    def __init__(
        self, path: str | os.PathLike[str], base: Base, metric: AnyMetric, rows: Sequence[Row], unchanged: Tensor
    ) -> None:
        self.path, self.n_rows, self.saved = Path(path), len(rows), dict[int, float]()
        self.plan: Plan | None = None  # of the chunks that are not there yet
        self.about = _about(base, metric, rows, unchanged)
        self._file = self.path.open("a+b")
        try:
            self._lock()
            self._read()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> "SweepFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file: another sweep may write to it."""
        self._file.close()

    def add(self, rows: Sequence[int], values: Float[Tensor, " row"], plan: Plan) -> None:
        """Save the values of these rows, and the plan of those that follow if it has changed."""
        found = {"rows": list(rows), "values": values.tolist()}  # JSON's floats come back exactly
        self._write(found if plan == self.plan else found | {"plan": plan.to_dict()})
        self.plan = deepcopy(plan)

    def take_over(self, path: Path) -> None:
        """Take the values that another process keeps, or kept, of the same rows; its file is left as it is."""
        content = path.read_bytes()
        head, *chunks = content[: content.rfind(b"\n") + 1].splitlines() or [b""]
        if not head:
            return  # it is being begun
        self._check(self._parsed(head, 1, path), path)
        for number, line in enumerate(chunks, start=2):
            self.saved = self._values(self._parsed(line, number, path), number, path) | self.saved

    def _lock(self) -> None:
        if fcntl is None:
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BlockingIOError(f"{self.path} is in use: another sweep writes to it") from None

    def _read(self) -> None:
        self._file.seek(0)
        content = self._file.read()
        whole = content[: content.rfind(b"\n") + 1]  # what follows was cut off by a kill
        if not whole:
            if not (content.startswith(_BEGIN) or _BEGIN.startswith(content)):
                raise ValueError(f"{self.path} holds no sweep, but {content[:40]!r}; give another file")
            self._file.truncate(0)
            return self._write(self.about)
        head, *chunks = whole.splitlines()
        self._check(self._parsed(head, 1, self.path), self.path)
        for number, line in enumerate(chunks, start=2):
            found = self._parsed(line, number, self.path)
            self.saved |= self._values(found, number, self.path)
            self._plan_on(found, number)
        self._file.truncate(len(whole))
        return None

    def _check(self, found: dict[str, Any], path: Path) -> None:
        """Raise if the file was begun for other numbers."""
        if any(found.get(key) != value for key, value in _FORMAT.items()):
            raise ValueError(f"{path} holds no sweep of version {_FORMAT['version']}; give another file")
        differ = [key for key, value in self.about.items() if key != "unchanged" and found.get(key) != value]
        if not differ and not _are_close(found.get("unchanged"), self.about["unchanged"]):
            differ = ["metric"]  # a function that is called alike
        if differ:
            raise ValueError(
                f"{path} belongs to another sweep: not the same {', '.join(differ)}; give what it was begun with, "
                "or another file"
            )

    def _parsed(self, line: bytes, number: int, path: Path) -> dict[str, Any]:
        try:
            found = json.loads(line)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise ValueError(f"{path}, line {number}, is damaged: {line[:40]!r}")
        return found

    def _values(self, found: dict[str, Any], number: int, path: Path) -> dict[int, float]:
        rows, values = found.get("rows"), found.get("values")
        if isinstance(rows, list) and isinstance(values, list) and len(rows) == len(values):
            are_rows = all(type(row) is int and 0 <= row < self.n_rows for row in rows)
            if are_rows and all(type(value) is float and math.isfinite(value) for value in values):
                return dict(zip(rows, values, strict=True))
        raise ValueError(f"{path}, line {number}, is damaged: it holds no values of rows below {self.n_rows}")

    def _plan_on(self, found: dict[str, Any], number: int) -> None:
        if "plan" not in found:
            return
        try:
            self.plan = Plan.from_dict(found["plan"])
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{self.path}, line {number}, is damaged: its plan is {found['plan']!r:.60}") from error

    def _write(self, content: dict[str, Any]) -> None:
        self._file.write(json.dumps(content).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())


def _about(base: Base, metric: AnyMetric, rows: Sequence[Row], unchanged: Tensor) -> dict[str, Any]:
    """What decides the numbers. A metric is known by its name, its answers and what it gives on the base run."""
    reads = unwrap(metric.read if isinstance(metric, Metric) else metric)
    name = metric.name if isinstance(metric, Metric) else getattr(metric, "__qualname__", type(metric).__qualname__)
    held = [cell.cell_contents for cell in getattr(reads, "__closure__", None) or ()]
    answers = [each for each in held if isinstance(each, Tensor) and not each.is_floating_point()]
    choices = [metric.positions, metric.zero, metric.unit, metric.answers] if isinstance(metric, Metric) else []
    return _FORMAT | {
        "model": base.model.fingerprint(),
        "prompts": _digest([base.tokens, base.mask]),
        "sites": _digest([*rows, *(edit for _, edit in base.outer)]),
        "metric": f"{name} {_digest([*choices, *answers])}",
        "unchanged": unchanged.double().tolist(),
    }


def _digest(things: Iterable[Any]) -> str:
    """A hash of rows, edits and tensors, of their content alone."""
    whole, seen = hashlib.sha256(), dict[Any, str]()

    def plain(thing: Any) -> Any:
        if isinstance(thing, Tensor):
            key = (thing.data_ptr(), thing.dtype, thing.shape, thing.stride())  # many rows share one source
            if key not in seen:
                seen[key] = _of_tensor(thing)
            return seen[key]
        if isinstance(thing, Row | Edit | Site):
            return [type(thing).__name__, *(plain(getattr(thing, each.name)) for each in fields(thing))]
        if isinstance(thing, Sequence) and not isinstance(thing, str):
            return [plain(each) for each in thing]
        return thing if isinstance(thing, str | int | float | None) else repr(thing)

    for thing in things:
        whole.update(json.dumps(plain(thing)).encode() + b"\n")
    return whole.hexdigest()


def _of_tensor(tensor: Tensor) -> str:
    digest = hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)}".encode())
    digest.update(tensor.detach().cpu().flatten().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _are_close(found: Any, expected: list[float]) -> bool:
    """Whether two lists are the same numbers, but for how machines round."""
    if not isinstance(found, list) or len(found) != len(expected):
        return False
    here, there = torch.tensor(expected, dtype=torch.float64), torch.tensor(found, dtype=torch.float64)
    return bool(((here - there).abs() <= 0.01 * here.abs().max().clamp(min=1e-3)).all())
