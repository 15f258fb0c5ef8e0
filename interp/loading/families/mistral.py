"""Mistral: Llama with a sliding window."""

from interp.config import GPTConfig
from interp.loading.checkpoint import Sources
from interp.loading.families.common import Config, rms_decoder, rms_decoder_sources
from interp.loading.families.llama import NORMS

PREFIX = "model."
IGNORED = ("rotary_emb.inv_freq",)


def config(hf: Config) -> Config:
    return rms_decoder(hf) | {"window_size": hf.get("sliding_window")}


def sources(cfg: GPTConfig) -> Sources:
    return rms_decoder_sources(cfg, NORMS)
