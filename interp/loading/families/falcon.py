"""Falcon: attention and MLP side by side, behind one norm and with one key and value head (7B), or behind two norms and
with a few (40B)."""

from interp.config import GPTConfig
from interp.loading.checkpoint import Sources
from interp.loading.families import bloom
from interp.loading.families.common import Config, by_group, read, refuse, rope, rope_to_hf, sources_of, written

PREFIX = "transformer."
IGNORED = ("rotary_emb.inv_freq",)
NAMES = {
    "n_layers": "num_hidden_layers",
    "d_model": "hidden_size",
    "n_heads": "num_attention_heads",
    "d_mlp": "ffn_hidden_size",
    "d_vocab": "vocab_size",
    "act_fn": "activation",
    "eps": "layer_norm_epsilon",
    "tie_word_embeddings": "tie_word_embeddings",
    **dict.fromkeys(("bias_qkv", "bias_attn_out", "bias_mlp"), "bias"),
}
DEFAULTS = {"activation": "gelu", "layer_norm_epsilon": 1e-5, "bias": False, "tie_word_embeddings": True}


def config(hf: Config) -> Config:
    is_new = hf.get("new_decoder_architecture", False)
    refuse(hf, alibi=False, **({} if is_new else {"parallel_attn": True}))
    n_kv_heads = hf.get("num_kv_heads") if is_new else 1 if hf.get("multi_query", True) else None
    return {
        **read(hf, NAMES, **DEFAULTS, ffn_hidden_size=4 * hf["hidden_size"]),
        "n_key_value_heads": n_kv_heads or hf["num_attention_heads"],
        "parallel_attn_mlp": True,
        "parallel_shared_norm": not is_new or hf.get("num_ln_in_parallel_attn") == 1,
        **rope({"max_position_embeddings": 2048} | hf, hf["hidden_size"] // hf["num_attention_heads"]),
    }


def to_hf(cfg: GPTConfig) -> Config:
    is_new = cfg.n_key_value_heads > 1 or not cfg.parallel_shared_norm
    which = {"new_decoder_architecture": is_new, "num_kv_heads": cfg.n_key_value_heads, "multi_query": not is_new}
    norms = {"num_ln_in_parallel_attn": 1 if cfg.parallel_shared_norm else 2}
    return written(cfg, NAMES) | rope_to_hf(cfg) | which | (norms if is_new else {})


def sources(cfg: GPTConfig) -> Sources:
    top = {ours: theirs for ours, theirs in bloom.TOP.items() if ours != "embed.ln"}
    block = {ours: theirs for ours, theirs in bloom.BLOCK.items() if ours != "ln2"}
    block |= {} if cfg.parallel_shared_norm else {"ln1": "ln_attn", "ln2": "ln_mlp"}
    return sources_of(cfg, top, "transformer.h", block, {"attn.qkv": by_group(cfg)})
