"""Model folders: our own format, outside families, and the hub that they come from."""

import os
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import huggingface_hub
import torch

from interp.config import DTYPES, GPTConfig
from interp.loading.checkpoint import Checkpoint, Sources, special_token
from interp.loading.families import FAMILIES
from interp.loading.files import TensorFiles, read_json
from interp.loading.huggingface import write_huggingface
from interp.loading.own import OURS, opened, save
from interp.tokenization import Tokenizer

__all__ = [
    "BUNDLED",
    "FAMILIES",
    "Checkpoint",
    "bundled",
    "downloaded",
    "open_checkpoint",
    "save",
    "tokenizer_of",
    "write_huggingface",
]


BUNDLED = Path(__file__).parent.parent / "zoo" / "models"


def bundled() -> list[str]:
    """The names of the models that come with the package."""
    return sorted(folder.name for folder in BUNDLED.iterdir() if (folder / "model.safetensors").is_file())


def open_checkpoint(
    where: str | os.PathLike[str], revision: str | None = None, cache_dir: str | Path | None = None
) -> Checkpoint:
    """The checkpoint that comes with the package, in a folder of ours or of Hugging Face's, or on its hub."""
    folder = BUNDLED / where if where in bundled() else Path(where).expanduser()
    if not folder.is_dir():
        folder = downloaded(os.fspath(where), revision, cache_dir)
    tensors = TensorFiles(folder)
    if OURS in tensors.metadata:
        return opened(folder, tensors)
    return _outside(folder, tensors)


def _outside(folder: Path, tensors: TensorFiles) -> Checkpoint:
    file = folder / "config.json"
    if not file.is_file():
        raise FileNotFoundError(f"{folder} has weights but no config.json")
    hf = read_json(file)
    hf = hf.get("text_config", hf) if hf.get("model_type") not in FAMILIES else hf
    kind = hf.get("model_type")
    if kind not in FAMILIES:
        raise ValueError(f"{file} has model_type={kind!r}; supported: {sorted(FAMILIES)}")
    family = FAMILIES[kind]
    try:
        values = family.config(hf)
    except KeyError as error:
        raise ValueError(f"{file} lacks {error}, which a {kind} model has") from None
    except (TypeError, AttributeError, ZeroDivisionError) as error:
        raise ValueError(f"{file} has values of the wrong type for a {kind} model: {error}") from None
    tokenizer, prepends_bos = tokenizer_of(folder)
    if not isinstance(values["n_layers"], int) or values["n_layers"] > len(tensors):
        raise ValueError(f"{file} asks for {values['n_layers']} layers; the weights are {len(tensors)} tensors")
    cfg = GPTConfig(**values, dtype=_stored_dtype(tensors), default_prepend_bos=prepends_bos)
    sources = _without_prefix(family.sources(cfg), family.PREFIX, tensors)
    tied = {"lm_head.weight", "embed_out.weight"} if cfg.tie_word_embeddings else set()
    is_ignored = lambda name: name.endswith(family.IGNORED) or name in tied
    return Checkpoint(str(folder), cfg, tokenizer, tensors, sources, is_ignored)


def _without_prefix(sources: Sources, prefix: str, tensors: TensorFiles) -> Sources:
    """The names in a checkpoint that was saved without its head leave out the first part."""
    if any(name.startswith(prefix) for name in tensors):
        return sources
    return {
        ours: [replace(piece, name=piece.name.removeprefix(prefix)) for piece in pieces]
        for ours, pieces in sources.items()
    }


def _stored_dtype(tensors: TensorFiles) -> torch.dtype:
    """The precision of the weights as they are stored."""
    largest = max(tensors, key=lambda name: torch.Size(tensors.shape(name)).numel(), default=None)
    if largest is None:
        raise ValueError(f"{tensors.folder} holds no tensor")
    dtype = tensors[largest].dtype
    if dtype not in DTYPES.values():
        raise ValueError(f"{tensors.folder}: {largest} is stored as {dtype}; supported: {list(DTYPES.values())}")
    return dtype


def tokenizer_of(folder: Path) -> tuple[Tokenizer | None, bool]:
    """The folder's tokenizer, and whether its texts begin with a token of their own."""
    about: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            about |= {key: value for key, value in read_json(folder / name).items() if value is not None}
    special = {name: special_token(about.get(name)) for name in ("bos_token", "eos_token", "pad_token")}
    try:
        tokenizer = Tokenizer.load(folder)
    except FileNotFoundError:
        return None, True
    known = {name: token for name, token in special.items() if token is not None and tokenizer.knows(token)}
    if known:
        tokenizer = tokenizer.with_special(**known)
    return tokenizer, tokenizer.bos_token is not None and about.get("add_bos_token", True) is not False


def downloaded(
    name: str, revision: str | None, cache_dir: str | Path | None, files: Sequence[str] | None = None
) -> Path:
    """The folder in the hub's cache that holds a model, downloaded if need be: these files of it, or what is read."""
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        raise FileNotFoundError(
            f"no folder {name!r}, none of the models that come along ({', '.join(bundled())}), "
            "and no name on the hub either (those read owner/name)"
        )
    get = partial(huggingface_hub.snapshot_download, name, revision=revision, cache_dir=cache_dir)
    try:
        if files is not None:
            return Path(get(allow_patterns=list(files)))
        folder = Path(
            get(allow_patterns=["*.json", "*.safetensors", "*.txt"], ignore_patterns=["consolidated*", "original/*"])
        )
        if not any(folder.glob("*.safetensors")):
            get(allow_patterns=["pytorch_model*.bin"])
        return folder
    except huggingface_hub.errors.RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"no folder {name!r}, and the hub has no such model, or none for you: {error}"
        ) from None
    except (huggingface_hub.errors.HfHubHTTPError, OSError, ValueError) as error:
        raise ConnectionError(
            f"no folder {name!r}, and the hub could not be reached or is off: {type(error).__name__}: {error}. "
            "Give a folder, or load it once with a network: it stays in the hub's cache"
        ) from None
