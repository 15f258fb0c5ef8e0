"""Gemma: Llama with scaled embeddings, and gains that are stored less 1."""

from math import sqrt

from interp.config import GPTConfig
from interp.loading.checkpoint import Sources
from interp.loading.families.common import Config, activation, refuse, rms_decoder, rms_decoder_sources
from interp.loading.families.llama import NORMS

PREFIX = "model."
IGNORED = ("rotary_emb.inv_freq",)


def config(hf: Config) -> Config:
    refuse(hf, attention_bias=False, use_bidirectional_attention=False)
    return rms_decoder({"tie_word_embeddings": True} | hf) | {
        "act_fn": "gelu_pytorch_tanh" if hf.get("hidden_act", "gelu") == "gelu" else activation(hf["hidden_act"]),
        "norm_gain_from_one": True,
        "embed_scale": sqrt(hf["hidden_size"]),
    }


def sources(cfg: GPTConfig) -> Sources:
    return rms_decoder_sources(cfg, NORMS)
