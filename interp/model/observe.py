"""What can be seen of a model: caches of activations, and what its hook points are."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from interp.cache import ActivationCache
from interp.hooks import Hooks, Names
from interp.interventions import Edit
from interp.interventions.edits import hooks_of
from interp.model.generate import Generates
from interp.model.inputs import ReturnType, checked_layers
from interp.model.kv_cache import KVCache
from interp.model.text import Text
from interp.recording import PosSlice, Recording, positions


class Observed(Generates):
    """A model that can be run with a cache of its activations, and that can list its hook points."""

    def run_with_cache(
        self,
        input: Text | Tensor,
        return_type: ReturnType = "logits",
        *,
        prepend_bos: bool | None = None,
        names_filter: Names | None = None,
        pos_slice: PosSlice = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        incl_bwd: bool = False,
        remove_batch_dim: bool = False,
        loss_fn: Callable[[Any], Tensor] | None = None,
        attention_mask: Tensor | None = None,
        stop_at_layer: int | None = None,
        start_at_layer: int | None = None,
        past_kv_cache: KVCache | None = None,
        fwd_hooks: Hooks = (),
    ) -> tuple[Any, ActivationCache]:
        """The model's output and an `ActivationCache` of what `names_filter` names.

        By default all that is always computed, and attention scores and patterns. Positions, device and dtype are
        applied as each activation is taken. With `incl_bwd` the loss (or `loss_fn` of the output) is differentiated,
        and gradients are under `NAME_grad`; no parameter's `.grad` is touched.
        """
        if not isinstance(input, Tensor):
            input, attention_mask = self.read_input(input, prepend_bos, attention_mask)
            prepend_bos = None
        fwd_hooks = list(fwd_hooks)
        reach = {"start_at_layer": start_at_layer, "stop_at_layer": stop_at_layer}
        names = self.hook_names(self._cached_by_default(**reach) if names_filter is None else names_filter)
        self.check_reach([hook[0] for hook in fwd_hooks], **reach)
        if names_filter is not None and not callable(names_filter):
            self.check_reach([names_filter], **reach)
        if loss_fn is not None and not incl_bwd:
            raise ValueError("loss_fn is what incl_bwd=True differentiates; without it, it would not be called")
        if incl_bwd and torch.is_inference_mode_enabled():
            raise ValueError("incl_bwd needs gradients, and torch.inference_mode allows none; leave it, or use no_grad")
        n_pos = input.shape[-1] if start_at_layer is None else input.shape[1]
        chosen = positions(pos_slice, n_pos, attention_mask)
        recording = Recording(chosen, device, dtype, keep_nodes=incl_bwd)
        with (
            self.hooks(fwd_hooks),
            self.recording(names, recording.take, incl_bwd),
            torch.set_grad_enabled(incl_bwd or torch.is_grad_enabled()),
        ):
            out = self(
                input,
                return_type,
                prepend_bos=prepend_bos,
                attention_mask=attention_mask,
                past_kv_cache=past_kv_cache,
                **reach,
            )
            if incl_bwd:
                recording.differentiate(_scalar(out if loss_fn is None else loss_fn(out)))
        tokens = torch.atleast_2d(input) if start_at_layer is None else None
        cache = ActivationCache(
            recording.taken, self, tokens=tokens, attention_mask=attention_mask, pos_slice=pos_slice
        )
        return out, cache.remove_batch_dim() if remove_batch_dim else cache

    @contextmanager
    def edit(self, edits: Iterable[Edit]) -> Iterator["Observed"]:
        """Within this context, every call is changed as these edits say, in their order."""
        with self.hooks(hooks_of(edits, self)):
            yield self

    def _cached_by_default(self, start_at_layer: int | None, stop_at_layer: int | None) -> list[str]:
        cached = [name for name, point in self.hook_dict.items() if point.is_cached_by_default]
        return [name for name in cached if self._is_reached(name, start_at_layer, stop_at_layer)]

    def _is_reached(self, name: str, start_at_layer: int | None, stop_at_layer: int | None) -> bool:
        first, last = checked_layers(start_at_layer, stop_at_layer, self.cfg.n_layers)
        if name.startswith("blocks."):
            return first <= self.hook_dict[name].layer() < last
        if name == "hook_pos_embed" and self.cfg.is_shortformer:
            return True  # each layer reads it
        is_before = name in ("hook_embed", "hook_pos_embed") or name.startswith("embed.ln.")
        return start_at_layer is None if is_before else stop_at_layer is None

    def check_reach(
        self,
        names: Sequence[Names],
        *,
        start_at_layer: int | None = None,
        stop_at_layer: int | None = None,
        **_: Any,
    ) -> None:
        """Raise if a hook named exactly could not fire between these layers."""
        listed = [n for entry in names if not callable(entry) for n in ([entry] if isinstance(entry, str) else entry)]
        exact = [name for name in listed if name in self.hook_dict]
        if missed := [name for name in exact if not self._is_reached(name, start_at_layer, stop_at_layer)]:
            raise ValueError(
                f"these hooks would never fire: {missed}; the call runs with "
                f"start_at_layer={start_at_layer}, stop_at_layer={stop_at_layer}"
            )

    def describe_hooks(self) -> "Table":
        """A table of every hook point: its name, axes and formula, and when it is computed."""
        table = [("name", "axes", "computed", "formula"), *self.hook_table()]
        widths = [max(len(row[i]) for row in table) for i in range(3)]
        return Table("\n".join("  ".join(c.ljust(w) for c, w in zip(row, [*widths, 0], strict=True)) for row in table))

    def hook_table(self) -> list[tuple[str, str, str, str]]:
        """Name, axes, when it is computed, and formula of every hook point; those of all layers are one row."""
        rows: dict[str, tuple[str, str, str]] = {}
        for name, point in self.hook_dict.items():
            shared = name.replace(f"blocks.{point.layer()}.", "blocks.{layer}.") if name.startswith("blocks.") else name
            rows[shared] = (point.axes, "on demand" if point.on_demand else "always", point.formula)
        return [(name, *row) for name, row in rows.items()]

    def cache_size(self, tokens: Tensor, names_filter: Names | None = None) -> int:
        """The bytes that `run_with_cache` would keep for these tokens."""
        n_rows, n_pos = torch.atleast_2d(tokens).shape
        cfg = self.cfg
        sizes = {"batch": n_rows, "pos": n_pos, "query_pos": n_pos, "key_pos": n_pos, "1": 1}
        sizes |= {"head": cfg.n_heads, "kv_head": cfg.n_key_value_heads, "d_head": cfg.d_head}
        sizes |= {"d_model": cfg.d_model, "d_mlp": cfg.d_mlp, "d_vocab_out": cfg.d_vocab_out}
        total = 0
        for name in self.hook_names(self._cached_by_default(None, None) if names_filter is None else names_filter):
            elements = 1
            for axis in self.hook_dict[name].axes.split():
                elements *= sizes[axis]
            total += elements * (4 if name.endswith("hook_scale") and self.dtype.itemsize == 2 else self.dtype.itemsize)
        return total


class Table(str):
    """Text that a notebook shows as it is."""

    __repr__ = str.__str__


def _scalar(loss: Any) -> Tensor:
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        given = f"shape {list(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise ValueError(f"incl_bwd differentiates one number: use return_type='loss' or give loss_fn; got {given}")
    return loss.reshape(())
