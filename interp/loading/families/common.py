"""What several families share."""

from collections.abc import Callable
from math import log, sqrt
from typing import Any, get_args, get_type_hints

import torch
from torch import Tensor

from interp.config import GPTConfig, RopeScaling
from interp.loading.checkpoint import Piece, Sources

Config = dict[str, Any]


def same(tensor: Tensor) -> Tensor:
    return tensor


def refuse(hf: Config, **expected: Any) -> None:
    """Raise if the checkpoint's config has another value than the one that the family is known to have."""
    for name, value in expected.items():
        if hf.get(name) is not None and hf[name] != value:
            raise ValueError(f"config.json has {name}={hf[name]!r}; only {name}={value!r} is supported")


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


def rope_scaling(given: Config, n_ctx: int, original: int) -> RopeScaling | None:
    """What a config says of rotary angles that are slowed."""
    kind = given.get("rope_type", given.get("type", "default"))
    if kind == "default":
        return None
    factor = float(given.get("factor") or n_ctx / original)
    found: Config = {"kind": "longrope" if kind == "su" else kind, "original_n_ctx": original, "factor": factor}
    if kind == "linear":
        del found["original_n_ctx"]
    elif kind == "llama3":
        found |= {name: float(given[name]) for name in ("low_freq_factor", "high_freq_factor")}
    elif kind == "dynamic":
        found["original_n_ctx"] = n_ctx
    elif kind == "yarn":
        refuse(given, truncate=True, mscale_all_dim=0)
        found |= {
            "low_freq_factor": float(given.get("beta_slow") or 1),
            "high_freq_factor": float(given.get("beta_fast") or 32),
        }
        found["attention_factor"] = given.get("attention_factor") or 0.1 * log(max(factor, 1)) + 1
    elif kind in ("longrope", "su"):
        found |= {f"{name}s": tuple(map(float, given[name])) for name in ("short_factor", "long_factor")}
        found["attention_factor"] = given.get("attention_factor") or sqrt(1 + log(max(factor, 1)) / log(original))
        del found["factor"]
    else:
        kinds = ("default", *get_args(get_type_hints(RopeScaling)["kind"]))
        raise ValueError(f"config.json has rope_type={kind!r}; supported: {str(kinds)[1:-1]}")
    return RopeScaling(**found)


def rms_decoder(hf: Config) -> Config:
    """The fields of Llama and those that follow it."""
    d_head = hf.get("head_dim") or hf["hidden_size"] // hf["num_attention_heads"]
    return {
        "n_layers": hf["num_hidden_layers"],
        "d_model": hf["hidden_size"],
        "n_heads": hf["num_attention_heads"],
        "n_key_value_heads": hf.get("num_key_value_heads") or hf["num_attention_heads"],
        "d_head": d_head,
        "d_mlp": hf["intermediate_size"],
        "d_vocab": hf["vocab_size"],
        "act_fn": activation(hf.get("hidden_act", "silu")),
        "gated_mlp": True,
        "normalization_type": "RMS",
        "eps": hf.get("rms_norm_eps", 1e-6),
        "bias_qkv": False,
        "bias_attn_out": False,
        "bias_mlp": False,
        "tie_word_embeddings": hf.get("tie_word_embeddings", False),
        **rope(hf, d_head),
    }


def layer_types(hf: Config, is_local: Callable[[int], bool]) -> tuple[str, ...]:
    """Each layer's attention, as the config lists it or as the family has it."""
    listed = hf.get("layer_types")
    if listed is None:
        return tuple("local" if is_local(layer) else "global" for layer in range(hf["num_hidden_layers"]))
    names = {"sliding_attention": "local", "full_attention": "global"}
    if unknown := [kind for kind in listed if kind not in names]:
        raise ValueError(f"config.json has layer_types {unknown}; supported: {list(names)}")
    return tuple(names[kind] for kind in listed)


def windows(hf: Config, is_local: Callable[[int], bool]) -> Config:
    """The fields of sliding windows, where any layer has one."""
    types = layer_types(hf, is_local)
    if hf.get("sliding_window") is None or "local" not in types:
        return {}
    return {"window_size": hf["sliding_window"], "attn_types": types}


