"""Qwen 3: Llama with an RMSNorm on the queries and keys of each head."""

from interp.config import GPTConfig
from interp.loading.families import llama
from interp.loading.families.common import Config, windows_to_hf
from interp.loading.families.llama import IGNORED, PREFIX, sources
from interp.loading.families.qwen2 import late_windows

__all__ = ["IGNORED", "PREFIX", "config", "sources", "to_hf"]


def config(hf: Config) -> Config:
    return llama.config(hf) | {"use_qk_norm": True} | late_windows(hf)


def to_hf(cfg: GPTConfig) -> Config:
    return llama.to_hf(cfg) | windows_to_hf(cfg)
