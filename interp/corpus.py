"""Texts: those of files, and a corpus that is on every user's machine, the source of Python's standard library."""

import hashlib
import json
import os
import random
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

# Tests, what is installed beside the library, and tables of characters say little about how Python is written.
_LEFT_OUT = {"test", "tests", "idle_test", "site-packages", "dist-packages", "encodings", "_bundled", "__pycache__"}


def texts_of(files: Iterable[str | os.PathLike[str]]) -> Iterator[str]:
    """The texts of these files: a `.jsonl` file has one a line, under `text`; any other file is one."""
    for file in map(Path, files):
        if not file.is_file():
            raise FileNotFoundError(f"no file {file}")
        if file.suffix != ".jsonl":
            try:
                yield file.read_text(encoding="utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(f"{file} is no text in UTF-8: {error}") from None
            continue
        with file.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                try:
                    text = json.loads(line)["text"]
                except (ValueError, KeyError, TypeError):
                    raise ValueError(f"{file}, line {number}: no JSON object with a text") from None
                if not isinstance(text, str):
                    raise ValueError(f"{file}, line {number}: its text is a {type(text).__name__}")
                yield text


def token_file(file: Path) -> np.ndarray:
    """The tokens of a `.npy` file, which stay on disk until they are read."""
    if not file.is_file():
        raise FileNotFoundError(f"no token file {file}")
    try:
        return np.load(file, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"{file} is no complete .npy file of tokens: {error}") from None


def standard_library(split: str = "all", seed: int = 0) -> list[str]:
    """The texts of the standard library's modules, in an order drawn from `seed`.

    A twentieth of the files, chosen by their names, is held out: the choice is the same on every machine.
    """
    if split not in ("all", "train", "held_out"):
        raise ValueError(f"split={split!r}; allowed: 'all', 'train', 'held_out'")
    root = Path(sysconfig.get_path("stdlib"))
    texts = []
    for file in sorted(root.rglob("*.py")):
        name = file.relative_to(root)
        if _LEFT_OUT & set(name.parts) or name.parts[0].startswith("config-"):
            continue
        is_held_out = hashlib.sha256(name.as_posix().encode()).digest()[0] < 256 / 20
        if split == "all" or is_held_out == (split == "held_out"):
            text = _read(file)
            if text.strip():
                texts.append(text)
    if not texts:
        raise FileNotFoundError(f"{root} holds no source files of the standard library")
    random.Random(seed).shuffle(texts)
    return texts


def _read(file: Path) -> str:
    content = file.read_bytes()
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:  # a few files declare another encoding
        return content.decode("latin-1")
