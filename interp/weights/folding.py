"""New models that compute the same with simpler weights; the model that is given stays as it is.

Each of these refuses where the outputs would not be equal, or what it promises not hold.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from interp.config import GPTConfig
from interp.model import HookedGPT
from interp.model.block import SharedNormBlock
from interp.weights.stream import embeddings

Weights = dict[str, Tensor]  # by their names in the state_dict, in float64


@torch.no_grad()
def fold_norms(model: HookedGPT) -> HookedGPT:
    """The same logits, with the gains and biases of norms folded into what reads past them.

    That is W_Q, W_K, W_V, the MLPs' inputs, W_out where neurons are normed, and W_U, which is then no longer tied;
    `normalization_type` becomes "LNPre" or "RMSPre". A norm of embeddings becomes a part of W_E. (Norms on queries and
    keys stay.) Refused where a norm writes to the stream, which nothing can take in, and where queries and keys read
    positions past no norm.
    """
    cfg = model.cfg
    if cfg.normalization_type not in ("LN", "RMS"):
        return like(model, _weights(model))
    if cfg.norm_position != "pre":
        raise ValueError(
            f"norm_position={cfg.norm_position!r}: what these norms put out goes into the stream, "
            "so no matrix can take in their gains; fold_norms needs 'pre'"
        )
    if cfg.is_shortformer:
        raise ValueError(
            "positional_embedding_type='shortformer': queries and keys read positions that have passed no norm, "
            "so no gain can go into W_Q and W_K"
        )
    if cfg.gated_mlp and cfg.bias_norm:
        raise ValueError("gated_mlp=True with bias_norm=True: the gate has no bias to take in the norm's")
    old, weights = _weights(model), _weights(model)
    if cfg.norm_gain_from_one:
        old |= {name.replace(".excess", ".w"): 1 + w for name, w in old.items() if name.endswith(".excess")}
        weights = {name.replace(".excess", ".w"): old[name.replace(".excess", ".w")] for name in weights}
    for name in [name for name in weights if name.endswith((".w", ".b")) and ".ln" in f".{name}"]:
        del weights[name]
    for layer, block in enumerate(model.blocks):
        at = f"blocks.{layer}."
        _fold(old, weights, at + "ln1", at + "attn.qkv")
        if not cfg.attn_only:
            before = at + ("ln1" if isinstance(block, SharedNormBlock) else "ln2")
            _fold(old, weights, before, at + "mlp.up")
            if cfg.gated_mlp:
                _fold(old, weights, before, at + "mlp.gate")
            if cfg.bias_norm and not cfg.bias_mlp:
                weights[at + "mlp.down.bias"] = old["embed.W_E"].new_zeros(cfg.d_model)
            if f"{at}mlp.ln.w" in old:
                _fold(old, weights, at + "mlp.ln", at + "mlp.down")
    weights["unembed.weight"] = old[_unembedding(cfg)]
    if cfg.embed_norm:
        weights["embed.W_E"] = embeddings(model).double()
    _fold(old | weights, weights, "ln_final", "unembed")
    biases = dict.fromkeys(("bias_qkv", "bias_unembed"), True) | {"bias_mlp": not cfg.attn_only}
    changes = (biases if cfg.bias_norm else {}) | {"normalization_type": f"{cfg.normalization_type}Pre"}
    changes |= {"embed_scale": 1.0, "embed_norm": False} if cfg.embed_norm else {}
    return like(model, weights, bias_norm=False, norm_gain_from_one=False, tie_word_embeddings=False, **changes)


def _fold(old: Weights, weights: Weights, norm: str, reader: str) -> None:
    """Take a norm's gain and bias into the matrix that reads past it."""
    matrix = old[f"{reader}.weight"]
    weights[f"{reader}.weight"] = matrix * old[f"{norm}.w"]
    if f"{norm}.b" in old:
        bias = matrix @ old[f"{norm}.b"]
        weights[f"{reader}.bias"] = bias + old[f"{reader}.bias"] if f"{reader}.bias" in old else bias


