"""Weights made simpler as the classic loader does, and models of the first layers."""

from dataclasses import replace

from interp.classic.state import centred_readers, refactored
from interp.model import HookedGPT
from interp.weights import center_unembed, center_writes, fold_norms
from interp.weights import fold_value_biases as fold_values


def processed(model: HookedGPT, fold_ln: bool, center: bool, unembed: bool, values: bool, refactor: bool) -> HookedGPT:
    """A model of the same probabilities, its weights made simpler as asked, where that can be done."""
    if fold_ln and model.cfg.normalization_type in ("LN", "RMS") and not model.cfg.is_shortformer:
        model = centred_readers(fold_norms(model))
    if center and model.cfg.normalization_type in ("LN", "LNPre") and model.cfg.norm_position == "pre":
        model = center_writes(model)
    if unembed and model.cfg.output_logits_soft_cap is None:
        model = center_unembed(model)
    if values:
        model = fold_values(model)
    return refactored(model) if refactor else model


def shortened(model: HookedGPT, n_layers: int) -> HookedGPT:
    """A model of the first layers."""
    kinds = model.cfg.attn_types and model.cfg.attn_types[:n_layers]
    short = HookedGPT(replace(model.cfg, n_layers=n_layers, attn_types=kinds, device="meta"), model.tokenizer)
    weights = model.state_dict()
    short.load_state_dict({name: weights[name] for name in short.state_dict()}, assign=True)
    short.cfg = replace(short.cfg, device=model.cfg.device)
    return short.train(model.training)
