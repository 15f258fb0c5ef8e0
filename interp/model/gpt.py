"""HookedGPT: a transformer with a named hook point on every quantity."""

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from interp.cache import ActivationCache, PosSlice, Recording
from interp.cache import positions as positions_of
from interp.config import GPTConfig
from interp.hooks import HookPoint, Hooks, Names, hooks_in_force, is_heard
from interp.loading import open_checkpoint, save
from interp.model.attention import Pass
from interp.model.block import Block, block
from interp.model.embed import Embed, LearnedPositions, SinusoidalPositions, Unembed
from interp.model.generate import Generates
from interp.model.init import init_weights
from interp.model.inputs import (
    Mask,
    allowed_attention,
    checked_layers,
    checked_mask,
    checked_resid,
    checked_tokens,
    next_token_loss,
    positions,
)
from interp.model.kv_cache import KVCache
from interp.model.norms import norm
from interp.model.rotary import rotation
from interp.model.text import Text
from interp.tokenization import Tokenizer

ReturnType = Literal["logits", "loss", "both"] | None
Stream = Float[Tensor, "batch pos d_model"]


class HookedGPT(Generates):
    """A transformer that can be read, hooked and trained.

    The residual stream is the spine: tokens are embedded into it, each block reads it and adds to it, and the logits
    are read off its end. `describe_hooks()` lists what can be read and changed on the way.
    """

    def __init__(self, cfg: GPTConfig, tokenizer: Tokenizer | None = None) -> None:
        super().__init__()
        self.cfg = cfg
        self.tokenizer = tokenizer
        self.embed = Embed(cfg)
        self.hook_embed = HookPoint("batch pos d_model", "W_E[token]")
        if cfg.positional_embedding_type == "standard":
            self.pos_embed = LearnedPositions(cfg)
            self.hook_pos_embed = HookPoint("batch pos d_model", "W_pos[position]")
        elif cfg.positional_embedding_type == "sinusoidal":
            self.pos_embed = SinusoidalPositions(cfg)
            self.hook_pos_embed = HookPoint("batch pos d_model", "sines and cosines of the position")
        else:
            self.pos_embed = None
        self.dropout = nn.Dropout(cfg.dropout) if cfg.dropout else nn.Identity()
        blocks = nn.ModuleList(block(cfg, layer) for layer in range(cfg.n_layers))
        self.blocks = cast(Sequence[Block], blocks)  # typed by what most of them are
        self.ln_final = norm(cfg, exists=cfg.norm_position != "post")
        self.unembed = Unembed(cfg, self.embed)
        self._compile_options: dict[str, Any] | None = None
        self._compiled: Callable[..., Any] | None = None
        self.setup()
        self.init_weights()

    @classmethod
    def from_pretrained(
        cls,
        where: str | os.PathLike[str],
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
    ) -> "HookedGPT":
        """The model in a folder that `save_pretrained` wrote, in a Hugging Face folder, or under a name on its hub.

        Its mathematics is the checkpoint's. `dtype` is that of the stored weights unless given. Nothing but tensors and
        JSON is read: no code of a checkpoint ever runs.
        """
        checkpoint = open_checkpoint(where, revision, cache_dir)
        cfg = checkpoint.cfg if dtype is None else replace(checkpoint.cfg, dtype=dtype)
        with torch.device("meta"):
            model = cls(cfg, checkpoint.tokenizer)
        checkpoint.check(model)
        checkpoint.fill(model, torch.get_default_device() if device is None else device)
        return model.eval()

    def save_pretrained(self, folder: str | os.PathLike[str], max_shard_size: int = 5 * 2**30) -> None:
        """Write the model to a folder; at any moment it holds the old model or the new, never a mixture."""
        cfg = replace(self.cfg, dtype=self.dtype)
        save(folder, cfg, self.tokenizer, dict(self.state_dict()), max_shard_size)

    def init_weights(self) -> None:
        """Draw every weight anew, as `cfg.init_mode` and `cfg.seed` say."""
        init_weights(self, self.cfg)

    def forward(
        self,
        input: Text | Int[Tensor, "batch pos"] | Int[Tensor, " pos"] | Stream,
        return_type: ReturnType = "logits",
        *,
        loss_per_token: bool = False,
        prepend_bos: bool | None = None,
        attention_mask: Tensor | None = None,
        past_kv_cache: KVCache | None = None,
        start_at_layer: int | None = None,
        stop_at_layer: int | None = None,
        last_only: bool = False,
    ) -> Any:
        """Logits `[batch pos d_vocab_out]`, the next-token loss, both as a pair, or nothing.

        With `last_only`, logits of the last position alone, unless somebody listens to the end of the stream.
        `stop_at_layer=k` returns the stream before block k, `start_at_layer=k` takes it. `attention_mask` is True (or
        1) on real tokens `[batch pos]`; padding may stand left or right, and position 0 is the first real token.
        """
        if torch.compiler.is_compiling():  # by a compiler around this model: it may have what the door lets through
            torch._dynamo.skip_frame("HookedGPT reads its context outside of what is compiled")
        layers = (start_at_layer, stop_at_layer)
        if not isinstance(input, Tensor):
            input, attention_mask = self._read_input(input, prepend_bos, attention_mask)
        elif prepend_bos is not None:
            raise ValueError("prepend_bos is for text; these are tokens already")
        admitted = _uncompiled(HookedGPT._door)(
            self, input, return_type, attention_mask, past_kv_cache, layers, loss_per_token, last_only
        )
        run, x, mask, between = admitted
        return run(x, between, stop_at_layer is None, return_type, loss_per_token, last_only, mask, past_kv_cache)

    def _door(
        self,
        input: Tensor,
        return_type: ReturnType,
        attention_mask: Tensor | None,
        past: KVCache | None,
        layers: tuple[int | None, int | None],
        loss_per_token: bool,
        last_only: bool,
    ) -> tuple[Callable[..., Any], Tensor, Mask | None, tuple[int, int]]:
        """Check a call, and choose how it runs. A compiler that traced this would fix for ever who listens."""
        if return_type not in ("logits", "loss", "both", None):
            raise ValueError(f"return_type={return_type!r}; allowed: 'logits', 'loss', 'both', None")
        if return_type in ("loss", "both") and layers[1] is not None:
            raise ValueError(f"return_type={return_type!r}, but stop_at_layer={layers[1]} returns the stream")
        if last_only and return_type in ("loss", "both"):
            raise ValueError(f"last_only leaves out the logits that return_type={return_type!r} needs")
        if loss_per_token and return_type not in ("loss", "both"):
            raise ValueError(f"loss_per_token is for return_type 'loss' or 'both', not {return_type!r}")
        if past is not None and not isinstance(past, KVCache):
            raise TypeError(f"past_kv_cache is an interp.KVCache, not a {type(past).__name__}")
        between = checked_layers(*layers, self.cfg.n_layers)
        checked = checked_tokens if layers[0] is None else checked_resid
        x = checked(input, self.cfg, self.device)
        if x.is_floating_point() and x.dtype != self.dtype and not torch.is_autocast_enabled(x.device.type):
            raise TypeError(f"the residual stream is {x.dtype}; the model is {self.dtype}")
        n_rows, n_new = x.shape[:2]
        self._check_lengths(n_new, past, is_whole=layers == (None, None))
        if return_type in ("loss", "both"):
            self._check_loss(n_new, has_tokens=layers[0] is None)
        mask = checked_mask(attention_mask, n_rows, n_new, past, self.device)
        if past is not None:
            run = partial(_uncompiled(HookedGPT._pass_and_remember), self)
        elif self.is_observed():
            self._refuse_compiled_parts()
            run = partial(_uncompiled(HookedGPT._pass), self)  # hook points say nothing while they are compiled
        else:
            run = self._pass if self._compile_options is None else self._compiled_pass()
        return run, x, mask, between

    def _refuse_compiled_parts(self) -> None:
        if "torch._dynamo" not in sys.modules:
            return
        for name, module in self.named_modules():
            if module._compiled_call_impl is not None or hasattr(module, "_orig_mod"):
                raise ValueError(
                    f"{name or 'the model'} is compiled by itself, and would hear no hook: use model.compile()"
                )

    def _read_input(self, input: Text, prepend_bos: bool | None, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        is_list = isinstance(input, list | tuple)
        if not isinstance(input, str) and not (is_list and all(isinstance(text, str) for text in input)):
            raise TypeError(f"input is text, texts, or token ids as a tensor [batch pos] or [pos], not {_kind(input)}")
        if mask is not None:
            raise ValueError("attention_mask is for tokens; of texts the model knows what is padding")
        return self.read(input, prepend_bos)

    def _check_lengths(self, n_new: int, past: KVCache | None, is_whole: bool) -> None:
        n_past = 0 if past is None else past.length
        if n_past + n_new > self.cfg.n_ctx:
            after = f" after {n_past} in the KV cache" if n_past else ""
            raise ValueError(f"{n_new} tokens{after} are longer than the context, n_ctx={self.cfg.n_ctx}")
        if past is not None and self.cfg.attention_dir == "bidirectional":
            raise ValueError("past_kv_cache needs attention_dir='causal': here later tokens change earlier ones")
        if past is not None and not is_whole:
            raise ValueError("past_kv_cache needs every layer: leave out start_at_layer and stop_at_layer")

    def _check_loss(self, n_new: int, has_tokens: bool) -> None:
        if not has_tokens:
            raise ValueError("the next-token loss needs tokens; start_at_layer gives a residual stream alone")
        if n_new < 2:
            raise ValueError("the next-token loss needs at least 2 tokens; 1 was given")
        if self.cfg.d_vocab_out < self.cfg.d_vocab:
            sizes = f"d_vocab_out={self.cfg.d_vocab_out} is less than d_vocab={self.cfg.d_vocab}"
            raise ValueError(f"no next-token loss: {sizes}")

    def _compiled_pass(self) -> Callable[..., Any]:
        if self._compiled is None:
            self._compiled = torch.compile(self._pass, fullgraph=True, **(self._compile_options or {}))
        return self._compiled

    def _pass_and_remember(self, x: Tensor, *args: Any) -> Any:
        out = self._pass(x, *args)
        mask, kv_cache = args[-2:]
        kv_cache.commit(x.shape[1], mask)
        return out

    def _pass(
        self,
        x: Tensor,
        layers: tuple[int, int],
        to_the_end: bool,
        return_type: ReturnType,
        loss_per_token: bool,
        last_only: bool,
        mask: Mask | None,
        kv_cache: KVCache | None,
    ) -> Any:
        n_past, n_new = (kv_cache.length if kv_cache is not None else 0), x.shape[1]
        where = positions(mask, n_past, n_new, x.device)
        is_causal = self.cfg.attention_dir == "causal"
        this = Pass(
            rotation=rotation(self.cfg, where, self.dtype) if self.cfg.is_rotary else None,
            mask=allowed_attention(mask, n_past, n_new, is_causal, None, x.device),
            local_mask=allowed_attention(mask, n_past, n_new, is_causal, self.cfg.window_size, x.device),
            is_causal=is_causal and n_past == 0,
            kv_cache=kv_cache,
            hooks=hooks_in_force(),
        )
        resid = x if x.is_floating_point() else self.into_stream(x, where)
        for layer in islice(self.blocks, *layers):
            resid = layer(resid, this)
        if not to_the_end:
            return resid
        if last_only and not is_heard(*self._end_points()):
            resid = resid[:, -1:]
        final = self.ln_final(resid)
        if return_type is None and not is_heard(self.unembed.hook_in, self.unembed.hook_out):
            return None  # nobody wants the logits
        logits = self.unembed(final)
        if (cap := self.cfg.output_logits_soft_cap) is not None:
            logits = cap * torch.tanh(logits / cap)
        if return_type not in ("loss", "both"):
            return logits if return_type == "logits" else None
        new_mask = None if mask is None else mask[:, n_past:]
        loss = next_token_loss(logits, x, new_mask, loss_per_token)
        return loss if return_type == "loss" else (logits, loss)

    def _end_points(self) -> list[HookPoint]:
        return [point for name, point in self.hook_dict.items() if name.startswith(("ln_final.", "unembed."))]

    def into_stream(self, tokens: Int[Tensor, "batch pos"], where: Int[Tensor, "#batch pos"]) -> Stream:
        """What the tokens put into the stream before the first block."""
        embed = self.embed(tokens)
        if self.cfg.embed_scale != 1:
            embed = embed * torch.tensor(self.cfg.embed_scale, dtype=embed.dtype)  # rounded as the weights are
        resid = self.hook_embed(embed)
        if self.pos_embed is not None:
            resid = resid + self.hook_pos_embed(self.pos_embed(where, resid.dtype).expand_as(resid))
        return self.dropout(resid)

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
            input, attention_mask = self._read_input(input, prepend_bos, attention_mask)
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
        chosen = positions_of(pos_slice, n_pos, attention_mask)
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

    def _cached_by_default(self, start_at_layer: int | None, stop_at_layer: int | None) -> list[str]:
        cached = [name for name, point in self.hook_dict.items() if point.is_cached_by_default]
        return [name for name in cached if self._is_reached(name, start_at_layer, stop_at_layer)]

    def _is_reached(self, name: str, start_at_layer: int | None, stop_at_layer: int | None) -> bool:
        first, last = checked_layers(start_at_layer, stop_at_layer, self.cfg.n_layers)
        if name.startswith("blocks."):
            return first <= self.hook_dict[name].layer() < last
        return start_at_layer is None if name in ("hook_embed", "hook_pos_embed") else stop_at_layer is None

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
        rows: dict[str, tuple[str, str, str]] = {}
        for name, point in self.hook_dict.items():
            shared = name.replace(f"blocks.{point.layer()}.", "blocks.{layer}.") if name.startswith("blocks.") else name
            rows[shared] = (point.axes, "on demand" if point.on_demand else "always", point.formula)
        header = ("name", "axes", "computed", "formula")
        table = [header, *((name, *row) for name, row in rows.items())]
        widths = [max(len(row[i]) for row in table) for i in range(3)]
        return Table("\n".join("  ".join(c.ljust(w) for c, w in zip(row, [*widths, 0], strict=True)) for row in table))

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

    def check(self) -> "HookedGPT":
        """Raise if a weight is not finite, naming the first."""
        for name, parameter in self.named_parameters():
            if not parameter.isfinite().all():
                n_bad = int((~parameter.isfinite()).sum())
                raise ValueError(f"{name} has {n_bad} of {parameter.numel()} values that are NaN or infinite")
        return self

    def compile(self, **options: Any) -> None:
        """Compile the pass that nobody listens to, whole; a call with hooks, edits or a cache runs as it is."""
        self._compile_options, self._compiled = options, None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_compiled": None}  # compiled again where the copy is first called


@lru_cache
def _disabled(fn: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compiler.disable(fn)


def _uncompiled(fn: Callable[..., Any]) -> Callable[..., Any]:
    """`fn`, hidden from a compiler that may surround this call. (Asking for one that is not there would load it.)"""
    return _disabled(fn) if "torch._dynamo" in sys.modules else fn


class Table(str):
    """Text that a notebook shows as it is."""

    __repr__ = str.__str__


def _kind(input: object) -> str:
    return f"a {type(input).__name__}" + (f" of {type(input[0]).__name__}" if isinstance(input, list) and input else "")


def _scalar(loss: Any) -> Tensor:
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        given = f"shape {list(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise ValueError(f"incl_bwd differentiates one number: use return_type='loss' or give loss_fn; got {given}")
    return loss.reshape(())
