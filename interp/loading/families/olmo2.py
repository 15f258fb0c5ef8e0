"""OLMo 2: norms on what each sublayer writes, and on queries and keys over the whole width."""

from interp.config import GPTConfig
from interp.loading.checkpoint import Piece, Sources
from interp.loading.families.common import Config, refuse, rms_decoder, rms_decoder_sources

PREFIX = "model."
IGNORED = ("rotary_emb.inv_freq",)
NORMS = {"ln1_post": "post_attention_layernorm", "ln2_post": "post_feedforward_layernorm"}


def config(hf: Config) -> Config:
    refuse(hf, attention_bias=False)
    normed = {"norm_position": "output", "use_qk_norm": True, "qk_norm_over_width": True}
    return rms_decoder({"rms_norm_eps": 1e-5} | hf) | normed


def sources(cfg: GPTConfig) -> Sources:
    found = rms_decoder_sources(cfg, NORMS)
    for layer in range(cfg.n_layers):
        for name in ("q_norm", "k_norm"):
            theirs = f"model.layers.{layer}.self_attn.{name}.weight"
            by_head = lambda w: w.unflatten(0, (-1, cfg.d_head))
            found[f"blocks.{layer}.attn.{name}.w"] = [Piece(theirs, by_head)]
    return found
