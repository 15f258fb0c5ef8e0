"""GPT-Neo: GPT-2 with a window in every other layer, and scores that nothing divides."""

from interp.config import GPTConfig
from interp.loading.checkpoint import Sources
from interp.loading.families import gpt2
from interp.loading.families.common import Config, read, sources_of, written

PREFIX = "transformer."
IGNORED = (".attn.attention.bias", ".attn.attention.masked_bias")
NAMES = gpt2.NAMES | {
    "n_layers": "num_layers",
    "d_model": "hidden_size",
    "n_heads": "num_heads",
    "d_mlp": "intermediate_size",
    "n_ctx": "max_position_embeddings",
}
QKV = tuple(f"attn.attention.{part}_proj" for part in "qkv")
BLOCK = gpt2.BLOCK | {"attn.qkv": QKV, "attn.out": "attn.attention.out_proj"}


def config(hf: Config) -> Config:
    types = tuple(kind for kinds, n in hf["attention_types"] for _ in range(n) for kind in kinds)
    windows = {"window_size": hf.get("window_size", 256), "attn_types": types} if "local" in types else {}
    fixed = {"attn_scale": 1.0, "bias_qkv": False}
    return read(hf, NAMES, **gpt2.DEFAULTS, intermediate_size=4 * hf["hidden_size"]) | fixed | windows


def to_hf(cfg: GPTConfig) -> Config:
    types = ["local" if cfg.is_local(layer) else "global" for layer in range(cfg.n_layers)]
    return written(cfg, NAMES) | {"attention_types": [[types, 1]], "window_size": cfg.window_size or 256}


def sources(cfg: GPTConfig) -> Sources:
    return sources_of(cfg, gpt2.TOP, "transformer.h", BLOCK)
