"""SmolLM3: Llama with layers that do not turn, every fourth unless listed."""

from interp.config import GPTConfig
from interp.loading.families import llama
from interp.loading.families.common import Config, windows, windows_to_hf
from interp.loading.families.llama import IGNORED, PREFIX, sources

__all__ = ["IGNORED", "PREFIX", "config", "sources", "to_hf"]


def config(hf: Config) -> Config:
    every = hf.get("no_rope_layer_interval", 4)
    listed = hf.get("no_rope_layers") or [
        (layer + 1) % every for layer in range(hf["num_hidden_layers"])
    ]  # 0: it stays
    turning = tuple(bool(turns) for turns in listed)
    found = llama.config({"rope_theta": 2e6, "tie_word_embeddings": True} | hf)
    found["rotary_layers"] = None if all(turning) else turning
    return found | (windows(hf, lambda layer: not turning[layer]) if hf.get("use_sliding_window", False) else {})


def to_hf(cfg: GPTConfig) -> Config:
    turning = [int(cfg.turns(layer)) for layer in range(cfg.n_layers)]
    return llama.to_hf(cfg) | windows_to_hf(cfg) | {"no_rope_layers": turning}
