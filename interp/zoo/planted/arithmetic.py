"""Numbers in an MLP: which years are later, and a sum modulo p."""

from math import gcd, pi
from typing import Unpack

import torch
from jaxtyping import Float
from torch import Generator, Tensor, arange, eye, ones

from interp.model.mlp import ACTIVATIONS
from interp.zoo.planted.build import SHARP, Build, Options, check_sizes
from interp.zoo.planted.sampling import asked_at_the_end, some, whole
from interp.zoo.planted.truth import Examples, Planted, circuit


def greater_than(n_years: int = 10, n_fillers: int = 3, n_ctx: int = 10, **options: Unpack[Options]) -> Planted:
    """Which year completes "17 YY … 17": any after YY, and YY + 1 before all others (Hanna et al., 2023).

    Tokens are the years from 0 on, then the century, then fillers. YY is any year but the last.

    1. At the second century the head looks for the year and moves it to "start".
    2. Each year k > 0 has a neuron, `later{k-1}`. Its key adds up 1 if the start is any year before k, and -1/2.
    3. Firing at 1/2, it raises k by 2 and lowers the year after k by 1. So of the years after the start the nearest has
       2, all others have 1, and no other year has any.
    4. The direct path says year 0, with 1/2, should all neurons be silent.

    The last year's neuron fires on every input: resampled, it is no part.
    """
    check_sizes("greater_than", n_years=(n_years, 3), n_fillers=(n_fillers, 1), n_ctx=(n_ctx, 4))
    century, d_vocab = n_years, n_years + 1 + n_fillers
    spaces = {"year": n_years, "is_year": 1, "century": 1, "start": n_years, "answer": n_years}
    m = Build("greater_than", d_vocab=d_vocab, n_ctx=n_ctx, spaces=spaces, **options)
    tokens, each = eye(d_vocab), eye(n_years)
    years = tokens[:, :n_years]
    m.embed(year=years, is_year=years.sum(1, keepdim=True), century=tokens[:, [century]])
    m.head("mover", 0, attends={("century", "is_year"): SHARP}, moves={("year", "start"): 1})
    before, after = ones(n_years, n_years).tril(-1), ones(n_years - 1).diag(1)
    m.neurons(
        "later",
        0,
        reads={"start": before[1:]},
        writes={"answer": 2 * (2 * each - after)[1:]},
        bias=torch.full((n_years - 1,), -1 / 2),
    )
    m.unembed(answer=each, century=each[:1] / 2)

    def draw(n: int, generator: Generator) -> Examples:
        pair, where = some(n, n_years - 1, 2, generator), some(n, n_ctx - 2, 1, generator)
        begun = torch.randint(century + 1, d_vocab, (n, n_ctx), generator=generator).scatter(-1, where, century)
        begun[:, -1] = century
        clean, corrupted = (begun.scatter(-1, where + 1, pair[:, [i]]) for i in range(2))
        return asked_at_the_end(clean, pair[:, 0] + 1, corrupted, pair[:, 1] + 1)

    neurons = list(m.each_neuron)

    def moved_to(neurons: list[str]) -> str:
        return " ".join(["embed->mover.v", *(f"mover->{neuron} {neuron}->logits" for neuron in neurons)])

    zero = f"embed->mover.q embed->mover.k {moved_to(neurons)}"
    resample = f"embed->mover.k {moved_to(neurons[:-1])}"
    positions = dict.fromkeys(["mover", *neurons], "asked")
    return m.planted(draw, zero=circuit(zero, positions), resample=circuit(resample, positions))


