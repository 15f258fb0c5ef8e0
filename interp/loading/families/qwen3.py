"""Qwen 3: Llama with an RMSNorm on the queries and keys of each head."""

from interp.config import GPTConfig
from interp.loading.checkpoint import Sources
from interp.loading.families.common import Config, head_norms, rms_decoder, rms_decoder_sources
from interp.loading.families.llama import NORMS
from interp.loading.families.qwen2 import late_windows

PREFIX = "model."
IGNORED = ("rotary_emb.inv_freq",)


def config(hf: Config) -> Config:
    has_bias = hf.get("attention_bias", False)
    biases = {"bias_qkv": has_bias, "bias_attn_out": has_bias}
    return rms_decoder(hf) | biases | {"use_qk_norm": True} | late_windows(hf)


def sources(cfg: GPTConfig) -> Sources:
    return rms_decoder_sources(cfg, NORMS) | head_norms(cfg)
