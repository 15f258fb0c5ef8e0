"""Sub-updates: what each memory of a run adds to a prediction, and where the MLPs change it (Geva et al., 2022)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.cache import ActivationCache
from interp.lens.attribution import direct_logit_attribution
from interp.lens.layers import log_probs, logit_lens
from interp.lens.run import CachedRun
from interp.metrics import Answers
from interp.model import HookedGPT
from interp.recording import PosSlice
from interp.results import Result, labelled, token_texts
from interp.weights.stream import checked_index, exact, through

if TYPE_CHECKING:
    from xarray import Dataset
else:
    Dataset = Any

_AT_ONCE = 2**24  # logits that are held at once


@torch.no_grad()
def sub_updates(
    model: HookedGPT,
    cache: ActivationCache,
    answer: Answers,
    wrong: Answers | None = None,
    *,
    layer: int | Sequence[int] | None = None,
    pos: PosSlice = -1,
    top: int = 20,
    parts: Result | None = None,
) -> Result:
    """What the largest sub-updates of each prediction add to the logit of `answer`, less that of `wrong`: [top prompt].

    A sub-update is a memory's coefficient times its value, m · v; the largest have the largest |m| · |v|, of one layer,
    some, or all. Its effect is direct: what it adds by what it writes, as in `lens.direct_logit_attribution`, whose
    `answer` and `pos` these are. Beside each stand its `memory` ("L2N17"), `coefficient`, `value_norm` (the length of
    the value as it enters the stream, behind a norm on outputs, the scale as it was), and `share`, its part of the sum
    of |m| · |v|. Beside each prompt, what all memories of these layers add (`memories`), and the logit (`total`).
    `parts` is that attribution, by neuron, of the same run, if it is known already.
    """
    if model.cfg.attn_only:
        raise ValueError("sub_updates: the model is attn_only, it has no MLP and so no memories")
    each = range(model.cfg.n_layers) if layer is None else [layer] if isinstance(layer, int) else layer
    layers = sorted({checked_index(model, "layer", one) for one in each})
    n_memories = len(layers) * model.cfg.d_mlp
    if not 1 <= top <= n_memories:
        raise ValueError(f"top={top}; allowed: 1 to {n_memories}, the memories of layers {layers}")
    if parts is None:
        parts = direct_logit_attribution(model, cache, answer, wrong, by="neuron", pos=pos)
    elif (parts.attrs.get("by"), parts.attrs.get("model")) != ("neuron", model.fingerprint()):
        raise ValueError(f"parts are by={parts.attrs.get('by')!r} of {parts.attrs.get('model')}; give those of neurons")
    chosen = parts[(parts.kind == "neuron").to_numpy() & parts.layer.isin(layers).to_numpy()]
    run = CachedRun.of(model, cache, pos)
    coefficient, norm = (torch.cat(of) for of in zip(*(_sizes(run, one) for one in layers), strict=True))
    if run.is_one:
        coefficient, norm = coefficient[..., 0], norm[..., 0]
    size = (coefficient * norm).abs()
    largest = size.topk(top, 0).indices
    effect = torch.from_numpy(chosen.to_numpy()).to(largest.device)
    dims = chosen.dims[1:]
    axes = {"top": range(top), **{dim: chosen[dim].to_numpy().tolist() for dim in dims}}
    about = {**parts.attrs, "method": "sub-updates", "layers": layers}
    del about["by"], about["capped"]
    found = labelled(effect.gather(0, largest), axes, "effect", about)
    beside = {"coefficient": coefficient, "value_norm": norm, "share": size / size.sum(0).clamp(min=_tiny(size))}
    known: dict[str, Any] = {
        name: (found.dims, x.expand_as(size).gather(0, largest).cpu().numpy()) for name, x in beside.items()
    }
    known["memory"] = (found.dims, chosen.component.to_numpy()[largest.cpu().numpy()])
    known["memories"] = (dims, chosen.sum("component").to_numpy())
    known["total"] = (dims, parts.total.to_numpy())
    return found.assign_coords(known)


@torch.no_grad()
def saturation(model: HookedGPT, cache: ActivationCache, *, pos: PosSlice = None) -> Dataset:
    """Where each prediction is settled, and which MLPs change it: an `xarray.Dataset` over [prompt pos].

    `settled` is the layer before which the model's top token is on top for good, read with the logit lens: 0, in the
    embeddings; `n_layers`, only at the end. `token` is that token. With an axis `layer`, the top tokens `before` and
    `after` the MLP of each layer wrote, and `event`, where they differ.
    """
    if model.cfg.attn_only:
        raise ValueError("saturation: the model is attn_only, it has no MLP that could change a prediction")
    run, n_layers = CachedRun.of(model, cache, pos), model.cfg.n_layers
    lens = logit_lens(model, cache, k=1, pos=pos, progress=False)
    ids = torch.from_numpy(lens.token_id.to_numpy())[..., 0]
    agrees = ids == ids[-1]
    settled = n_layers + 1 - agrees.flip(0).long().cumprod(0).sum(0)
    before, after = (
        torch.stack([_top(run, stream) for stream in streams])
        for streams in zip(*(_around_mlp(run, layer) for layer in range(n_layers)), strict=True)
    )
    if run.is_one:
        before, after = before[..., 0], after[..., 0]
    dims = tuple(lens.token_id.dims[1:-1])
    arrays: dict[str, Any] = {
        "settled": (dims, settled.numpy()),
        "token_id": (dims, ids[-1].numpy()),
        "token": (dims, token_texts(model, ids[-1])),
        "event": (("layer", *dims), (before != after).cpu().numpy()),
        "before": (("layer", *dims), token_texts(model, before)),
        "after": (("layer", *dims), token_texts(model, after)),
    }
    from xarray import Dataset

    coords = {"layer": range(n_layers), **{dim: lens[dim].to_numpy() for dim in dims}}
    return Dataset(arrays, coords=coords, attrs={"method": "saturation", "model": model.fingerprint()})


def _sizes(run: CachedRun, layer: int) -> tuple[Float[Tensor, "neuron prompt pos"], Float[Tensor, "neuron ..."]]:
    """The coefficients of a layer's memories, and the lengths of their values as they enter the stream."""
    block, values = run.model.blocks[layer], exact(run.model.blocks[layer].mlp.W_out)
    coefficient = run.at(f"blocks.{layer}.mlp.hook_post").movedim(-1, 0)
    if run.model.cfg.norm_position not in ("output", "both") or run.model.cfg.normalization_type is None:
        return coefficient, values.norm(dim=-1)[:, None, None]
    scale = run.at(f"blocks.{layer}.ln2_post.hook_scale")[..., 0]
    return coefficient, through(block.ln2_post, values).norm(dim=-1)[:, None, None] / scale


def _around_mlp(
    run: CachedRun, layer: int
) -> tuple[Float[Tensor, "prompt pos d_model"], Float[Tensor, "prompt pos d_model"]]:
    """The stream without what the layer's MLP wrote, and with it."""
    after = run.at(f"blocks.{layer}.hook_resid_post")
    if run.model.cfg.parallel_attn_mlp:
        return after - run.at(f"blocks.{layer}.hook_mlp_out"), after
    return run.at(f"blocks.{layer}.hook_resid_mid"), after


def _top(run: CachedRun, stream: Float[Tensor, "prompt pos d_model"]) -> Int[Tensor, "prompt pos"]:
    """The most probable token of each stream."""
    at_once = max(1, _AT_ONCE // run.model.cfg.d_vocab_out)
    some = [log_probs(run.model, rows).argmax(-1) for rows in stream.flatten(0, 1).split(at_once)]
    return torch.cat(some).unflatten(0, stream.shape[:2])


def _tiny(x: Tensor) -> float:
    return torch.finfo(x.dtype).tiny
