"""StableLM: Llama with LayerNorms, a part of each head turning, and norms on queries and keys if asked for."""

from interp.config import GPTConfig
from interp.loading.checkpoint import Sources
from interp.loading.families.common import (
    RMS_BLOCK,
    RMS_TOP,
    Config,
    Layout,
    rms_decoder,
    rms_decoder_to_hf,
    rope,
    rope_to_hf,
    sources_of,
)

PREFIX = "model."
IGNORED = ("rotary_emb.inv_freq",)
ONE_HEAD = Layout(lambda w: w[None], lambda w: w[0])


def config(hf: Config) -> Config:
    has_qk_norm, is_parallel = hf.get("qk_layernorm", False), hf.get("use_parallel_residual", False)
    return rms_decoder(hf | {"head_dim": None}) | {
        "normalization_type": "LN",
        "eps": hf.get("layer_norm_eps", 1e-5),
        "bias_qkv": hf.get("use_qkv_bias", False),
        "use_qk_norm": has_qk_norm,
        "qk_layer_norm": has_qk_norm,
        "parallel_attn_mlp": is_parallel,
        "parallel_shared_norm": is_parallel,
        **rope(hf, hf["hidden_size"] // hf["num_attention_heads"], fraction=0.25),
    }


def to_hf(cfg: GPTConfig) -> Config:
    choices = {"use_qkv_bias": cfg.bias_qkv, "qk_layernorm": cfg.use_qk_norm}
    choices |= {"use_parallel_residual": cfg.parallel_attn_mlp, "layer_norm_eps": cfg.eps}
    return rms_decoder_to_hf(cfg) | rope_to_hf(cfg, is_partial=True) | choices


def sources(cfg: GPTConfig) -> Sources:
    norms = {"q": cfg.n_heads, "k": cfg.n_key_value_heads}
    block = RMS_BLOCK | {
        f"attn.{part}_norm": tuple(f"self_attn.{part}_layernorm.norms.{head}" for head in range(n))
        for part, n in norms.items()
    }
    if cfg.parallel_shared_norm:
        del block["ln2"]
    return sources_of(cfg, RMS_TOP, "model.layers", block, {"attn.q_norm": ONE_HEAD, "attn.k_norm": ONE_HEAD})
