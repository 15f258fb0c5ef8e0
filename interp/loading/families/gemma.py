"""Gemma: Llama with scaled embeddings, and gains that are stored less 1."""

from math import sqrt

from interp.config import GPTConfig
from interp.loading.families.common import Config, activation, refuse, rms_decoder, rms_decoder_to_hf
from interp.loading.families.llama import IGNORED, PREFIX, sources

__all__ = ["IGNORED", "PREFIX", "config", "sources", "to_hf"]


def config(hf: Config) -> Config:
    refuse(hf, attention_bias=False, use_bidirectional_attention=False)
    return rms_decoder(hf, tie_word_embeddings=True) | {
        "act_fn": "gelu_pytorch_tanh" if hf.get("hidden_act", "gelu") == "gelu" else activation(hf["hidden_act"]),
        "norm_gain_from_one": True,
        "embed_scale": sqrt(hf["hidden_size"]),
    }


def to_hf(cfg: GPTConfig) -> Config:
    return rms_decoder_to_hf(cfg)
