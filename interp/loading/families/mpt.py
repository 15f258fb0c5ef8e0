"""MPT: scores that sink with distance (ALiBi), no biases, and queries, keys and values clipped if asked for."""

from interp.config import GPTConfig
from interp.loading.checkpoint import Piece, Sources
from interp.loading.families.common import Config, refuse

PREFIX = "transformer."
IGNORED = ()


def config(hf: Config) -> Config:
    attn = hf.get("attn_config") or {}
    refuse(hf, no_bias=True, expansion_ratio=4, logit_scale=None)
    refuse(attn, alibi=True, alibi_bias_max=8, qk_ln=False, prefix_lm=False, attn_type="multihead_attention")
    return {
        "n_layers": hf["n_layers"],
        "d_model": hf["d_model"],
        "n_heads": hf["n_heads"],
        "d_vocab": hf["vocab_size"],
        "n_ctx": hf["max_seq_len"],
        "act_fn": "gelu",
        "eps": hf.get("layer_norm_epsilon", 1e-5),
        "positional_embedding_type": "alibi",
        "qkv_clip": attn.get("clip_qkv"),
        **({"attn_scale": 1 / attn["softmax_scale"]} if attn.get("softmax_scale") else {}),
        **dict.fromkeys(("bias_qkv", "bias_attn_out", "bias_mlp", "bias_norm"), False),
        "tie_word_embeddings": hf.get("tie_word_embeddings", True),
    }


def sources(cfg: GPTConfig) -> Sources:
    found: Sources = {
        "embed.W_E": [Piece("transformer.wte.weight")],
        "ln_final.w": [Piece("transformer.norm_f.weight")],
    }
    if not cfg.tie_word_embeddings:
        found["unembed.weight"] = [Piece("lm_head.weight")]
    names = {"ln1.w": "norm_1", "ln2.w": "norm_2", "attn.qkv.weight": "attn.Wqkv", "attn.out.weight": "attn.out_proj"}
    names |= {"mlp.up.weight": "ffn.up_proj", "mlp.down.weight": "ffn.down_proj"}
    for layer in range(cfg.n_layers):
        for ours, theirs in names.items():
            found[f"blocks.{layer}.{ours}"] = [Piece(f"transformer.blocks.{layer}.{theirs}.weight")]
    return found
