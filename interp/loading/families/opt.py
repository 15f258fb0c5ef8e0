"""OPT, but for the 350M model with its norms after each sum."""

import torch

from interp.config import GPTConfig
from interp.loading.checkpoint import Sources
from interp.loading.families.common import LM_HEAD, QKV, Config, Layout, read, refuse, sources_of, written

PREFIX = "model."
IGNORED = ()
NAMES = {
    "n_layers": "num_hidden_layers",
    "d_model": "hidden_size",
    "n_heads": "num_attention_heads",
    "d_mlp": "ffn_dim",
    "d_vocab": "vocab_size",
    "n_ctx": "max_position_embeddings",
    "act_fn": "activation_function",
    "tie_word_embeddings": "tie_word_embeddings",
}
TOP = {
    "embed": "model.decoder.embed_tokens",
    "pos_embed": "model.decoder.embed_positions",
    "ln_final": "model.decoder.final_layer_norm",
    "unembed": LM_HEAD,
}
BLOCK = {
    "ln1": "self_attn_layer_norm",
    "attn.qkv": QKV,
    "attn.out": "self_attn.out_proj",
    "ln2": "final_layer_norm",
    "mlp.up": "fc1",
    "mlp.down": "fc2",
}
AFTER_TWO = Layout(lambda rows: rows[2:], lambda rows: torch.cat((torch.zeros_like(rows[:2]), rows)))  # padding's


def config(hf: Config) -> Config:
    refuse(hf, do_layer_norm_before=True, _remove_final_layer_norm=False, enable_bias=True)
    refuse(hf, layer_norm_elementwise_affine=True, word_embed_proj_dim=hf["hidden_size"])
    return read(hf, NAMES, activation_function="relu", tie_word_embeddings=True)


def to_hf(cfg: GPTConfig) -> Config:
    return written(cfg, NAMES) | {"word_embed_proj_dim": cfg.d_model}


def sources(cfg: GPTConfig) -> Sources:
    return sources_of(cfg, TOP, "model.decoder.layers", BLOCK, {"pos_embed": AFTER_TWO})
