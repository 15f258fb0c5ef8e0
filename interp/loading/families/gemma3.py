"""Gemma 3 (text): Gemma 2 with norms on queries and keys, and windowed layers that turn by a base of their own."""

from interp.config import GPTConfig
from interp.loading.checkpoint import Sources
from interp.loading.families.common import Config, head_norms, refuse, rms_decoder_sources, windows
from interp.loading.families.gemma2 import NORMS
from interp.loading.families.gemma2 import config as gemma2

PREFIX = "model."
IGNORED = ("rotary_emb.inv_freq",)


def config(hf: Config) -> Config:
    given = hf.get("rope_parameters") or {}
    full = {"rope_theta": hf.get("rope_theta", 1e6)} | (given.get("full_attention") or {})
    local = {"rope_theta": hf.get("rope_local_base_freq", 1e4)} | (given.get("sliding_attention") or {})
    refuse(local, rope_type="default")
    every = hf.get("sliding_window_pattern", 6)
    windowed = windows(hf, lambda layer: (layer + 1) % every != 0)
    found = gemma2(hf | {"rope_parameters": full, "layer_types": None, "sliding_window": None}) | {"use_qk_norm": True}
    return found | windowed | ({"local_rotary_base": float(local["rope_theta"])} if windowed else {})


def sources(cfg: GPTConfig) -> Sources:
    return rms_decoder_sources(cfg, NORMS) | head_norms(cfg)
