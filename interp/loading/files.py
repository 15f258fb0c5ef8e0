"""Reading and writing model folders: safely, lazily, and whole or not at all."""

import json
import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

LARGEST_JSON = 64 * 2**20
INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
PICKLED_INDEX, PICKLED = "pytorch_model.bin.index.json", "pytorch_model.bin"


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file."""
    if path.stat().st_size > LARGEST_JSON:
        raise ValueError(f"{path} has {path.stat().st_size} bytes; a JSON file of at most {LARGEST_JSON} is read")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # a broken encoding is a ValueError too
        raise ValueError(f"{path} is no valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold an object, not a {type(content).__name__}")
    return content


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write to, which takes the place of `path` when it is complete, and leaves nothing when it is not."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    unfinished.unlink(missing_ok=True)  # whatever a killed save, or somebody's link, left there
    try:
        yield unfinished
        with unfinished.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


class TensorFiles:
    """The tensors of a model folder, each read when it is asked for, and the metadata beside them.

    safetensors files are memory-mapped. Old `.bin` files are unpickled by torch's restricted reader, which makes
    tensors and nothing else.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.metadata: dict[str, str] = {}
        self._files: dict[str, Path] = {}
        self._open: dict[Path, Any] = {}
        for index, single in ((INDEX, SINGLE), (PICKLED_INDEX, PICKLED)):
            if (folder / index).is_file():
                return self._read_index(folder / index)
            if (folder / single).is_file():
                file = self._inside(single)
                self._files = dict.fromkeys(self._names(file), file)
                if file.suffix == ".safetensors":
                    self.metadata = self._open[file].metadata() or {}
                return None
        found = sorted(path.name for path in folder.iterdir())[:20] if folder.is_dir() else "no such folder"
        looked_for = ", ".join((SINGLE, INDEX, PICKLED, PICKLED_INDEX))
        raise FileNotFoundError(f"no weights in {folder}: looked for {looked_for}; found {found}")

    def __getitem__(self, name: str) -> Tensor:
        file = self._files[name]
        opened = self._open[file]
        tensor = opened[name] if isinstance(opened, dict) else opened.get_tensor(name)
        if tensor.numel() * tensor.itemsize > tensor.untyped_storage().nbytes():
            raise ValueError(f"{file}: {name} claims a shape of {list(tensor.shape)} that its bytes do not fill")
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def shape(self, name: str) -> list[int]:
        """A tensor's shape, from the file's header."""
        opened = self._open[self._files[name]]
        return list(opened[name].shape) if isinstance(opened, dict) else opened.get_slice(name).get_shape()

    def _read_index(self, index: Path) -> None:
        content = read_json(index)
        files = content.get("weight_map")
        if not isinstance(files, dict) or not all(isinstance(file, str) for file in files.values()):
            raise ValueError(f"{index} has no weight_map from tensor names to files")
        self.metadata = {k: v for k, v in (content.get("metadata") or {}).items() if isinstance(v, str)}
        held = {file: set(self._names(self._inside(file))) for file in set(files.values())}
        if absent := [name for name, file in files.items() if name not in held[file]]:
            raise ValueError(f"{index} names tensors that their files do not hold: {absent[:8]}")
        self._files = {name: self._inside(file) for name, file in files.items()}

    def _inside(self, name: str) -> Path:
        """A file of this folder. (The hub's cache links its files to blobs beside the snapshots.)"""
        if Path(name).name != name:
            raise ValueError(f"{self.folder}: the index names {name!r}, which is no plain file name")
        named, root = self.folder / name, self.folder.resolve()
        path = named.resolve()
        blobs = root.parent.parent / "blobs"
        if path.parent != root and not (root.parent.name == "snapshots" and path.parent == blobs):
            raise ValueError(f"{named} links to {path}, outside of the folder")
        if not path.is_file():
            raise FileNotFoundError(f"{named} is missing")
        return named

    def _names(self, path: Path) -> list[str]:
        if path not in self._open:
            self._open[path] = open_safetensors(path) if path.suffix != ".bin" else _open_pickled(path)
        return list(self._open[path].keys())


def open_safetensors(path: Path) -> Any:
    """A safetensors file, memory-mapped."""
    try:
        return safe_open(path, "pt", device="cpu").__enter__()
    except SafetensorError as error:
        raise ValueError(f"{path} is no complete safetensors file: {error}") from None


def _open_pickled(path: Path) -> dict[str, Tensor]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise ValueError(f"{path} is no file of tensors alone, or is damaged: {str(error)[:300]}") from None
    if not isinstance(content, dict) or not all(isinstance(tensor, Tensor) for tensor in content.values()):
        raise ValueError(f"{path} holds something else than named tensors")
    return content