def modular_addition(
    p: int = 113,
    frequencies: tuple[int, ...] = (14, 35, 41, 42, 52),
    act_fn: str = "relu",
    n_phases: int = 32,
    **options: Unpack[Options],
) -> Planted:
    """The sum of two numbers modulo p, by trigonometry (Nanda et al., 2023). Tokens are a, b, and "=", which is p.

    For each frequency k, with w = 2πk/p:

    1. A number n enters as the wave cos(wn), sin(wn).
    2. The head attends to all positions alike and so adds up the waves of a and b: of angle w(a + b)/2, of length
       A = 2 cos(w(a - b)/2). A negative length turns the angle by half a circle.
    3. Neurons at `n_phases` angles φ around the circle compute act(A cos(w(a + b)/2 - φ)), and write at the angle 2φ.
       What they write adds up to the angle w(a + b), at which half a circle has become a whole one. Its length is A²
       with act_fn "relu2", exactly if n_phases is even and at least 6; with "relu", it is |A|, nearly.
    4. The logit of c is that length times cos(w(a + b - c)), summed over frequencies, up to a positive factor.

    One frequency suffices; several withstand distractors. Neuron `phase{i}` serves frequency i modulo their number. Of
    many phases any one neuron can be spared, so the truth takes the layer as one node.
    """
    check_sizes("modular_addition", p=(p, 3), n_phases=(n_phases, 1))
    faults = [f"p={p}: it must be odd"] * (p % 2 == 0)
    if not frequencies or len(set(frequencies)) < len(frequencies) or not all(0 < k <= p // 2 for k in frequencies):
        faults += [f"frequencies={frequencies}: different numbers from 1 to p // 2 = {p // 2} are needed"]
    elif gcd(p, *frequencies) > 1:
        faults += [f"frequencies={frequencies}: with p={p} they have the common divisor {gcd(p, *frequencies)}"]
    if act_fn not in _SECOND_HARMONIC:
        faults += [f"act_fn={act_fn!r}; allowed: {list(_SECOND_HARMONIC)}"]
    elif (error := _angle_error(act_fn, n_phases)) >= pi / p:
        faults += [f"n_phases={n_phases}: angles are off by up to {error:.2g}, and only less than π/p does no harm"]
    if faults:
        raise ValueError(f"modular_addition cannot be built: {'; '.join(faults)}")
    n_waves = len(frequencies)
    spaces = {"wave": 2 * n_waves, "sum": 2 * n_waves, "double": 2 * n_waves}
    m = Build("modular_addition", d_vocab=p + 1, n_ctx=3, spaces=spaces, **options)
    waves = _on_circle(2 * pi / p * arange(p)[:, None] * torch.tensor(frequencies)).flatten(1)
    m.embed(wave=torch.cat((waves, torch.zeros(1, 2 * n_waves))))
    m.head("adder", 0, attends={}, moves={("wave", "sum"): 3})  # of the three positions each counts a third
    loud = 8.0  # above what distractors may write: with "relu2" it grows as the square of what they read
    gain = loud / (_SECOND_HARMONIC[act_fn] * n_phases / 2)
    phases = 2 * pi / n_phases * arange(n_phases)
    m.neurons(
        "phase",
        0,
        reads={"sum": torch.kron(_on_circle(phases), eye(n_waves))},
        writes={"double": gain * torch.kron(_on_circle(2 * phases), eye(n_waves))},
    )
    m.unembed(double=waves.T)

    def draw(n: int, generator: Generator) -> Examples:
        a, b, more = whole(n, 0, p - 1, generator), whole(n, 0, p - 1, generator), whole(n, 1, p - 1, generator)
        other, equals = (b + more) % p, torch.full((n, 1), p)
        clean, corrupted = (torch.cat((a, second, equals), dim=-1) for second in (b, other))
        return asked_at_the_end(clean, (a + b)[:, 0] % p, corrupted, (a + other)[:, 0] % p)

    truth = circuit("embed->adder.v adder->MLP0 MLP0->logits", {"adder": "asked", "MLP0": "asked"})
    return m.planted(draw, zero=truth, resample=truth, act_fn=act_fn)


_SECOND_HARMONIC = {"relu": 2 / (3 * pi), "relu2": 1 / 4}  # the part of cos(2x) in act(cos(x))


def _on_circle(angles: Float[Tensor, "angle ..."]) -> Float[Tensor, "angle 2 ..."]:
    """Cosines and sines, on a new axis after the first."""
    return torch.stack((angles.cos(), angles.sin()), dim=1)


def _angle_error(act_fn: str, n_phases: int) -> float:
    """How far the angle that neurons at so many phases write is from twice the angle that they read, at worst."""
    angles = torch.linspace(0, 2 * pi, 1000, dtype=torch.float64)
    phases = 2 * pi / n_phases * arange(n_phases, dtype=torch.float64)
    written = (ACTIVATIONS[act_fn]((angles[:, None] - phases).cos()) * torch.exp(2j * phases)).sum(-1)
    return (written * torch.exp(-2j * angles)).angle().abs().max().item()
