"""BLOOM: scores that sink with distance (ALiBi), and a norm after the embedding."""

from interp.config import GPTConfig
from interp.loading.checkpoint import Piece, Sources
from interp.loading.families.common import Config, fused, layer_norm, refuse, with_bias

PREFIX = "transformer."
IGNORED = ()


def config(hf: Config) -> Config:
    refuse(hf, apply_residual_connection_post_layernorm=False)
    return {
        "n_layers": hf["n_layer"],
        "d_model": hf["hidden_size"],
        "n_heads": hf["n_head"],
        "d_vocab": hf["vocab_size"],
        "n_ctx": hf.get("seq_length", 2048),
        "eps": hf.get("layer_norm_epsilon", 1e-5),
        "positional_embedding_type": "alibi",
        "embed_norm": True,
        "tie_word_embeddings": hf.get("tie_word_embeddings", True),
    }


def sources(cfg: GPTConfig) -> Sources:
    found: Sources = {
        "embed.W_E": [Piece("transformer.word_embeddings.weight")],
        **layer_norm("ln_embed", "transformer.word_embeddings_layernorm"),
        **layer_norm("ln_final", "transformer.ln_f"),
    }
    if not cfg.tie_word_embeddings:
        found["unembed.weight"] = [Piece("lm_head.weight")]
    for layer in range(cfg.n_layers):
        ours, theirs = f"blocks.{layer}", f"transformer.h.{layer}"
        found |= layer_norm(f"{ours}.ln1", f"{theirs}.input_layernorm")
        found |= layer_norm(f"{ours}.ln2", f"{theirs}.post_attention_layernorm")
        found |= fused(cfg, f"{ours}.attn", f"{theirs}.self_attention")
        found |= with_bias(f"{ours}.mlp.up", f"{theirs}.mlp.dense_h_to_4h")
        found |= with_bias(f"{ours}.mlp.down", f"{theirs}.mlp.dense_4h_to_h")
    return found
