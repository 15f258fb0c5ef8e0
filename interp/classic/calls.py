"""Calls of the classic model, with the arguments, defaults and results that they had: a pass, a cache, generation."""

# pyright: reportIncompatibleMethodOverride=false
# What is overridden is called in the classic way here.

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Int
from torch import Tensor

from interp.classic.cache import ActivationCache
from interp.classic.hook_points import as_computed
from interp.classic.text import USE_DEFAULT_VALUE, Side, Text, Texts
from interp.model import HookedGPT, KVCache
from interp.model.inputs import next_token_loss


class Calls(Texts):
    """What the classic model does with its input."""

    def forward(
        self,
        input: Text | Tensor,
        return_type: Literal["logits", "loss", "both"] | None = "logits",
        loss_per_token: bool = False,
        prepend_bos: bool | None = USE_DEFAULT_VALUE,
        padding_side: Side | None = USE_DEFAULT_VALUE,
        start_at_layer: int | None = None,
        tokens: Int[Tensor, "batch pos"] | None = None,
        shortformer_pos_embed: Tensor | None = None,
        attention_mask: Tensor | None = None,
        stop_at_layer: int | None = None,
        past_kv_cache: KVCache | None = None,
        last_only: bool = False,
    ) -> Any:
        """Logits, the next-token loss, both, or nothing; or the stream before `stop_at_layer`.

        `shortformer_pos_embed` is what queries and keys read in place of the positions' own vectors.
        """
        if shortformer_pos_embed is not None:
            if not self.cfg.is_shortformer:
                raise ValueError("shortformer_pos_embed: this model's positions are no shortformer's")
            with self.hooks([("hook_pos_embed", lambda x, hook: shortformer_pos_embed.expand_as(x))]):  # noqa: ARG005
                return self.forward(
                    input, return_type, loss_per_token, prepend_bos, padding_side, start_at_layer, tokens, None,
                    attention_mask, stop_at_layer, past_kv_cache, last_only,
                )  # fmt: skip
        if not isinstance(input, Tensor):
            input, attention_mask = self._read(input, prepend_bos, padding_side, attention_mask)
        between: dict[str, Any] = {"start_at_layer": start_at_layer, "stop_at_layer": stop_at_layer}
        if start_at_layer is not None and stop_at_layer is None and return_type in ("loss", "both"):
            if tokens is None:
                raise ValueError("a loss from start_at_layer on needs tokens=")
            logits = HookedGPT.forward(self, input, attention_mask=attention_mask, **between)
            loss = self.loss_fn(logits, tokens, attention_mask, loss_per_token)
            return loss if return_type == "loss" else (logits, loss)
        return HookedGPT.forward(
            self,
            input,
            "logits" if stop_at_layer is not None and return_type is not None else return_type,
            loss_per_token=loss_per_token and return_type in ("loss", "both"),
            attention_mask=attention_mask,
            past_kv_cache=past_kv_cache,
            last_only=last_only,
            **between,
        )

    def input_to_embed(
        self,
        input: Text | Tensor,
        prepend_bos: bool | None = USE_DEFAULT_VALUE,
        padding_side: Side | None = USE_DEFAULT_VALUE,
        attention_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """The first stream, its tokens, the positions that a shortformer reads beside it, and the attention mask."""
        if isinstance(input, Tensor):
            tokens = torch.atleast_2d(input).to(self.device)
        else:
            tokens, attention_mask = self._read(input, prepend_bos, padding_side, attention_mask)
        kept: list[Tensor] = []
        beside = ["hook_pos_embed"] if self.cfg.is_shortformer else []
        with self.recording(beside, lambda x, hook: kept.append(x)):  # noqa: ARG005
            resid = HookedGPT.forward(self, tokens, attention_mask=attention_mask, stop_at_layer=0)
        return resid, tokens, kept[0] if kept else None, attention_mask

    def loss_fn(
        self, logits: Tensor, tokens: Tensor, attention_mask: Tensor | None = None, per_token: bool = False
    ) -> Tensor:
        """The next-token loss of logits."""
        mask = None if attention_mask is None else attention_mask.bool()
        return next_token_loss(logits, tokens, mask, per_token)

    def run_with_cache(
        self, *model_args: Any, return_cache_object: bool = True, remove_batch_dim: bool = False, **kwargs: Any
    ) -> tuple[Any, Any]:
        """What a call returns, and what it computed."""
        kwargs.pop("reset_hooks_end", None)
        clears = kwargs.pop("clear_contexts", False)
        named = dict(zip(("input", "return_type"), model_args, strict=False)) | kwargs
        per_token = named.pop("loss_per_token", False)
        side = named.pop("padding_side", USE_DEFAULT_VALUE)
        if per_token and named.get("incl_bwd"):
            raise ValueError("incl_bwd differentiates one number; loss_per_token gives many")
        if not isinstance(named["input"], Tensor):
            given, mask = self._read(
                named["input"], named.pop("prepend_bos", USE_DEFAULT_VALUE), side, named.get("attention_mask")
            )
            named |= {"input": given, "attention_mask": mask}
        else:
            named.pop("prepend_bos", None)
        with_loss = named.get("return_type") if per_token else None
        if with_loss in ("loss", "both"):
            named["return_type"] = "logits"
        out, cache = HookedGPT.run_with_cache(self, named.pop("input"), remove_batch_dim=remove_batch_dim, **named)
        if with_loss in ("loss", "both"):
            assert cache.tokens is not None
            loss = self.loss_fn(out, cache.tokens, cache.attention_mask, per_token=True)
            out = loss if with_loss == "loss" else (out, loss)
        if clears:
            self.clear_contexts()
        cache._tensors = as_computed(cache._tensors)
        return out, ActivationCache.of(cache) if return_cache_object else dict(cache)

    def generate(
        self,
        input: Text | Tensor = "",
        max_new_tokens: int = 10,
        stop_at_eos: bool = True,
        eos_token_id: int | Sequence[int] | None = None,
        do_sample: bool = True,
        top_k: int | None = None,
        top_p: float | None = None,
        temperature: float = 1.0,
        freq_penalty: float = 0.0,
        use_past_kv_cache: bool = True,
        prepend_bos: bool | None = USE_DEFAULT_VALUE,
        padding_side: Side | None = USE_DEFAULT_VALUE,
        return_type: Literal["input", "str", "tokens"] | None = "input",
        verbose: bool = True,
        seed: int | None = None,
    ) -> Any:
        """The prompt and more of it: text for text, tokens for tokens, unless `return_type` says otherwise.

        Keys and values are always kept; `use_past_kv_cache=False` asks for nothing else.
        """
        is_text = not isinstance(input, Tensor)
        if return_type not in ("input", "str", "tokens", None):
            raise ValueError(f"return_type={return_type!r}; allowed: 'input', 'str', 'tokens'")
        ends = self._ends(eos_token_id) if stop_at_eos else []
        how: dict[str, Any] = (
            _drawing(do_sample, temperature, top_k, top_p, freq_penalty) | self._ending(ends) | {"seed": seed}
        )
        self.eval()
        if return_type == "str" or (return_type != "tokens" and is_text):
            how |= {"prepend_bos": prepend_bos if is_text else None, "return_type": "text", "progress": verbose}
            return HookedGPT.generate(self, input, max_new_tokens, **how)
        tokens, mask = self._prompt(input, prepend_bos)
        how |= {"attention_mask": mask, "return_type": "tokens", "progress": verbose}
        whole = HookedGPT.generate(self, tokens, max_new_tokens, **how)
        filled = _Filled(ends, self._fill(ends))
        return torch.cat((tokens, *(filled(x)[:, None] for x in whole[:, tokens.shape[1] :].unbind(1))), 1)

    def generate_stream(
        self,
        input: str | Tensor = "",
        max_new_tokens: int = 10,
        max_tokens_per_yield: int = 25,
        stop_at_eos: bool = True,
        eos_token_id: int | Sequence[int] | None = None,
        do_sample: bool = True,
        top_k: int | None = None,
        top_p: float | None = None,
        temperature: float = 1.0,
        freq_penalty: float = 0.0,
        use_past_kv_cache: bool = True,
        prepend_bos: bool | None = USE_DEFAULT_VALUE,
        padding_side: Side | None = USE_DEFAULT_VALUE,
        return_type: str | None = "input",
        verbose: bool = True,
        seed: int | None = None,
    ) -> Iterator[Int[Tensor, "batch part"]]:
        """Tokens as they come, in parts; the first begins with the prompt, which counts as one of its length.

        Whatever was put in and is asked for by `return_type`, parts are tokens. Hooks are those of this call.
        """
        tokens, mask = self._prompt(input, prepend_bos)
        ends = self._ends(eos_token_id) if stop_at_eos else []
        how: dict[str, Any] = (
            _drawing(do_sample, temperature, top_k, top_p, freq_penalty) | self._ending(ends) | {"seed": seed}
        )
        self.eval()
        how |= {"attention_mask": mask, "return_type": "tokens", "stream": True}
        steps = HookedGPT.generate(self, tokens, max_new_tokens, **how)
        return _parts(tokens, map(_Filled(ends, self._fill(ends)), steps), max_tokens_per_yield)

    def _prompt(self, input: Text | Tensor, prepend_bos: bool | None) -> tuple[Tensor, Tensor | None]:
        if isinstance(input, Tensor):
            return torch.atleast_2d(input).to(self.device), None
        return self._read(input, prepend_bos, "left", None)

    def _ends(self, eos_token_id: int | Sequence[int] | None) -> list[int]:
        """The tokens at which a row ends."""
        if eos_token_id is None:
            eos = None if self.tokenizer is None else self.tokenizer.eos_token_id
            return [] if eos is None else [eos]
        return [eos_token_id] if isinstance(eos_token_id, int) else list(eos_token_id)

    def _ending(self, ends: list[int]) -> dict[str, Any]:
        return {"stop_at_eos": bool(ends), "eos_token_id": ends[0] if ends else None, "stop": ends[1:]}

    def _fill(self, ends: list[int]) -> int:
        """What follows the end of a row."""
        eos = None if self.tokenizer is None else self.tokenizer.eos_token_id
        return ends[0] if len(ends) == 1 or (ends and eos is None) else eos or 0


def _drawing(
    do_sample: bool, temperature: float, top_k: int | None, top_p: float | None, freq_penalty: float
) -> dict[str, Any]:
    if freq_penalty:
        raise ValueError(f"freq_penalty={freq_penalty}: say repetition_penalty of HookedGPT.generate instead")
    return {"temperature": temperature, "top_k": top_k, "top_p": top_p} if do_sample else {"temperature": 0}


class _Filled:
    """Tokens of all rows, step by step, with `fill` where a row has ended."""

    def __init__(self, ends: list[int], fill: int) -> None:
        self.ends, self.fill = ends, fill
        self.has_ended: Tensor | None = None

    def __call__(self, chosen: Int[Tensor, " batch"]) -> Int[Tensor, " batch"]:
        ended = torch.zeros_like(chosen, dtype=torch.bool) if self.has_ended is None else self.has_ended
        chosen = torch.where(ended, self.fill, chosen)
        self.has_ended = ended | torch.isin(chosen, torch.tensor(self.ends, dtype=torch.long, device=chosen.device))
        return chosen


def _parts(tokens: Tensor, steps: Iterator[Tensor], n_each: int) -> Iterator[Tensor]:
    """A prompt and what follows it, handed on when there are so many tokens, and at the end."""
    held, n_held = [tokens], tokens.shape[1]
    for chosen in steps:
        held.append(chosen[:, None])
        n_held += 1
        if n_held >= n_each:
            yield torch.cat(held, 1)
            held, n_held = [], 0
    if held:
        yield torch.cat(held, 1)
