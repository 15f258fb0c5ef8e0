"""GPT-NeoX and Pythia: attention and MLP side by side, each behind its own norm; queries, keys and values by head."""

from interp.config import GPTConfig
from interp.loading.checkpoint import Sources
from interp.loading.families.common import Config, by_group, read, rope, rope_to_hf, sources_of, written

PREFIX = "gpt_neox."
IGNORED = (".attention.bias", ".attention.masked_bias", "rotary_emb.inv_freq")
NAMES = {
    "n_layers": "num_hidden_layers",
    "d_model": "hidden_size",
    "n_heads": "num_attention_heads",
    "d_mlp": "intermediate_size",
    "d_vocab": "vocab_size",
    "act_fn": "hidden_act",
    "eps": "layer_norm_eps",
    "parallel_attn_mlp": "use_parallel_residual",
    "bias_qkv": "attention_bias",
    "bias_attn_out": "attention_bias",
    "tie_word_embeddings": "tie_word_embeddings",
}
DEFAULTS = {"hidden_act": "gelu", "layer_norm_eps": 1e-5, "use_parallel_residual": True}
DEFAULTS |= {"attention_bias": True, "tie_word_embeddings": False}
TOP = {"embed": "gpt_neox.embed_in", "ln_final": "gpt_neox.final_layer_norm", "unembed": "embed_out"}
BLOCK = {
    "ln1": "input_layernorm",
    "attn.qkv": "attention.query_key_value",
    "attn.out": "attention.dense",
    "ln2": "post_attention_layernorm",
    "mlp.up": "mlp.dense_h_to_4h",
    "mlp.down": "mlp.dense_4h_to_h",
}


def config(hf: Config) -> Config:
    d_head = hf["hidden_size"] // hf["num_attention_heads"]
    return read(hf, NAMES, **DEFAULTS) | rope(hf, d_head, fraction=0.25)


def to_hf(cfg: GPTConfig) -> Config:
    return written(cfg, NAMES) | rope_to_hf(cfg, is_partial=True) | {"rotary_pct": cfg.rotary_dim / cfg.d_head}


def sources(cfg: GPTConfig) -> Sources:
    return sources_of(cfg, TOP, "gpt_neox.layers", BLOCK, {"attn.qkv": by_group(cfg)})
