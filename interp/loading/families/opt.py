"""OPT, but for the 350M model with its norms after each sum."""

from interp.config import GPTConfig
from interp.loading.checkpoint import Piece, Sources
from interp.loading.families.common import Config, activation, attention, layer_norm, refuse, with_bias

PREFIX = "model."
IGNORED = ()


def config(hf: Config) -> Config:
    refuse(hf, do_layer_norm_before=True, _remove_final_layer_norm=False, enable_bias=True)
    refuse(hf, layer_norm_elementwise_affine=True, word_embed_proj_dim=hf["hidden_size"])
    return {
        "n_layers": hf["num_hidden_layers"],
        "d_model": hf["hidden_size"],
        "n_heads": hf["num_attention_heads"],
        "d_mlp": hf["ffn_dim"],
        "d_vocab": hf["vocab_size"],
        "n_ctx": hf["max_position_embeddings"],
        "act_fn": activation(hf.get("activation_function", "relu")),
        "tie_word_embeddings": hf.get("tie_word_embeddings", True),
    }


def sources(cfg: GPTConfig) -> Sources:
    found: Sources = {
        "embed.W_E": [Piece("model.decoder.embed_tokens.weight")],
        "pos_embed.W_pos": [Piece("model.decoder.embed_positions.weight", lambda rows: rows[2:])],  # two stand unused
        **layer_norm("ln_final", "model.decoder.final_layer_norm"),
    }
    if not cfg.tie_word_embeddings:
        found["unembed.weight"] = [Piece("lm_head.weight")]
    for layer in range(cfg.n_layers):
        ours, theirs = f"blocks.{layer}", f"model.decoder.layers.{layer}"
        found |= layer_norm(f"{ours}.ln1", f"{theirs}.self_attn_layer_norm")
        found |= layer_norm(f"{ours}.ln2", f"{theirs}.final_layer_norm")
        found |= attention(cfg, f"{ours}.attn", f"{theirs}.self_attn", out="out_proj")
        found |= with_bias(f"{ours}.mlp.up", f"{theirs}.fc1") | with_bias(f"{ours}.mlp.down", f"{theirs}.fc2")
    return found
