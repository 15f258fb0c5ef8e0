"""Llama 2, 3 and 3.x."""

from interp.config import GPTConfig
from interp.loading.checkpoint import Sources
from interp.loading.families.common import (
    RMS_BLOCK,
    RMS_TOP,
    Config,
    refuse,
    rms_decoder,
    rms_decoder_to_hf,
    sources_of,
)

PREFIX = "model."
IGNORED = ("rotary_emb.inv_freq",)


def config(hf: Config) -> Config:
    refuse(hf, mlp_bias=False)
    has_bias = hf.get("attention_bias", False)
    return rms_decoder(hf) | {"bias_qkv": has_bias, "bias_attn_out": has_bias}


def to_hf(cfg: GPTConfig) -> Config:
    return rms_decoder_to_hf(cfg) | {"attention_bias": cfg.bias_qkv}


def sources(cfg: GPTConfig) -> Sources:
    return sources_of(cfg, RMS_TOP, "model.layers", RMS_BLOCK)
