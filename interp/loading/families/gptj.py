"""GPT-J: attention and MLP side by side behind one norm; rotary positions in adjacent pairs."""

from interp.config import GPTConfig
from interp.loading.checkpoint import Piece, Sources
from interp.loading.families.common import Config, activation, attention, layer_norm, with_bias

PREFIX = "transformer."
IGNORED = (".attn.bias", ".attn.masked_bias", ".attn.embed_positions")


def config(hf: Config) -> Config:
    return {
        "n_layers": hf["n_layer"],
        "d_model": hf["n_embd"],
        "n_heads": hf["n_head"],
        "d_mlp": hf.get("n_inner") or 4 * hf["n_embd"],
        "d_vocab": hf["vocab_size"],
        "n_ctx": hf["n_positions"],
        "act_fn": activation(hf.get("activation_function", "gelu_new")),
        "eps": hf.get("layer_norm_epsilon", 1e-5),
        "parallel_attn_mlp": True,
        "parallel_shared_norm": True,
        "positional_embedding_type": "rotary",
        "rotary_dim": hf.get("rotary_dim") or hf["n_embd"] // hf["n_head"],
        "rotary_adjacent_pairs": True,
        "bias_qkv": False,
        "bias_attn_out": False,
        "bias_unembed": True,
        "tie_word_embeddings": hf.get("tie_word_embeddings", False),
    }


def sources(cfg: GPTConfig) -> Sources:
    found: Sources = {
        "embed.W_E": [Piece("transformer.wte.weight")],
        **layer_norm("ln_final", "transformer.ln_f"),
        "unembed.bias": [Piece("lm_head.bias")],
    }
    if not cfg.tie_word_embeddings:
        found["unembed.weight"] = [Piece("lm_head.weight")]
    for layer in range(cfg.n_layers):
        ours, theirs = f"blocks.{layer}", f"transformer.h.{layer}"
        found |= layer_norm(f"{ours}.ln1", f"{theirs}.ln_1")
        found |= attention(cfg, f"{ours}.attn", f"{theirs}.attn", out="out_proj")
        found |= with_bias(f"{ours}.mlp.up", f"{theirs}.mlp.fc_in")
        found |= with_bias(f"{ours}.mlp.down", f"{theirs}.mlp.fc_out")
    return found
