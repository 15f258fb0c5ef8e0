"""Sampling, a token at a time, over a KV cache."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from operator import index
from typing import Any, SupportsIndex

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from interp.tokenization import TextStream, Tokenizer

Logits = Float[Tensor, "batch d_vocab"]
Tokens = Int[Tensor, "batch pos"]
_step: ContextVar[int | None] = ContextVar("step", default=None)


def current_step() -> int | None:
    """Inside a hook: which step of a generation this is, 0 for the prompt's pass; None outside of one."""
    return _step.get()


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is chosen. `temperature=0` takes the likeliest."""

    temperature: int | float = 1.0
    top_k: int | None = None  # only the k likeliest
    top_p: int | float | None = None  # only the likeliest that together have this probability
    min_p: int | float | None = None  # only those at least this likely, relative to the likeliest
    repetition_penalty: int | float = 1.0

    def __post_init__(self) -> None:
        allowed = {
            "temperature": self.temperature >= 0,
            "top_k": self.top_k is None or self.top_k >= 1,
            "top_p": self.top_p is None or 0 < self.top_p <= 1,
            "min_p": self.min_p is None or 0 <= self.min_p <= 1,
            "repetition_penalty": self.repetition_penalty > 0,
        }
        ranges = "temperature >= 0, top_k >= 1, 0 < top_p <= 1, 0 <= min_p <= 1, repetition_penalty > 0"
        if wrong := {name: getattr(self, name) for name, is_allowed in allowed.items() if not is_allowed}:
            raise ValueError(f"these choices make no distribution: {wrong}; allowed: {ranges}")

    def distribution(self, logits: Logits, seen: Tokens, is_real: Bool[Tensor, "batch pos"] | None = None) -> Logits:
        """The probabilities that the next token is drawn from; the order of filters is that of `transformers`."""
        return deque(self._stages(logits, seen, is_real), maxlen=1)[0][1]

    def stages(
        self, logits: Logits, seen: Tokens, is_real: Bool[Tensor, "batch pos"] | None = None
    ) -> dict[str, Logits]:
        """What `distribution` makes of the logits, step by step, by the name of each step that was taken.

        Divided by the temperature, logits are relative to the largest. The last step is "probability".
        """
        return dict(self._stages(logits, seen, is_real))

    def _stages(self, logits: Logits, seen: Tokens, is_real: Tensor | None) -> Iterator[tuple[str, Tensor]]:
        logits = logits.float()
        yield "logit", logits
        if self.repetition_penalty != 1:
            logits = penalise(logits, seen, self.repetition_penalty, is_real)
            yield "repetition penalty", logits
        if self.temperature == 0:
            yield "probability", torch.zeros_like(logits).scatter(1, logits.argmax(-1, keepdim=True), 1.0)
            return
        logits = (logits - logits.amax(-1, keepdim=True)) / self.temperature  # finite, however cold
        yield "temperature", logits
        filters = {
            "top k": (keep_top_k, self.top_k),
            "top p": (keep_top_p, self.top_p),
            "min p": (keep_min_p, self.min_p),
        }
        for name, (keep, bound) in filters.items():
            if bound is not None:
                logits = keep(logits, bound)
                yield name, logits
        yield "probability", logits.softmax(-1)


def drawn(probs: Logits, random: Float[Tensor, " batch"]) -> Int[Tensor, " batch"]:
    """The token at which the probabilities, added up in the order of the vocabulary, first exceed a number in [0, 1).

    One number decides a row, so that a choice can be looked up; multinomial sampling in torch takes one a token.
    """
    sums = probs.double().cumsum(-1)
    if not bool(sums[:, -1].isfinite().all()):
        raise ValueError("the probabilities of the next token are not finite: the logits hold NaN or infinity")
    threshold = random.double()[:, None] * sums[:, -1:]  # a hair below 1 where rounding left the sum there
    return torch.searchsorted(sums, threshold, right=True)[:, 0].clamp(max=probs.shape[-1] - 1)


def penalise(logits: Logits, seen: Tokens, penalty: float, is_real: Bool[Tensor, "batch pos"] | None = None) -> Logits:
    """Logits of tokens that were seen, divided by the penalty where positive and multiplied by it where negative."""
    counts = torch.ones_like(seen) if is_real is None else is_real
    was_seen = torch.zeros_like(logits).scatter_add(1, seen, counts.to(logits.dtype))
    return torch.where(was_seen > 0, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def keep_top_k(logits: Logits, k: int) -> Logits:
    """All but the k largest logits at -inf."""
    least = logits.topk(min(k, logits.shape[-1])).values[:, -1:]
    return logits.masked_fill(logits < least, -torch.inf)


def keep_top_p(logits: Logits, p: float) -> Logits:
    """The fewest largest logits that have probability p together; the others at -inf."""
    ascending, order = logits.sort(-1)
    below = ascending.softmax(-1).cumsum(-1) <= 1 - p
    below[:, -1] = False  # the likeliest always stays
    return logits.masked_fill(below.scatter(1, order, below), -torch.inf)


def keep_min_p(logits: Logits, p: float) -> Logits:
    """Logits whose probability is at least p times the largest; the others at -inf."""
    probs = logits.softmax(-1)
    return logits.masked_fill(probs < p * probs.amax(-1, keepdim=True), -torch.inf)


@dataclass(frozen=True)
class Generation:
    """What was generated: the tokens with their prompt, the new ones' log-probabilities, and what else was asked for.

    Log-probabilities are the model's own, in float32, before temperature and filters. Where a row had ended, they are 0
    and its tokens are padding; `lengths` counts each row's new tokens up to its end. `random` are the numbers in [0, 1)
    that chose the tokens, as in `drawn`; without chance, at temperature 0, they are NaN.
    """

    tokens: Tokens
    log_probs: Float[Tensor, "batch new"]
    lengths: Int[Tensor, " batch"]
    random: Float[Tensor, "batch new"]
    text: list[str] | None
    cache: Any = None
    scores: Float[Tensor, " batch"] | None = None  # of beams: what they are ranked by


@dataclass(frozen=True)
class Choice:
    """How a token was chosen: what was made of the logits step by step, and where among them a number fell."""

    token: int
    random: float  # in [0, 1); NaN without chance
    stages: dict[str, Float[Tensor, " d_vocab"]]  # as `Sampling.stages` names them
    below: Float[Tensor, " d_vocab"]  # the probability of all tokens before this one in the vocabulary
    log_prob: float  # the model's own


def explained(model: Any, sampling: Sampling, generation: Generation, row: int = 0, step: int = 0) -> Choice:
    """How a token of a generation was chosen, from one more pass of the model over what came before it.

    The generation is of one prompt, without padding. Hooks in force act, as they did when it was made.
    """
    n_new, n_ctx = generation.log_probs.shape[1], model.cfg.n_ctx
    if not 0 <= step < int(generation.lengths[row]):
        raise ValueError(f"step={step}; row {row} has the steps 0 to {int(generation.lengths[row]) - 1}")
    at = generation.tokens.shape[1] - n_new + step
    before = generation.tokens[row : row + 1, :at]
    with torch.no_grad():
        logits = model(before[:, -n_ctx:], last_only=True)[:, -1]
    token, stages = int(generation.tokens[row, at]), sampling.stages(logits, before)
    probs = stages["probability"].double()
    return Choice(
        token,
        float(generation.random[row, step]),
        {name: values[0] for name, values in stages.items()},
        (probs.cumsum(-1) - probs)[0],
        float(logits.float().log_softmax(-1)[0, token]),
    )


def runners_up(
    model: Any, sampling: Sampling, generation: Generation, row: int = 0, top: int = 3
) -> list[list[tuple[int, float]]]:
    """At each step of a row, the likeliest tokens that were not taken, with the probabilities they were drawn by.

    From one pass: for generations of one prompt that fit into the context.
    """
    n_new, length = generation.log_probs.shape[1], int(generation.lengths[row])
    n_prompt = generation.tokens.shape[1] - n_new
    tokens = generation.tokens[row : row + 1, : n_prompt + length]
    with torch.no_grad():
        logits = model(tokens[:, :-1])[0, n_prompt - 1 :]
    n_before = torch.arange(n_prompt, n_prompt + length, device=tokens.device)
    was_before = torch.arange(n_prompt + length, device=tokens.device) < n_before[:, None]
    probs = sampling.distribution(logits, tokens.expand(length, -1), was_before)
    left = probs.scatter(1, tokens[0, n_prompt:, None], 0.0).topk(min(top, probs.shape[1]))
    pairs = [list(zip(*each, strict=True)) for each in zip(left.indices.tolist(), left.values.tolist(), strict=True)]
    return [[(token, prob) for token, prob in each if prob > 0] for each in pairs]


class Ends:
    """Which rows have ended: by a token, or by a text among what they generated."""

    def __init__(
        self,
        stop: Sequence[str | SupportsIndex],
        eos: int | None,
        tokenizer: Tokenizer | None,
        prompts: list[list[int]],
    ) -> None:
        self.texts = [one for one in stop if isinstance(one, str)]
        self.tokens = [index(one) for one in stop if not isinstance(one, str)] + ([] if eos is None else [eos])
        if self.texts and tokenizer is None:
            raise ValueError(f"stop={self.texts} are texts, and this model has no tokenizer; give token ids")
        if any(not text for text in self.texts):
            raise ValueError("stop has an empty text, which every text contains")
        self._reach = max(map(len, self.texts), default=0)
        self._tails = [""] * len(prompts)
        self._streams = [TextStream(tokenizer, row) for row in prompts] if tokenizer and self.texts else []
        self.can_come = bool(self.texts or self.tokens)

    def after(self, tokens: Int[Tensor, " batch"], has_ended: Bool[Tensor, " batch"]) -> Bool[Tensor, " batch"]:
        if not self.can_come:
            return has_ended
        if self.tokens:
            has_ended = has_ended | torch.isin(tokens, torch.tensor(self.tokens, device=tokens.device))
        if self.texts:
            found = [self._ends(row, token) for row, token in enumerate(tokens.tolist())]
            has_ended = has_ended | torch.tensor(found, device=tokens.device)
        return has_ended

    def _ends(self, row: int, token: int) -> bool:
        new = self._tails[row] + self._streams[row].push(token)
        self._tails[row] = new[-self._reach :]
        return any(text in new for text in self.texts)


def left_padded(tokens: Tokens, mask: Tensor | None) -> tuple[Tokens, Bool[Tensor, "batch pos"] | None]:
    """The same rows with all padding on the left, so that each ends with its last real token."""
    if mask is None:
        return tokens, None
    is_real = torch.atleast_2d(mask).to(tokens.device).bool()
    if is_real.shape != tokens.shape:
        raise ValueError(f"attention_mask has shape {list(mask.shape)}; the tokens have {list(tokens.shape)}")
    order = is_real.long().argsort(dim=1, stable=True)
    return tokens.gather(1, order), is_real.gather(1, order)


def generated(
    model: Any,
    new_kv_cache: Callable[[int], Any],
    tokens: Tokens,
    is_real: Bool[Tensor, "batch pos"] | None,
    sampling: Sampling,
    ends: Ends,
    max_new_tokens: int,
    pad: int,
    seed: int | None,
    slides: bool,
    record: Callable[..., Tensor] | None,
) -> Iterator[tuple[Int[Tensor, " batch"], Float[Tensor, " batch"], Bool[Tensor, " batch"], Float[Tensor, " batch"]]]:
    """At each step: the new tokens, their log-probabilities, which rows had ended before, and what was thrown.

    The caller holds the hooks' context while it asks for the next step; nothing is entered across a yield.
    """
    n_rows, n_prompt = tokens.shape
    random = None if seed is None else torch.Generator(tokens.device).manual_seed(seed)
    past = None if slides else new_kv_cache(n_prompt + max_new_tokens)
    has_ended = torch.zeros(n_rows, dtype=torch.bool, device=tokens.device)
    fed, fed_mask = tokens, is_real
    for step in range(max_new_tokens):
        if slides:
            n_ctx = model.cfg.n_ctx
            fed, fed_mask = tokens[:, -n_ctx:], None if is_real is None else is_real[:, -n_ctx:]
        with at_step(step), torch.no_grad():
            run = model if record is None else record
            logits = run(fed, attention_mask=fed_mask, past_kv_cache=past, last_only=True)[:, -1]
            probs = sampling.distribution(logits, tokens, is_real)
            thrown = torch.full((n_rows,), torch.nan, dtype=torch.float64, device=tokens.device)
            if sampling.temperature != 0:
                thrown = torch.rand(n_rows, dtype=torch.float64, device=tokens.device, generator=random)
            chosen = probs.argmax(-1) if sampling.temperature == 0 else drawn(probs, thrown)
            log_probs = logits.float().log_softmax(-1).gather(1, chosen[:, None])[:, 0]
        had_ended = has_ended
        chosen = chosen.masked_fill(had_ended, pad)
        has_ended = ends.after(chosen, had_ended)
        yield chosen, log_probs.masked_fill(had_ended, 0.0), had_ended, thrown
        if ends.can_come and bool(has_ended.all()):
            return
        tokens = torch.cat((tokens, chosen[:, None]), 1)
        if is_real is not None:
            is_real = torch.cat((is_real, torch.ones_like(is_real[:, :1])), 1)
        fed, fed_mask = tokens[:, -1:], None


@contextmanager
def at_step(step: int) -> Iterator[None]:
    """In it, hooks are told this step."""
    token = _step.set(step)
    try:
        yield
    finally:
        _step.reset(token)


def with_progress(steps: Iterator[Any], n_steps: int, progress: bool) -> Iterator[Any]:
    """The same steps, with a bar once they take long enough to wonder."""
    return iter(tqdm(steps, total=n_steps, desc="generating", unit="token", delay=1.0, disable=not progress))


def joined(parts: list[dict[str, Tensor]], axes: dict[str, list[str]]) -> dict[str, Tensor]:
    """The activations of successive pieces of a text, as one pass over all of it would have them."""
    whole = {}
    for name in parts[0]:
        pieces = [part[name] for part in parts]
        if "key_pos" in axes[name]:  # earlier queries did not see later keys
            n_keys = pieces[-1].shape[-1]
            unseen = -torch.inf if name.endswith("attn_scores") else 0.0
            pieces = [torch.nn.functional.pad(piece, (0, n_keys - piece.shape[-1]), value=unseen) for piece in pieces]
        whole[name] = torch.cat(pieces, axes[name].index("query_pos" if "query_pos" in axes[name] else "pos"))
    return whole
