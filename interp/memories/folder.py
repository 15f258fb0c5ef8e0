"""Where a scan is kept: the state of one that goes on, or the result of one that has ended."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file

from interp.loading.files import open_safetensors, replacing
from interp.memories.scan import State

FORMAT = {"format": "interp triggers", "version": 1}
RESULT, _UNFINISHED = "triggers.safetensors", "unfinished"


@dataclass(frozen=True, eq=False)
class Held:
    """What a folder holds, and what is said of it: a result, or what was not finished."""

    about: dict[str, Any]
    tensors: State
    is_result: bool


class Folder:
    """The folder of a scan that `about` describes, for one of `size` processes."""

    def __init__(self, path: Path, about: dict[str, Any], rank: int, size: int) -> None:
        self.path, self.about, self.size = path, about, size
        self.unfinished = f"{_UNFINISHED}-{rank + 1}-of-{size}.safetensors"

    def open(self) -> Held | None:
        """What there is; None if nothing is."""
        if (self.path / RESULT).is_file():
            return self._checked(*read(self.path / RESULT), is_result=True)
        begun = parts(self.path)
        if others := [name for name in begun if not name.endswith(f"-of-{self.size}.safetensors")]:
            raise ValueError(f"{self.path} was begun by another number of processes: {others}; here are {self.size}")
        if self.unfinished not in begun:
            return None
        return self._checked(*read(self.path / self.unfinished), is_result=False)

    def _checked(self, about: dict[str, Any], tensors: State, is_result: bool) -> Held:
        differ = [f"{key} (there {about.get(key)!r})" for key, value in self.about.items() if about.get(key) != value]
        if differ:
            raise ValueError(
                f"{self.path} belongs to another scan: not the same {', '.join(differ)}; give what it was begun "
                "with, or another folder"
            )
        return Held(about, tensors, is_result)

    def save(self, state: State, done: dict[str, Any]) -> None:
        """The state of a scan that goes on, and how far it has read."""
        with _told(self.path):
            _write(self.path / self.unfinished, state, self.about | done)

    def clear(self) -> None:
        """The result is there: what led to it is not needed any more."""
        for name in parts(self.path):
            (self.path / name).unlink()


def parts(folder: Path) -> list[str]:
    """The files of what is not finished, one for each process."""
    return sorted(file.name for file in folder.glob(f"{_UNFINISHED}-*.safetensors"))


def write_result(folder: Path, tensors: State, about: dict[str, Any]) -> None:
    """Write a result, and beside it `triggers.json`, which shows what its header says: both, or nothing."""
    with _told(folder), replacing(folder / "triggers.json") as shown:
        shown.write_text(json.dumps(about, indent=1))
        _write(folder / RESULT, tensors, about)


def _write(file: Path, tensors: State, about: dict[str, Any]) -> None:
    with replacing(file) as unfinished:
        save_file({key: x.cpu().contiguous() for key, x in tensors.items()}, unfinished, {"interp": json.dumps(about)})


@contextmanager
def _told(folder: Path) -> Iterator[None]:
    """A folder to write to; what keeps it from being written is said with its name."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except (OSError, SafetensorError) as error:
        raise OSError(f"could not write to {folder}, which holds what it held before: {error}") from error


def read(file: Path) -> tuple[dict[str, Any], State]:
    """What is said of the tensors of a file, and these, memory-mapped."""
    opened = open_safetensors(file)
    try:
        about = json.loads((opened.metadata() or {})["interp"])
    except (KeyError, ValueError):
        raise ValueError(f"{file} holds no scan for triggers") from None
    if any(about.get(key) != value for key, value in FORMAT.items()):
        raise ValueError(f"{file} holds no scan for triggers of version {FORMAT['version']}")
    return about, {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
