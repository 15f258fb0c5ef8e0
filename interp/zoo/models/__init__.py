"""The trained models that come with the package: `HookedGPT.from_pretrained(name)` opens one, offline."""

import json
from typing import Any

from interp import corpus
from interp.loading import BUNDLED, bundled
from interp.tokenization import Tokenizer

__all__ = ["bundled", "card", "measures", "standard_library"]


def card(name: str) -> str:
    """What a bundled model is: its data, sizes, losses, what was measured on it, and the command that made it."""
    return (BUNDLED / _known(name) / "README.md").read_text(encoding="utf-8")


def measures(name: str) -> list[dict[str, Any]]:
    """What was measured while a bundled model was trained, at log-spaced steps."""
    return json.loads((BUNDLED / _known(name) / "measures.json").read_text(encoding="utf-8"))


def standard_library(tokens: int | None = None, *, seed: int = 0, split: str = "all") -> list[str]:
    """Texts of Python's standard library, in an order drawn from `seed`.

    With `tokens`, as many as make so many tokens of the bundled tokenizer, the last one cut. `split` is "all", "train"
    or "held_out": what the bundled models were trained on, and what they were not.
    """
    texts = corpus.standard_library(split, seed)
    if tokens is None:
        return texts
    if tokens < 1:
        raise ValueError(f"tokens={tokens}; ask for at least 1")
    tokenizer, taken = Tokenizer.load(BUNDLED.parent / "tokenizer.json"), []
    for text in texts:
        ids = tokenizer.encode(text)
        taken.append(text if len(ids) <= tokens else tokenizer.decode(ids[:tokens]))
        tokens -= len(ids)
        if tokens <= 0:
            return taken
    return taken


def _known(name: str) -> str:
    if name not in bundled():
        raise KeyError(f"no bundled model {name!r}; there are {bundled()}")
    return name
