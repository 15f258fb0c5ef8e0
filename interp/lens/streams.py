"""How large the stream is, and what each part does to it."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.cache import ActivationCache
from interp.lens.run import CachedRun
from interp.model import HookedGPT
from interp.model.norms import NoNorm, Norm
from interp.recording import PosSlice

if TYPE_CHECKING:
    from xarray import Dataset
else:
    Dataset = Any


@torch.no_grad()
def stream_statistics(model: HookedGPT, cache: ActivationCache, *, pos: PosSlice = None) -> Dataset:
    """Of the stream at each layer and of what is written to it: an `xarray.Dataset`, [component prompt pos].

    `norm`; `variance` of the coordinates; `cosine`, with the stream at the end; and for what is written `cosine_before`
    with the stream that it is added to: negative where something is taken out again. `final_scale` is what the final
    norm divides by, or would: where it differs much from that of the final stream, a lens reads little from there.
    """
    from xarray import Dataset

    run, n_layers, cfg = CachedRun.of(model, cache, pos), model.cfg.n_layers, model.cfg
    final = run.at(f"blocks.{n_layers - 1}.hook_resid_post")
    named = ["embed", *(["pos_embed"] if cfg.adds_positions else [])]
    parts: list[tuple[str, str, int, Tensor, Tensor | None]] = []
    before: Tensor | None = None
    for name in named:
        written = run.at(f"hook_{name}")
        parts.append((name, "embed", -1, written, before))
        before = written
    for layer in range(n_layers):
        block, stream = f"blocks.{layer}.hook_", run.at(f"blocks.{layer}.hook_resid_pre")
        parts.append((f"L{layer} stream", "stream", layer, stream, None))
        parts.append((f"L{layer} attn", "attn", layer, run.at(f"{block}attn_out"), stream))
        if not cfg.attn_only:
            mid = stream if cfg.parallel_attn_mlp else run.at(f"{block}resid_mid")
            parts.append((f"L{layer} mlp", "mlp", layer, run.at(f"{block}mlp_out"), mid))
    parts.append(("final stream", "stream", n_layers, final, None))
    found = {name: [] for name in ("norm", "variance", "final_scale", "cosine", "cosine_before")}
    for *_, x, beside in parts:
        found["norm"].append(x.norm(dim=-1))
        found["variance"].append(x.var(-1, unbiased=False))
        found["final_scale"].append(_scale(model.ln_final, x))
        found["cosine"].append(_cosine(x, final))
        found["cosine_before"].append(torch.full_like(x[..., 0], torch.nan) if beside is None else _cosine(x, beside))
    axes: dict[str, Any] = {"prompt": range(run.n_prompts), "pos": run.columns}
    stacked = {name: torch.stack(each) for name, each in found.items()}
    if run.is_one:
        stacked = {name: x.squeeze(2) for name, x in stacked.items()}
        del axes["pos"]
    labels, kinds, layers, *_ = zip(*parts, strict=True)
    coords = {
        "component": list(labels),
        "kind": ("component", list(kinds)),
        "layer": ("component", list(layers)),
        **axes,
    }
    about = {"method": "stream statistics", "model": model.fingerprint()}
    names = ["component", *axes]
    return Dataset({name: (names, x.cpu().numpy()) for name, x in stacked.items()}, coords=coords, attrs=about)


def _scale(norm: Norm, x: Tensor) -> Tensor:
    if isinstance(norm, NoNorm):
        return torch.ones_like(x[..., 0])
    return (norm.centred(x).square().mean(-1) + norm.eps).sqrt()


def _cosine(one: Tensor, other: Tensor) -> Tensor:
    return torch.nn.functional.cosine_similarity(one, other, dim=-1)
