"""Llama 2, 3 and 3.x."""

from interp.config import GPTConfig
from interp.loading.checkpoint import Sources
from interp.loading.families.common import Config, refuse, rms_decoder, rms_decoder_sources

PREFIX = "model."
IGNORED = ("rotary_emb.inv_freq",)
NORMS = {"ln1": "input_layernorm", "ln2": "post_attention_layernorm"}


def config(hf: Config) -> Config:
    refuse(hf, mlp_bias=False)
    has_bias = hf.get("attention_bias", False)
    return rms_decoder(hf) | {"bias_qkv": has_bias, "bias_attn_out": has_bias}


def sources(cfg: GPTConfig) -> Sources:
    return rms_decoder_sources(cfg, NORMS)
