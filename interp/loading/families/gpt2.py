"""GPT-2."""

from interp.config import GPTConfig
from interp.loading.checkpoint import Piece, Sources
from interp.loading.families.common import Config, activation, layer_norm, refuse, with_bias

PREFIX = "transformer."
IGNORED = (".attn.bias", ".attn.masked_bias")


def config(hf: Config) -> Config:
    refuse(hf, scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False, add_cross_attention=False)
    return {
        "n_layers": hf["n_layer"],
        "d_model": hf["n_embd"],
        "n_heads": hf["n_head"],
        "d_mlp": hf.get("n_inner") or 4 * hf["n_embd"],
        "d_vocab": hf["vocab_size"],
        "n_ctx": hf.get("n_positions", hf.get("n_ctx")),
        "act_fn": activation(hf.get("activation_function", "gelu_new")),
        "eps": hf.get("layer_norm_epsilon", 1e-5),
        "tie_word_embeddings": hf.get("tie_word_embeddings", True),
    }


def sources(cfg: GPTConfig) -> Sources:
    turned = lambda w: w.T  # GPT-2 stores [in, out]
    found: Sources = {
        "embed.W_E": [Piece("transformer.wte.weight")],
        "pos_embed.W_pos": [Piece("transformer.wpe.weight")],
        **layer_norm("ln_final", "transformer.ln_f"),
    }
    if not cfg.tie_word_embeddings:
        found["unembed.weight"] = [Piece("lm_head.weight")]
    for layer in range(cfg.n_layers):
        ours, theirs = f"blocks.{layer}", f"transformer.h.{layer}"
        found |= layer_norm(f"{ours}.ln1", f"{theirs}.ln_1") | layer_norm(f"{ours}.ln2", f"{theirs}.ln_2")
        found |= with_bias(f"{ours}.attn.qkv", f"{theirs}.attn.c_attn", turned)
        found |= with_bias(f"{ours}.attn.out", f"{theirs}.attn.c_proj", turned)
        found |= with_bias(f"{ours}.mlp.up", f"{theirs}.mlp.c_fc", turned)
        found |= with_bias(f"{ours}.mlp.down", f"{theirs}.mlp.c_proj", turned)
    return found
