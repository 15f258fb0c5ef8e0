"""MPT: scores that sink with distance (ALiBi), no biases, and queries, keys and values clipped if asked for."""

from interp.config import GPTConfig
from interp.loading.checkpoint import Sources
from interp.loading.families.common import LM_HEAD, Config, read, refuse, sources_of, written

PREFIX = "transformer."
IGNORED = ()
NAMES = {
    "n_layers": "n_layers",
    "d_model": "d_model",
    "n_heads": "n_heads",
    "d_vocab": "vocab_size",
    "n_ctx": "max_seq_len",
    "eps": "layer_norm_epsilon",
    "tie_word_embeddings": "tie_word_embeddings",
}
TOP = {"embed": "transformer.wte", "ln_final": "transformer.norm_f", "unembed": LM_HEAD}
BLOCK = {
    "ln1": "norm_1",
    "attn.qkv": "attn.Wqkv",
    "attn.out": "attn.out_proj",
    "ln2": "norm_2",
    "mlp.up": "ffn.up_proj",
    "mlp.down": "ffn.down_proj",
}
NO_BIAS = dict.fromkeys(("bias_qkv", "bias_attn_out", "bias_mlp", "bias_norm"), False)


def config(hf: Config) -> Config:
    attn = hf.get("attn_config") or {}
    refuse(hf, no_bias=True, expansion_ratio=4, logit_scale=1.0)
    refuse(attn, alibi=True, alibi_bias_max=8, qk_ln=False, prefix_lm=False, attn_type="multihead_attention")
    found = read(hf, NAMES, layer_norm_epsilon=1e-5, tie_word_embeddings=True) | NO_BIAS
    found |= {"act_fn": "gelu", "positional_embedding_type": "alibi", "qkv_clip": attn.get("clip_qkv") or None}
    return found | ({"attn_scale": 1 / attn["softmax_scale"]} if attn.get("softmax_scale") else {})


def to_hf(cfg: GPTConfig) -> Config:
    return written(cfg, NAMES) | {"attn_config": {"clip_qkv": cfg.qkv_clip, "softmax_scale": 1 / cfg.attn_scale}}


def sources(cfg: GPTConfig) -> Sources:
    return sources_of(cfg, TOP, "transformer.blocks", BLOCK)
