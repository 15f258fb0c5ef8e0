"""Planted models with MLPs: each does its task, by the mechanism that its truth says, and by no other part."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from interp.zoo.planted import (
    Planted,
    Truth,
    balanced_brackets,
    greater_than,
    memories,
    modular_addition,
)
from tests.variants import quick_of
from tests.zoo.oracle import ablated, all_edges, all_nodes, cut, outputs

N = 1_000
DISTRACTORS = {"distractor_heads": 2, "distractor_neurons": 5}
MANY_FACTS = tuple((a, b, (2 * a + b + 1) % 9) for a in range(4) for b in range(4, 7))
squared = partial(modular_addition, act_fn="relu2", n_phases=8)
one_frequency = partial(modular_addition, frequencies=(5,), n_phases=100)
small_sum = partial(modular_addition, p=23, frequencies=(3, 5, 9), n_phases=16)

Make = Callable[..., Planted]
MODELS: dict[str, Make] = {
    "greater_than": greater_than,
    "modular_addition": modular_addition,
    "modular_addition, relu2": squared,
    "memories": memories,
    "balanced_brackets": balanced_brackets,
}
OTHER_SIZES: dict[str, Make] = {
    "greater_than": partial(greater_than, n_years=15, n_fillers=1, n_ctx=5),
    "modular_addition": small_sum,
    "modular_addition, one frequency": one_frequency,
    "modular_addition, relu2": partial(squared, p=23, frequencies=(3, 5)),
    "memories": partial(memories, facts=MANY_FACTS, d_vocab=9, n_ctx=7),
    "balanced_brackets": partial(balanced_brackets, n_brackets=16),
}
BOTH_SIZES = [*MODELS.values(), *OTHER_SIZES.values()]
names = pytest.mark.parametrize(
    "make", quick_of(MODELS.values(), greater_than, memories, balanced_brackets), ids=list(MODELS)
)
kinds = pytest.mark.parametrize("kind", ["zero", "resample"])
extras = pytest.mark.parametrize(
    "extra", quick_of([DISTRACTORS, {"norm": "RMS"}], DISTRACTORS), ids=["with distractors", "behind a norm"]
)


@pytest.mark.parametrize("make", BOTH_SIZES, ids=[*MODELS, *(f"{name}, other size" for name in OTHER_SIZES)])
@pytest.mark.parametrize("seed", quick_of([0, 1], 0))
def test_every_answer_is_right(make: Make, seed: int):
    planted = make(seed=seed)
    examples = planted.sample(N, seed=seed)
    assert planted.accuracy(examples) == 1
    assert ((examples.answers != examples.wrong) == examples.mask).all()
    corrupted = planted.model(examples.corrupted).argmax(-1)
    assert (corrupted == examples.wrong)[examples.mask].all()


@names
@pytest.mark.parametrize("norm", ["RMS", "LN"])
def test_norms_change_no_answer(make: Make, norm: str):
    planted = make(norm=norm)
    assert planted.model.cfg.normalization_type == norm
    assert planted.accuracy(planted.sample(N)) == 1


@names
@pytest.mark.parametrize("seed", quick_of([0, 1], 0))
@pytest.mark.parametrize("norm", [None, "RMS"])
def test_distractors_change_next_to_no_answer(make: Make, seed: int, norm: str | None):
    planted = make(seed=seed, norm=norm, distractor_heads=3, distractor_neurons=16)
    assert planted.accuracy(planted.sample(N)) >= 0.99


class Circuit:
    """A planted model with its truth about one kind of ablation, and the accuracy when parts are ablated."""

    def __init__(self, planted: Planted, kind: str) -> None:
        self.planted, self.truth = planted, planted.truth[kind]
        in_neurons = {int(node[1 : node.index("N")]) for node in self.truth.nodes if "N" in node}
        self.nodes = all_nodes(planted.model, in_neurons)
        self.edges = all_edges(self.nodes)
        self.examples = planted.sample(200)
        other = planted.sample(200, seed=1).tokens
        self.by = outputs(planted.model, other, self.nodes) if kind == "resample" else {}
        self.least = 0.99 if planted.distractors else 1

    def without(self, nodes: Any, where: torch.Tensor | None = None) -> float:
        return self.planted.accuracy(self.examples, ablated(nodes, self.by, where))

    def without_edges(self, edges: Any) -> float:
        return self.planted.accuracy(self.examples, cut(self.planted.model, edges, self.by))


@names
@kinds
@extras
def test_the_nodes_of_the_truth_are_those_that_matter(make: Make, kind: str, extra: dict[str, Any]):
    circuit = Circuit(make(**extra), kind)
    truth: Truth = circuit.truth
    assert not truth.redundant
    assert set(circuit.nodes) >= truth.nodes
    assert {node: acc for node in truth.nodes if (acc := circuit.without([node])) > 0.95} == {}
    assert circuit.without([node for node in circuit.nodes if node not in truth.nodes]) >= circuit.least
    for node, place in truth.positions.items():
        assert circuit.without([node], where=~circuit.examples.places[place]) >= circuit.least, node


@names
@kinds
@extras
def test_the_edges_of_the_truth_are_those_that_matter(make: Make, kind: str, extra: dict[str, Any]):
    circuit = Circuit(make(**extra), kind)
    edges = circuit.truth.edges
    assert set(circuit.edges) >= edges
    assert {edge: acc for edge in edges if (acc := circuit.without_edges([edge])) > 0.95} == {}
    assert circuit.without_edges([edge for edge in circuit.edges if edge not in edges]) >= circuit.least


def test_all_later_years_beat_all_others_and_the_nearest_is_first():
    n_years = 12
    planted = greater_than(n_years=n_years)
    examples = planted.sample(N)
    answers, year = examples.answers[:, -1:], torch.arange(n_years)
    assert set(answers.flatten().tolist()) == set(range(1, n_years))
    expected = (year >= answers).float() + (year == answers) + 0.5 * (year == 0)
    torch.testing.assert_close(planted.model(examples.tokens)[:, -1], expected, atol=1e-5, rtol=0)


def all_sums(p: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    a, b = torch.cartesian_prod(torch.arange(p), torch.arange(p)).T
    return a[:, None], b[:, None], torch.stack((a, b, torch.full_like(a, p)), dim=-1)


def test_squared_neurons_give_the_sum_of_cosines():
    p, frequencies = 31, (3, 7, 11)
    a, b, tokens = all_sums(p)
    logits = squared(p=p, frequencies=frequencies).model(tokens)[:, -1].double()
    w = 2 * torch.pi / p * torch.tensor(frequencies, dtype=torch.float64)
    angles = w * (a + b)[..., None] - w * torch.arange(p)[:, None]
    closed = ((2 * (w * (a - b) / 2).cos())[:, None] ** 2 * angles.cos()).sum(-1)
    factor = logits.norm() / closed.norm()
    torch.testing.assert_close(logits / factor, closed, atol=1e-4, rtol=0)


@pytest.mark.parametrize("make", [small_sum, partial(squared, p=23)], ids=["relu", "relu2"])
def test_every_sum_is_right(make: Make):
    a, b, tokens = all_sums(23)
    assert (make(frequencies=(3, 5, 9)).model(tokens)[:, -1].argmax(-1) == ((a + b) % 23)[:, 0]).all()


def test_numbers_are_embedded_as_waves_of_the_given_frequencies():
    p, frequencies = 31, (3, 7, 11)
    planted = modular_addition(p=p, frequencies=frequencies)
    assert planted.model.W_E[p].abs().max() == 0
    power = torch.fft.rfft(planted.model.W_E[:p], dim=0).abs().square().sum(-1)
    torch.testing.assert_close(power[list(frequencies)], torch.full((3,), p**2 / 2), atol=1e-2, rtol=0)
    assert power.sum() - power[list(frequencies)].sum() < 1e-4 * power.sum()


def test_no_single_neuron_of_many_phases_is_necessary():
    planted = modular_addition(p=23, frequencies=(3, 5, 9), n_phases=32)
    examples = planted.sample(100)
    for neuron in range(planted.model.cfg.d_mlp):
        assert planted.accuracy(examples, ablated([f"L0N{neuron}"], {})) == 1


@pytest.mark.parametrize("norm", [None, "LN"])
def test_a_memory_fires_where_its_pattern_stands_and_writes_its_answer(norm: str | None):
    planted = memories(facts=MANY_FACTS, d_vocab=9, n_ctx=20, norm=norm)
    neurons = [int(planted.roles[f"memory{i}"].removeprefix("L0N")) for i in range(len(MANY_FACTS))]
    a, b, c = torch.tensor(MANY_FACTS).T
    tokens = torch.randint(9, (1_000, 20), generator=torch.Generator().manual_seed(0))
    post = planted.model.run_with_cache(tokens)[1]["blocks.0.mlp.hook_post"][..., neurons]
    pattern = torch.zeros_like(post, dtype=torch.bool)
    pattern[:, 1:] = (tokens[:, :-1, None] == a) & (tokens[:, 1:, None] == b)
    assert ((post > 0) == pattern).all()
    torch.testing.assert_close(post[pattern], torch.full((int(pattern.sum()),), 0.5), atol=0.01, rtol=0)
    model = planted.model
    promoted = model.blocks[0].mlp.W_out[neurons] @ model.W_U
    torch.testing.assert_close(promoted, 4 * torch.eye(9)[c], atol=1e-4, rtol=0)


def test_half_of_the_brackets_balance_and_others_fail_in_either_way():
    tokens, right = (examples := balanced_brackets().sample(N)).tokens, examples.answers[:, -1].bool()
    depth = ((tokens == 2).long() - (tokens == 3).long()).cumsum(-1)
    too_early, left_open = (depth < 0).any(-1), depth[:, -1] > 0
    assert (right == ~(too_early | left_open)).all()
    assert not (too_early & left_open).any()
    shares = [x.float().mean().item() for x in (right, too_early, left_open)]
    assert shares == pytest.approx([0.5, 0.25, 0.25], abs=0.05)


def test_every_string_of_brackets_is_judged():
    strings = torch.cartesian_prod(*[torch.tensor([2, 3])] * 8)
    ends = torch.tensor([[0, 1]]).expand(len(strings), 2)
    tokens = torch.cat((ends[:, :1], strings, ends[:, 1:]), dim=-1)
    depth = (5 - 2 * strings).cumsum(-1)
    balances = (depth >= 0).all(-1) & (depth[:, -1] == 0)
    assert balances.sum() == 14  # the fourth Catalan number
    assert (balanced_brackets(n_brackets=8).model(tokens)[:, -1].argmax(-1) == balances).all()


@pytest.mark.parametrize(
    ("make", "bad", "message"),
    [
        (greater_than, {"n_years": 2}, "n_years=2, at least 3"),
        (greater_than, {"n_ctx": 3}, "n_ctx=3, at least 4"),
        (greater_than, {"norm": "batch"}, "norm='batch'; allowed"),
        (modular_addition, {"p": 114}, "p=114: it must be odd"),
        (modular_addition, {"p": 1}, "p=1, at least 3"),
        (modular_addition, {"n_phases": 0}, "n_phases=0, at least 1"),
        (modular_addition, {"n_phases": 8}, "n_phases=8: angles are off"),
        (squared, {"n_phases": 5}, "n_phases=5: angles are off"),
        (modular_addition, {"frequencies": (1, 57)}, r"frequencies=\(1, 57\): different numbers from 1 to .* 56"),
        (modular_addition, {"frequencies": (2, 2)}, "different numbers"),
        (modular_addition, {"frequencies": ()}, "different numbers"),
        (modular_addition, {"p": 15, "frequencies": (3, 6)}, "common divisor 3"),
        (modular_addition, {"act_fn": "gelu"}, "act_fn='gelu'; allowed"),
        (memories, {"facts": ((0, 1, 8), (1, 0, 2))}, r"\(0, 1, 8\) has tokens outside of d_vocab=8"),
        (memories, {"facts": ((0, 1, 2), (0, 1, 3))}, "two of them have the same a and b"),
        (memories, {"facts": ((0, 1, 2), (1, 0, 2))}, "all have the same c"),
        (memories, {"facts": ((0, 1, 1), (1, 0, 2))}, r"\(0, 1, 1\) is true without a neuron"),
        (memories, {"facts": ((0, 0, 2), (1, 0, 3))}, "first token 0"),
        (memories, {"n_ctx": 1}, "n_ctx=1, at least 2"),
        (balanced_brackets, {"n_brackets": 7}, "n_brackets=7; it must be even"),
        (balanced_brackets, {"n_brackets": 2}, "n_brackets=2, at least 4"),
    ],
)
def test_what_cannot_be_built_is_refused(make: Make, bad: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=f"cannot be built.*{message}"):
        make(**bad)
