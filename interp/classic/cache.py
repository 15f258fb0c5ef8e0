"""ActivationCache with the classic calls, arguments in their classic order, and labels."""

# pyright: reportIncompatibleMethodOverride=false
# What is overridden is called in the classic way here.

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from interp import cache
from interp.classic.slices import Slice, SliceInput
from interp.recording import PosSlice

Stacked = Tensor | tuple[Tensor, list[str]]


class ActivationCache(cache.ActivationCache):
    """What one pass computed, in the order of computation, under full and short names."""

    @classmethod
    def of(cls, native: cache.ActivationCache) -> "ActivationCache":
        """The same cache, with the classic calls."""
        native.__class__ = cls
        return native  # type: ignore[return-value]

    def __init__(
        self, cache_dict: dict[str, Tensor], model: Any = None, has_batch_dim: bool = True, **more: Any
    ) -> None:
        super().__init__(cache_dict, model, has_batch_dim=has_batch_dim, **more)

    @property
    def cache_dict(self) -> dict[str, Tensor]:
        return self._tensors

    def toggle_autodiff(self, mode: bool = False) -> None:
        """Switch gradients on or off everywhere, as `torch.set_grad_enabled` does."""
        torch.set_grad_enabled(mode)

    def apply_slice_to_batch_dim(self, batch_slice: Slice | SliceInput) -> "ActivationCache":
        """The cache of some rows; of one, given by its number, without the batch axis."""
        if not self.has_batch_dim:
            raise ValueError("this cache has no batch axis any more")
        cut = Slice.of(batch_slice)
        rows = {name: cut.apply(tensor, dim=0) for name, tensor in self._tensors.items()}
        mask = self.attention_mask
        return ActivationCache(
            rows,
            self._model,
            has_batch_dim=cut.mode != "int",
            tokens=None if self.tokens is None else torch.atleast_2d(cut.apply(self.tokens, dim=0)),
            attention_mask=None if mask is None else torch.atleast_2d(cut.apply(mask, dim=0)),
            pos_slice=self.pos_slice,
        )

    def accumulated_resid(
        self,
        layer: int | None = None,
        incl_mid: bool = False,
        apply_ln: bool = False,
        pos_slice: Slice | SliceInput = None,
        mlp_input: bool = False,
        return_labels: bool = False,
    ) -> Stacked:
        """The stream before each block up to `layer`, and there; with `apply_ln`, as the final norm would see each."""
        names = {f"L{i} {part}": f"{i}_{part}" for i in range(self._config().n_layers) for part in ("pre", "mid")}
        at: dict[str, Any] = {"pos_slice": native(pos_slice), "mlp_input": mlp_input}
        stack, labels = _both(super().accumulated_resid(layer, incl_mid=incl_mid, return_labels=True, **at))
        if apply_ln:
            stack = self.apply_ln_to_stack(stack, layer, mlp_input, pos_slice, recompute_ln=True)
        return (stack, [names.get(label, "final_post") for label in labels]) if return_labels else stack

    def decompose_resid(
        self,
        layer: int | None = None,
        mlp_input: bool = False,
        mode: Literal["all", "mlp", "attn"] = "all",
        apply_ln: bool = False,
        pos_slice: Slice | SliceInput = None,
        incl_embeds: bool = True,
        return_labels: bool = False,
    ) -> Stacked:
        """What embeddings, attention layers and MLPs wrote to the stream that reaches `layer`."""
        found = super().decompose_resid(
            layer,
            mlp_input=mlp_input,
            mode=mode,
            apply_ln=apply_ln,
            pos_slice=native(pos_slice),
            incl_embeds=incl_embeds,
            return_labels=True,
        )
        stack, labels = _both(found)
        return (stack, list(map(_written, labels))) if return_labels else stack

    def compute_head_results(self) -> None:
        """Put `blocks.{layer}.attn.hook_result`, what each head wrote, into the cache."""
        for i, block in enumerate(self._weights().blocks):
            name = f"blocks.{i}.attn.hook_result"
            if name not in self._tensors:
                z = self._tensors[f"blocks.{i}.attn.hook_z"]
                self._tensors[name] = torch.einsum("...hd,hdm->...hm", z, block.attn.W_O)

    def stack_head_results(
        self,
        layer: int = -1,
        return_labels: bool = False,
        incl_remainder: bool = False,
        pos_slice: Slice | SliceInput = None,
        apply_ln: bool = False,
    ) -> Stacked:
        """What each head of the layers before `layer` wrote; the rest of the stream as `incl_remainder`."""
        at = native(pos_slice)
        options: dict[str, Any] = {"return_labels": return_labels, "incl_remainder": incl_remainder}
        return super().stack_head_results(layer, pos_slice=at, apply_ln=apply_ln, **options)

    def stack_neuron_results(
        self,
        layer: int,
        pos_slice: Slice | SliceInput = None,
        neuron_slice: Slice | SliceInput = None,
        return_labels: bool = False,
        incl_remainder: bool = False,
        apply_ln: bool = False,
        project_output_onto: Tensor | None = None,
    ) -> Stacked:
        """What each neuron of the layers before `layer` wrote, or its products with the directions given."""
        found = super().stack_neuron_results(
            layer,
            pos_slice=native(pos_slice),
            neuron_slice=native(neuron_slice),
            return_labels=return_labels,
            incl_remainder=incl_remainder,
            apply_ln=apply_ln,
        )
        return _onto(project_output_onto, found)

    def get_neuron_results(
        self,
        layer: int,
        neuron_slice: Slice | SliceInput = None,
        pos_slice: Slice | SliceInput = None,
        project_output_onto: Tensor | None = None,
    ) -> Tensor:
        """What each neuron of one layer wrote, [... neuron d_model]."""
        post = self._at(self["post", layer, "mlp"], native(pos_slice))
        W_out = self._weights().blocks[layer].mlp.W_out
        if neuron_slice is not None:
            cut = Slice.of(neuron_slice)
            post, W_out = cut.apply(post, dim=-1), cut.apply(W_out, dim=0)
        found = post[..., None] * W_out
        return found if project_output_onto is None else found @ project_output_onto

    def stack_activation(self, activation_name: str, layer: int = -1, sublayer_type: str | None = None) -> Tensor:
        """One activation of every layer before `layer`."""
        last = self._config().n_layers if layer in (None, -1) else layer
        return torch.stack([self[activation_name, i, sublayer_type] for i in range(last)])

    def apply_ln_to_stack(
        self,
        residual_stack: Tensor,
        layer: int | None = None,
        mlp_input: bool = False,
        pos_slice: Slice | SliceInput = None,
        batch_slice: Slice | SliceInput = None,
        has_batch_dim: bool = True,
        recompute_ln: bool = False,
    ) -> Tensor:
        """Each part as the norm before `layer` sees it, its scale frozen; or, at the end, by a scale of its own."""
        if self._config().normalization_type is None:
            return residual_stack
        last = self._layer(layer, mlp_input)
        if batch_slice is not None and has_batch_dim:
            residual_stack = Slice.of(batch_slice).apply(residual_stack, dim=1)
        if recompute_ln and last == self._config().n_layers:
            return self._weights().ln_final.unheard(residual_stack)
        seen_by = self if batch_slice is None else self.apply_slice_to_batch_dim(batch_slice)
        return cache.ActivationCache.apply_ln_to_stack(
            seen_by, residual_stack, layer, mlp_input=mlp_input, pos_slice=native(pos_slice)
        )

    def get_full_resid_decomposition(
        self,
        layer: int | None = None,
        mlp_input: bool = False,
        expand_neurons: bool = True,
        apply_ln: bool = False,
        pos_slice: Slice | SliceInput = None,
        return_labels: bool = False,
        project_output_onto: Tensor | None = None,
    ) -> Stacked:
        """Every head, every neuron (or MLP), the embeddings and all biases: they sum to the stream."""
        found = super().get_full_resid_decomposition(
            layer,
            mlp_input=mlp_input,
            expand_neurons=expand_neurons,
            apply_ln=apply_ln,
            pos_slice=native(pos_slice),
            return_labels=True,
        )
        stack, labels = _both(found)
        found = _onto(project_output_onto, (stack, list(map(_written, labels))))
        return found if return_labels else found[0]

    def logit_attrs(
        self,
        residual_stack: Tensor,
        tokens: str | int | Tensor,
        incorrect_tokens: str | int | Tensor | None = None,
        pos_slice: Slice | SliceInput = None,
        batch_slice: Slice | SliceInput = None,
        has_batch_dim: bool = True,
    ) -> Tensor:
        """What each part adds to the logit of `tokens`, less that of `incorrect_tokens`."""
        seen = self.apply_ln_to_stack(
            residual_stack, pos_slice=pos_slice, batch_slice=batch_slice, has_batch_dim=has_batch_dim
        )
        model = self._weights()
        direction = model.tokens_to_residual_directions(tokens)
        if incorrect_tokens is not None:
            direction = direction - model.tokens_to_residual_directions(incorrect_tokens)
        if batch_slice is not None and direction.ndim > 1:
            direction = Slice.of(batch_slice).apply(direction, dim=0)
        if direction.ndim == 2 and seen.ndim == 4:
            direction = direction[:, None]
        if direction.ndim == 3 and pos_slice is not None:
            direction = Slice.of(pos_slice).apply(direction, dim=1)
        return (seen * direction).sum(-1)


def native(given: Slice | SliceInput) -> PosSlice:
    """A classic slice as `interp` takes it."""
    return given.native() if isinstance(given, Slice) else Slice(given).native()


def _both(found: Any) -> tuple[Tensor, list[str]]:
    """What was asked for with its labels."""
    return found


def _written(label: str) -> str:
    """`L0 attn` as `0_attn_out`."""
    layer, _, part = label.partition(" ")
    return f"{layer[1:]}_{part}_out" if part in ("attn", "mlp") else label


def _onto(directions: Tensor | None, found: Any) -> Any:
    if directions is None:
        return found
    return (found[0] @ directions, *found[1:]) if isinstance(found, Sequence) else found @ directions
