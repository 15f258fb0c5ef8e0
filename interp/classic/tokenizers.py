"""Tokenizers of `transformers`, and those of the hub, as ours."""

from pathlib import Path
from typing import Any

from interp.classic.names import official_name
from interp.loading import downloaded, tokenizer_of
from interp.tokenization import Tokenizer

_FILES = ("tokenizer*.json", "special_tokens_map.json", "vocab.json", "merges.txt")


def native_tokenizer(tokenizer: Any) -> Tokenizer:
    """A tokenizer of `transformers` as ours; ours as it is."""
    if isinstance(tokenizer, Tokenizer):
        return tokenizer
    if not hasattr(tokenizer, "backend_tokenizer"):
        raise TypeError(f"{type(tokenizer).__name__} is no fast tokenizer; load it with use_fast=True")
    special = {name: getattr(tokenizer, name, None) for name in ("bos_token", "eos_token", "pad_token")}
    return Tokenizer.from_json(tokenizer.backend_tokenizer.to_str(), **special)


def tokenizer_named(name: str, cache_dir: str | None = None) -> Tokenizer:
    """The tokenizer in a folder or a file, or that the hub has under a name."""
    where = Path(name).expanduser()
    if where.exists():
        return Tokenizer.load(where)
    found, _ = tokenizer_of(downloaded(official_name(name), None, cache_dir, _FILES))
    if found is None:
        raise FileNotFoundError(f"{name!r} has no tokenizer.json, nor a pair of vocab.json and merges.txt")
    return found
