"""ActivationCache: the activations of one pass by name, and what the residual stream is made of."""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

import torch
from einops import einsum
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from interp.config import GPTConfig
from interp.recording import PosSlice, positions

Stack = Float[Tensor, "component *batch_and_pos d_model"]
Numbers = Float[Tensor, "component *batch_and_pos"]


class ActivationCache(Mapping[str, Tensor]):
    """What one pass computed, in the order of computation.

    It knows short names too: `cache["pattern", 3]`, `cache["resid_post", -1]`, `cache["embed"]`,
    `cache["scale", 0, "ln2"]`. It carries the pass's tokens and mask, so that position -1 is the last real token.
    """

    def __init__(
        self,
        tensors: dict[str, Tensor],
        model: Any = None,  # the HookedGPT; the decompositions read its weights
        *,
        cfg: GPTConfig | None = None,
        tokens: Tensor | None = None,
        attention_mask: Tensor | None = None,
        pos_slice: PosSlice = None,
        has_batch_dim: bool = True,
    ) -> None:
        self._tensors = tensors
        self._model = model
        self.cfg: GPTConfig | None = cfg if model is None else model.cfg
        self.tokens = tokens
        self.attention_mask = attention_mask
        self.pos_slice = slice(*pos_slice) if isinstance(pos_slice, tuple) else pos_slice
        self.has_batch_dim = has_batch_dim

    @property
    def model(self) -> Any:
        """The `HookedGPT` that ran, or None if the cache was loaded without it."""
        return self._model

    def __getitem__(self, key: str | tuple[str | int | None, ...]) -> Tensor:
        return self._tensors[self.full_name(key)]

    def __contains__(self, key: object) -> bool:
        try:
            self.full_name(key)  # type: ignore[arg-type]
        except KeyError:
            return False
        return True

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __repr__(self) -> str:
        size = sum(tensor.nbytes for tensor in self._tensors.values())
        return f"ActivationCache of {len(self)} activations, {size / 2**20:.1f} MiB; names in list(cache)"

    def full_name(self, key: str | tuple[str | int | None, ...]) -> str:
        """The hook's name that a key means."""
        if isinstance(key, str) and key in self._tensors:
            return key
        if not isinstance(key, str | tuple):
            raise KeyError(f"{key!r} is no name; list(cache) has all {len(self)} names")
        name, layer, part = (*((key,) if isinstance(key, str) else key), None, None)[:3]
        if isinstance(layer, int) and layer < 0:
            layer += self._config().n_layers
        block = "" if layer is None else f"blocks.{layer}."
        found = [
            full
            for full in self._tensors
            if full.startswith(block)
            and full.rpartition(".")[2] in (name, f"hook_{name}")
            and (part is None or f".{part}." in f".{full}")
        ]
        if len(found) == 1:
            return found[0]
        if found:
            raise KeyError(f"{key!r} could mean any of {found[:8]}; say which layer, or which part of it")
        near = get_close_matches(f"{block}hook_{name}", self._tensors, n=4, cutoff=0.5)
        raise KeyError(f"{key!r} is not in this cache; nearest: {near}; list(cache) has all {len(self)} names")

    def remove_batch_dim(self) -> "ActivationCache":
        """Drop the batch axis of a batch of one, in place."""
        if self.has_batch_dim:
            if sizes := {tensor.shape[0] for tensor in self._tensors.values()} - {1}:
                raise ValueError(f"only a batch of one can lose its axis; this one has {sizes} rows")
            self._tensors = {name: tensor[0] for name, tensor in self._tensors.items()}
            self.has_batch_dim = False
        return self

    def to(self, *args: Any, **kwargs: Any) -> "ActivationCache":
        """Move or convert every activation, in place; arguments as for `Tensor.to`."""
        moved = {tensor: tensor.to(*args, **kwargs) for tensor in self._tensors.values()}  # one may have two names
        self._tensors = {name: moved[tensor] for name, tensor in self._tensors.items()}
        return self

    # What the stream is made of. `layer=k` means what reaches block k, `None` or -1 what reaches the end, and
    # `mlp_input` what reaches block k's MLP. `apply_ln` sees each part as the norm that reads the stream there does.

    def accumulated_resid(
        self,
        layer: int | None = None,
        *,
        incl_mid: bool = False,
        apply_ln: bool = False,
        pos_slice: PosSlice = None,
        mlp_input: bool = False,
        return_labels: bool = False,
    ) -> Stack | tuple[Stack, list[str]]:
        """The stream before each block up to `layer`, and there; with `incl_mid` also before each MLP."""
        last = self._layer(layer, mlp_input)
        if incl_mid and (self._config().attn_only or self._config().parallel_attn_mlp):
            raise ValueError("incl_mid: this model has no resid_mid")
        names = []
        for i in range(last):
            names += [("resid_pre", i)] + ([("resid_mid", i)] if incl_mid else [])
        names += [("resid_post", last - 1) if last == self._config().n_layers else ("resid_pre", last)]
        names += [("resid_mid", last)] if mlp_input else []
        labels = ["final" if name == "resid_post" else f"L{i} {name.removeprefix('resid_')}" for name, i in names]
        parts = [self._at(self[name, i], pos_slice) for name, i in names]
        return self._stacked(parts, labels, apply_ln, layer, mlp_input, pos_slice, return_labels)

    def decompose_resid(
        self,
        layer: int | None = None,
        *,
        mlp_input: bool = False,
        mode: Literal["all", "mlp", "attn"] = "all",
        apply_ln: bool = False,
        pos_slice: PosSlice = None,
        incl_embeds: bool = True,
        return_labels: bool = False,
    ) -> Stack | tuple[Stack, list[str]]:
        """What embeddings, attention layers and MLPs wrote to the stream that reaches `layer`: they sum to it."""
        last = self._layer(layer, mlp_input)
        self._check_plain_sum()
        if mode not in ("all", "mlp", "attn"):
            raise ValueError(f"mode={mode!r}; allowed: 'all', 'mlp', 'attn'")
        parts, labels = self._embeds(pos_slice) if incl_embeds else ([], [])
        for i in range(last + mlp_input):
            for out, label in (("attn_out", "attn"), ("mlp_out", "mlp")):
                is_there = out == "attn_out" or (i < last and not self._config().attn_only)
                if is_there and mode in ("all", label):
                    parts.append(self._at(self[out, i], pos_slice))
                    labels.append(f"L{i} {label}")
        return self._stacked(parts, labels, apply_ln, layer, mlp_input, pos_slice, return_labels)

    def stack_head_results(
        self,
        layer: int | None = -1,
        *,
        return_labels: bool = False,
        incl_remainder: bool = False,
        pos_slice: PosSlice = None,
        apply_ln: bool = False,
    ) -> Stack | tuple[Stack, list[str]]:
        """What each head of the layers before `layer` added to the stream; the rest of it as `incl_remainder`."""
        last = self._layer(layer, mlp_input=False)
        parts, labels = self._heads(last, pos_slice)
        if incl_remainder:
            parts, labels = self._with_remainder(parts, labels, last, pos_slice)
        return self._stacked(parts, labels, apply_ln, layer, False, pos_slice, return_labels)

    def stack_neuron_results(
        self,
        layer: int | None = -1,
        *,
        pos_slice: PosSlice = None,
        neuron_slice: PosSlice = None,
        return_labels: bool = False,
        incl_remainder: bool = False,
        apply_ln: bool = False,
    ) -> Stack | tuple[Stack, list[str]]:
        """What each neuron of the layers before `layer` added to the stream; the rest of it as `incl_remainder`."""
        last = self._layer(layer, mlp_input=False)
        parts, labels = self._neurons(last, pos_slice, neuron_slice)
        if incl_remainder:
            parts, labels = self._with_remainder(parts, labels, last, pos_slice)
        return self._stacked(parts, labels, apply_ln, layer, False, pos_slice, return_labels)

    def get_full_resid_decomposition(
        self,
        layer: int | None = None,
        *,
        mlp_input: bool = False,
        expand_neurons: bool = True,
        apply_ln: bool = False,
        pos_slice: PosSlice = None,
        return_labels: bool = False,
    ) -> Stack | tuple[Stack, list[str]]:
        """Every head, every neuron (or MLP), the embeddings and all biases together: they sum to the stream."""
        last = self._layer(layer, mlp_input)
        parts, labels = self._heads(last + mlp_input, pos_slice)
        cfg = self._config()
        if not cfg.attn_only and expand_neurons:
            parts, labels = _joined((parts, labels), self._neurons(last, pos_slice))
        elif not cfg.attn_only:
            parts += [self._at(self["mlp_out", i], pos_slice) for i in range(last)]
            labels += [f"L{i} mlp" for i in range(last)]
        parts, labels = _joined((parts, labels), self._embeds(pos_slice))
        bias = torch.zeros_like(parts[-1])
        for i in range(last + mlp_input):
            block = self._weights().blocks[i]
            bias = bias + self._through(block.ln1_post, block.attn.b_O, f"blocks.{i}.ln1_post", pos_slice, is_bias=True)
            if i < last and expand_neurons and not cfg.attn_only:
                bias = bias + self._through(
                    getattr(block, "ln2_post", None), block.mlp.b_out, f"blocks.{i}.ln2_post", pos_slice, is_bias=True
                )
        return self._stacked([*parts, bias], [*labels, "bias"], apply_ln, layer, mlp_input, pos_slice, return_labels)

    def apply_ln_to_stack(
        self,
        residual_stack: Stack,
        layer: int | None = None,
        *,
        mlp_input: bool = False,
        pos_slice: PosSlice = None,
    ) -> Stack:
        """Each part as the norm before `layer` (or the final one) sees it: centred, over the frozen scale, times gain.

        The norm's bias is nobody's part. `pos_slice` says which positions the stack holds.
        """
        last = self._layer(layer, mlp_input)
        is_final = last == self._config().n_layers
        name = "ln_final" if is_final else f"blocks.{last}.{'ln2' if mlp_input else 'ln1'}"
        if self._config().norm_position == "post" or (self._config().norm_position == "output" and not is_final):
            raise ValueError(
                f"norm_position={self._config().norm_position!r}: no norm reads the stream at layer={layer}"
            )
        module = self._weights()
        for part in name.split("."):
            module = module[int(part)] if part.isdigit() else getattr(module, part)
        return self._through(module, residual_stack, name, pos_slice)

    def logit_attrs(
        self,
        residual_stack: Stack,
        tokens: int | Tensor,
        incorrect_tokens: int | Tensor | None = None,
        *,
        pos_slice: PosSlice = None,
    ) -> Numbers:
        """What each part adds to the logit of `tokens` (less that of `incorrect_tokens`), the final scale as it was.

        Tokens are one id, or ids `[batch]` or `[batch pos]`. With all parts of the stream, the sum is the logit but for
        the final norm's bias and b_U.
        """
        seen = self.apply_ln_to_stack(residual_stack, pos_slice=pos_slice)
        direction = self._directions(tokens, seen)
        if incorrect_tokens is not None:
            direction = direction - self._directions(incorrect_tokens, seen)
        return (seen * direction).sum(-1)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file, whole or not at all. One tensor under two names is stored once."""
        stored: dict[tuple[Any, ...], str] = {}
        alias: dict[str, str] = {}
        for name, tensor in self._tensors.items():
            alias[name] = stored.setdefault((tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()), name)
        tensors: dict[str, Tensor] = {}
        written: set[int] = set()
        for name in stored.values():
            tensor = self._tensors[name].detach().contiguous()
            shares = tensor.untyped_storage().data_ptr() in written
            tensors[name] = tensor.clone() if shares else tensor
            written.add(tensors[name].untyped_storage().data_ptr())
        for extra in ("tokens", "attention_mask"):
            if (value := getattr(self, extra)) is not None:
                tensors[extra] = value.contiguous()
        pos = self.pos_slice
        about = {
            "alias": alias,
            "cfg": None if self.cfg is None else self.cfg.to_dict(),
            "has_batch_dim": self.has_batch_dim,
            "pos_slice": {"slice": [pos.start, pos.stop, pos.step]} if isinstance(pos, slice) else pos,
        }
        target = Path(path)
        unfinished = target.with_name(f".{target.name}.{os.getpid()}.unfinished")
        try:
            save_file(tensors, unfinished, metadata={"interp_cache": json.dumps(about)})
            os.replace(unfinished, target)
        finally:
            unfinished.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | os.PathLike[str], model: Any = None, device: str = "cpu") -> "ActivationCache":
        """The cache that `save` wrote, memory-mapped; decompositions need the model that made it."""
        try:
            with safe_open(path, "pt", device=device) as file:
                about = json.loads((file.metadata() or {}).get("interp_cache", "null"))
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        except SafetensorError as error:
            raise ValueError(f"{path} is no complete safetensors file: {error}") from error
        if about is None:
            raise ValueError(f"{path} was not written by ActivationCache.save: it names no activations")
        cfg = None if about["cfg"] is None else GPTConfig.from_dict(about["cfg"])
        if model is not None and cfg != model.cfg:
            raise ValueError(f"{path} was made by another model: its config is {cfg}, not {model.cfg}")
        pos = about["pos_slice"]
        return cls(
            {name: tensors[stored] for name, stored in about["alias"].items()},
            model,
            cfg=cfg,
            tokens=tensors.get("tokens"),
            attention_mask=tensors.get("attention_mask"),
            pos_slice=slice(*pos["slice"]) if isinstance(pos, dict) else pos,
            has_batch_dim=about["has_batch_dim"],
        )

    def _config(self) -> GPTConfig:
        if self.cfg is None:
            raise ValueError("this cache knows no model: make it with ActivationCache(tensors, model)")
        return self.cfg

    def _weights(self) -> Any:
        if self._model is None:
            raise ValueError("this needs the model's weights: ActivationCache.load(path, model)")
        return self._model

    def _layer(self, layer: int | None, mlp_input: bool) -> int:
        cfg = self._config()
        last = cfg.n_layers if layer is None or layer == -1 else layer
        if not 0 <= last <= cfg.n_layers:
            raise ValueError(f"layer={layer}; allowed: 0 to {cfg.n_layers}, or None or -1 for the end")
        if mlp_input and (last == cfg.n_layers or cfg.attn_only or cfg.parallel_attn_mlp):
            reason = "no MLP reads the end of the stream" if last == cfg.n_layers else "the model has no resid_mid"
            raise ValueError(f"mlp_input with layer={layer}: {reason}")
        return last

    def _check_plain_sum(self) -> None:
        if self._config().norm_position == "post":
            raise ValueError("norm_position='post': each norm acts on the stream itself, which is no sum of parts")

    def _at(self, x: Tensor, pos_slice: PosSlice) -> Tensor:
        """The chosen positions of an activation `[batch? pos …]`."""
        if pos_slice is None:
            return x
        if self.pos_slice is not None:
            raise ValueError(f"this cache holds the positions pos_slice={self.pos_slice} alone; it cannot be cut again")
        axis = int(self.has_batch_dim)
        chosen = positions(pos_slice, x.shape[axis], self.attention_mask)
        assert chosen is not None
        if not self.has_batch_dim and isinstance(chosen.index, Tensor) and chosen.index.ndim == 2:
            chosen = replace(chosen, index=chosen.index[0])
        return chosen.of(x, axis)

    def _embeds(self, pos_slice: PosSlice) -> tuple[list[Tensor], list[str]]:
        labels = ["embed", "pos_embed"] if self._config().adds_positions else ["embed"]
        return [self._at(self[f"hook_{label}"], pos_slice) for label in labels], labels

    def _heads(self, last: int, pos_slice: PosSlice) -> tuple[list[Tensor], list[str]]:
        self._check_plain_sum()
        parts: list[Tensor] = []
        for i in range(last):
            block = self._weights().blocks[i]
            z = self._at(self["z", i], pos_slice)
            result = einsum(z, block.attn.W_O, "... head d_head, head d_head d_model -> head ... d_model")
            parts += self._through(block.ln1_post, result, f"blocks.{i}.ln1_post", pos_slice)
        return parts, [f"L{i}H{head}" for i in range(last) for head in range(self._config().n_heads)]

    def _neurons(self, last: int, pos_slice: PosSlice, neurons: PosSlice = None) -> tuple[list[Tensor], list[str]]:
        self._check_plain_sum()
        if self._config().attn_only:
            raise ValueError("the model is attn_only: it has no neurons")
        chosen = positions(neurons, self._config().d_mlp, None)
        every = torch.arange(self._config().d_mlp)
        indices = every if chosen is None else chosen.of(every, 0).reshape(-1)
        parts: list[Tensor] = []
        for i in range(last):
            block = self._weights().blocks[i]
            post = self._at(self["post", i, "mlp"], pos_slice)[..., indices.to(self["post", i, "mlp"].device)]
            values = block.mlp.W_out[indices.to(block.mlp.W_out.device)]
            result = einsum(post, values, "... neuron, neuron d_model -> neuron ... d_model")
            parts += self._through(getattr(block, "ln2_post", None), result, f"blocks.{i}.ln2_post", pos_slice)
        return parts, [f"L{i}N{neuron}" for i in range(last) for neuron in indices.tolist()]

    def _with_remainder(
        self, parts: list[Tensor], labels: list[str], last: int, pos_slice: PosSlice
    ) -> tuple[list[Tensor], list[str]]:
        whole = self["resid_post", last - 1] if last == self._config().n_layers else self["resid_pre", last]
        rest = self._at(whole, pos_slice)
        return [*parts, rest - sum(parts) if parts else rest], [*labels, "remainder"]

    def _through(
        self, norm: Any, parts: Tensor | None, name: str, pos_slice: PosSlice, is_bias: bool = False
    ) -> Tensor:
        """Parts of a norm's input as parts of its output, its scale frozen; with `is_bias` its own bias is added."""
        if parts is None:
            parts = torch.zeros(self._config().d_model, dtype=self._weights().dtype, device=self._weights().device)
        if not hasattr(norm, "centred"):
            return parts
        scale = self._at(self[f"{name}.hook_scale"], pos_slice)
        seen = (norm.centred(parts) / scale).to(parts.dtype)
        return norm.affine(seen) if is_bias else seen if norm.w is None else seen * norm.w

    def _directions(self, tokens: int | Tensor, seen: Tensor) -> Tensor:
        W_U = self._weights().W_U
        ids = torch.as_tensor(tokens, device=W_U.device)
        if ids.is_floating_point() or ids.ndim > seen.ndim - 2:
            raise ValueError(f"tokens {tokens!r}: give one id, or integer ids [batch] or [batch pos]")
        if ids.device.type == "cpu" and ids.numel() and not 0 <= ids.min() <= ids.max() < len(W_U.T):
            raise ValueError(f"tokens {tokens!r} are out of range: d_vocab_out={len(W_U.T)}")
        direction = W_U.T[ids]
        return direction[:, None] if ids.ndim == 1 and self.has_batch_dim and seen.ndim == 4 else direction

    def _stacked(
        self,
        parts: list[Tensor],
        labels: list[str],
        apply_ln: bool,
        layer: int | None,
        mlp_input: bool,
        pos_slice: PosSlice,
        return_labels: bool,
    ) -> Stack | tuple[Stack, list[str]]:
        if not parts:
            raise ValueError(f"nothing reaches layer={layer} with these choices: the stack would be empty")
        stack = torch.stack(torch.broadcast_tensors(*parts))
        if apply_ln:
            stack = self.apply_ln_to_stack(stack, layer, mlp_input=mlp_input, pos_slice=pos_slice)
        return (stack, labels) if return_labels else stack


def _joined(*stacks: tuple[list[Tensor], list[str]]) -> tuple[list[Tensor], list[str]]:
    return [part for parts, _ in stacks for part in parts], [label for _, labels in stacks for label in labels]
