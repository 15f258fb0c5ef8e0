"""What several families share: reading and writing a `config.json` by one table of names, tensors by another."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf, log, nextafter, sqrt
from typing import Any

import torch
from torch import Tensor

from interp.config import GPTConfig, RopeScaling
from interp.loading.checkpoint import Piece, Sources, same

Config = dict[str, Any]
Names = Mapping[str, str]  # ours -> theirs


# config.json


def refuse(hf: Config, **expected: Any) -> None:
    """Raise if the checkpoint's config has another value than the one that the family is known to have."""
    for name, value in expected.items():
        if hf.get(name) is not None and hf[name] != value:
            raise ValueError(f"config.json has {name}={hf[name]!r}; only {name}={value!r} is supported")


def read(hf: Config, names: Names, **defaults: Any) -> Config:
    """Our fields by their names there; a default is for a name that is absent, or null."""
    whole = defaults | {name: value for name, value in hf.items() if value is not None or name not in defaults}
    found: Config = {ours: whole[theirs] for ours, theirs in names.items()}
    return found | ({"act_fn": activation(found["act_fn"])} if "act_fn" in found else {})


def written(cfg: GPTConfig, names: Names) -> Config:
    """The same, back."""
    return {theirs: getattr(cfg, ours) for ours, theirs in names.items()}


def activation(name: str) -> str:
    """Our name of an activation function."""
    names = {"gelu_python": "gelu", "gelu_fast": "gelu_new", "swish": "silu"}
    return names.get(name, name)


def rope(hf: Config, d_head: int, fraction: float | None = None) -> Config:
    """The fields of rotary positions, from a config of today or of before; `fraction` if the family turns a part."""
    given = dict(hf.get("rope_scaling") or {}) | dict(hf.get("rope_parameters") or {})
    n_ctx = hf["max_position_embeddings"]
    original = hf.get("original_max_position_embeddings") or given.get("original_max_position_embeddings") or n_ctx
    scaling = rope_scaling(given, n_ctx, original)
    if scaling is not None and scaling.kind in ("dynamic", "yarn"):
        n_ctx = max(n_ctx, int(scaling.factor * scaling.original_n_ctx))
    base = given.get("rope_theta", hf.get("rope_theta", hf.get("rotary_emb_base", 10_000.0)))
    if fraction is not None:
        fraction = given.get("partial_rotary_factor", hf.get("partial_rotary_factor", hf.get("rotary_pct", fraction)))
    return {
        "positional_embedding_type": "rotary",
        "rotary_base": float(base),
        "rotary_dim": d_head if fraction is None else int(d_head * fraction),
        "rope_scaling": scaling,
        "n_ctx": n_ctx,
    }


SCALINGS: dict[str, dict[str, str]] = {  # of each kind, what a RopeScaling's fields are called
    "linear": {"factor": "factor"},
    "llama3": {name: name for name in ("factor", "low_freq_factor", "high_freq_factor")},
    "dynamic": {"factor": "factor"},
    "yarn": {
        "factor": "factor",
        "low_freq_factor": "beta_slow",
        "high_freq_factor": "beta_fast",
        "attention_factor": "attention_factor",
    },
    "longrope": {
        "short_factors": "short_factor",
        "long_factors": "long_factor",
        "attention_factor": "attention_factor",
    },
}


def rope_scaling(given: Config, n_ctx: int, original: int) -> RopeScaling | None:
    """What a config says of rotary angles that are slowed."""
    kind = given.get("rope_type", given.get("type", "default"))
    kind = "longrope" if kind == "su" else kind
    if kind == "default":
        return None
    if kind not in SCALINGS:
        raise ValueError(f"config.json has rope_type={kind!r}; supported: {str(('default', *SCALINGS))[1:-1]}")
    refuse(given, truncate=True, mscale_all_dim=0)
    factor = float(given.get("factor") or n_ctx / original)
    defaults: Config = {"factor": factor}
    if kind == "yarn":
        defaults |= {"beta_slow": 1.0, "beta_fast": 32.0, "attention_factor": 0.1 * log(max(factor, 1)) + 1}
    if kind == "longrope":
        defaults["attention_factor"] = sqrt(1 + log(max(factor, 1)) / log(original))
    found: Config = read(given, SCALINGS[kind], **defaults)
    found = {name: tuple(map(float, x)) if isinstance(x, list | tuple) else float(x) for name, x in found.items()}
    if kind != "linear":
        found["original_n_ctx"] = n_ctx if kind == "dynamic" else original
    return RopeScaling(kind=kind, **found)


