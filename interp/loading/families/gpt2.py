"""GPT-2."""

from interp.config import GPTConfig
from interp.loading.checkpoint import Sources
from interp.loading.families.common import LM_HEAD, TURNED, Config, read, refuse, sources_of, written

PREFIX = "transformer."
IGNORED = (".attn.bias", ".attn.masked_bias")
NAMES = {
    "n_layers": "n_layer",
    "d_model": "n_embd",
    "n_heads": "n_head",
    "d_mlp": "n_inner",
    "d_vocab": "vocab_size",
    "n_ctx": "n_positions",
    "act_fn": "activation_function",
    "eps": "layer_norm_epsilon",
    "tie_word_embeddings": "tie_word_embeddings",
}
DEFAULTS = {"activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "tie_word_embeddings": True}
TOP = {"embed": "transformer.wte", "pos_embed": "transformer.wpe", "ln_final": "transformer.ln_f", "unembed": LM_HEAD}
BLOCK = {
    "ln1": "ln_1",
    "attn.qkv": "attn.c_attn",
    "attn.out": "attn.c_proj",
    "ln2": "ln_2",
    "mlp.up": "mlp.c_fc",
    "mlp.down": "mlp.c_proj",
}


def config(hf: Config) -> Config:
    refuse(hf, scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False, add_cross_attention=False)
    return read(hf, NAMES, **DEFAULTS, n_inner=4 * hf["n_embd"], n_positions=hf.get("n_ctx"))


def to_hf(cfg: GPTConfig) -> Config:
    return written(cfg, NAMES)


def sources(cfg: GPTConfig) -> Sources:
    return sources_of(cfg, TOP, "transformer.h", BLOCK, dict.fromkeys(BLOCK, TURNED))
