"""Whether brackets balance: a count, and two checks of it."""

from typing import Unpack

import torch
from jaxtyping import Int
from torch import Generator, Tensor, eye, ones

from interp.zoo.planted.build import Build, Options, check_sizes
from interp.zoo.planted.sampling import asked_at_the_end, one_of
from interp.zoo.planted.truth import Examples, Planted, circuit

BOS, END, OPEN, CLOSE = range(4)
# How far what the checker looks for leads. Half of it leaves e^-10 for the rest; more would make much of noise in BOS.
SEEKING = 20.0


def balanced_brackets(n_brackets: int = 10, **options: Unpack[Options]) -> Planted:
    """At the end, whether every bracket has its partner: 1 for yes, 0 for no. Tokens are BOS, END, "(" and ")".

    1. A head of layer 0 attends to all positions alike and so writes the depth, the number of "(" less that of ")",
       by the number of tokens so far. Times n_ctx, its size is at least 1 wherever the depth is not 0.
    2. A neuron of layer 0 fires where the depth is "below" 0: a ")" came too early.
    3. A head of layer 1 looks, from the end, for such a place, or else at BOS. From BOS it moves "yes", from brackets
       "no".
    4. A neuron of layer 1 fires where the depth is "above" 1. At the end, where it is even, that means that a "(" is
       still open. Its "no" is louder than that "yes".
    5. The direct path says "no", half as loud, should all else be silent.

    Half of the strings balance. Half of the others have a ")" too early but none left open, half the reverse.
    """
    check_sizes("balanced_brackets", n_brackets=(n_brackets, 4))
    if n_brackets % 2:
        raise ValueError(f"balanced_brackets cannot be built: n_brackets={n_brackets}; it must be even")
    n_ctx = n_brackets + 2
    spaces = {"token": 4, "depth": 1, "below": 1, "answer": 2}
    m = Build("balanced_brackets", d_vocab=4, n_ctx=n_ctx, spaces=spaces, **options)
    bos, end, opening, closing = eye(4)[:, :, None]
    no, yes = eye(2)[:, None]
    m.embed(token=eye(4))
    quiet, loud = 0.5, 4.0  # the longer the stream, the more distractors write: long streams come last
    m.head("counter", 0, attends={}, moves={("token", "depth"): quiet * n_ctx * (opening - closing)})
    m.neurons("below", 0, reads={"depth": -ones(1, 1) / quiet}, writes={"below": ones(1, 1)})
    m.head(
        "checker",
        1,
        attends={("token", "below"): SEEKING * end, ("token", "token"): SEEKING / 2 * end @ bos.T},
        moves={("token", "answer"): loud * (bos @ yes + (opening + closing) @ no)},
    )
    m.neurons("above", 1, reads={"depth": ones(1, 1) / quiet}, writes={"answer": 2 * loud * no}, bias=-ones(1))
    m.unembed(answer=eye(2), token=loud / 2 * end @ no)

    def draw(n: int, generator: Generator) -> Examples:
        balanced = _balanced(n, n_brackets, generator)
        left_open = _with_some_turned(balanced, generator)
        too_early = _begun_within(balanced, generator)
        is_balanced, is_left_open = torch.rand(2, n, 1, generator=generator) < 0.5
        unbalanced = torch.where(is_left_open, left_open, too_early)

        def written(steps: Int[Tensor, "batch step"]) -> Int[Tensor, "batch pos"]:
            brackets = torch.where(steps > 0, OPEN, CLOSE)
            return torch.cat((torch.full((n, 1), BOS), brackets, torch.full((n, 1), END)), dim=-1)

        clean, corrupted = (torch.where(is_balanced == first, balanced, unbalanced) for first in (True, False))
        right = is_balanced[:, 0].long()
        return asked_at_the_end(written(clean), right, written(corrupted), 1 - right)

    resample = """
        embed->counter.v counter->below0 counter->above0
        below0->checker.k checker->logits above0->logits
    """
    zero = f"{resample} embed->checker.q embed->checker.k embed->checker.v"
    at_end = {"checker": "asked", "above0": "asked"}
    return m.planted(draw, zero=circuit(zero, at_end), resample=circuit(resample, at_end))


def _balanced(n: int, n_brackets: int, generator: Generator) -> Int[Tensor, "batch step"]:
    """Balanced strings, as steps of 1 and -1: as many of each, in a circle, begun where they are lowest."""
    order = torch.rand(n, n_brackets, generator=generator).argsort(-1)
    steps = torch.where(order < n_brackets // 2, 1, -1)
    lowest = steps.cumsum(-1).argmin(-1, keepdim=True)
    return steps.gather(-1, (torch.arange(n_brackets) + lowest + 1) % n_brackets)


def _begun_within(balanced: Int[Tensor, "batch step"], generator: Generator) -> Int[Tensor, "batch step"]:
    """The same circles, begun where a bracket is open: it then closes too early."""
    start = one_of(balanced.cumsum(-1) > 0, generator)[:, None]
    return balanced.gather(-1, (torch.arange(balanced.shape[1]) + start + 1) % balanced.shape[1])


def _with_some_turned(balanced: Int[Tensor, "batch step"], generator: Generator) -> Int[Tensor, "batch step"]:
    """The same strings with one or more ")" turned into "(", so that some are left open and none closes too early."""
    closing = balanced < 0
    one = torch.zeros_like(closing).scatter(-1, one_of(closing, generator)[:, None], True)
    more = closing & (torch.rand(closing.shape, generator=generator) < torch.rand(len(closing), 1, generator=generator))
    return torch.where(one | more, 1, balanced)
