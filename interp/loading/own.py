"""Our own format: a folder with `config.json`, `model.safetensors` (or shards and an index) and `tokenizer.json`.

The weights file (or the index) carries the config and the tokenizer too, and its rename is the one moment at which a
save takes effect; the JSON files beside it are copies for people. So a reader sees the old model or the new one.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as to_bytes
from torch import Tensor

from interp.config import GPTConfig
from interp.loading.checkpoint import Checkpoint, Piece
from interp.loading.files import INDEX, SINGLE, TensorFiles, replacing
from interp.tokenization import Tokenizer

OURS = "interp"
VERSION = 1


def save(
    folder: str | os.PathLike[str],
    cfg: GPTConfig,
    tokenizer: Tokenizer | None,
    state: dict[str, Tensor],
    max_shard_size: int = 5 * 2**30,
    stored_as: torch.dtype | None = None,
) -> None:
    """Write a model folder, over an older one if need be: at any moment it holds the old model or the new.

    With `stored_as`, weights take that many bits in the file, and are widened again when the model is opened.
    """
    target = Path(folder).expanduser()
    target.mkdir(parents=True, exist_ok=True)
    about: dict[str, Any] = {"version": VERSION, "cfg": cfg.to_dict(), "tokenizer": None}
    if stored_as is not None:
        about["widened"] = True
        state = {name: tensor.to(stored_as) for name, tensor in state.items()}
        if too_large := [name for name, tensor in state.items() if not tensor.isfinite().all()]:
            raise ValueError(f"these weights do not fit into {stored_as}: {too_large[:8]}")
    if tokenizer is not None:
        about["tokenizer"] = {"json": tokenizer.to_json(), "special": tokenizer.special_tokens()}
    write_weights(target, state, {"format": "pt", OURS: json.dumps(about)}, max_shard_size)
    write(target / "config.json", json.dumps({"model_type": OURS, **cfg.to_dict()}, indent=2).encode())
    if tokenizer is not None:
        write(target / "tokenizer.json", tokenizer.to_json().encode())
    else:
        (target / "tokenizer.json").unlink(missing_ok=True)


def write_weights(target: Path, state: dict[str, Tensor], metadata: dict[str, str], max_shard_size: int) -> None:
    """Write the weights of a folder, in shards where there are many, in place of those that it holds."""
    shards = _shards(_apart(state), max_shard_size)
    if len(shards) == 1:
        write(target / SINGLE, to_bytes(shards[0], metadata))
        (target / INDEX).unlink(missing_ok=True)  # readers prefer it: until now they saw the old model
        used = set()
    else:
        weight_map: dict[str, str] = {}
        for shard in shards:
            content = to_bytes(shard, {"format": "pt"})
            name = f"model-{hashlib.sha256(content).hexdigest()[:16]}.safetensors"
            write(target / name, content)
            weight_map |= dict.fromkeys(shard, name)
        write(target / INDEX, json.dumps({"metadata": metadata, "weight_map": weight_map}, indent=1).encode())
        (target / SINGLE).unlink(missing_ok=True)
        used = set(weight_map.values())
    for old in target.glob("model-*.safetensors"):
        if old.name not in used:
            old.unlink()


def opened(folder: Path, tensors: TensorFiles) -> Checkpoint:
    """The checkpoint that `save` wrote."""
    try:
        about = json.loads(tensors.metadata[OURS])
        version, cfg, saved = about["version"], about["cfg"], about["tokenizer"]
        if version != VERSION:
            raise ValueError(f"it was written in version {version} of this format; version {VERSION} is read")
        config = GPTConfig.from_dict({**cfg, "device": None})
        tokenizer = None if saved is None else Tokenizer.from_json(saved["json"], **saved["special"])
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"{folder} holds no readable config: {error}") from None
    if config.n_layers > len(tensors):
        raise ValueError(f"{folder} asks for {config.n_layers} layers; the weights are {len(tensors)} tensors")
    sources = {name: [Piece(name)] for name in tensors}
    return Checkpoint(str(folder), config, tokenizer, tensors, sources, keeps_dtypes=not about.get("widened"))


def _apart(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors on the CPU, none of which shares memory with another."""
    apart: dict[str, Tensor] = {}
    taken: set[int] = set()
    for name, tensor in state.items():
        tensor = tensor.detach().cpu().contiguous()
        where = tensor.untyped_storage().data_ptr()
        apart[name] = tensor.clone() if where in taken else tensor
        taken.add(where)
    return apart


def _shards(state: dict[str, Tensor], max_size: int) -> list[dict[str, Tensor]]:
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in state.items():
        if shards[-1] and size + tensor.nbytes > max_size:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    return shards


def write(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all."""
    with replacing(path) as unfinished:
        unfinished.write_bytes(content)
