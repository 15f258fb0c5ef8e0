"""A model as a folder of Hugging Face's: what the families read, written back."""

import json
import os
from collections import defaultdict
from collections.abc import Mapping
from math import isclose
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from interp.config import GPTConfig
from interp.loading.checkpoint import Sources
from interp.loading.families import FAMILIES
from interp.loading.own import write, write_weights
from interp.tokenization import Tokenizer

# What a config.json has no say in, or what only concerns training.
_APART = ("device", "dtype", "seed", "init_mode", "initializer_range", "dropout", "default_prepend_bos")
_SPECIAL = ("bos", "eos", "pad")


def write_huggingface(
    folder: str | os.PathLike[str],
    cfg: GPTConfig,
    tokenizer: Tokenizer | None,
    state: dict[str, Tensor],
    model_type: str | None,
    max_shard_size: int,
) -> str:
    """Write weights, config and tokenizer as `transformers` reads them; the `model_type` that they were written as."""
    kind = _fitting(cfg, model_type)
    family = FAMILIES[kind]
    tensors = _tensors(state, family.sources(cfg))
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id", None) for name in _SPECIAL}
    dtype = str(cfg.dtype).removeprefix("torch.")
    target = Path(folder).expanduser()
    target.mkdir(parents=True, exist_ok=True)
    config = {"model_type": kind, "dtype": dtype, **ids, **family.to_hf(cfg)}
    write(target / "config.json", json.dumps(config, indent=2).encode())
    if tokenizer is not None:
        write(target / "tokenizer.json", tokenizer.to_json().encode())
        about = {f"{name}_token": getattr(tokenizer, f"{name}_token") for name in _SPECIAL}
        about |= {"tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": cfg.default_prepend_bos}
        write(target / "tokenizer_config.json", json.dumps(about, indent=2).encode())
    write_weights(target, tensors, {"format": "pt"}, max_shard_size)
    return kind


def _fitting(cfg: GPTConfig, model_type: str | None) -> str:
    """The family that has all that a model has: this one, or the first."""
    if model_type is not None and model_type not in FAMILIES:
        raise ValueError(f"model_type={model_type!r}; supported: {sorted(FAMILIES)}")
    if cfg.d_model % cfg.n_heads:
        raise ValueError(f"transformers asks that d_model={cfg.d_model} be a multiple of n_heads={cfg.n_heads}")
    lacking: dict[str, list[str]] = {}
    for kind in FAMILIES if model_type is None else [model_type]:
        try:
            lacking[kind] = _lacking(FAMILIES[kind], cfg)
        except ValueError as error:
            if model_type is not None:
                raise ValueError(f"no {model_type} model is like this one: {error}") from None
    nearest = min(lacking, key=lambda kind: len(lacking[kind]))
    if not lacking[nearest]:
        return nearest
    if model_type is None:
        raise ValueError(f"no family of transformers has all of this model; {nearest} lacks {lacking[nearest]}")
    raise ValueError(f"a {model_type} model cannot have {lacking[nearest]}")


def _lacking(family: ModuleType, cfg: GPTConfig) -> list[str]:
    """What a model has and its family would read otherwise."""
    apart: dict[str, Any] = {name: getattr(cfg, name) for name in _APART}
    read = GPTConfig(**{**family.config(family.to_hf(cfg)), **apart})
    names = [name for name in GPTConfig.__dataclass_fields__ if not _equal(getattr(cfg, name), getattr(read, name))]
    return [f"{name}={getattr(cfg, name)!r}" for name in names]


def _equal(a: object, b: object) -> bool:
    return isclose(a, b, rel_tol=1e-12) if isinstance(a, float) and isinstance(b, float) else a == b


@torch.no_grad()
def _tensors(state: Mapping[str, Tensor], sources: Sources) -> dict[str, Tensor]:
    """A family's tensors, of ours."""
    if unknown := sorted(set(state) ^ set(sources)):
        raise ValueError(f"these weights have no place in such a model, or it has others: {unknown[:8]}")
    parts: dict[str, list[Tensor]] = defaultdict(list)
    for ours, pieces in sources.items():
        first = 0
        for piece in pieces:
            last = len(state[ours]) if piece.rows is None else first + piece.rows
            parts[piece.name].append(piece.back(state[ours][first:last]))
            first = last
    return {name: some[0] if len(some) == 1 else torch.cat(some) for name, some in parts.items()}
