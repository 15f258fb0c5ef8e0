"""Random small models of every family that we load, made by `transformers`, with sizes that all differ."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.huggingface import random_weights

SMALL: dict[str, Any] = {
    "num_hidden_layers": 3,
    "hidden_size": 24,
    "num_attention_heads": 4,
    "intermediate_size": 27,
    "vocab_size": 31,
    "max_position_embeddings": 40,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
GROUPED: dict[str, Any] = SMALL | {"num_key_value_heads": 2, "head_dim": 10}
LLAMA3: dict[str, Any] = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 12,
}
LONGROPE: dict[str, Any] = {
    "rope_type": "longrope",
    "rope_theta": 500.0,
    "short_factor": [1.0, 1.2, 1.4],
    "long_factor": [1.5, 2.5, 4.0],
    "partial_rotary_factor": 0.75,
}
YARN: dict[str, Any] = {
    "rope_type": "yarn",
    "rope_theta": 500.0,
    "factor": 3.0,
    "beta_fast": 1.5,
    "beta_slow": 0.2,
    "original_max_position_embeddings": 12,
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "GPT-2": ("gpt2", SMALL | {"n_inner": 27}),
    "GPT-J": ("gptj", {**SMALL, "n_inner": 27, "rotary_dim": 4}),
    "GPT-NeoX (Pythia)": ("gpt_neox", SMALL | {"num_attention_heads": 3, "attention_bias": True}),
    "GPT-NeoX, sequential": ("gpt_neox", SMALL | {"num_attention_heads": 3, "use_parallel_residual": False}),
    "GPT-Neo (TinyStories)": (
        "gpt_neo",
        SMALL
        | {"num_layers": 3, "num_heads": 4, "window_size": 5}
        | {"attention_types": [[["global", "local"], 1], [["global"], 1]]},
    ),
    "OPT": ("opt", SMALL | {"ffn_dim": 27, "word_embed_proj_dim": 24}),
    "Llama, unscaled": ("llama", GROUPED),
    "Llama 2 and 3.x": ("llama", GROUPED | {"rope_parameters": LLAMA3, "tie_word_embeddings": True}),
    "Llama, linear scaling": (
        "llama",
        GROUPED | {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}},
    ),
    "Llama, attention bias": ("llama", GROUPED | {"attention_bias": True}),
    "Mistral": ("mistral", GROUPED | {"sliding_window": 6}),
    "Qwen2 / Qwen2.5": ("qwen2", SMALL | {"num_key_value_heads": 2}),
    "Qwen2, windows": (
        "qwen2",
        SMALL | {"num_key_value_heads": 2, "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    ),
    "Qwen3": ("qwen3", GROUPED),
    "Gemma 2": ("gemma2", GROUPED | {"sliding_window": 6, "query_pre_attn_scalar": 10, "attn_logit_softcapping": 3.0}),
    "Phi (1.5, 2)": ("phi", SMALL | {"hidden_size": 32, "num_key_value_heads": 2}),
    "OLMo 2": ("olmo2", SMALL | {"num_key_value_heads": 2}),
    "BLOOM": ("bloom", SMALL | {"num_attention_heads": 3}),
    "MPT": ("mpt", {**SMALL, "num_attention_heads": 3, "max_seq_len": 40, "attn_config": {"clip_qkv": 0.7}}),
    "Falcon": ("falcon", SMALL | {"ffn_hidden_size": 27}),
    "Falcon, 40B": (
        "falcon",
        SMALL | {"ffn_hidden_size": 27, "new_decoder_architecture": True, "num_kv_heads": 2, "bias": True},
    ),
    "Gemma": ("gemma", GROUPED),
    "Gemma 3": (
        "gemma3_text",
        GROUPED
        | {"query_pre_attn_scalar": 11, "sliding_window": 6, "sliding_window_pattern": 3}
        | {"rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e3}}},
    ),
    "Phi 3 and 4": ("phi3", SMALL | {"num_key_value_heads": 2, "sliding_window": 9}),
    "Phi 3, longrope": (
        "phi3",
        SMALL | {"hidden_size": 32, "original_max_position_embeddings": 12, "rope_parameters": LONGROPE},
    ),
    "StableLM": ("stablelm", SMALL | {"hidden_size": 32, "num_key_value_heads": 2, "use_qkv_bias": True}),
    "StableLM, parallel": (
        "stablelm",
        SMALL
        | {"num_key_value_heads": 2, "qk_layernorm": True, "use_parallel_residual": True}
        | {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.34}},
    ),
    "SmolLM3": ("smollm3", SMALL | {"num_key_value_heads": 2, "no_rope_layer_interval": 2}),
    "SmolLM3, windows": (
        "smollm3",
        SMALL
        | {"num_key_value_heads": 2, "no_rope_layers": [1, 0, 0], "use_sliding_window": True, "sliding_window": 5},
    ),
    "Llama, dynamic NTK": (
        "llama",
        GROUPED
        | {"max_position_embeddings": 12}
        | {"rope_parameters": {"rope_type": "dynamic", "factor": 3.0, "rope_theta": 1e4}},
    ),
    "Llama, YaRN": ("llama", GROUPED | {"rope_parameters": YARN}),
    "Qwen3, YaRN": ("qwen3", GROUPED | {"max_position_embeddings": 12, "rope_parameters": YARN}),
}


def random_model(name: str, **changes: Any) -> Any:
    """A model of this family with weights large enough that every part matters."""
    kind, sizes = FAMILIES[name]
    cfg = AutoConfig.for_model(kind, **sizes | changes)
    model = AutoModelForCausalLM.from_config(cfg, attn_implementation="eager", dtype=torch.float32)
    return random_weights(model)


def saved_model(name: str, folder: Path, **how: Any) -> Any:
    """The same, saved as its users would find it."""
    model = random_model(name)
    model.save_pretrained(folder, **how)
    return model
