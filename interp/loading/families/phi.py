"""Phi 1, 1.5 and 2: attention and MLP side by side behind one norm, biases everywhere."""

from interp.config import GPTConfig
from interp.loading.checkpoint import Sources
from interp.loading.families.common import (
    DECODER,
    LM_HEAD,
    QKV,
    Config,
    read,
    refuse,
    rope,
    rope_to_hf,
    sources_of,
    written,
)

PREFIX = "model."
IGNORED = ("rotary_emb.inv_freq",)
NAMES = {ours: theirs for ours, theirs in DECODER.items() if ours != "d_head"} | {"eps": "layer_norm_eps"}
DEFAULTS = {"hidden_act": "gelu_new", "layer_norm_eps": 1e-5, "tie_word_embeddings": False}
TOP = {"embed": "model.embed_tokens", "ln_final": "model.final_layernorm", "unembed": LM_HEAD}
BLOCK = {
    "ln1": "input_layernorm",
    "attn.qkv": QKV,
    "attn.out": "self_attn.dense",
    "mlp.up": "mlp.fc1",
    "mlp.down": "mlp.fc2",
}


def config(hf: Config) -> Config:
    refuse(hf, qk_layernorm=False)
    return {
        **read(hf, NAMES, **DEFAULTS, num_key_value_heads=hf["num_attention_heads"]),
        "parallel_attn_mlp": True,
        "parallel_shared_norm": True,
        "bias_unembed": True,
        **rope(hf, hf["hidden_size"] // hf["num_attention_heads"], fraction=0.5),
    }


def to_hf(cfg: GPTConfig) -> Config:
    return written(cfg, NAMES) | rope_to_hf(cfg, is_partial=True)


def sources(cfg: GPTConfig) -> Sources:
    return sources_of(cfg, TOP, "model.layers", BLOCK)
