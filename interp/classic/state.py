"""Weights under their classic names and in their classic layout, and weights refactored."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from interp.model import HookedGPT
from interp.model.embed import LearnedPositions
from interp.model.norms import GainFromOne, HeadGainFromOne
from interp.weights import FactoredMatrix
from interp.weights.folding import like

_IDLE = (".attn.mask", ".attn.IGNORE", ".attn.rotary_sin", ".attn.rotary_cos")  # classic buffers, worked out here
_BIASES = ("b_Q", "b_K", "b_V", "b_O", "b_in", "b_out", "b_U")


def classic_weights(model: HookedGPT) -> Iterator[tuple[str, Tensor | None]]:
    """Each weight by its classic name, as a view that can be written to; None for a bias that the model lacks."""
    yield "embed.W_E", model.embed.W_E
    yield from _of_norm("embed.ln", model.embed.ln)
    if isinstance(model.pos_embed, LearnedPositions):
        yield "pos_embed.W_pos", model.pos_embed.W_pos
    shared = "_" if model.cfg.has_grouped_queries else ""
    for i, block in enumerate(model.blocks):
        at = f"blocks.{i}."
        for norm in ("ln1", "ln1_post", "ln2", "ln2_post", "attn.q_norm", "attn.k_norm"):
            module = block.attn if norm.startswith("attn") else block
            yield from _of_norm(f"{at}{norm}", getattr(module, norm.rpartition(".")[2], None))
        for name in ("W_Q", "W_O", "b_Q", "b_O"):
            yield f"{at}attn.{name}", getattr(block.attn, name)
        for name in ("W_K", "W_V", "b_K", "b_V"):
            yield f"{at}attn.{shared}{name}", getattr(block.attn, name)
        if not model.cfg.attn_only:
            for name in ("W_in", "b_in", *(("W_gate",) if model.cfg.gated_mlp else ()), "W_out", "b_out"):
                yield f"{at}mlp.{name}", getattr(block.mlp, name)
            yield from _of_norm(f"{at}mlp.ln", getattr(block.mlp, "ln", None))
    yield from _of_norm("ln_final", model.ln_final)
    yield "unembed.W_U", model.unembed.W_U
    yield "unembed.b_U", model.unembed.b_U


def _of_norm(name: str, norm: object) -> Iterator[tuple[str, Tensor | None]]:
    for part in ("w", "b"):
        if (weight := getattr(norm, part, None)) is not None:
            yield f"{name}.{part}", weight


def to_classic(model: HookedGPT) -> dict[str, Tensor]:
    """The weights by their classic names, each a view of the model's; biases that it lacks as zeros."""
    found = dict(classic_weights(model))
    cfg = model.cfg
    sizes = {"Q": (cfg.n_heads, cfg.d_head), "K": (cfg.n_key_value_heads, cfg.d_head)}
    sizes |= {"V": sizes["K"], "O": (cfg.d_model,), "in": (cfg.d_mlp,), "out": (cfg.d_model,), "U": (cfg.d_vocab_out,)}
    zeros = lambda name: model.W_E.new_zeros(sizes[name.rpartition("b_")[2]])
    return {name: zeros(name) if weight is None else weight.detach() for name, weight in found.items()}


@torch.no_grad()
def load_classic(model: HookedGPT, weights: Mapping[str, Tensor], strict: bool = True) -> tuple[list[str], list[str]]:
    """Write weights of classic names into a model; the names that it lacks of them, and those that it has no use for.

    A bias that the model has no room for may be zeros.
    """
    places = dict(classic_weights(model))
    left = {name: weight for name, weight in weights.items() if not name.endswith(_IDLE)}
    missing = [name for name, place in places.items() if place is not None and name not in left]
    unknown = [
        name
        for name, weight in left.items()
        if places.get(name) is None and not (name.endswith(_BIASES) and name in places and not weight.any())
    ]
    wrong = [
        f"{name}: {list(weight.shape)}, not {list(place.shape)}"
        for name, weight in left.items()
        if (place := places.get(name)) is not None and place.shape != weight.shape
    ]
    if wrong or (strict and (missing or unknown)):
        raise ValueError(
            f"this state dict does not fit: missing {missing[:8]}, not known {unknown[:8]}, "
            f"of another shape {wrong[:8]}"
        )
    for name, place in places.items():
        if place is not None and name in left:
            place.copy_(left[name])
    for name, module in model.named_modules():
        if isinstance(module, GainFromOne | HeadGainFromOne) and f"{name}.w" in left:  # their w is made on access
            module.excess.copy_(left[f"{name}.w"] - 1)
    return missing, unknown


@torch.no_grad()
def centred_readers(model: HookedGPT) -> HookedGPT:
    """The same logits, with what reads past a LayerNorm of mean 0 over what it reads: it reads no mean anyway."""
    if model.cfg.normalization_type != "LNPre" or model.cfg.norm_position != "pre":
        return model
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    readers = ["attn.qkv.weight", "mlp.up.weight", "mlp.gate.weight", "unembed.weight"]
    readers += ["mlp.down.weight"] if model.cfg.act_fn == "solu_ln" else []
    for name, weight in weights.items():
        if name.endswith(tuple(readers)):
            weight -= weight.mean(1, keepdim=True)  # stored [out, in]
    return like(model, weights)


@torch.no_grad()
def refactored(model: HookedGPT) -> HookedGPT:
    """The same logits, with each head's circuits split by their singular values: W_O's rows orthonormal, and column n
    of W_Q as long as column n of W_K. Biases of queries and keys are split as one more row of their matrices."""
    cfg = model.cfg
    if cfg.is_rotary:
        raise ValueError("rotary positions turn queries and keys, so no QK circuit can be refactored for all of them")
    if cfg.has_grouped_queries or cfg.use_qk_norm:
        raise ValueError("shared or normed keys belong to no single head's circuit, which could be refactored")
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    for i in range(cfg.n_layers):
        weights.setdefault(f"blocks.{i}.attn.out.bias", model.W_E.new_zeros(cfg.d_model))
    new = like(model, weights, bias_attn_out=True)
    for block in new.blocks:
        attn = block.attn
        b_Q, b_K = (_zeros(W) if b is None else b for W, b in ((attn.W_Q, attn.b_Q), (attn.W_K, attn.b_K)))
        W_Q, W_K = (torch.cat((W, b[:, None]), 1).double() for W, b in ((attn.W_Q, b_Q), (attn.W_K, b_K)))
        QK = FactoredMatrix(W_Q, W_K.mT).make_even()
        OV = FactoredMatrix(attn.W_V.double(), attn.W_O.double())
        rank = cfg.d_head
        if attn.b_Q is not None and attn.b_K is not None and attn.b_V is not None and attn.b_O is not None:
            written = (attn.b_V[..., None] * attn.W_O).sum((0, 1))
            attn.b_O.add_(written)
            attn.b_V.zero_()
            attn.b_Q.copy_(QK.A[:, -1, :rank])
            attn.b_K.copy_(QK.B.mT[:, -1, :rank])
        attn.W_Q.copy_(QK.A[:, :-1, :rank])
        attn.W_K.copy_(QK.B.mT[:, :-1, :rank])
        attn.W_V.copy_((OV.U * OV.S[..., None, :])[..., :rank])
        attn.W_O.copy_(OV.Vh[..., :rank, :])
    return new


def _zeros(W: Tensor) -> Tensor:
    """A head's bias of zeros, of its matrix [head d_model d_head]."""
    return W.new_zeros(W.shape[0], W.shape[2])
