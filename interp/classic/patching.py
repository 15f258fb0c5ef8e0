"""Activation patching as it was called: one metric, of the logits of all prompts, for each patch.

With one of the setters here the patches go many at a time through the sweep engine; with a setter of one's own they are
runs one after another. Of the logits, the last position alone is computed for a metric that reads nothing else.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from interp.cache import ActivationCache
from interp.classic.utils import get_act_name
from interp.interventions import Patch, Site
from interp.patching.engine import Base, Packed, Row, Whole

if TYPE_CHECKING:
    from pandas import DataFrame

Setter = Callable[[Tensor, Sequence[int], Tensor], Tensor]
Metric = Callable[[Float[Tensor, "batch pos d_vocab"]], Any]
_TOKENS = 2**13  # that go through the layers together


def layer_pos_patch_setter(corrupted_activation: Tensor, index: Sequence[int], clean_activation: Tensor) -> Tensor:
    """Patch a position of a layer; index = [layer, pos]."""
    _, pos = index
    corrupted_activation[:, pos] = clean_activation[:, pos]
    return corrupted_activation


def layer_pos_head_vector_patch_setter(
    corrupted_activation: Tensor, index: Sequence[int], clean_activation: Tensor
) -> Tensor:
    """Patch a head at a position; index = [layer, pos, head]."""
    _, pos, head = index
    corrupted_activation[:, pos, head] = clean_activation[:, pos, head]
    return corrupted_activation


def layer_head_vector_patch_setter(
    corrupted_activation: Tensor, index: Sequence[int], clean_activation: Tensor
) -> Tensor:
    """Patch a head at all positions; index = [layer, head]."""
    _, head = index
    corrupted_activation[:, :, head] = clean_activation[:, :, head]
    return corrupted_activation


def layer_head_pattern_patch_setter(
    corrupted_activation: Tensor, index: Sequence[int], clean_activation: Tensor
) -> Tensor:
    """Patch a head's pattern; index = [layer, head]."""
    _, head = index
    corrupted_activation[:, head] = clean_activation[:, head]
    return corrupted_activation


def layer_head_pos_pattern_patch_setter(
    corrupted_activation: Tensor, index: Sequence[int], clean_activation: Tensor
) -> Tensor:
    """Patch where a head looks from a position; index = [layer, head, dest_pos]."""
    _, head, dest = index
    corrupted_activation[:, head, dest] = clean_activation[:, head, dest]
    return corrupted_activation


def layer_head_dest_src_pos_pattern_patch_setter(
    corrupted_activation: Tensor, index: Sequence[int], clean_activation: Tensor
) -> Tensor:
    """Patch an entry of a head's pattern; index = [layer, head, dest_pos, src_pos]."""
    _, head, dest, source = index
    corrupted_activation[:, head, dest, source] = clean_activation[:, head, dest, source]
    return corrupted_activation


# What each setter touches, as a site: the parts of its index behind the layer.
_SITES: dict[Setter, tuple[str, ...]] = {
    layer_pos_patch_setter: ("pos",),
    layer_pos_head_vector_patch_setter: ("pos", "head"),
    layer_head_vector_patch_setter: ("head",),
    layer_head_pattern_patch_setter: ("head",),
    layer_head_pos_pattern_patch_setter: ("head", "pos"),
    layer_head_dest_src_pos_pattern_patch_setter: ("head", "pos", "neuron"),  # a site's "neuron" is of the last axis
}


def make_df_from_ranges(column_max_ranges: Sequence[int], column_names: Sequence[str]) -> "DataFrame":
    """All combinations of numbers below these, the last column counting fastest."""
    from pandas import DataFrame

    return DataFrame(list(product(*map(range, column_max_ranges))), columns=list(column_names))


