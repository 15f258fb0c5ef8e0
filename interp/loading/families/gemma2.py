"""Gemma 2: norms before and after each sublayer, soft caps, and a window in every other layer."""

from math import sqrt

from interp.config import GPTConfig
from interp.loading.checkpoint import Sources
from interp.loading.families import gemma
from interp.loading.families.common import RMS_BLOCK, RMS_TOP, Config, activation, sources_of, windows, windows_to_hf

PREFIX = "model."
IGNORED = ("rotary_emb.inv_freq",)
BLOCK = RMS_BLOCK | {
    "ln1_post": "post_attention_layernorm",
    "ln2": "pre_feedforward_layernorm",
    "ln2_post": "post_feedforward_layernorm",
}


def config(hf: Config) -> Config:
    return gemma.config(hf) | {
        "norm_position": "both",
        "act_fn": activation(hf.get("hidden_activation") or "gelu_pytorch_tanh"),
        "attn_scale": sqrt(hf.get("query_pre_attn_scalar", 256)),
        "attn_scores_soft_cap": hf.get("attn_logit_softcapping"),
        "output_logits_soft_cap": hf.get("final_logit_softcapping"),
        **windows(hf, lambda layer: layer % 2 == 0),
    }


def to_hf(cfg: GPTConfig) -> Config:
    caps = {"attn_logit_softcapping": cfg.attn_scores_soft_cap, "final_logit_softcapping": cfg.output_logits_soft_cap}
    scale = {"query_pre_attn_scalar": round(cfg.attn_scale**2), "hidden_activation": cfg.act_fn}
    return gemma.to_hf(cfg) | windows_to_hf(cfg) | caps | scale


def sources(cfg: GPTConfig) -> Sources:
    return sources_of(cfg, RMS_TOP, "model.layers", BLOCK)