def rope_to_hf(cfg: GPTConfig, is_partial: bool = False) -> Config:
    """The fields of rotary positions, back."""
    given: Config = {"rope_type": "default", "rope_theta": cfg.rotary_base}
    scaling, n_ctx = cfg.rope_scaling, cfg.n_ctx
    if is_partial:
        part = cfg.rotary_dim / cfg.d_head
        given["partial_rotary_factor"] = part if int(cfg.d_head * part) == cfg.rotary_dim else nextafter(part, inf)
    if scaling is not None:
        given |= {theirs: getattr(scaling, ours) for ours, theirs in SCALINGS[scaling.kind].items()}
        given |= {"rope_type": scaling.kind, "original_max_position_embeddings": scaling.original_n_ctx}
        n_ctx = scaling.original_n_ctx if scaling.kind == "dynamic" else n_ctx
    return {"rope_parameters": given, "max_position_embeddings": n_ctx}


TYPES = {"local": "sliding_attention", "global": "full_attention"}


def windows(hf: Config, is_local: Callable[[int], bool]) -> Config:
    """The fields of sliding windows, where any layer has one: as the config lists them, or as the family has them."""
    ours = {theirs: ours for ours, theirs in TYPES.items()}
    listed = hf.get("layer_types") or [
        TYPES["local" if is_local(i) else "global"] for i in range(hf["num_hidden_layers"])
    ]
    if unknown := [kind for kind in listed if kind not in ours]:
        raise ValueError(f"config.json has layer_types {unknown}; supported: {list(ours)}")
    types = tuple(ours[kind] for kind in listed)
    if hf.get("sliding_window") is None or "local" not in types:
        return {}
    return {"window_size": hf["sliding_window"], "attn_types": types}


def windows_to_hf(cfg: GPTConfig) -> Config:
    """The fields of sliding windows, back."""
    types = [TYPES["local" if cfg.is_local(layer) else "global"] for layer in range(cfg.n_layers)]
    return {"sliding_window": cfg.window_size, "layer_types": types, "use_sliding_window": cfg.window_size is not None}


DECODER: Names = {
    "n_layers": "num_hidden_layers",
    "d_model": "hidden_size",
    "n_heads": "num_attention_heads",
    "n_key_value_heads": "num_key_value_heads",
    "d_head": "head_dim",
    "d_mlp": "intermediate_size",
    "d_vocab": "vocab_size",
    "act_fn": "hidden_act",
    "eps": "rms_norm_eps",
    "tie_word_embeddings": "tie_word_embeddings",
}


def rms_decoder(hf: Config, **defaults: Any) -> Config:
    """The fields of Llama and those that follow it."""
    d_head = hf.get("head_dim") or hf["hidden_size"] // hf["num_attention_heads"]
    usual = {"num_key_value_heads": hf["num_attention_heads"], "head_dim": d_head, "hidden_act": "silu"}
    usual |= {"rms_norm_eps": 1e-6, "tie_word_embeddings": False}
    return {
        **read(hf, DECODER, **usual | defaults),
        "gated_mlp": True,
        "normalization_type": "RMS",
        "bias_qkv": False,
        "bias_attn_out": False,
        "bias_mlp": False,
        **rope(hf, d_head),
    }


def rms_decoder_to_hf(cfg: GPTConfig) -> Config:
    """The same, back."""
    return written(cfg, DECODER) | rope_to_hf(cfg)


# Tensors


@dataclass(frozen=True)
class Layout:
    """How a tensor lies in ours, and how it, or its next part, is made again."""

    view: Callable[[Tensor], Tensor] = same
    back: Callable[[Tensor], Tensor] = same