@torch.no_grad()
def center_writes(model: HookedGPT) -> HookedGPT:
    """The same logits, with all weights that write to the stream of mean 0 over d_model.

    Every LayerNorm that reads the stream subtracts that mean anyway. W_U, if it is tied, is no longer. Sinusoidal
    positions are no weights, and stay.
    """
    cfg = model.cfg
    if cfg.normalization_type not in ("LN", "LNPre"):
        why = "nothing subtracts" if cfg.normalization_type is None else "an RMSNorm does not subtract"
        raise ValueError(
            f"normalization_type={cfg.normalization_type!r}: {why} the mean of the stream, "
            "so it counts; center_writes needs 'LN' or 'LNPre'"
        )
    if cfg.norm_position != "pre":
        raise ValueError(
            f"norm_position={cfg.norm_position!r}: not all that is read of the stream is centred first, or not all "
            "that is written is a weight; center_writes needs 'pre'"
        )
    if cfg.embed_norm:
        raise ValueError("embed_norm=True: what it writes to the stream is no weight; fold_norms makes it one")
    weights = _weights(model)
    weights["unembed.weight"] = weights[_unembedding(cfg)].clone()
    for name, weight in weights.items():
        if name == "embed.W_E" or (name == "pos_embed.W_pos" and cfg.adds_positions):
            weight -= weight.mean(1, keepdim=True)
        elif name.endswith(("attn.out.weight", "attn.out.bias", "mlp.down.weight", "mlp.down.bias")):
            weight -= weight.mean(0, keepdim=True)  # stored [d_model, in]
    return like(model, weights, tie_word_embeddings=False)


@torch.no_grad()
def center_unembed(model: HookedGPT) -> HookedGPT:
    """The same log-probabilities, with W_U and b_U of mean 0 over the vocabulary: each logit is less their mean.

    W_U, if it is tied, is no longer.
    """
    cfg = model.cfg
    if cfg.output_logits_soft_cap is not None:
        raise ValueError(
            f"output_logits_soft_cap={cfg.output_logits_soft_cap}: the cap is not linear, so a number taken off all "
            "logits alike would change the probabilities"
        )
    weights = _weights(model)
    weights["unembed.weight"] = weights[_unembedding(cfg)].clone()
    for name in weights.keys() & {"unembed.weight", "unembed.bias"}:
        weights[name] -= weights[name].mean(0, keepdim=True)
    return like(model, weights, tie_word_embeddings=False)


@torch.no_grad()
def fold_value_biases(model: HookedGPT) -> HookedGPT:
    """The same logits, with b_V moved through W_O into b_O: attention sums to 1, so a head always writes b_V W_O."""
    cfg = model.cfg
    weights = _weights(model)
    if not cfg.bias_qkv:
        return like(model, weights)
    group, n_values = cfg.n_heads // cfg.n_key_value_heads, cfg.n_key_value_heads * cfg.d_head
    for layer in range(cfg.n_layers):
        at = f"blocks.{layer}.attn."
        b_V = weights[at + "qkv.bias"][-n_values:]
        each = b_V.unflatten(0, (-1, cfg.d_head)).repeat_interleave(group, 0).flatten()
        written = weights[at + "out.weight"] @ each
        weights[at + "out.bias"] = weights[at + "out.bias"] + written if cfg.bias_attn_out else written
        b_V.zero_()
    return like(model, weights, bias_attn_out=True)


def _weights(model: HookedGPT) -> Weights:
    return {name: weight.double().clone() for name, weight in model.state_dict().items()}


def _unembedding(cfg: GPTConfig) -> str:
    return "embed.W_E" if cfg.tie_word_embeddings else "unembed.weight"


def like(model: HookedGPT, weights: Weights, **changes: Any) -> HookedGPT:
    """A model of its own with these weights, and as these changes of the configuration say."""
    cfg = replace(model.cfg, **changes)
    new = HookedGPT(replace(cfg, device="meta"), model.tokenizer)
    for module in (new, *(block.attn for block in new.blocks)):
        module.cfg = cfg
    new.load_state_dict({name: weight.to(model.dtype) for name, weight in weights.items()}, assign=True)
    return new.train(model.training)
