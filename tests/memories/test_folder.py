"""A full disk takes nothing away: what was written last stays, whole and alone, and with room again all goes on."""

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from interp.memories import Triggers, folder, triggers
from tests.memories.scanned import model_of, same, scanned
from tests.variants import quick_of

MODULE = sys.modules[triggers.__module__]
ROOMS = quick_of([0, 4096, 49_152], 49_152)  # for nothing, for what is shown alone, for the tensors alone
FULL = r"could not write to \S+, which holds what it held before: .*No space left on device"


class SmallDisk:
    """A file system of its own, in memory."""

    def __init__(self, path: Path) -> None:
        self.path, self.ballast = path / "disk", path / "disk" / "ballast"
        self.path.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", self.path], check=True, capture_output=True)

    def fill(self, room: int) -> None:
        free = os.statvfs(self.path)
        self.ballast.write_bytes(bytes(free.f_bavail * free.f_frsize - room))

    def empty(self) -> None:
        self.ballast.unlink()


class BrokenWrites:
    """Where there is none: writes that stop half way."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.path, self.is_full, save_file = path, False, folder.save_file

        def half(tensors: Any, file: Path, metadata: Any) -> None:
            save_file(tensors, file, metadata)
            if self.is_full:
                os.truncate(file, file.stat().st_size // 2)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(folder, "save_file", half)

    def fill(self, room: int) -> None:
        self.is_full = True

    def empty(self) -> None:
        self.is_full = False


@pytest.fixture(params=["a small disk", "broken writes"])
def disk(request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SmallDisk | BrokenWrites]:
    if request.param == "broken writes":
        yield BrokenWrites(tmp_path, monkeypatch)
        return
    try:
        small = SmallDisk(tmp_path)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no file system can be mounted here: {error}")
    yield small
    subprocess.run(["umount", small.path], check=True)


def files(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


def counted(monkeypatch: pytest.MonkeyPatch, at: int = -1, then: Any = None) -> list[int]:
    """How many rows each batch has that is read from now on; behind batch `at`, something happens."""
    n_rows, settle = list[int](), MODULE.Largest.settle

    def count(self: Any, batch: Any) -> Any:
        n_rows.append(len(batch.tokens))
        if len(n_rows) == at:
            then()
        return settle(self, batch)

    monkeypatch.setattr(MODULE.Largest, "settle", count)
    return n_rows


@pytest.mark.parametrize("room", quick_of([0, 20_000], 20_000))
def test_a_state_that_does_not_fit_leaves_the_last_one(disk: Any, room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    path, before = disk.path / "scan", {}
    monkeypatch.setattr(MODULE, "_EVERY", 0.0)

    def fill() -> None:
        before.update(files(path))
        disk.fill(room)

    with monkeypatch.context() as during:
        n_rows = counted(during, 4, fill)
        with pytest.raises(OSError, match=FULL):
            scanned(folder=path)
    assert len(n_rows) == 4
    assert files(path) == before
    assert list(before) == ["unfinished-1-of-1.safetensors"]
    disk.empty()
    read_again = counted(monkeypatch)
    found = scanned(folder=path)
    assert sum(read_again) == found.about["rows"] - sum(n_rows[:3]), "it went on behind what was saved"
    same(found, scanned())
    assert sorted(files(path)) == ["triggers.json", "triggers.safetensors"]


@pytest.mark.parametrize("room", ROOMS)
def test_a_result_that_does_not_fit_leaves_the_last_state(
    disk: Any, room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, before, save = disk.path / "scan", {}, Triggers.save

    def onto_a_full_disk(self: Triggers, path: Path) -> None:
        before.update(files(path))
        disk.fill(room)
        save(self, path)

    with monkeypatch.context() as during:
        during.setattr(MODULE, "_EVERY", 0.0)
        during.setattr(Triggers, "save", onto_a_full_disk)
        with pytest.raises(OSError, match=FULL):
            scanned(folder=path)
    assert files(path) == before
    assert list(before) == ["unfinished-1-of-1.safetensors"]
    with pytest.raises(FileNotFoundError, match="has not ended"):
        Triggers.load(path)
    disk.empty()
    read_again = counted(monkeypatch)
    found = scanned(folder=path)
    assert not read_again
    same(found, scanned())
    assert sorted(files(path)) == ["triggers.json", "triggers.safetensors"]


@pytest.mark.parametrize("room", ROOMS)
def test_triggers_that_do_not_fit_leave_those_saved_before(disk: Any, room: int) -> None:
    path, model = disk.path / "found", model_of()
    old, new = scanned(model), scanned(model, sign=-1)
    old.save(path)
    before = files(path)
    disk.fill(room)
    with pytest.raises(OSError, match=FULL):
        new.save(path)
    assert files(path) == before
    same(Triggers.load(path, model), old)
    disk.empty()
    new.save(path)
    same(Triggers.load(path, model), new)
    assert sorted(files(path)) == sorted(before)
