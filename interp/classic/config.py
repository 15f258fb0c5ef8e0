"""HookedTransformerConfig: a `GPTConfig` that is written, read and changed in the classic names."""

# pyright: reportIncompatibleMethodOverride=false
# What is overridden is called in the classic way here.

import random
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np
import torch

from interp.config import DTYPES, GPTConfig, RopeScaling

_NATIVE = {field.name for field in fields(GPTConfig)}
_NUMBERS = ("rotary_base", "eps", "attn_scale", "attn_scores_soft_cap", "output_logits_soft_cap", "initializer_range")
# What only says how a call behaves, or describes the model: it may be set at any time.
_FREE: dict[str, Any] = {
    "model_name": "custom", "original_architecture": None, "tokenizer_name": None, "init_weights": True,
    "from_checkpoint": False, "checkpoint_index": None, "checkpoint_label_type": None, "checkpoint_value": None,
    "use_attn_result": False, "use_split_qkv_input": False, "use_hook_mlp_in": False, "use_attn_in": False,
    "ungroup_grouped_query_attention": False, "tokenizer_prepends_bos": None, "trust_remote_code": False,
    "layer_norm_folding": False,
}  # fmt: skip
_RENAMED = {"post_embedding_ln": "embed_norm", "clip_qkv": "qkv_clip", "rotary_base_local": "local_rotary_base"}
# What becomes a field of another name, or has another way to say that there is none.
_TRANSLATED: dict[str, Any] = {
    "use_attn_scale": True, "use_local_attn": False, "use_normalization_before_and_after": False,
    "rotary_scaling_factor": 1.0, "use_NTK_by_parts_rope": False, "NTK_by_parts_low_freq_factor": 1.0,
    "NTK_by_parts_high_freq_factor": 4.0, "NTK_by_parts_factor": 8.0, "NTK_original_ctx_len": 8192,
    "use_yarn_rope": False, "yarn_factor": 1.0, "yarn_attention_factor": 1.0, "yarn_beta_fast": 32.0,
    "yarn_beta_slow": 1.0, "yarn_original_max_position_embeddings": 4096,
    "uses_rms_norm": False, "n_params": None,
    "post_embedding_ln": False, "clip_qkv": None, "rotary_base_local": None,
}  # fmt: skip
# What asks for something that is not here, unless it has this value.
_MISSING: dict[str, Any] = {
    "final_rms": False, "scale_attn_by_inverse_layer_idx": False, "num_experts": None,
    "experts_per_token": None, "load_in_4bit": False, "quantization_method": None, "use_hook_tokens": False,
    "relative_attention_max_distance": None, "relative_attention_num_buckets": None, "decoder_start_token_id": None,
    "use_logn_attn": False, "train_seq_length": None, "use_dynamic_ntk_rope": False, "yarn_truncate": True,
    "yarn_global_attn_only": False, "use_attention_sinks": False, "norm_topk_prob": False,
    "n_devices": 1,
}  # fmt: skip
_CLASSIC = _FREE | _TRANSLATED | _MISSING
_SEALED = "_is_sealed"


class HookedTransformerConfig(GPTConfig):
    """The classic fields with their defaults; any field of `GPTConfig` is known as well.

    A field that would have no effect here is refused by its name. Fields can be changed until a model is built of the
    config, and later those that only say how calls behave.
    """

    def __init__(self, **given: Any) -> None:
        self.__dict__.update(_made(given))

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _FREE or (name == "default_prepend_bos" and self.__dict__.get(_SEALED)):
            self.__dict__[name] = value
        elif self.__dict__.get(_SEALED):
            raise AttributeError(f"{name} is settled: a model was built of this config; make another of to_dict()")
        else:
            self.__dict__.update(_made({**self.__dict__["_given"], name: value}))

    def seal(self) -> None:
        """From now on the model's shape stays as it is."""
        self.__dict__[_SEALED] = True

    @classmethod
    def from_dict(cls, config_dict: Mapping[str, Any]) -> "HookedTransformerConfig":
        """The config of these fields, classic or native."""
        return cls(**config_dict)

    @classmethod
    def unwrap(cls, config: "HookedTransformerConfig | Mapping[str, Any]") -> "HookedTransformerConfig":
        """The config itself, or that of a dict."""
        return cls.from_dict(config) if isinstance(config, Mapping) else config

    @classmethod
    def of(cls, cfg: GPTConfig, **more: Any) -> "HookedTransformerConfig":
        """A native config in the classic names."""
        return cls(**{name: getattr(cfg, name) for name in _NATIVE}, **more)

    def of_size(self, d_vocab: int) -> "HookedTransformerConfig":
        """The same for a vocabulary of this size."""
        return type(self)(**{**self.__dict__["_given"], **self.described(), "d_vocab": d_vocab})

    def described(self) -> dict[str, Any]:
        """The fields that only describe the model, or say how calls behave."""
        return {name: getattr(self, name) for name in _FREE}

    def native(self) -> GPTConfig:
        """The same without the classic names."""
        return GPTConfig(**{name: getattr(self, name) for name in _NATIVE})

    def is_layer_norm_activation(self) -> bool:
        """Whether neurons pass a norm behind their activation."""
        return self.act_fn == "solu_ln"

    @staticmethod
    def set_seed_everywhere(seed: int) -> None:
        """Seed torch, NumPy and Python."""
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)

    def __repr__(self) -> str:
        shown = {name: value for name, value in self.__dict__.items() if not name.startswith("_")}
        changed = {name: value for name, value in shown.items() if value != _CLASSIC.get(name, _CLASSIC)}
        return f"HookedTransformerConfig({', '.join(f'{name}={value!r}' for name, value in changed.items())})"


