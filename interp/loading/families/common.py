"""What several families share."""

from collections.abc import Callable
from typing import Any

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
    kind = given.get("rope_type", given.get("type", "default"))
    scaling = None
    if kind == "linear":
        scaling = RopeScaling(kind="linear", factor=float(given["factor"]))
    elif kind == "llama3":
        names = {"factor": "factor", "low_freq_factor": "low_freq_factor", "high_freq_factor": "high_freq_factor"}
        numbers = {ours: float(given[theirs]) for ours, theirs in names.items()}
        scaling = RopeScaling(kind="llama3", original_n_ctx=given["original_max_position_embeddings"], **numbers)
    elif kind != "default":
        raise ValueError(f"config.json has rope_type={kind!r}; supported: 'default', 'linear', 'llama3'")
    base = given.get("rope_theta", hf.get("rope_theta", hf.get("rotary_emb_base", 10_000.0)))
    if fraction is not None:
        fraction = given.get("partial_rotary_factor", hf.get("partial_rotary_factor", hf.get("rotary_pct", fraction)))
    return {
        "positional_embedding_type": "rotary",
        "rotary_base": float(base),
        "rotary_dim": d_head if fraction is None else int(d_head * fraction),
        "rope_scaling": scaling,
    }


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
        "n_ctx": hf["max_position_embeddings"],
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


def rms_decoder_sources(cfg: GPTConfig, norms: dict[str, str], norm_view: Callable[[Tensor], Tensor] = same) -> Sources:
    """Where the parameters of Llama and those that follow it come from; `norms` are a block's."""
    sources: Sources = {
        "embed.W_E": [Piece("model.embed_tokens.weight")],
        "ln_final.w": [Piece("model.norm.weight", norm_view)],
    }
    if not cfg.tie_word_embeddings:
        sources["unembed.weight"] = [Piece("lm_head.weight")]
    for layer in range(cfg.n_layers):
        ours, theirs = f"blocks.{layer}", f"model.layers.{layer}"
        sources |= attention(cfg, f"{ours}.attn", f"{theirs}.self_attn", out="o_proj")
        for our_name, their_name in (("gate", "gate_proj"), ("up", "up_proj"), ("down", "down_proj")):
            sources[f"{ours}.mlp.{our_name}.weight"] = [Piece(f"{theirs}.mlp.{their_name}.weight")]
        for our_name, their_name in norms.items():
            sources[f"{ours}.{our_name}.w"] = [Piece(f"{theirs}.{their_name}.weight", norm_view)]
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


def with_bias(ours: str, theirs: str, view: Callable[[Tensor], Tensor] = same) -> Sources:
    """A matrix and its bias."""
    return {f"{ours}.weight": [Piece(f"{theirs}.weight", view)], f"{ours}.bias": [Piece(f"{theirs}.bias")]}


def layer_norm(ours: str, theirs: str) -> Sources:
    """A LayerNorm's gain and bias."""
    return {f"{ours}.w": [Piece(f"{theirs}.weight")], f"{ours}.b": [Piece(f"{theirs}.bias")]}
