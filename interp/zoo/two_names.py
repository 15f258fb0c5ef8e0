"""Two names, one of them again, and the question who is meant: sentences, or a planted model's tokens.

As in Wang et al. 2023, https://arxiv.org/abs/2211.00593: "Then, Mary and John went to the store. John gave a drink to"
is about the indirect object (IO), Mary; the subject (S), John, stands there twice.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Generator, Tensor

from interp.model import HookedGPT
from interp.zoo.planted import Planted
from interp.zoo.planted.names import FIRST_NAME

Tokens = Int[Tensor, "prompt pos"]
PLACES: tuple[str, ...] = ("IO", "S1", "S1+1", "S2", "END")

_NAMES = """
    Aaron Adam Alex Alice Amy Andrew Anna Anthony Brian Charles Christina Daniel David Elizabeth Emily Emma Eric George
    Grace Henry Jack Jacob James Jason Jessica John Joseph Kate Kelly Kevin Laura Lisa Luke Mark Martin Mary Matthew
    Michael Michelle Nick Paul Peter Rachel Richard Robert Ryan Sarah Scott Simon Stephen Steven Susan Thomas Tom Walter
    William Victoria
"""
NAMES = _NAMES.split()
_TEMPLATES = (
    "Then, {first} and {second} went to the {place}. {again} gave a {thing} to",
    "When {first} and {second} got a {thing} at the {place}, {again} decided to give it to",
    "After {first} and {second} had been at the {place} for an hour, {again} handed a {thing} to",
    "Then, {first} and {second} were working at the {place}. {again} decided to give a {thing} to",
    "While {first} and {second} were walking to the {place}, {again} offered a {thing} to",
    "Yesterday, {first} and {second} had a long argument, and afterwards {again} said to",
    "Friends since school, {first} and {second} met at the {place}, where {again} passed a {thing} to",
)
_PLACES = ("store", "garden", "restaurant", "school", "hospital", "office", "house", "station")
_THINGS = ("drink", "ring", "book", "basketball", "computer", "necklace", "letter", "bone")


@dataclass(frozen=True, eq=False)
class TwoNames:
    """Prompts, the answers, and where what stands: `places` has a position for each prompt, by the names in `PLACES`.

    In `flipped` the subject's second place has the other name, so that the answers are exchanged; in `others` there are
    three other names, of which none is asked for.
    """

    tokens: Tokens
    flipped: Tokens
    others: Tokens
    mask: Bool[Tensor, "prompt pos"] | None
    indirect: Int[Tensor, " prompt"]
    subject: Int[Tensor, " prompt"]
    places: dict[str, Int[Tensor, " prompt"]]

    def at(self, place: str) -> Bool[Tensor, "prompt pos"]:
        """A mask of one place."""
        return torch.arange(self.tokens.shape[1]) == self.places[place][:, None]


def two_names(model: HookedGPT, n: int = 32, seed: int = 0) -> TwoNames:
    """Sentences of several templates, with names, places and things drawn; in half of them the subject comes first."""
    names, draw = single_token_names(model), torch.Generator().manual_seed(seed)
    if len(names) < 5:
        raise ValueError(
            f"of {len(NAMES)} names {len(names)} are single tokens of this model: 5 are needed, two and three"
        )
    texts: list[list[str]] = [[], [], []]
    pairs = list[list[int]]()
    known = list(names)
    for template, thing, place, (a, b, *rest) in _drawn(n, len(known), draw):
        first, second = (a, b) if int(torch.randint(2, (), generator=draw)) else (b, a)
        pairs.append([names[known[a]], names[known[b]]])
        swapped = [rest[0], rest[1]] if first == a else [rest[1], rest[0]]
        for some, (one, other, again) in zip(
            texts, [(first, second, b), (first, second, a), (*swapped, rest[2])], strict=True
        ):
            words = {"first": known[one], "second": known[other], "again": known[again]}
            some.append(template.format(**words, thing=thing, place=place))
    (tokens, mask), (flipped, _), (others, _) = (model.read_input(some, None, None) for some in texts)
    indirect, subject = torch.tensor(pairs).T
    return _placed(
        tokens.cpu(), flipped.cpu(), others.cpu(), None if mask is None else mask.cpu().bool(), indirect, subject
    )


def single_token_names(model: HookedGPT) -> dict[str, int]:
    """The names that are one token behind a space, and their ids."""
    if model.tokenizer is None:
        raise ValueError("the model has no tokenizer: there are no names to write")
    ids = {name: model.tokenizer.encode(f" {name}") for name in NAMES}
    texts = model.tokenizer.token_strings
    return {name: own[0] for name, own in ids.items() if len(own) == 1 and texts(own)[0].strip() == name}


def planted_two_names(planted: Planted, n: int = 32, seed: int = 0) -> TwoNames:
    """The same of `planted.indirect_object`, whose names stand anywhere among fillers."""
    if planted.name != "indirect_object":
        raise ValueError(f"{planted.name} has no names; give planted.indirect_object(…)")

    examples, draw = planted.sample(n, seed), torch.Generator().manual_seed(seed)
    names = planted.spaces["name"]
    known = range(FIRST_NAME, FIRST_NAME + names.stop - names.start)
    indirect, subject = examples.answers[:, -1], examples.wrong[:, -1]
    rows = list[Tensor]()
    for tokens, a, b in zip(examples.tokens, indirect.tolist(), subject.tolist(), strict=True):
        rest = [name for name in known if name not in (a, b)]
        one, other, third = (rest[i] for i in torch.randperm(len(rest), generator=draw)[:3].tolist())
        row = torch.where(tokens == a, one, torch.where(tokens == b, other, tokens))
        row[int((tokens == b).nonzero()[-1])] = third
        rows.append(row)
    return _placed(examples.tokens, examples.corrupted, torch.stack(rows), None, indirect, subject)


def _drawn(n: int, n_names: int, draw: Generator) -> Iterator[tuple[str, str, str, list[int]]]:
    """A template, what goes into it, and five names: the two that it has, and three others."""
    one_of: Callable[[tuple[str, ...]], str] = lambda some: some[int(torch.randint(len(some), (), generator=draw))]
    for i in range(n):
        names = torch.randperm(n_names, generator=draw)[:5].tolist()
        yield _TEMPLATES[i % len(_TEMPLATES)], one_of(_THINGS), one_of(_PLACES), names


def _placed(
    tokens: Tokens, flipped: Tokens, others: Tokens, mask: Tensor | None, indirect: Tensor, subject: Tensor
) -> TwoNames:
    """With the places of the names, which the tokens tell."""
    real = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask
    is_io, is_s = ((tokens == name[:, None]) & real for name in (indirect, subject))
    alike = tokens.shape == flipped.shape == others.shape
    if not alike or not bool(((is_io.sum(1) == 1) & (is_s.sum(1) == 2)).all()):
        raise ValueError("the tokenizer joins names with what stands beside them: they are not found as single tokens")
    n_pos = tokens.shape[1]
    first = is_s.long().argmax(1)
    last = lambda found: n_pos - 1 - found.flip(1).long().argmax(1)
    places = dict(zip(PLACES, (is_io.long().argmax(1), first, first + 1, last(is_s), last(real)), strict=True))
    return TwoNames(tokens, flipped, others, mask, indirect, subject, places)
