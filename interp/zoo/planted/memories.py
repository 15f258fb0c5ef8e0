"""The feed-forward layer as a key-value memory: keys that patterns fire, and values that promote tokens."""

from typing import Unpack

import torch
from jaxtyping import Shaped
from torch import Generator, Tensor, eye

from interp.zoo.planted.build import SHARP, Build, Options, back, check_sizes
from interp.zoo.planted.sampling import one_of
from interp.zoo.planted.truth import Examples, Planted, circuit

Fact = tuple[int, int, int]  # after a and b comes c

# Each a goes with two b, and each b with two a: neither alone tells c.
FACTS: tuple[Fact, ...] = ((0, 4, 1), (0, 5, 2), (1, 4, 3), (1, 5, 0), (2, 6, 5), (2, 7, 6), (3, 6, 7), (3, 7, 4))


def memories(facts: tuple[Fact, ...] = FACTS, d_vocab: int = 8, n_ctx: int = 12, **options: Unpack[Options]) -> Planted:
    """What comes after two tokens, known by heart: a neuron for each fact (a, b, c) (Geva et al., 2021).

    Tokens come in pairs, each with even chances a fact's a and b or two random ones. The questions are about facts.

    1. The head looks one position back and moves the token there to "previous".
    2. The key of a fact adds up 1 if the token is b, 1 if the previous one is a, and -1.5: it fires, at 1/2, iff both.
    3. Its value promotes c.
    4. The direct path says, half as loud, the token itself, should no neuron fire.
    """
    check_sizes("memories", d_vocab=(d_vocab, 2), n_ctx=(n_ctx, 2))
    if faults := _faults(facts, d_vocab):
        raise ValueError(f"memories cannot be built: facts={facts}: {'; '.join(faults)}")
    spaces = {"token": d_vocab, "pos": n_ctx, "previous": d_vocab, "answer": d_vocab}
    m = Build("memories", d_vocab=d_vocab, n_ctx=n_ctx, spaces=spaces, **options)
    tokens, patterns = eye(d_vocab), torch.tensor(facts)[:, :2]
    a, b, c = torch.tensor(facts).T
    m.embed(token=tokens)
    m.pos_embed(pos=eye(n_ctx))
    m.head("previous", 0, attends={("pos", "pos"): SHARP * back(1, n_ctx)}, moves={("token", "previous"): 1})
    m.neurons(
        "memory",
        0,
        reads={"token": tokens[b], "previous": tokens[a]},
        writes={"answer": 4 * tokens[c]},
        bias=torch.full((len(facts),), -1.5),
    )
    m.unembed(answer=tokens, token=tokens)

    def draw(n: int, generator: Generator) -> Examples:
        n_pairs = n * ((n_ctx + 1) // 2)
        fact = torch.randint(len(facts), (n_pairs,), generator=generator)
        other = one_of(c != c[fact, None], generator)
        is_fact = torch.rand(n_pairs, 1, generator=generator) < 0.5
        begun = torch.randint(d_vocab, (n_pairs, 2), generator=generator)
        asked = is_fact & torch.tensor([False, True])

        def in_rows(pairs: Shaped[Tensor, "pair 2"]) -> Shaped[Tensor, "batch pos"]:
            return pairs.reshape(n, -1)[:, :n_ctx]

        clean, corrupted = (in_rows(torch.where(is_fact, patterns[which], begun)) for which in (fact, other))
        answers, wrong = (in_rows(asked * c[which, None]) for which in (fact, other))
        return Examples(tokens=clean, mask=in_rows(asked), answers=answers, corrupted=corrupted, wrong=wrong)

    resample = ["embed->previous.v"]
    resample += [f"embed->{neuron} previous->{neuron} {neuron}->logits" for neuron in m.each_neuron]
    zero = [*resample, "pos_embed->previous.q pos_embed->previous.k"]
    positions = dict.fromkeys(["previous", *m.each_neuron], "asked")
    return m.planted(draw, zero=circuit(" ".join(zero), positions), resample=circuit(" ".join(resample), positions))


def _faults(facts: tuple[Fact, ...], d_vocab: int) -> list[str]:
    faults = [f"{fact} has tokens outside of d_vocab={d_vocab}" for fact in facts if not {*fact} <= {*range(d_vocab)}]
    faults += [f"{(a, b, c)} is true without a neuron: b repeats itself" for a, b, c in facts if b == c]
    # At position 0 the head finds nothing before, and looks at the token itself.
    faults += [f"{(a, b, c)} would fire at a first token {b}" for a, b, c in facts if a == b]
    if len({(a, b) for a, b, _ in facts}) < len(facts):
        faults += ["two of them have the same a and b"]
    if len({c for _, _, c in facts}) < 2:
        faults += ["all have the same c, or there are none"]
    return faults
