"""What the walk shows, computed once for a model and a prompt."""

from dataclasses import dataclass

from torch import Tensor
from xarray import Dataset

from dashboards.parts.sidebar import LONGEST
from dashboards.parts.state import Chosen, cached, kept
from interp import HookedGPT
from interp.generation import Choice, Sampling
from interp.tokenization import Merge
from interp.walk import NextStep, Walk, choices, next_step, sampled, walk

LONGEST_WORD = 200  # bytes of a word whose merges are shown


@dataclass(frozen=True)
class Word:
    """The word around the token that is read: its tokens, and the merges that made them; None: they are not known."""

    text: str
    tokens: list[int]
    within: int  # the token's place among the word's
    merges: list[Merge] | None


def way(now: Chosen, layer: int) -> Walk:
    """The way of the token that is read, through a layer."""
    return cached(way_of, layer, now.q)


def way_of(model: HookedGPT, tokens: Tensor, layer: int, pos: int) -> Walk:
    """For `cached`."""
    return walk(model, tokens, layer, pos)


def word(now: Chosen) -> Word | None:
    """The word of the token that is read; None for the token that was put before the prompt."""
    return cached(word_of, now.prompt, now.bos, now.q)


def word_of(model: HookedGPT, tokens: Tensor, prompt: str, bos: bool, pos: int) -> Word | None:
    """For `cached`."""
    assert model.tokenizer is not None
    if bos and pos == 0:
        return None
    text = prompt[:LONGEST]
    ids = model.tokenizer.encode(text)
    place = len(ids) - tokens.shape[1] + pos  # of a prompt that is too long, the first tokens are left out
    found, within = model.tokenizer.word_at(text, place)
    of_word = ids[place - within :][: len(model.tokenizer.encode(found))]
    known = has_merges(model) and len(found.encode()) <= LONGEST_WORD
    return Word(found, of_word, within, model.tokenizer.merges(found) if known else None)


def has_merges(model: HookedGPT) -> bool:
    """Whether the model's tokenizer tells its merges."""
    if model.tokenizer is None:
        return False
    try:
        model.tokenizer.merges("")
    except ValueError:
        return False
    return True


def chances(now: Chosen, layer: int, sampling: Sampling, top: int) -> Dataset:
    """The likeliest tokens, with what temperature and filters make of their logits."""
    given = (now.model, sampling, way(now, layer).logits, now.tokens[:, : now.q + 1], top)
    return kept(now.fingerprint, now.tokens, choices, given, (now.q, sampling, top))


def drawn(now: Chosen, layer: int, sampling: Sampling, seed: int) -> Choice:
    """The token that follows the one that is read."""
    given = (sampling, way(now, layer).logits, now.tokens[:, : now.q + 1], seed)
    return kept(now.fingerprint, now.tokens, sampled, given, (now.q, sampling, seed))


def step_of(model: HookedGPT, tokens: Tensor, pos: int, token: int, layer: int, head: int) -> NextStep:
    """For `cached`."""
    return next_step(model, tokens[:, : pos + 1], token, layer, head)
