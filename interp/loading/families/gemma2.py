"""Gemma 2: norms before and after each sublayer, soft caps, and a window in every other layer."""

from math import sqrt

from interp.config import GPTConfig
from interp.loading.checkpoint import Sources
from interp.loading.families.common import Config, activation, rms_decoder_sources, windows
from interp.loading.families.gemma import config as gemma

PREFIX = "model."
IGNORED = ("rotary_emb.inv_freq",)
NORMS = {
    "ln1": "input_layernorm",
    "ln1_post": "post_attention_layernorm",
    "ln2": "pre_feedforward_layernorm",
    "ln2_post": "post_feedforward_layernorm",
}


def config(hf: Config) -> Config:
    return gemma(hf) | {
        "norm_position": "both",
        "act_fn": activation(hf.get("hidden_activation") or "gelu_pytorch_tanh"),
        "attn_scale": sqrt(hf.get("query_pre_attn_scalar", 256)),
        "attn_scores_soft_cap": hf.get("attn_logit_softcapping"),
        "output_logits_soft_cap": hf.get("final_logit_softcapping"),
        **windows(hf, lambda layer: layer % 2 == 0),
    }


def sources(cfg: GPTConfig) -> Sources:
    return rms_decoder_sources(cfg, NORMS)
