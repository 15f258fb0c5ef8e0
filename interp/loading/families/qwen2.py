"""Qwen 2 and 2.5: Llama with biases on queries, keys and values, and windows in its later layers if asked for."""

from interp.config import GPTConfig
from interp.loading.families.common import Config, rms_decoder, rms_decoder_to_hf, windows, windows_to_hf
from interp.loading.families.llama import IGNORED, PREFIX, sources

__all__ = ["IGNORED", "PREFIX", "config", "sources", "to_hf"]


def config(hf: Config) -> Config:
    return rms_decoder(hf) | {"bias_qkv": True} | late_windows(hf)


def to_hf(cfg: GPTConfig) -> Config:
    return rms_decoder_to_hf(cfg) | windows_to_hf(cfg)


def late_windows(hf: Config) -> Config:
    if not hf.get("use_sliding_window", False):
        return {}
    return windows(hf, lambda layer: layer >= hf.get("max_window_layers", 28))
