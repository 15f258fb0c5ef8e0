"""GPT-Neo: GPT-2 with a window in every other layer, and scores that nothing divides."""

from interp.config import GPTConfig
from interp.loading.checkpoint import Piece, Sources
from interp.loading.families.common import Config, activation, attention, layer_norm, with_bias

PREFIX = "transformer."
IGNORED = (".attn.attention.bias", ".attn.attention.masked_bias")


def config(hf: Config) -> Config:
    types = tuple(kind for kinds, n in hf["attention_types"] for _ in range(n) for kind in kinds)
    return {
        "n_layers": hf["num_layers"],
        "d_model": hf["hidden_size"],
        "n_heads": hf["num_heads"],
        "d_mlp": hf.get("intermediate_size") or 4 * hf["hidden_size"],
        "d_vocab": hf["vocab_size"],
        "n_ctx": hf["max_position_embeddings"],
        "act_fn": activation(hf.get("activation_function", "gelu_new")),
        "eps": hf.get("layer_norm_epsilon", 1e-5),
        "attn_scale": 1.0,
        "bias_qkv": False,
        "tie_word_embeddings": hf.get("tie_word_embeddings", True),
        **({"window_size": hf.get("window_size", 256), "attn_types": types} if "local" in types else {}),
    }


def sources(cfg: GPTConfig) -> Sources:
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
        found |= attention(cfg, f"{ours}.attn", f"{theirs}.attn.attention", out="out_proj")
        found |= with_bias(f"{ours}.mlp.up", f"{theirs}.mlp.c_fc") | with_bias(
            f"{ours}.mlp.down", f"{theirs}.mlp.c_proj"
        )
    return found
