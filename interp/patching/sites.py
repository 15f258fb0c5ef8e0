"""Where a sweep changes a run: the sites along the axes that a user asks for."""

from collections.abc import Sequence
from itertools import product
from typing import Any, Literal

from torch import Tensor

from interp.interventions import Site
from interp.model import HookedGPT
from interp.results import token_labels

By = Literal["layer", "pos", "head", "neuron"]
Sites = str | Sequence[Site] | Sequence[Sequence[Site]]


def sites_of(
    model: HookedGPT, site: Sites, by: By | Sequence[By] | None, layers: Sequence[int] | None, tokens: Tensor
) -> tuple[dict[str, Sequence[Any]], list[tuple[Site, ...]]]:
    """The axes of a result, and the sites along them."""
    if not isinstance(site, str):
        groups = [(each,) if isinstance(each, Site) else tuple(each) for each in site]
        return {"site": [" + ".join(map(label, group)) for group in groups]}, groups
    n_layers = model.cfg.n_layers
    wanted_layers = range(n_layers) if layers is None else list(layers)
    if not wanted_layers or any(not -n_layers <= layer < n_layers for layer in wanted_layers):
        raise ValueError(f"layers={layers}; allowed: some of {-n_layers} to {n_layers - 1}")
    chosen = [layer % n_layers for layer in wanted_layers]
    kinds = Site(site, layer=chosen[0]).point(model).axes.split()
    has_heads = bool({"head", "kv_head"} & set(kinds))
    wanted = ("head" if has_heads else "pos",) if by is None else (by,) if isinstance(by, str) else tuple(by)
    n_heads = model.cfg.n_heads if "head" in kinds else model.cfg.n_key_value_heads
    last = {"d_mlp": model.cfg.d_mlp, "d_model": model.cfg.d_model, "d_head": model.cfg.d_head}
    last["key_pos"] = tokens.shape[1]
    ranges: dict[str, Sequence[Any]] = {"head": range(n_heads), "pos": range(tokens.shape[1])}
    ranges["neuron"] = range(last.get(kinds[-1], 0))
    known = ["layer", *(["head"] if has_heads else []), "pos", *(["neuron"] if kinds[-1] in last else [])]
    if unknown := [each for each in wanted if each not in known]:
        raise ValueError(f"by={unknown}; {site} [{' '.join(kinds)}] can be taken apart by {known}")
    inner = [each for each in ("head", "pos", "neuron") if each in wanted]
    groups = [
        (Site(site, layer, **dict(zip(inner, each, strict=True))),)
        for layer in chosen
        for each in product(*(ranges[axis] for axis in inner))
    ]
    labels = {**ranges, "pos": token_labels(model, tokens)}
    return {"layer": chosen, **{axis: labels[axis] for axis in inner}}, groups


def label(site: Site) -> str:
    """A site in a few words."""
    parts = {"layer": site.layer, "head": site.head, "pos": site.pos, "neuron": site.neuron}
    said = [f"{k} {'mask' if isinstance(v, Tensor) else v}" for k, v in parts.items() if v is not None]
    return " ".join([site.name, *said, *(["subspace"] if site.subspace is not None else [])])
