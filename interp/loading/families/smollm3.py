"""SmolLM3: Llama with layers that do not turn, every fourth unless listed."""

from interp.config import GPTConfig
from interp.loading.checkpoint import Sources
from interp.loading.families.common import Config, rms_decoder_sources, windows
from interp.loading.families.llama import NORMS
from interp.loading.families.llama import config as llama

PREFIX = "model."
IGNORED = ("rotary_emb.inv_freq",)


def config(hf: Config) -> Config:
    every = hf.get("no_rope_layer_interval", 4)
    listed = hf.get("no_rope_layers") or [
        (layer + 1) % every for layer in range(hf["num_hidden_layers"])
    ]  # 0: it stays
    turning = tuple(bool(turns) for turns in listed)
    found = llama({"rope_theta": 2e6, "tie_word_embeddings": True} | hf)
    found["rotary_layers"] = None if all(turning) else turning
    return found | (windows(hf, lambda layer: not turning[layer]) if hf.get("use_sliding_window", False) else {})


def sources(cfg: GPTConfig) -> Sources:
    return rms_decoder_sources(cfg, NORMS)