TURNED = Layout(lambda w: w.T if w.ndim == 2 else w, lambda w: w.T if w.ndim == 2 else w)  # stored [in, out]
LM_HEAD = "lm_head"
QKV = tuple(f"self_attn.{part}_proj" for part in "qkv")
RMS_TOP: dict[str, str] = {"embed": "model.embed_tokens", "ln_final": "model.norm", "unembed": LM_HEAD}
RMS_BLOCK: dict[str, str | tuple[str, ...]] = {
    "ln1": "input_layernorm",
    "attn.qkv": QKV,
    "attn.q_norm": "self_attn.q_norm",
    "attn.k_norm": "self_attn.k_norm",
    "attn.out": "self_attn.o_proj",
    "ln2": "post_attention_layernorm",
    "mlp.gate": "mlp.gate_proj",
    "mlp.up": "mlp.up_proj",
    "mlp.down": "mlp.down_proj",
}


def sources_of(
    cfg: GPTConfig,
    top: Mapping[str, str],
    at: str,
    block: Mapping[str, str | tuple[str, ...]],
    layouts: Mapping[str, Layout] | None = None,
) -> Sources:
    """Where parameters come from, by a table of our modules and theirs: the model's, and a block's below `at`.

    What several of theirs make, one after another, stands in a tuple. A module that the config has not is left out.
    """
    found: Sources = {}
    for ours, theirs in top.items():
        for mine, name in _parameters(cfg, ours).items():
            layout = (layouts or {}).get(ours, Layout())
            found[f"{ours}.{mine}"] = [Piece(f"{theirs}.{name}", layout.view, layout.back)]
    for layer in range(cfg.n_layers):
        for ours, theirs in block.items():
            parts = (theirs,) if isinstance(theirs, str) else theirs
            sizes = _rows(cfg, ours) if len(parts) > 1 else [None]
            layout = (layouts or {}).get(ours, Layout())
            for mine, name in _parameters(cfg, ours).items():
                found[f"blocks.{layer}.{ours}.{mine}"] = [
                    Piece(f"{at}.{layer}.{part}.{name}", layout.view, layout.back, size)
                    for part, size in zip(parts, sizes, strict=True)
                ]
    return found


def _parameters(cfg: GPTConfig, module: str) -> dict[str, str]:
    """The parameters of one of our modules, and what they are called there."""
    if module in ("embed", "pos_embed"):
        return {"W_E" if module == "embed" else "W_pos": "weight"}
    if module.endswith(("q_norm", "k_norm")) and not cfg.use_qk_norm:
        return {}
    if "ln" in module or module.endswith("_norm"):
        gain = {"excess" if cfg.norm_gain_from_one else "w": "weight"}
        return gain | ({"b": "bias"} if cfg.bias_norm and "ln" in module else {})
    if module == "unembed":
        weight = {} if cfg.tie_word_embeddings else {"weight": "weight"}
        return weight | ({"bias": "bias"} if cfg.bias_unembed else {})
    has_bias = {"attn.qkv": cfg.bias_qkv, "attn.out": cfg.bias_attn_out, "mlp.gate": False}.get(module, cfg.bias_mlp)
    return {"weight": "weight"} | ({"bias": "bias"} if has_bias else {})


def _rows(cfg: GPTConfig, module: str) -> list[int]:
    """How many rows each of several tensors makes."""
    if module == "attn.qkv":
        return [n * cfg.d_head for n in (cfg.n_heads, cfg.n_key_value_heads, cfg.n_key_value_heads)]
    return [1] * (cfg.n_heads if module == "attn.q_norm" else cfg.n_key_value_heads)


def by_group(cfg: GPTConfig) -> Layout:
    """One matrix of queries, keys and values, by groups: the queries that share a key, that key, and its value."""
    n_kv, n_queries = cfg.n_key_value_heads, cfg.n_heads // cfg.n_key_value_heads

    def view(rows: Tensor) -> Tensor:
        parts = rows.unflatten(0, (n_kv, n_queries + 2, cfg.d_head)).split((n_queries, 1, 1), 1)
        return torch.cat([part.flatten(0, 2) for part in parts])

    def back(rows: Tensor) -> Tensor:
        parts = rows.unflatten(0, (-1, cfg.d_head)).split((cfg.n_heads, n_kv, n_kv))
        return torch.cat([part.unflatten(0, (n_kv, -1)) for part in parts], 1).flatten(0, 2)

    return Layout(view, back)
