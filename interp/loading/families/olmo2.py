"""OLMo 2: norms on what each sublayer writes, and on queries and keys over the whole width."""

from interp.config import GPTConfig
from interp.loading.checkpoint import Sources
from interp.loading.families.common import (
    RMS_BLOCK,
    RMS_TOP,
    Config,
    Layout,
    refuse,
    rms_decoder,
    rms_decoder_to_hf,
    sources_of,
)

PREFIX = "model."
IGNORED = ("rotary_emb.inv_freq",)
BLOCK = {ours: theirs for ours, theirs in RMS_BLOCK.items() if ours not in ("ln1", "ln2")}
BLOCK |= {"ln1_post": "post_attention_layernorm", "ln2_post": "post_feedforward_layernorm"}


def config(hf: Config) -> Config:
    refuse(hf, attention_bias=False)
    normed = {"norm_position": "output", "use_qk_norm": True, "qk_norm_over_width": True}
    return rms_decoder(hf, rms_norm_eps=1e-5) | normed


def to_hf(cfg: GPTConfig) -> Config:
    return rms_decoder_to_hf(cfg)


def sources(cfg: GPTConfig) -> Sources:
    by_head = Layout(lambda w: w.unflatten(0, (-1, cfg.d_head)), lambda w: w.flatten())
    return sources_of(cfg, RMS_TOP, "model.layers", BLOCK, {"attn.q_norm": by_head, "attn.k_norm": by_head})
