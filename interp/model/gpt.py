"""HookedGPT: a transformer with a named hook point on every quantity."""

import hashlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from interp.config import GPTConfig
from interp.hooks import HookPoint, Span, hooks_in_force, is_heard, spanning
from interp.loading import open_checkpoint, save, write_huggingface
from interp.model.attention import Pass, RotaryAttention
from interp.model.block import Block, block
from interp.model.embed import Embed, LearnedPositions, SinusoidalPositions, Unembed
from interp.model.init import init_weights
from interp.model.inputs import (
    Mask,
    ReturnType,
    allowed_attention,
    check_range,
    checked_layers,
    checked_mask,
    checked_resid,
    checked_tokens,
    distance,
    next_token_loss,
    positions,
)
from interp.model.kv_cache import KVCache
from interp.model.norms import norm
from interp.model.observe import Observed
from interp.model.rotary import rotations
from interp.model.text import Text
from interp.tokenization import Tokenizer

Stream = Float[Tensor, "batch pos d_model"]


class HookedGPT(Observed):
    """A transformer that can be read, hooked and trained.

    The residual stream is the spine: tokens are embedded into it, each block reads it and adds to it, and the logits
    are read off its end. `describe_hooks()` lists what can be read and changed on the way.
    """

    def __init__(self, cfg: GPTConfig, tokenizer: Tokenizer | None = None) -> None:
        super().__init__()
        self.cfg = cfg
        self.tokenizer = tokenizer
        self.embed = Embed(cfg)
        self.hook_embed = HookPoint("batch pos d_model", "W_E[token], past embed.ln where there is one")
        if cfg.positional_embedding_type == "standard":
            self.pos_embed = LearnedPositions(cfg)
            self.hook_pos_embed = HookPoint("batch pos d_model", "W_pos[position]")
        elif cfg.is_shortformer:
            self.pos_embed = LearnedPositions(cfg)
            self.hook_pos_embed = HookPoint("batch pos d_model", "W_pos[position], which queries and keys read")
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
        self._fingerprint: tuple[Any, str] | None = None
        self.setup()
        end = (f"blocks.{cfg.n_layers - 1}.", "ln_final.", "unembed.")
        self._end_points = [point for name, point in self.hook_dict.items() if name.startswith(end)]
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
        """The model that comes with the package under a name, in a folder that `save_pretrained` wrote, in a Hugging
        Face folder, or under a name on its hub.

        Its mathematics is the checkpoint's. `dtype` is that of the stored weights unless given. Nothing but tensors and
        JSON is read: no code of a checkpoint ever runs.
        """
        checkpoint = open_checkpoint(where, revision, cache_dir)
        cfg = checkpoint.cfg if dtype is None else replace(checkpoint.cfg, dtype=dtype)
        model = cls(replace(cfg, device="meta"), checkpoint.tokenizer)
        for module in (model, *(each.attn for each in model.blocks)):
            module.cfg = cfg
        checkpoint.check(model)
        checkpoint.fill(model, torch.get_default_device() if device is None else device, dtype)
        return model.eval()

    def save_pretrained(
        self,
        folder: str | os.PathLike[str],
        max_shard_size: int = 5 * 2**30,
        *,
        stored_as: torch.dtype | None = None,
    ) -> None:
        """Write the model to a folder; at any moment it holds the old model or the new, never a mixture.

        `stored_as=torch.float16` halves the file; opened again, the model computes in its own precision.
        """
        cfg = replace(self.cfg, dtype=self.dtype)
        save(folder, cfg, self.tokenizer, dict(self.state_dict()), max_shard_size, stored_as)

    def to_huggingface(
        self, folder: str | os.PathLike[str], model_type: str | None = None, max_shard_size: int = 5 * 2**30
    ) -> str:
        """Write the model as a folder that `transformers` opens; the `model_type` as which it was written.

        None: the first of the families that has all that this model has. One that lacks a part of it is refused.
        """
        cfg = replace(self.cfg, dtype=self.dtype)
        return write_huggingface(folder, cfg, self.tokenizer, dict(self.state_dict()), model_type, max_shard_size)

    def fingerprint(self) -> str:
        """A hash of what the model computes: its config and weights. Computed anew when a weight was written.

        (Writes through `.data` are the one kind that torch does not count.)
        """
        weights = self.state_dict()
        state = tuple((tensor.data_ptr(), tensor._version) for tensor in weights.values())
        if self._fingerprint is None or self._fingerprint[0] != state:
            idle = ("device", "seed", "init_mode", "initializer_range", "dropout")
            cfg = {k: v for k, v in replace(self.cfg, dtype=self.dtype).to_dict().items() if k not in idle}
            digest = hashlib.sha256(json.dumps(cfg, sort_keys=True).encode())
            for name, tensor in weights.items():
                digest.update(name.encode())
                digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy())
            self._fingerprint = state, digest.hexdigest()[:16]
        return self._fingerprint[1]

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

        With `last_only`, logits of the last position alone, and no more of the last block than they need; all of them
        while somebody listens there or to the end of the stream.
        `stop_at_layer=k` returns the stream before block k, `start_at_layer=k` takes it. `attention_mask` is True (or
        1) on real tokens `[batch pos]`; padding may stand left or right, and position 0 is the first real token.
        """
        if torch.compiler.is_compiling():  # by a compiler around this model: it may have what the door lets through
            torch._dynamo.skip_frame("HookedGPT reads its context outside of what is compiled")
        layers = (start_at_layer, stop_at_layer)
        if not isinstance(input, Tensor):
            input, attention_mask = self.read_input(input, prepend_bos, attention_mask)
        elif prepend_bos is not None:
            raise ValueError("prepend_bos is for text; these are tokens already")
        admitted = _uncompiled(HookedGPT._door)(
            self, input, return_type, attention_mask, past_kv_cache, layers, loss_per_token, last_only
        )
        run, x, mask, between = admitted
        try:
            return run(x, between, stop_at_layer is None, return_type, loss_per_token, last_only, mask, past_kv_cache)
        except (IndexError, RuntimeError):
            check_range(input, self.cfg)
            raise

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
        x = checked_tokens(input, self.device) if layers[0] is None else checked_resid(input, self.cfg, self.device)
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
            run = partial(_uncompiled(HookedGPT._observed_pass), self)  # a compiled hook point says nothing
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

    def _observed_pass(self, x: Tensor, *args: Any) -> Any:
        mask, kv_cache = args[-2:]
        with spanning(Span(0 if kv_cache is None else kv_cache.length, mask)):
            return self._pass(x, *args)

    def _pass_and_remember(self, x: Tensor, *args: Any) -> Any:
        mask, kv_cache = args[-2:]
        if self.cfg.rope_scaling is not None and self.cfg.rope_scaling.depends_on_length:
            self._turn_past(kv_cache, positions(mask, 0, kv_cache.length + x.shape[1], x.device))
        out = self._observed_pass(x, *args)
        kv_cache.commit(x.shape[1], mask)
        return out

    @torch.no_grad()
    def _turn_past(self, kv_cache: KVCache, where: Int[Tensor, "#batch pos"]) -> None:
        """Give kept keys the angles that they have in an input as long as these positions are."""
        length, before = where.max() + 1, kv_cache.turned_for
        if kv_cache.length and before is not None and before != length:
            past = where[:, : kv_cache.length]
            old, new = (rotations(self.cfg, past, self.dtype, each) for each in (before, length))
            for layer, each in enumerate(self.blocks):
                if isinstance(each.attn, RotaryAttention):
                    each.attn.turn_again(kv_cache.of(layer)[0], old, new)
        kv_cache.turned_for = length

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
        resid = x if x.is_floating_point() else self.into_stream(x, where)
        this = self.pass_over(where, mask, n_past, kv_cache, len(x))
        cut = last_only and not is_heard(*self._end_points)
        for i, layer in enumerate(islice(self.blocks, *layers), layers[0] + 1):
            resid = layer(resid, this.for_last_query() if cut and i == self.cfg.n_layers else this)
        if not to_the_end:
            return resid
        if cut:
            resid = resid[:, -1:]
        final = self.ln_final(resid)
        if return_type is None and not is_heard(self.unembed.hook_in, self.unembed.hook_out):
            return None  # nobody wants the logits
        logits = self.read_off(final)
        if return_type not in ("loss", "both"):
            return logits if return_type == "logits" else None
        new_mask = None if mask is None else mask[:, n_past:]
        loss = next_token_loss(logits, x, new_mask, loss_per_token)
        return loss if return_type == "loss" else (logits, loss)

    def pass_over(
        self,
        where: Int[Tensor, "#batch pos"],
        mask: Mask | None,
        n_past: int = 0,
        kv_cache: KVCache | None = None,
        n_rows: int = 1,
    ) -> Pass:
        """What all blocks of a pass over tokens at these positions share, with those who listen now."""
        n_new, device = where.shape[1], where.device
        is_causal = self.cfg.attention_dir == "causal"
        return Pass(
            rotations=rotations(self.cfg, where, self.dtype) if self.cfg.is_rotary else None,
            pos_embed=self.placed(where, n_rows) if self.cfg.is_shortformer else None,
            distance=distance(where, positions(mask, 0, n_past + n_new, device)) if self.cfg.leans else None,
            mask=allowed_attention(mask, n_past, n_new, is_causal, None, device),
            local_mask=allowed_attention(mask, n_past, n_new, is_causal, self.cfg.window_size, device),
            is_causal=is_causal and n_past == 0,
            kv_cache=kv_cache,
            hooks=hooks_in_force(),
        )

    def read_off(
        self, final: Stream, tokens: Int[Tensor, " token"] | None = None
    ) -> Float[Tensor, "batch pos d_vocab_out"]:
        """The logits, of these tokens or of all, of the stream after the final norm; capped where the model does so."""
        logits, cap = self.unembed(final, tokens), self.cfg.output_logits_soft_cap
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def into_stream(self, tokens: Int[Tensor, "batch pos"], where: Int[Tensor, "#batch pos"]) -> Stream:
        """What the tokens put into the stream before the first block."""
        resid = self.hook_embed(self.embed(tokens))
        if self.cfg.adds_positions:
            resid = resid + self.placed(where, len(resid))
        return self.dropout(resid)

    def placed(self, where: Int[Tensor, "#batch pos"], n_rows: int) -> Float[Tensor, "#batch pos d_model"]:
        """The vectors of positions, a row for each of `n_rows` where somebody listens."""
        assert self.pos_embed is not None
        pos = self.pos_embed(where, self.dtype)
        return self.hook_pos_embed(pos.expand(n_rows, -1, -1)) if is_heard(self.hook_pos_embed) else pos

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

    def uncompile(self) -> None:
        """Run as it is again."""
        self._compile_options, self._compiled = None, None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {
            "_compiled": None,
            "_fingerprint": None,
        }  # compiled again where the copy is first called


@lru_cache
def _disabled(fn: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compiler.disable(fn)


def _uncompiled(fn: Callable[..., Any]) -> Callable[..., Any]:
    """`fn`, hidden from a compiler that may surround this call. (Asking for one that is not there would load it.)"""
    return _disabled(fn) if "torch._dynamo" in sys.modules else fn
