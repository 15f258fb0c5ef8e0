"""Gemma 3 (text): Gemma 2 with norms on queries and keys, and windowed layers that turn by a base of their own."""

from interp.config import GPTConfig
from interp.loading.families import gemma2
from interp.loading.families.common import Config, refuse, windows
from interp.loading.families.gemma2 import IGNORED, PREFIX, sources

__all__ = ["IGNORED", "PREFIX", "config", "sources", "to_hf"]


def config(hf: Config) -> Config:
    given = hf.get("rope_parameters") or {}
    full = {"rope_theta": hf.get("rope_theta", 1e6)} | (given.get("full_attention") or {})
    local = {"rope_theta": hf.get("rope_local_base_freq", 1e4)} | (given.get("sliding_attention") or {})
    refuse(local, rope_type="default")
    every = hf.get("sliding_window_pattern", 6)
    windowed = windows(hf, lambda layer: (layer + 1) % every != 0)
    found = gemma2.config(hf | {"rope_parameters": full, "sliding_window": None})
    found |= {"use_qk_norm": True, "attn_scores_soft_cap": None}  # a cap that it may name is not applied
    return found | windowed | ({"local_rotary_base": float(local["rope_theta"])} if windowed else {})


def to_hf(cfg: GPTConfig) -> Config:
    found = gemma2.to_hf(cfg)
    local = {"rope_type": "default", "rope_theta": cfg.local_rotary_base or cfg.rotary_base}
    return found | {"rope_parameters": {"full_attention": found["rope_parameters"], "sliding_attention": local}}
