"""BLOOM: scores that sink with distance (ALiBi), and a norm after the embedding."""

from interp.config import GPTConfig
from interp.loading.checkpoint import Sources
from interp.loading.families.common import LM_HEAD, Config, by_group, read, refuse, sources_of, written

PREFIX = "transformer."
IGNORED = ()
NAMES = {
    "n_layers": "n_layer",
    "d_model": "hidden_size",
    "n_heads": "n_head",
    "d_vocab": "vocab_size",
    "n_ctx": "seq_length",
    "eps": "layer_norm_epsilon",
    "tie_word_embeddings": "tie_word_embeddings",
}
TOP = {
    "embed": "transformer.word_embeddings",
    "embed.ln": "transformer.word_embeddings_layernorm",
    "ln_final": "transformer.ln_f",
    "unembed": LM_HEAD,
}
BLOCK = {
    "ln1": "input_layernorm",
    "attn.qkv": "self_attention.query_key_value",
    "attn.out": "self_attention.dense",
    "ln2": "post_attention_layernorm",
    "mlp.up": "mlp.dense_h_to_4h",
    "mlp.down": "mlp.dense_4h_to_h",
}


OTHER_NAMES = {"n_embed": "hidden_size", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head"}


def config(hf: Config) -> Config:
    hf = {OTHER_NAMES.get(name, name): value for name, value in hf.items()}
    refuse(hf, apply_residual_connection_post_layernorm=False)
    found = read(hf, NAMES, seq_length=2048, layer_norm_epsilon=1e-5, tie_word_embeddings=True)
    return found | {"positional_embedding_type": "alibi", "embed_norm": True}


def to_hf(cfg: GPTConfig) -> Config:
    return written(cfg, NAMES)


def sources(cfg: GPTConfig) -> Sources:
    return sources_of(cfg, TOP, "transformer.h", BLOCK, {"attn.qkv": by_group(cfg)})