def rms_decoder_sources(cfg: GPTConfig, norms: dict[str, str]) -> Sources:
    """Where the parameters of Llama and those that follow it come from; `norms` are a block's."""
    sources: Sources = {
        "embed.W_E": [Piece("model.embed_tokens.weight")],
        gain(cfg, "ln_final"): [Piece("model.norm.weight")],
    }
    if not cfg.tie_word_embeddings:
        sources["unembed.weight"] = [Piece("lm_head.weight")]
    for layer in range(cfg.n_layers):
        ours, theirs = f"blocks.{layer}", f"model.layers.{layer}"
        sources |= attention(cfg, f"{ours}.attn", f"{theirs}.self_attn", out="o_proj")
        for our_name, their_name in (("gate", "gate_proj"), ("up", "up_proj"), ("down", "down_proj")):
            sources[f"{ours}.mlp.{our_name}.weight"] = [Piece(f"{theirs}.mlp.{their_name}.weight")]
        for our_name, their_name in norms.items():
            sources[gain(cfg, f"{ours}.{our_name}")] = [Piece(f"{theirs}.{their_name}.weight")]
    return sources


def attention(cfg: GPTConfig, ours: str, theirs: str, out: str) -> Sources:
    """Attention whose queries, keys and values are matrices of their own."""
    parts = [f"{theirs}.{part}_proj" for part in "qkv"]
    sources = {f"{ours}.qkv.weight": [Piece(f"{part}.weight") for part in parts]}
    sources[f"{ours}.out.weight"] = [Piece(f"{theirs}.{out}.weight")]
    if cfg.bias_qkv:
        sources[f"{ours}.qkv.bias"] = [Piece(f"{part}.bias") for part in parts]
    if cfg.bias_attn_out:
        sources[f"{ours}.out.bias"] = [Piece(f"{theirs}.{out}.bias")]
    return sources


def fused(cfg: GPTConfig, ours: str, theirs: str) -> Sources:
    """Attention with one matrix of queries, keys and values, by groups: the queries that share a key, it, its value."""
    n_kv, n_queries = cfg.n_key_value_heads, cfg.n_heads // cfg.n_key_value_heads

    def apart(rows: Tensor) -> Tensor:
        parts = rows.unflatten(0, (n_kv, n_queries + 2, cfg.d_head)).split((n_queries, 1, 1), 1)
        return torch.cat([part.flatten(0, 2) for part in parts])

    kinds = ("weight", "bias") if cfg.bias_qkv else ("weight",)
    sources: Sources = {f"{ours}.qkv.{kind}": [Piece(f"{theirs}.query_key_value.{kind}", apart)] for kind in kinds}
    return sources | linear(f"{ours}.out", f"{theirs}.dense", cfg.bias_attn_out)


def head_norms(cfg: GPTConfig) -> Sources:
    """Norms of queries and keys under the names that most give them."""
    of_each = [(layer, name) for layer in range(cfg.n_layers) for name in ("q_norm", "k_norm")]
    return {
        gain(cfg, f"blocks.{layer}.attn.{name}"): [Piece(f"model.layers.{layer}.self_attn.{name}.weight")]
        for layer, name in of_each
    }


def gain(cfg: GPTConfig, norm: str) -> str:
    """The parameter that a norm's gain is kept in."""
    return f"{norm}.excess" if cfg.norm_gain_from_one else f"{norm}.w"


def linear(ours: str, theirs: str, has_bias: bool) -> Sources:
    """A matrix, and its bias where it has one."""
    return with_bias(ours, theirs) if has_bias else {f"{ours}.weight": [Piece(f"{theirs}.weight")]}


def with_bias(ours: str, theirs: str, view: Callable[[Tensor], Tensor] = same) -> Sources:
    """A matrix and its bias."""
    return {f"{ours}.weight": [Piece(f"{theirs}.weight", view)], f"{ours}.bias": [Piece(f"{theirs}.bias")]}


def layer_norm(ours: str, theirs: str) -> Sources:
    """A LayerNorm's gain and bias."""
    return {f"{ours}.w": [Piece(f"{theirs}.weight")], f"{ours}.b": [Piece(f"{theirs}.bias")]}