def _made(given: dict[str, Any]) -> dict[str, Any]:
    """The attributes of a config of which this was given."""
    if unknown := sorted(set(given) - _NATIVE - set(_CLASSIC)):
        raise ValueError(f"unknown config fields: {unknown}; see interp.classic.config")
    if missing := [f"{name}={given[name]!r}" for name in _MISSING if given.get(name, _MISSING[name]) != _MISSING[name]]:
        raise ValueError(f"these fields ask for what interp has not: {missing}; loading a checkpoint may know more")
    classic = {**_CLASSIC, **{name: value for name, value in given.items() if name in _CLASSIC}}
    if idle := _idle(given, classic):
        raise ValueError(f"these fields would have no effect: {idle}")
    native = GPTConfig(**_translated(given, classic))
    values = {name: getattr(native, name) for name in _NATIVE}
    if given.get("d_vocab", -1) == -1:
        values |= {"d_vocab": -1, "d_vocab_out": given.get("d_vocab_out", -1)}
    classic["n_params"] = _n_params(native)
    return {**classic, **values, "_given": given}


def _idle(given: dict[str, Any], classic: dict[str, Any]) -> list[str]:
    """What was asked for in vain: details of what is not switched on."""
    details: dict[str, Any] = {}
    if not classic["use_NTK_by_parts_rope"]:
        details |= {name: value for name, value in _TRANSLATED.items() if name.startswith("NTK")}
    if not classic["use_yarn_rope"]:
        details |= {name: value for name, value in _TRANSLATED.items() if name.startswith("yarn")}
    if given.get("positional_embedding_type") != "rotary":
        details |= {"rotary_dim": 0, "rotary_base": 10_000, "rotary_adjacent_pairs": False, "use_yarn_rope": False}
    if classic["use_local_attn"] and given.get("window_size") is None:
        details |= {"use_local_attn": False}
    return [f"{name}={given[name]!r}" for name, idle in details.items() if given.get(name) not in (None, -1, idle)]


def _n_params(cfg: GPTConfig) -> int:
    """The weights of attention and MLPs, as the literature counts them: without embeddings, biases and norms."""
    return cfg.n_layers * cfg.d_model * (4 * cfg.d_head * cfg.n_heads + cfg.d_mlp * (2 + cfg.gated_mlp))


def _translated(given: dict[str, Any], classic: dict[str, Any]) -> dict[str, Any]:
    """The fields of a `GPTConfig`. A value that stands for none is left out, so that the native default fills it."""
    fields: dict[str, Any] = {
        name: float(value) if name in _NUMBERS else value
        for name, value in given.items()
        if name in _NATIVE and value is not None and not (isinstance(value, int | float) and value == -1)
    }
    fields.setdefault("d_vocab", 1)  # a tokenizer will say
    if "n_heads" not in fields and "d_model" in fields and "d_head" in fields:
        fields["n_heads"] = fields["d_model"] // fields["d_head"]
    if isinstance(fields.get("rope_scaling"), Mapping):
        fields["rope_scaling"] = RopeScaling(**fields["rope_scaling"])
    if isinstance(fields.get("dtype"), str):
        fields["dtype"] = DTYPES[fields["dtype"].removeprefix("torch.")]
    if given.get("normalization_type", "LN") is None:
        fields["normalization_type"] = None
    if given.get("positional_embedding_type", "standard") is None:
        fields["positional_embedding_type"] = None
    if classic["uses_rms_norm"]:
        fields["normalization_type"] = "RMS"
    if not classic["use_attn_scale"]:
        fields["attn_scale"] = 1.0
    if not classic["use_local_attn"] and "use_local_attn" in given:
        for name in ("window_size", "attn_types"):
            fields.pop(name, None)
    for name, ours in _RENAMED.items():
        if classic[name]:
            fields[ours] = classic[name] if ours == "embed_norm" else float(classic[name])
    if "attn_types" in fields:
        fields["attn_types"] = tuple(fields["attn_types"])
    if classic["use_normalization_before_and_after"]:
        fields["norm_position"] = "both"
    if classic["use_NTK_by_parts_rope"]:
        factors = {part: classic[f"NTK_by_parts_{part}"] for part in ("factor", "low_freq_factor", "high_freq_factor")}
        fields["rope_scaling"] = RopeScaling(kind="llama3", original_n_ctx=classic["NTK_original_ctx_len"], **factors)
    elif classic["use_yarn_rope"]:
        fields["rope_scaling"] = RopeScaling(
            kind="yarn",
            factor=classic["yarn_factor"],
            low_freq_factor=classic["yarn_beta_slow"],
            high_freq_factor=classic["yarn_beta_fast"],
            original_n_ctx=classic["yarn_original_max_position_embeddings"],
            attention_factor=classic["yarn_attention_factor"],
        )
    elif classic["rotary_scaling_factor"] != 1.0:
        fields["rope_scaling"] = RopeScaling(kind="linear", factor=classic["rotary_scaling_factor"])
    if fields.get("positional_embedding_type") != "rotary":  # the classic defaults come along with a dict of all fields
        for name in ("rotary_dim", "rotary_base", "rotary_adjacent_pairs"):
            fields.pop(name, None)
    if fields.get("attn_only"):
        for name in ("d_mlp", "act_fn", "gated_mlp", "bias_mlp"):
            fields.pop(name, None)
    else:
        given_act = fields.setdefault("act_fn", "relu")
        fields["act_fn"] = "gelu_new" if given_act == "gelu_fast" else given_act  # the same function
    is_made_here = "bias_qkv" not in given  # classic models have every bias
    if is_made_here:
        fields |= {"bias_unembed": True}
    return fields
