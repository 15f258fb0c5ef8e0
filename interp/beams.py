"""Beam search: at each step the likeliest continuations of several beams, kept until none could still get ahead.

1. Every beam is continued by every token; a continuation's sum is that of its log-probabilities.
2. Of a group's continuations the best go on as its beams. One that ends, and is among the best, is done: its score is
   its sum divided by length ** length_penalty.
3. Groups choose in turn: a token's log-probability is less `diversity_penalty` for each beam of an earlier group that
   takes the same token now (Vijayakumar et al., 2018).
4. A group rests when its best beam, were it to end now, would not get among those that are done.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.generation import Sampling, at_step, penalise, with_progress

_NEVER = -1e9  # of a beam that is not there yet


@dataclass(frozen=True, kw_only=True)
class BeamSearch:
    """How beams are chosen: see the steps above. With `early_stopping` a group rests when as many are done as it has
    beams; with "never", when even an end at the last step could not get ahead."""

    num_beams: int
    length_penalty: int | float = 1.0
    num_beam_groups: int = 1
    diversity_penalty: int | float = 0.0
    early_stopping: bool | Literal["never"] = False

    def __post_init__(self) -> None:
        if self.num_beams < 1 or self.num_beam_groups < 1 or self.num_beams % self.num_beam_groups:
            raise ValueError(
                f"num_beams={self.num_beams}, num_beam_groups={self.num_beam_groups}: groups of one size are needed"
            )
        if self.num_beams == 1 and (self.length_penalty != 1 or self.early_stopping):
            raise ValueError("length_penalty and early_stopping are for several num_beams")
        if self.diversity_penalty < 0 or (self.diversity_penalty > 0) != (self.num_beam_groups > 1):
            raise ValueError(
                f"diversity_penalty={self.diversity_penalty} with num_beam_groups={self.num_beam_groups}: groups need "
                "a penalty above 0 to differ, and a penalty needs groups"
            )

    @property
    def size(self) -> int:
        """The beams of a group."""
        return self.num_beams // self.num_beam_groups


@dataclass(frozen=True)
class Done:
    """A continuation that ended."""

    score: float
    tokens: Int[Tensor, " new"]
    log_probs: Float[Tensor, " new"]  # the model's own


@dataclass
class _Group:
    """What a group of a row has done."""

    size: int
    done: list[Done] = field(default_factory=list)
    is_open: bool = True

    def add(self, new: list[Done]) -> None:
        if self.is_open:
            self.done = sorted([*self.done, *new], key=lambda each: -each.score)[: self.size]

    def look_ahead(self, best: float, n_new: int, n_most: int, how: BeamSearch) -> None:
        """Rest, if what is done can no longer change. `best` is the sum of the best beam that goes on."""
        if len(self.done) < self.size:
            return
        length = n_most if how.early_stopping == "never" and how.length_penalty > 0 else n_new
        if how.early_stopping is True or best / length**how.length_penalty <= self.done[-1].score:
            self.is_open = False


@torch.no_grad()
def beam_search(
    model: Any,
    new_kv_cache: Callable[[int], Any],
    tokens: Int[Tensor, "row pos"],
    is_real: Bool[Tensor, "row pos"] | None,
    how: BeamSearch,
    ends: Sequence[int],
    max_new_tokens: int,
    repetition_penalty: int | float = 1.0,
    progress: bool = False,
) -> list[list[Done]]:
    """Of each row what was done, the best first: as many as there are beams. It ends at any of the tokens in `ends`."""
    n_rows, n, size = len(tokens), how.num_beams, how.size
    stops = torch.tensor(ends, dtype=torch.long, device=tokens.device)
    groups = [[_Group(size) for _ in range(how.num_beam_groups)] for _ in range(n_rows)]
    past = new_kv_cache(tokens.shape[1] + max_new_tokens)
    with at_step(0):
        logits = model(tokens, attention_mask=is_real, past_kv_cache=past, last_only=True)[:, -1]
    from_row = torch.arange(n_rows, device=tokens.device).repeat_interleave(n)
    past.select(from_row)
    logits = logits[from_row]
    new, own = tokens.new_empty(len(from_row), 0), logits.new_empty(len(from_row), 0, dtype=torch.float32)
    sums = torch.full((n_rows, how.num_beam_groups, size), _NEVER, device=tokens.device)
    first_of_row = torch.arange(0, len(from_row), n, device=tokens.device)[:, None]
    sums[..., 0] = 0.0  # at first all beams are one
    for step in with_progress(iter(range(max_new_tokens)), max_new_tokens, progress):
        log_probs = logits.float().log_softmax(-1)
        told = log_probs
        if repetition_penalty != 1:
            seen = torch.cat((tokens[from_row], new), 1)
            real = None if is_real is None else torch.cat((is_real[from_row], torch.ones_like(new).bool()), 1)
            told = penalise(log_probs, seen, repetition_penalty, real)
        told = told.unflatten(0, sums.shape)
        fewer = torch.zeros_like(told[:, 0, 0])  # what a token loses, for those that took it before
        places, chosen = torch.empty_like(sums, dtype=torch.long), torch.empty_like(sums, dtype=torch.long)
        for g in range(how.num_beam_groups):
            total = (told[:, g] - fewer[:, None] + sums[:, g, :, None]).flatten(1)
            best = total.topk(min(max(2, 1 + len(stops)) * size, total.shape[1]))
            token = best.indices % told.shape[-1]
            place = best.indices // told.shape[-1] + g * size + first_of_row
            is_stop = torch.isin(token, stops)
            has_ended = is_stop | (step == max_new_tokens - 1)
            for row, group in enumerate(groups):
                new_here = [
                    Done(
                        float(best.values[row, rank]) / (step + 1) ** how.length_penalty,
                        torch.cat((new[place[row, rank]], token[row, rank, None])),
                        torch.cat((own[place[row, rank]], log_probs[place[row, rank], token[row, rank], None])),
                    )
                    for rank in has_ended[row, :size].nonzero()[:, 0].tolist()
                ]
                group[g].add(new_here)
            going = best.values.masked_fill(is_stop, _NEVER).topk(size)
            sums[:, g] = going.values
            places[:, g], chosen[:, g] = place.gather(1, going.indices), token.gather(1, going.indices)
            fewer.scatter_add_(1, chosen[:, g], torch.full_like(going.values, how.diversity_penalty))
            for row, group in enumerate(groups):
                group[g].look_ahead(float(sums[row, g, 0]), step + 1, max_new_tokens, how)
        if not any(group.is_open for row in groups for group in row) or step == max_new_tokens - 1:
            break
        at, token = places.flatten(), chosen.flatten()
        new = torch.cat((new[at], token[:, None]), 1)
        own = torch.cat((own[at], log_probs[at, token][:, None]), 1)
        past.select(at)
        with at_step(step + 1):
            logits = model(token[:, None], past_kv_cache=past, last_only=True)[:, -1]
    return [sorted((one for group in row for one in group.done), key=lambda one: -one.score) for row in groups]


def check_beams(sampling: Sampling, choices: dict[str, Any]) -> None:
    """Raise if a choice of sampling is made, or another that beam search has not."""
    idle = [name for name, value in choices.items() if value not in (None, False, [])]
    drawn = replace(sampling, repetition_penalty=1.0) != Sampling()
    if idle or drawn:
        which = [*idle, *(["temperature, top_k, top_p, min_p"] if drawn else [])]
        raise ValueError(f"beam search draws nothing, needs the whole, and ends at tokens: it has no {which}")


def columns(
    rows: Sequence[Done], pad: int
) -> list[tuple[Int[Tensor, " row"], Float[Tensor, " row"], Bool[Tensor, " row"], Float[Tensor, " row"]]]:
    """Step by step, as `generated` has them: tokens, log-probabilities, which rows had ended; no number was thrown."""
    tokens = torch.nn.utils.rnn.pad_sequence([row.tokens for row in rows], True, pad)
    log_probs = torch.nn.utils.rnn.pad_sequence([row.log_probs for row in rows], True, 0.0)
    lengths = torch.tensor([len(row.tokens) for row in rows], device=tokens.device)
    thrown = torch.full((len(rows),), torch.nan, dtype=torch.float64, device=tokens.device)
    return [(tokens[:, i], log_probs[:, i], lengths <= i, thrown) for i in range(tokens.shape[1])]
