"""`model.generate`: text or tokens in, more of it out."""

from collections.abc import Iterator, Sequence
from contextvars import copy_context
from dataclasses import replace
from functools import partial
from typing import Any, Literal, SupportsIndex

import torch
from torch import Tensor

from interp.beams import BeamSearch, beam_search, check_beams, columns
from interp.cache import ActivationCache
from interp.generation import Ends, Generation, Sampling, generated, joined, left_padded, with_progress
from interp.hooks import Names
from interp.model.kv_cache import KVCache
from interp.model.text import Text, TextInterface
from interp.tokenization import TextStream


class Generates(TextInterface):
    """What a model writes when it goes on."""

    def generate(
        self,
        input: Text | Tensor,
        max_new_tokens: int = 20,
        *,
        temperature: int | float = 1.0,
        top_k: int | None = None,
        top_p: int | float | None = None,
        min_p: int | float | None = None,
        repetition_penalty: int | float = 1.0,
        stop: str | SupportsIndex | Sequence[str | SupportsIndex] = (),
        eos_token_id: int | None = None,
        stop_at_eos: bool = True,
        num_return_sequences: int = 1,
        num_beams: int = 1,
        length_penalty: int | float = 1.0,
        num_beam_groups: int = 1,
        diversity_penalty: int | float = 0.0,
        early_stopping: bool | Literal["never"] = False,
        seed: int | None = None,
        prepend_bos: bool | None = None,
        attention_mask: Tensor | None = None,
        return_type: Literal["text", "tokens", "full"] | None = None,
        stream: bool = False,
        cache: bool | Names = False,
        on_overflow: Literal["error", "slide"] = "error",
        progress: bool = False,
    ) -> Any:
        """The prompt and `max_new_tokens` more: text for text, tokens for tokens, unless `return_type` says otherwise.

        `temperature=0` takes the likeliest token. A row ends at `eos_token_id` (the tokenizer's, unless given) or at
        any token or text in `stop`. "full" gives a `Generation`, with log-probabilities; `cache=True`, or names, gives
        it the activations of all steps, as one pass over all but the last token would. `stream` gives an iterator of
        the new text (or tokens) as it comes. Hooks act at every step; `generation.current_step()` tells them which.
        With several `num_beams`, the best `num_return_sequences` that beam search finds: see `interp.beams`.
        Beyond the context is an error, unless `on_overflow="slide"`: each token then follows from the last `n_ctx`.
        """
        sampling = Sampling(
            temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=repetition_penalty
        )
        how = BeamSearch(
            num_beams=num_beams,
            length_penalty=length_penalty,
            num_beam_groups=num_beam_groups,
            diversity_penalty=diversity_penalty,
            early_stopping=early_stopping,
        )
        is_text = not isinstance(input, Tensor)
        return_type = return_type or ("full" if cache is not False else "text" if is_text else "tokens")
        self._check_choices(max_new_tokens, num_return_sequences, return_type, on_overflow, stream, cache)
        if isinstance(input, Tensor):
            if prepend_bos is not None:
                raise ValueError("prepend_bos is for text; these are tokens already")
            tokens, mask = torch.atleast_2d(input).to(self.device), attention_mask
        else:
            tokens, mask = self.read_input(input, prepend_bos, attention_mask, padding_side="left")
        tokens, is_real = left_padded(tokens, mask)
        if on_overflow == "error" and tokens.shape[1] + max_new_tokens - 1 > self.cfg.n_ctx:
            raise ValueError(
                f"{tokens.shape[1]} tokens and {max_new_tokens} new ones go beyond n_ctx={self.cfg.n_ctx}; "
                "ask for fewer, or pass on_overflow='slide'"
            )
        each_once = tokens, is_real
        tokens = tokens.repeat_interleave(num_return_sequences, 0)
        is_real = None if is_real is None else is_real.repeat_interleave(num_return_sequences, 0)
        eos = self._eos(eos_token_id) if stop_at_eos else None
        prompts = [row.tolist() if is_real is None else row[is_real[i]].tolist() for i, row in enumerate(tokens)]
        ends = Ends([stop] if isinstance(stop, str | SupportsIndex) else stop, eos, self.tokenizer, prompts)
        pad = self.pad_token_id() if self.tokenizer is not None or eos is None else eos
        parts: list[dict[str, Tensor]] = []
        record = None if cache is False else partial(self._recorded, parts, None if cache is True else cache)
        slides = on_overflow == "slide" and tokens.shape[1] + max_new_tokens - 1 > self.cfg.n_ctx
        if num_beams > 1:
            choices = {"stream": stream, "cache": cache is not False, "seed": seed is not None, "on_overflow": slides}
            choices |= {"stop": ends.texts, "more than num_beams": num_return_sequences > num_beams}
            check_beams(sampling, choices)
            done = beam_search(
                self, KVCache, *each_once, how, ends.tokens, max_new_tokens, repetition_penalty, progress
            )
            best = [one for row in done for one in row[:num_return_sequences]]
            result = self._gathered(tokens, is_real, prompts, columns(best, pad), parts, eos)
            result = replace(result, scores=torch.tensor([one.score for one in best]))
            return self._as_asked(result, return_type, isinstance(input, str) and num_return_sequences == 1)
        steps = generated(self, KVCache, tokens, is_real, sampling, ends, max_new_tokens, pad, seed, slides, record)
        if stream:
            pieces = self._pieces(steps, prompts, eos, as_text=return_type == "text")
            return (
                pieces if not is_text or len(tokens) > 1 or not isinstance(input, str) else (one for (one,) in pieces)
            )
        new = list(with_progress(steps, max_new_tokens, progress))
        result = self._gathered(tokens, is_real, prompts, new, parts, eos)
        return self._as_asked(result, return_type, isinstance(input, str) and num_return_sequences == 1)

    def _as_asked(self, result: Generation, return_type: str, is_one: bool) -> Any:
        if return_type == "full":
            return result
        if return_type == "tokens":
            return result.tokens
        assert result.text is not None
        return result.text[0] if is_one else result.text

    def _check_choices(
        self, max_new_tokens: int, n_sequences: int, return_type: str, on_overflow: str, stream: bool, cache: Any
    ) -> None:
        if max_new_tokens < 1 or n_sequences < 1:
            raise ValueError(
                f"max_new_tokens={max_new_tokens}, num_return_sequences={n_sequences}; both must be positive"
            )
        if return_type not in ("text", "tokens", "full"):
            raise ValueError(f"return_type={return_type!r}; allowed: 'text', 'tokens', 'full', None")
        if on_overflow not in ("error", "slide"):
            raise ValueError(f"on_overflow={on_overflow!r}; allowed: 'error', 'slide'")
        if self.cfg.attention_dir == "bidirectional":
            raise ValueError("a bidirectional model does not generate: it has seen what it would predict")
        if return_type == "text":
            self._tokenizer()
        if stream and return_type == "full":
            raise ValueError("stream gives text or tokens as they come; return_type='full' and cache need the whole")
        if cache is not False and (return_type != "full" or on_overflow == "slide"):
            raise ValueError("cache comes with return_type='full', and without on_overflow='slide'")

    def _eos(self, eos_token_id: int | None) -> int | None:
        return eos_token_id if eos_token_id is not None or self.tokenizer is None else self.tokenizer.eos_token_id

    def _recorded(self, parts: list[dict[str, Tensor]], names: Names | None, tokens: Tensor, **how: Any) -> Tensor:
        del how["last_only"]  # a cache has every position
        model: Any = self
        logits, part = model.run_with_cache(tokens, names_filter=names, **how)
        parts.append(dict(part))
        return logits

    def _pieces(self, steps: Iterator[Any], prompts: list[list[int]], eos: int | None, as_text: bool) -> Iterator[Any]:
        """The steps, each run in the context of this call: a generator would see that of whoever asks for the next."""
        context = copy_context()

        def pieces() -> Iterator[Any]:
            streams = [TextStream(self._tokenizer(), prompt) for prompt in prompts] if as_text else []
            while (step := context.run(next, steps, None)) is not None:
                chosen, _, had_ended, _ = step
                if not as_text:
                    yield chosen
                    continue
                rows = zip(streams, chosen.tolist(), had_ended.tolist(), strict=True)
                yield ["" if ended or token == eos else stream.push(token) for stream, token, ended in rows]
            if as_text and any(rest := [stream.flush() for stream in streams]):
                yield rest

        return pieces()

    def _gathered(
        self,
        prompt: Tensor,
        is_real: Tensor | None,
        prompts: list[list[int]],
        new: list[Any],
        parts: list[dict[str, Tensor]],
        eos: int | None,
    ) -> Generation:
        chosen, log_probs, had_ended, random = (torch.stack(column, 1) for column in zip(*new, strict=True))
        lengths = (~had_ended).sum(1)
        tokens = torch.cat((prompt, chosen), 1)
        cache = None
        if parts:
            model: Any = self
            axes = {name: model.hook_dict[name].axes.split() for name in parts[0]}
            mask = None if is_real is None else torch.cat((is_real, ~torch.zeros_like(chosen).bool()), 1)[:, :-1]
            cache = ActivationCache(joined(parts, axes), self, tokens=tokens[:, :-1], attention_mask=mask)
        text = None
        if self.tokenizer is not None:
            text = []
            bos = self.tokenizer.bos_token_id
            for row, length in enumerate(lengths.tolist()):
                begun = prompts[row]
                ended = chosen[row, :length].tolist()
                begun = begun[1:] if begun and begun[0] == bos else begun
                text.append(self.tokenizer.decode(begun + (ended[:-1] if ended[-1] == eos else ended)))
        return Generation(tokens, log_probs, lengths, random, text, cache)
