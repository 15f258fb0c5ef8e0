"""Mistral: Llama with a sliding window."""

from interp.config import GPTConfig
from interp.loading.families.common import Config, rms_decoder, rms_decoder_to_hf
from interp.loading.families.llama import IGNORED, PREFIX, sources

__all__ = ["IGNORED", "PREFIX", "config", "sources", "to_hf"]


def config(hf: Config) -> Config:
    return rms_decoder(hf) | {"window_size": hf.get("sliding_window")}


def to_hf(cfg: GPTConfig) -> Config:
    return rms_decoder_to_hf(cfg) | {"sliding_window": cfg.window_size}
