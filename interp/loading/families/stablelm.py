"""StableLM: Llama with LayerNorms, a part of each head turning, and norms on queries and keys if asked for."""

from interp.config import GPTConfig
from interp.loading.checkpoint import Piece, Sources
from interp.loading.families.common import Config, layer_norm, rms_decoder, rms_decoder_sources, rope

PREFIX = "model."
IGNORED = ("rotary_emb.inv_freq",)


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


def sources(cfg: GPTConfig) -> Sources:
    norms = {"ln1": "input_layernorm"} | ({} if cfg.parallel_shared_norm else {"ln2": "post_attention_layernorm"})
    found = rms_decoder_sources(cfg, {}) | layer_norm("ln_final", "model.norm")
    for layer in range(cfg.n_layers):
        ours, theirs = f"blocks.{layer}", f"model.layers.{layer}"
        for our_name, their_name in norms.items():
            found |= layer_norm(f"{ours}.{our_name}", f"{theirs}.{their_name}")
        sizes = {"q": cfg.n_heads, "k": cfg.n_key_value_heads} if cfg.use_qk_norm else {}
        for part, n in sizes.items():
            gains = [f"{theirs}.self_attn.{part}_layernorm.norms.{head}.weight" for head in range(n)]
            found[f"{ours}.attn.{part}_norm.w"] = [Piece(name, lambda w: w[None]) for name in gains]
    return found
