"""Phi 3 and 4: Llama with queries, keys and values in one matrix, the MLP's two readers in another, and longrope."""

from interp.config import GPTConfig
from interp.loading.checkpoint import Piece, Sources
from interp.loading.families.common import Config, rms_decoder, rms_decoder_sources, rope
from interp.loading.families.llama import NORMS

PREFIX = "model."
IGNORED = ("rotary_emb.inv_freq",)


def config(hf: Config) -> Config:
    d_head = hf["hidden_size"] // hf["num_attention_heads"]
    found = rms_decoder({"rms_norm_eps": 1e-5} | hf | {"head_dim": d_head})
    return found | {"window_size": hf.get("sliding_window"), **rope(hf, d_head, fraction=1.0)}


def sources(cfg: GPTConfig) -> Sources:
    found = rms_decoder_sources(cfg, NORMS)
    for layer in range(cfg.n_layers):
        ours, theirs = f"blocks.{layer}", f"model.layers.{layer}"
        both = f"{theirs}.mlp.gate_up_proj.weight"
        found[f"{ours}.attn.qkv.weight"] = [Piece(f"{theirs}.self_attn.qkv_proj.weight")]
        found[f"{ours}.mlp.gate.weight"] = [Piece(both, lambda rows: rows[: cfg.d_mlp])]
        found[f"{ours}.mlp.up.weight"] = [Piece(both, lambda rows: rows[cfg.d_mlp :])]
    return found
