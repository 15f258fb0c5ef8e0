"""GPT-NeoX and Pythia: attention and MLP side by side, each behind its own norm; queries, keys and values by head."""

from interp.config import GPTConfig
from interp.loading.checkpoint import Piece, Sources
from interp.loading.families.common import Config, activation, fused, layer_norm, rope, with_bias

PREFIX = "gpt_neox."
IGNORED = (".attention.bias", ".attention.masked_bias", "rotary_emb.inv_freq")


def config(hf: Config) -> Config:
    d_head = hf["hidden_size"] // hf["num_attention_heads"]
    has_bias = hf.get("attention_bias", True)
    return {
        "n_layers": hf["num_hidden_layers"],
        "d_model": hf["hidden_size"],
        "n_heads": hf["num_attention_heads"],
        "d_mlp": hf["intermediate_size"],
        "d_vocab": hf["vocab_size"],
        "act_fn": activation(hf.get("hidden_act", "gelu")),
        "eps": hf.get("layer_norm_eps", 1e-5),
        "parallel_attn_mlp": hf.get("use_parallel_residual", True),
        "bias_qkv": has_bias,
        "bias_attn_out": has_bias,
        "tie_word_embeddings": hf.get("tie_word_embeddings", False),
        **rope(hf, d_head, fraction=0.25),
    }


def sources(cfg: GPTConfig) -> Sources:
    found: Sources = {
        "embed.W_E": [Piece("gpt_neox.embed_in.weight")],
        **layer_norm("ln_final", "gpt_neox.final_layer_norm"),
    }
    if not cfg.tie_word_embeddings:
        found["unembed.weight"] = [Piece("embed_out.weight")]
    for layer in range(cfg.n_layers):
        ours, theirs = f"blocks.{layer}", f"gpt_neox.layers.{layer}"
        found |= layer_norm(f"{ours}.ln1", f"{theirs}.input_layernorm")
        found |= layer_norm(f"{ours}.ln2", f"{theirs}.post_attention_layernorm")
        found |= fused(cfg, f"{ours}.attn", f"{theirs}.attention")
        found |= with_bias(f"{ours}.mlp.up", f"{theirs}.mlp.dense_h_to_4h")
        found |= with_bias(f"{ours}.mlp.down", f"{theirs}.mlp.dense_4h_to_h")
    return found
