"""What the page on training shows: the logs of runs, read anew when they have grown, and what is on them."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import streamlit as st

from dashboards.parts import models
from dashboards.parts.models import Trouble
from interp import zoo
from interp.training import PRESETS, Run
from interp.training.measures import as_numbers

Kind = Literal["number", "list", "heads", "words"]
LARGEST_LOG = 2**28  # bytes
FRESH = 30  # seconds after its last line for which a log may still grow, though all steps are done
NO_MEASURES = {"step", "seconds", "targets"}  # what others are computed from


@dataclass(frozen=True, eq=False)
class Source:
    """A run as it is now: one in the allowed folder, or what is known of the training of a model that comes along."""

    name: str
    rows: list[dict[str, Any]]
    total: int  # the steps that it has when it is done
    config: dict[str, Any]  # part.name -> value
    is_done: bool
    checkpoints: list[int]
    fault: str = ""  # of its log
    age: float | None = None  # seconds since it was written to; None: it comes along
    version: tuple[Any, ...] = ()  # another one where anything is another

    @property
    def last(self) -> int:
        """The last step on the log."""
        return max((row["step"] for row in self.rows), default=0)

    @property
    def is_live(self) -> bool:
        """Whether it may go on."""
        return self.age is not None and (not self.is_done or self.age < FRESH)

    @property
    def is_bundled(self) -> bool:
        return self.age is None

    @property
    def opening(self) -> str:
        """The first lines of code, that make `log`."""
        if self.is_bundled:
            return f"log = zoo.measures({self.name!r})\n"
        return f"log = Run({self.name!r}).log  # where that run is: {self.name}\n"

    @property
    def imports(self) -> dict[str, set[str]]:
        """What the first lines need, module by module."""
        return {"interp": {"zoo"}} if self.is_bundled else {"interp.training": {"Run"}}


def names() -> list[str]:
    """All whose training can be looked at."""
    return [*zoo.bundled(), *models.runs()]


def of_model(name: str) -> str | None:
    """That of a model, if there is one."""
    of_run = models.checkpoint(name)
    found = name if of_run is None else of_run[0]
    return found if found in names() else None


def read(name: str) -> Source | Trouble:
    """A run as it is now, or why it cannot be shown."""
    try:
        return _bundled(name) if name in zoo.bundled() else _in_folder(name)
    except Exception as error:  # a folder can be wrong in every way there is
        found = models.told(error)
        return Trouble(found.cause, "A run is a folder with config.json, log.jsonl and checkpoints/.")


def quantities(rows: Sequence[Mapping[str, Any]]) -> dict[str, Kind]:
    """What is on a log, by its name (`repeats.first`), as it was logged last."""
    latest = {key: value for row in rows for key, value in row.items() if key not in NO_MEASURES}
    return dict(_kinds("", latest, 6))


def _kinds(name: str, value: Any, deepest: int) -> Iterator[tuple[str, Kind]]:
    if isinstance(value, Mapping) and deepest:
        for key, inner in value.items():
            yield from _kinds(f"{name}.{key}" if name else str(key), inner, deepest - 1)
    elif isinstance(value, str) or (isinstance(value, list) and all(isinstance(each, str) for each in value)):
        yield name, "words"
    elif (numbers := as_numbers(value)) is not None and numbers.ndim < 3 and numbers.size:
        kinds: tuple[Kind, ...] = ("number", "list", "heads")
        yield name, kinds[numbers.ndim]


def words(rows: Sequence[Mapping[str, Any]], name: str) -> list[tuple[int, str]]:
    """What was named at each step: heads, say."""
    found = []
    for row in rows:
        value: Any = row
        for part in name.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if isinstance(value, str | list):
            found.append((row["step"], value if isinstance(value, str) else ", ".join(map(str, value)) or "none"))
    return found


def number_at(rows: Sequence[Mapping[str, Any]], name: str, step: int) -> tuple[int, float] | None:
    """The last value of a number that was logged up to a step, and where."""
    found = [row for row in rows if row["step"] <= step and isinstance(row.get(name), int | float)]
    return (found[-1]["step"], float(found[-1][name])) if found else None


def _bundled(name: str) -> Source:
    rows, preset = zoo.measures(name), PRESETS.get(name)
    config = {} if preset is None else {f"training.{key}": each for key, each in vars(preset.training).items()}
    last = max(row["step"] for row in rows)
    return Source(name, rows, last, config, True, [], version=(name,))


def _in_folder(name: str) -> Source:
    run = models.run(name)
    log = run.path / "log.jsonl"
    written = log.stat() if log.is_file() else (run.path / "config.json").stat()
    if log.is_file() and written.st_size > LARGEST_LOG:
        raise ValueError(f"The log has {written.st_size:,} bytes; up to {LARGEST_LOG:,} are read")
    stamp = written.st_ino, written.st_size, written.st_mtime_ns
    rows, fault = _read(str(run.path), stamp)
    total = run.config["training"]["steps"]
    if type(total) is not int or not 0 < total < 2**31:
        raise ValueError(f"config.json says steps={total!r}")
    steps = run.steps
    ended = total in steps or bool(rows and rows[-1]["step"] + ("loss" in rows[-1]) >= total)
    return Source(
        name,
        rows,
        total,
        {f"{part}.{key}": each for part, of in run.config.items() for key, each in _parts(of)},
        ended,
        steps,
        fault,
        max(0.0, time.time() - written.st_mtime),
        (name, *stamp, tuple(steps)),
    )


def _parts(of: Any) -> list[tuple[str, Any]]:
    return [(str(key), each) for key, each in of.items()] if isinstance(of, Mapping) else [("", of)]


@st.cache_resource(max_entries=4, show_spinner=False)
def _read(path: str, stamp: tuple[int, ...]) -> tuple[list[dict[str, Any]], str]:  # noqa: ARG001
    """The rows of a log as it is now: with another stamp it is read anew."""
    return Run(Path(path)).read_log()
