"""Qwen 2 and 2.5: Llama with biases on queries, keys and values, and windows in its later layers if asked for."""

from interp.config import GPTConfig
from interp.loading.checkpoint import Sources
from interp.loading.families.common import Config, rms_decoder, rms_decoder_sources, windows
from interp.loading.families.llama import NORMS

PREFIX = "model."
IGNORED = ("rotary_emb.inv_freq",)


def config(hf: Config) -> Config:
    return rms_decoder(hf) | {"bias_qkv": True} | late_windows(hf)


def late_windows(hf: Config) -> Config:
    if not hf.get("use_sliding_window", False):
        return {}
    return windows(hf, lambda layer: layer >= hf.get("max_window_layers", 28))


def sources(cfg: GPTConfig) -> Sources:
    return rms_decoder_sources(cfg, NORMS)
