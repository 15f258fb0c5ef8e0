"""Falcon: attention and MLP side by side, behind one norm and with one key and value head (7B), or behind two norms and
with a few (40B)."""

from interp.config import GPTConfig
from interp.loading.checkpoint import Piece, Sources
from interp.loading.families.common import Config, activation, fused, layer_norm, linear, refuse, rope

PREFIX = "transformer."
IGNORED = ("rotary_emb.inv_freq",)


def config(hf: Config) -> Config:
    is_new = hf.get("new_decoder_architecture", False)
    refuse(hf, alibi=False, **({} if is_new else {"parallel_attn": True}))
    n_kv_heads = hf.get("num_kv_heads") if is_new else 1 if hf.get("multi_query", True) else None
    n_norms = hf.get("num_ln_in_parallel_attn") or 2 if is_new else 1
    return {
        "n_layers": hf["num_hidden_layers"],
        "d_model": hf["hidden_size"],
        "n_heads": hf["num_attention_heads"],
        "n_key_value_heads": n_kv_heads or hf["num_attention_heads"],
        "d_mlp": hf.get("ffn_hidden_size") or 4 * hf["hidden_size"],
        "d_vocab": hf["vocab_size"],
        "act_fn": activation(hf.get("activation", "gelu")),
        "eps": hf.get("layer_norm_epsilon", 1e-5),
        "parallel_attn_mlp": True,
        "parallel_shared_norm": n_norms == 1,
        **dict.fromkeys(("bias_qkv", "bias_attn_out", "bias_mlp"), hf.get("bias", False)),
        "tie_word_embeddings": hf.get("tie_word_embeddings", True),
        **rope({"max_position_embeddings": 2048} | hf, hf["hidden_size"] // hf["num_attention_heads"]),
    }


def sources(cfg: GPTConfig) -> Sources:
    norms = {"ln1": "input_layernorm"} if cfg.parallel_shared_norm else {"ln1": "ln_attn", "ln2": "ln_mlp"}
    found: Sources = {
        "embed.W_E": [Piece("transformer.word_embeddings.weight")],
        **layer_norm("ln_final", "transformer.ln_f"),
    }
    if not cfg.tie_word_embeddings:
        found["unembed.weight"] = [Piece("lm_head.weight")]
    for layer in range(cfg.n_layers):
        ours, theirs = f"blocks.{layer}", f"transformer.h.{layer}"
        for our_name, their_name in norms.items():
            found |= layer_norm(f"{ours}.{our_name}", f"{theirs}.{their_name}")
        found |= fused(cfg, f"{ours}.attn", f"{theirs}.self_attention")
        found |= linear(f"{ours}.mlp.up", f"{theirs}.mlp.dense_h_to_4h", cfg.bias_mlp)
        found |= linear(f"{ours}.mlp.down", f"{theirs}.mlp.dense_4h_to_h", cfg.bias_mlp)
    return found