@torch.no_grad()
def generic_activation_patch(
    model: Any,
    corrupted_tokens: Int[Tensor, "batch pos"],
    clean_cache: ActivationCache,
    patching_metric: Metric,
    patch_setter: Setter,
    activation_name: str,
    index_axis_names: Sequence[str] | None = None,
    index_df: "DataFrame | None" = None,
    return_index_df: bool = False,
) -> Any:
    """The metric of the corrupted run with a part of the clean one in it, for each index.

    Of `index_axis_names`, over which the indices run through, the result has an axis each; of an `index_df`, whose rows
    are indices that begin with the layer, it has one value each.
    """
    if (index_df is None) == (index_axis_names is None):
        raise ValueError("give index_axis_names or index_df: one of the two")
    shape: list[int] = []
    if index_df is None:
        assert index_axis_names is not None
        shape = _ranges(model, corrupted_tokens, activation_name, index_axis_names)
        index_df = make_df_from_ranges(shape, index_axis_names)
    indices = [tuple(map(int, row)) for row in index_df.to_numpy().tolist()]
    corrupted_tokens = torch.atleast_2d(corrupted_tokens).to(model.device)
    what = (model, corrupted_tokens, clean_cache, patching_metric, activation_name, indices)
    values = _swept(*what, _SITES[patch_setter]) if patch_setter in _SITES else _one_by_one(*what, patch_setter)
    result = torch.tensor(values, device=model.device).view(shape or [len(indices)])
    return (result, index_df) if return_index_df else result


def _ranges(model: Any, tokens: Tensor, activation_name: str, axes: Sequence[str]) -> list[int]:
    n_heads = model.cfg.n_key_value_heads if activation_name in ("k", "v") else model.cfg.n_heads
    n_pos = tokens.shape[-1]
    ranges = {"layer": model.cfg.n_layers, "head": n_heads, "head_index": n_heads}
    ranges |= {"pos": n_pos, "src_pos": n_pos, "dest_pos": n_pos}
    if unknown := [axis for axis in axes if axis not in ranges]:
        raise KeyError(f"unknown axes {unknown}; known: {list(ranges)}")
    return [ranges[axis] for axis in axes]


def _one_by_one(
    model: Any, tokens: Tensor, clean: Any, metric: Metric, name: str, indices: Sequence[Any], setter: Setter
) -> list[float]:
    """A run for each index."""
    values = []
    for index in tqdm(indices, desc="patching", delay=1.0):
        point = get_act_name(name, index[0])
        patch = lambda x, hook, index=index: setter(x, list(index), clean[hook.name])
        values.append(_number(metric(model.run_with_hooks(tokens, fwd_hooks=[(point, patch)]))))
    return values


