"""Phi 3 and 4: Llama with queries, keys and values in one matrix, the MLP's two readers in another, and longrope."""

from interp.config import GPTConfig
from interp.loading.checkpoint import Sources
from interp.loading.families.common import (
    RMS_BLOCK,
    RMS_TOP,
    Config,
    Layout,
    rms_decoder,
    rms_decoder_to_hf,
    rope,
    rope_to_hf,
    sources_of,
)

PREFIX = "model."
IGNORED = ("rotary_emb.inv_freq",)
BLOCK = RMS_BLOCK | {"attn.qkv": "self_attn.qkv_proj", "mlp.gate": "mlp.gate_up_proj", "mlp.up": "mlp.gate_up_proj"}


def config(hf: Config) -> Config:
    d_head = hf["hidden_size"] // hf["num_attention_heads"]
    found = rms_decoder(hf | {"head_dim": d_head}, rms_norm_eps=1e-5)
    return found | {"window_size": hf.get("sliding_window"), **rope(hf, d_head, fraction=1.0)}


def to_hf(cfg: GPTConfig) -> Config:
    found = rms_decoder_to_hf(cfg) | rope_to_hf(cfg, is_partial=True) | {"sliding_window": cfg.window_size}
    original = cfg.n_ctx if cfg.rope_scaling is None else cfg.rope_scaling.original_n_ctx
    return found | {"original_max_position_embeddings": original}


def sources(cfg: GPTConfig) -> Sources:
    halves = {"mlp.gate": Layout(lambda rows: rows[: cfg.d_mlp]), "mlp.up": Layout(lambda rows: rows[cfg.d_mlp :])}
    return sources_of(cfg, RMS_TOP, "model.layers", BLOCK, halves)
