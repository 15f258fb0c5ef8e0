"""What the classic loader knows of checkpoints: their names, configs and steps."""

from pathlib import Path
from typing import Any

from interp.classic.checkpoints import (
    PYTHIA_CHECKPOINTS,
    PYTHIA_V0_CHECKPOINTS,
    STANFORD_CRFM_CHECKPOINTS,
    checkpoint_labels,
    classic_config,
)
from interp.classic.config import HookedTransformerConfig
from interp.classic.names import (
    DEFAULT_MODEL_ALIASES,
    MODEL_ALIASES,
    OFFICIAL_MODEL_NAMES,
    make_model_alias_map,
    official_name,
)
from interp.config import GPTConfig
from interp.loading import FAMILIES, downloaded
from interp.loading.files import read_json

__all__ = [
    "DEFAULT_MODEL_ALIASES",
    "MODEL_ALIASES",
    "OFFICIAL_MODEL_NAMES",
    "PYTHIA_CHECKPOINTS",
    "PYTHIA_V0_CHECKPOINTS",
    "STANFORD_CRFM_CHECKPOINTS",
    "get_checkpoint_labels",
    "get_num_params_of_pretrained",
    "get_official_model_name",
    "get_pretrained_model_config",
    "make_model_alias_map",
]

get_checkpoint_labels = checkpoint_labels


def get_official_model_name(model_name: str) -> str:
    """The name on the hub that a classic name means."""
    official = official_name(model_name)
    if official not in OFFICIAL_MODEL_NAMES:
        raise ValueError(f"{model_name} not found. Valid official model names (excl aliases): {OFFICIAL_MODEL_NAMES}")
    return official


def get_pretrained_model_config(model_name: str, **changes: Any) -> HookedTransformerConfig:
    """The config of a checkpoint, in a folder or on the hub, with these changes; its weights are not read."""
    official = official_name(model_name)
    folder = Path(official).expanduser()
    if not folder.is_dir():
        folder = downloaded(official, None, None, ["config.json"])
    values = read_json(folder / "config.json")
    name = official.rpartition("/")[2]
    if (family := FAMILIES.get(values.get("model_type", ""))) is None:
        cfg = classic_config(values)
    else:
        cfg = HookedTransformerConfig.of(GPTConfig(**family.config(values)))
    return HookedTransformerConfig(**{**cfg.to_dict(), **cfg.described(), "model_name": name, **changes})


def get_num_params_of_pretrained(model_name: str) -> int:
    """The weights of a checkpoint's attention and MLPs."""
    return get_pretrained_model_config(model_name).__dict__["n_params"]