def _swept(
    model: Any,
    tokens: Tensor,
    clean: Any,
    metric: Metric,
    name: str,
    indices: Sequence[Any],
    parts: Sequence[str],
) -> list[float]:
    """Many indices at a time."""
    native = model.native() if hasattr(model, "native") else model
    base = Base(native, tokens)
    n_rows, n_pos = tokens.shape
    logits = model(tokens)
    filled, wanted = _asked(metric, logits)
    values, n_each = [], max(1, _TOKENS // (n_rows * n_pos))
    with tqdm(total=len(indices), desc="patching", delay=1.0) as bar:
        for first in range(0, len(indices), n_each):
            some = indices[first : first + n_each]
            rows = []
            for layer, *rest in some:
                point = get_act_name(name, layer)
                site = Site(point, **dict(zip(parts, rest, strict=True)))
                rows += [Row(prompt, (Patch(site, clean[point]),)) for prompt in range(n_rows)]
            prepared = [base.prepared(row) for row in rows]
            run = (Packed if base.is_packed else Whole)(base, prepared, wanted)
            found = run.logits().unflatten(0, (len(some), n_rows))
            for each in found:
                if filled is not None:
                    filled[:, -1] = each[:, 0]
                values.append(_number(metric(each if filled is None else filled)))
            bar.update(len(some))
    return values


def _asked(metric: Metric, logits: Tensor) -> tuple[Tensor | None, Tensor]:
    """The positions whose logits a metric reads: the last, if it gives the same with all others unknown; else all.

    For the last alone also what to put these logits in.
    """
    n_rows, n_pos = logits.shape[:2]
    unknown = torch.full_like(logits, torch.nan)
    unknown[:, -1] = logits[:, -1]
    try:
        reads_last = _number(metric(unknown)) == _number(metric(logits))
    except (ValueError, RuntimeError, IndexError):
        reads_last = False
    first = n_pos - 1 if reads_last else 0
    return unknown if reads_last else None, torch.arange(first, n_pos).expand(n_rows, -1)


def _number(value: Any) -> float:
    return value.item() if isinstance(value, Tensor) else float(value)


def _patch(setter: Setter, activation_name: str, axes: Sequence[str]) -> Callable[..., Any]:
    return partial(
        generic_activation_patch, patch_setter=setter, activation_name=activation_name, index_axis_names=axes
    )


_POS, _POS_HEAD, _HEAD = ("layer", "pos"), ("layer", "pos", "head"), ("layer", "head")
get_act_patch_resid_pre = _patch(layer_pos_patch_setter, "resid_pre", _POS)
get_act_patch_resid_mid = _patch(layer_pos_patch_setter, "resid_mid", _POS)
get_act_patch_attn_out = _patch(layer_pos_patch_setter, "attn_out", _POS)
get_act_patch_mlp_out = _patch(layer_pos_patch_setter, "mlp_out", _POS)
get_act_patch_attn_head_out_by_pos = _patch(layer_pos_head_vector_patch_setter, "z", _POS_HEAD)
get_act_patch_attn_head_q_by_pos = _patch(layer_pos_head_vector_patch_setter, "q", _POS_HEAD)
get_act_patch_attn_head_k_by_pos = _patch(layer_pos_head_vector_patch_setter, "k", _POS_HEAD)
get_act_patch_attn_head_v_by_pos = _patch(layer_pos_head_vector_patch_setter, "v", _POS_HEAD)
get_act_patch_attn_head_pattern_by_pos = _patch(
    layer_head_pos_pattern_patch_setter, "pattern", ("layer", "head_index", "dest_pos")
)
get_act_patch_attn_head_pattern_dest_src_pos = _patch(
    layer_head_dest_src_pos_pattern_patch_setter, "pattern", ("layer", "head_index", "dest_pos", "src_pos")
)
get_act_patch_attn_head_out_all_pos = _patch(layer_head_vector_patch_setter, "z", _HEAD)
get_act_patch_attn_head_q_all_pos = _patch(layer_head_vector_patch_setter, "q", _HEAD)
get_act_patch_attn_head_k_all_pos = _patch(layer_head_vector_patch_setter, "k", _HEAD)
get_act_patch_attn_head_v_all_pos = _patch(layer_head_vector_patch_setter, "v", _HEAD)
get_act_patch_attn_head_pattern_all_pos = _patch(layer_head_pattern_patch_setter, "pattern", ("layer", "head_index"))


def get_act_patch_attn_head_all_pos_every(
    model: Any, corrupted_tokens: Tensor, clean_cache: ActivationCache, metric: Metric
) -> Float[Tensor, "kind layer head"]:
    """Every head at all positions: its output, queries, keys, values, pattern. Shared keys fill the first places."""
    what = (model, corrupted_tokens, clean_cache, metric)
    of_all = (
        get_act_patch_attn_head_out_all_pos,
        get_act_patch_attn_head_q_all_pos,
        get_act_patch_attn_head_k_all_pos,
        get_act_patch_attn_head_v_all_pos,
        get_act_patch_attn_head_pattern_all_pos,
    )
    return _stacked([each(*what) for each in of_all])


def get_act_patch_attn_head_by_pos_every(
    model: Any, corrupted_tokens: Tensor, clean_cache: ActivationCache, metric: Metric
) -> Float[Tensor, "kind layer pos head"]:
    """Every head at each position: its output, queries, keys, values, pattern. Shared keys fill the first places."""
    what = (model, corrupted_tokens, clean_cache, metric)
    of_vectors = (
        get_act_patch_attn_head_out_by_pos,
        get_act_patch_attn_head_q_by_pos,
        get_act_patch_attn_head_k_by_pos,
        get_act_patch_attn_head_v_by_pos,
    )
    pattern = get_act_patch_attn_head_pattern_by_pos(*what).transpose(1, 2)
    return _stacked([*(each(*what) for each in of_vectors), pattern])


def get_act_patch_block_every(
    model: Any, corrupted_tokens: Tensor, clean_cache: ActivationCache, metric: Metric
) -> Float[Tensor, "kind layer pos"]:
    """Each layer at each position: the stream before it, what attention writes, what the MLP writes."""
    what = (model, corrupted_tokens, clean_cache, metric)
    return torch.stack(
        [each(*what) for each in (get_act_patch_resid_pre, get_act_patch_attn_out, get_act_patch_mlp_out)]
    )


def _stacked(results: Sequence[Tensor]) -> Tensor:
    n_heads = max(each.shape[-1] for each in results)
    return torch.stack([torch.nn.functional.pad(each, (0, n_heads - each.shape[-1])) for each in results])
