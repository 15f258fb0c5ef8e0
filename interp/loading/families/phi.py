"""Phi 1, 1.5 and 2: attention and MLP side by side behind one norm, biases everywhere."""

from interp.config import GPTConfig
from interp.loading.checkpoint import Piece, Sources
from interp.loading.families.common import Config, activation, attention, layer_norm, refuse, rope, with_bias

PREFIX = "model."
IGNORED = ("rotary_emb.inv_freq",)


def config(hf: Config) -> Config:
    refuse(hf, qk_layernorm=False)
    d_head = hf["hidden_size"] // hf["num_attention_heads"]
    return {
        "n_layers": hf["num_hidden_layers"],
        "d_model": hf["hidden_size"],
        "n_heads": hf["num_attention_heads"],
        "n_key_value_heads": hf.get("num_key_value_heads") or hf["num_attention_heads"],
        "d_mlp": hf["intermediate_size"],
        "d_vocab": hf["vocab_size"],
        "act_fn": activation(hf.get("hidden_act", "gelu_new")),
        "eps": hf.get("layer_norm_eps", 1e-5),
        "parallel_attn_mlp": True,
        "parallel_shared_norm": True,
        "bias_unembed": True,
        "tie_word_embeddings": hf.get("tie_word_embeddings", False),
        **rope(hf, d_head, fraction=0.5),
    }


def sources(cfg: GPTConfig) -> Sources:
    found: Sources = {
        "embed.W_E": [Piece("model.embed_tokens.weight")],
        **layer_norm("ln_final", "model.final_layernorm"),
        "unembed.bias": [Piece("lm_head.bias")],
    }
    if not cfg.tie_word_embeddings:
        found["unembed.weight"] = [Piece("lm_head.weight")]
    for layer in range(cfg.n_layers):
        ours, theirs = f"blocks.{layer}", f"model.layers.{layer}"
        found |= layer_norm(f"{ours}.ln1", f"{theirs}.input_layernorm")
        found |= attention(cfg, f"{ours}.attn", f"{theirs}.self_attn", out="dense")
        found |= with_bias(f"{ours}.mlp.up", f"{theirs}.mlp.fc1") | with_bias(f"{ours}.mlp.down", f"{theirs}.mlp.fc2")
    return found
