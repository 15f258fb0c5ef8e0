"""A corpus that is on every user's machine: source and documentation text of Python's standard library."""

import hashlib
import random
import sysconfig
from pathlib import Path

# Tests, what is installed beside the library, and tables of characters say little about how Python is written.
_LEFT_OUT = {"test", "tests", "idle_test", "site-packages", "dist-packages", "encodings", "_bundled", "__pycache__"}


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
