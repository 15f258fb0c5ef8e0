"""Checkpoints by any of their classic names, and those in the classic layout: the toy models of the hub."""

import re
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
from torch import Tensor

from interp.classic.config import HookedTransformerConfig
from interp.classic.names import TOYS, official_name
from interp.classic.state import load_classic
from interp.classic.tokenizers import tokenizer_named
from interp.loading import bundled, downloaded
from interp.loading.files import read_json
from interp.model import HookedGPT
from interp.model.embed import LearnedPositions

STANFORD_CRFM_CHECKPOINTS = [
    *range(0, 100, 10), *range(100, 2000, 50), *range(2000, 20_000, 100), *range(20_000, 400_001, 1000),
]  # fmt: skip
PYTHIA_V0_CHECKPOINTS = list(range(1000, 143_001, 1000))
PYTHIA_CHECKPOINTS = [0, *(2**i for i in range(10)), *PYTHIA_V0_CHECKPOINTS]


def opened(
    name: str,
    dtype: torch.dtype,
    device: torch.device | str,
    checkpoint: int | None = None,
    tokenizer: Any = None,
    revision: str | None = None,
    cache_dir: str | None = None,
) -> HookedGPT:
    """The model in a folder, that comes with the package, or that the hub has under a name; `checkpoint`, of a step or
    a number of tokens of its training."""
    official = official_name(name)
    folder = Path(official).expanduser()
    if official in bundled() or (folder.is_dir() and not _is_classic(folder)):
        return HookedGPT.from_pretrained(official, dtype=dtype, device=device)
    if not folder.is_dir() and not official.startswith(TOYS):
        revision = revision if checkpoint is None else f"{_prefix(official)}{checkpoint}"
        found = HookedGPT.from_pretrained(official, dtype=dtype, device=device, revision=revision, cache_dir=cache_dir)
        return with_context(found, 512) if official.startswith("roneneldan/") else found  # trained on no longer texts
    if official.endswith("_old"):
        raise ValueError(f"{official} has a layout of its own, and a final norm of another kind")
    weights = "*final.pth" if checkpoint is None else f"checkpoints/*{checkpoint}.pth"
    if not folder.is_dir():
        folder = downloaded(official, revision, cache_dir, ["config.json", weights])
    return _of_classic(folder, weights, dtype, device, tokenizer)


def of_transformers(hf_model: Any, dtype: torch.dtype, device: torch.device | str) -> HookedGPT:
    """A model of `transformers`."""
    with tempfile.TemporaryDirectory() as folder:
        hf_model.save_pretrained(folder)
        return HookedGPT.from_pretrained(Path(folder), dtype=dtype, device=device)


def classic_config(values: dict[str, Any]) -> HookedTransformerConfig:
    """The config that the `config.json` of a toy model asks for."""
    known = ("n_layers", "d_model", "d_mlp", "d_head", "n_heads", "n_ctx", "d_vocab", "act_fn", "attn_only")
    given = {name: values[name] for name in known if name in values}
    given["normalization_type"] = values.get("normalization", values.get("normalization_type"))
    given["positional_embedding_type"] = "shortformer" if values.get("shortformer_pos") else "standard"
    given |= {name: values[name] for name in ("tokenizer_name", "final_rms") if name in values}
    return HookedTransformerConfig(**given, original_architecture=values.get("architecture", "neel"))


def checkpoint_labels(name: str) -> tuple[list[int], str]:
    """At which steps, or after how many tokens, checkpoints of a model were kept; which of the two."""
    official = official_name(name)
    if official.startswith("stanford-crfm/"):
        return STANFORD_CRFM_CHECKPOINTS, "step"
    if official.startswith("EleutherAI/pythia"):
        return (PYTHIA_V0_CHECKPOINTS if official.endswith("-v0") else PYTHIA_CHECKPOINTS), "step"
    if official.startswith("NeelNanda/"):
        files = huggingface_hub.HfApi().list_repo_files(official)
        labels = [int(found[1]) for file in files if (found := re.fullmatch(r"checkpoints/.*_(\d+)\.pth", file))]
        return sorted(labels), "token" if max(labels, default=0) > 1e9 else "step"
    raise ValueError(f"Model {official} is not checkpointed.")


def with_context(model: HookedGPT, n_ctx: int) -> HookedGPT:
    """A model of the same weights that reads so many tokens: fewer, where each position has a vector."""
    cfg = replace(model.cfg, n_ctx=n_ctx)
    if isinstance(model.pos_embed, LearnedPositions):
        if n_ctx > model.cfg.n_ctx:
            raise ValueError(f"n_ctx={n_ctx}: the model has vectors for {model.cfg.n_ctx} positions alone")
        model.pos_embed.W_pos = torch.nn.Parameter(model.pos_embed.W_pos[:n_ctx].detach().clone())
    for module in (model, *(block.attn for block in model.blocks)):
        module.cfg = cfg
    return model


def _is_classic(folder: Path) -> bool:
    return any(folder.glob("*final.pth"))


def _prefix(official: str) -> str:
    """What stands before a step in the name of a checkpoint's revision."""
    if official.startswith("stanford-crfm/"):
        return "checkpoint-"
    if official.startswith("EleutherAI/pythia"):
        return "step"
    raise ValueError(f"Checkpoints for model {official} are not supported")


def _of_classic(
    folder: Path, weights: str, dtype: torch.dtype, device: torch.device | str, tokenizer: Any
) -> HookedGPT:
    values = read_json(folder / "config.json")
    if values.get("architecture", "neel") != "neel":
        raise ValueError(f"{folder} has a layout of its own: architecture={values.get('architecture')!r}")
    cfg = classic_config(values)
    if not (files := sorted(folder.glob(weights))):
        raise FileNotFoundError(f"no {weights} in {folder}")
    stored: dict[str, Tensor] = torch.load(files[-1], map_location="cpu", weights_only=True)
    name = cfg.described()["tokenizer_name"]
    tokenizer = tokenizer_named(name) if tokenizer is None and name is not None else None
    model = HookedGPT(replace(cfg.native(), dtype=dtype, device=str(device)), tokenizer)
    missing, unknown = load_classic(model, stored, strict=False)
    if unknown or (missing := [name for name in missing if ".W_" in name]):
        raise ValueError(f"{files[-1]} does not fit its config: missing {missing[:8]}, not known {unknown[:8]}")
    return model.eval()
