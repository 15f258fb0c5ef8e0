"""Planted models do their task, by the circuit that their truth names and by nothing else."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from interp.zoo import planted
from interp.zoo.planted import Examples, Planted
from interp.zoo.planted.build import Build, Options
from tests.variants import quick_of
from tests.zoo.oracle import Outputs, ablated, all_edges, all_nodes, cut, outputs

Make = Callable[..., Planted]
MODELS: list[Make] = [
    planted.fraction_of_previous_tokens,
    planted.previous_token,
    planted.k_back,
    planted.current_token,
    planted.first_token,
    planted.either,
    planted.both,
    planted.duplicate_token,
    planted.induction,
    planted.copy,
    planted.successor,
    planted.copy_suppression,
    planted.skip_trigram,
    planted.indirect_object,
]
SMALLEST: list[Make] = [
    partial(planted.fraction_of_previous_tokens, d_vocab=2, n_ctx=2, n_parts=1),
    partial(planted.previous_token, d_vocab=3, n_ctx=4),
    partial(planted.k_back, distance=1, d_vocab=3, n_ctx=4),
    partial(planted.current_token, d_vocab=3, n_ctx=4),
    partial(planted.first_token, d_vocab=3, n_ctx=4),
    partial(planted.either, d_vocab=3, n_ctx=4),
    partial(planted.both, d_vocab=3, n_ctx=4),
    partial(planted.duplicate_token, d_vocab=3, n_ctx=3),
    partial(planted.induction, d_vocab=4, n_ctx=5, periods=(2, 3), max_phase=0),
    partial(planted.copy, n_names=2, n_fillers=1, n_ctx=4),
    partial(planted.successor, n_lists=1, n_items=3, n_fillers=1, n_ctx=4),
    partial(planted.copy_suppression, d_vocab=5, n_ctx=4),
    partial(planted.skip_trigram, n_trigrams=2, n_fillers=1, n_ctx=3),
    partial(planted.indirect_object, n_names=2, n_fillers=1, n_ctx=8),
]
OTHERS: list[Make] = [
    partial(planted.fraction_of_previous_tokens, d_vocab=6, n_ctx=20, n_parts=10),
    partial(planted.k_back, distance=7, d_vocab=5, n_ctx=8),
    partial(planted.successor, n_lists=4, n_items=7, n_fillers=5, n_ctx=20),
    partial(planted.duplicate_token, d_vocab=25, n_ctx=21),
    partial(planted.induction, bos=False),
    partial(planted.induction, d_vocab=30, n_ctx=32, periods=(8, 12), max_phase=5),
    partial(planted.skip_trigram, n_trigrams=10, n_fillers=2, n_ctx=32),
    partial(planted.indirect_object, n_names=12, n_fillers=6, n_ctx=24),
]
DISTRACTED: Options = {"distractor_heads": 2, "distractor_neurons": 6}
KINDS = ["zero", "resample"]


def name(value: Any) -> str:
    """What a parameter is called in the names of tests."""
    if isinstance(value, partial):
        return f"{value.func.__name__} {value.keywords}"
    return getattr(value, "__name__", str(value))


# Between them they have every kind of circuit: one head, two in a row, two side by side.
QUICK: list[Make] = [planted.k_back, planted.both, planted.induction, planted.copy_suppression, planted.indirect_object]
every_model = pytest.mark.parametrize("make", quick_of(MODELS, *QUICK), ids=name)
both_kinds = pytest.mark.parametrize("kind", KINDS)


class Trial:
    """One model, its truth about one kind of ablation, and what accuracy is left when parts of the model go."""

    def __init__(self, model: Planted, kind: str, n: int = 60) -> None:
        self.planted, self.truth = model, model.truth[kind]
        self.nodes = all_nodes(model.model)
        self.edges = all_edges(self.nodes)
        self.examples, other = model.sample(n, seed=1), model.sample(n, seed=2)
        self.by: Outputs = outputs(model.model, other.tokens, self.nodes) if kind == "resample" else {}
        self.enough = 0.99 if model.distractors else 1.0

    def without(self, nodes: Iterable[str] = (), edges: Iterable[str] = (), where: Tensor | None = None) -> float:
        hooks = ablated(nodes, self.by, where) + cut(self.planted.model, edges, self.by)
        return self.planted.accuracy(self.examples, hooks)

    def stand_ins(self, node: str) -> frozenset[str]:
        """The other nodes that do the same."""
        return frozenset().union(*(group - {node} for group in self.truth.redundant if node in group))


def check_nodes(trial: Trial) -> None:
    truth = trial.truth
    assert truth.nodes <= set(trial.nodes)
    others = set(trial.nodes) - truth.nodes
    assert trial.without(others) >= trial.enough
    for node in truth.nodes - frozenset().union(*truth.redundant):
        assert trial.without([node]) < 0.8, node
    for group in truth.redundant:
        assert trial.without(group) < 0.8, group
        for node in group:
            assert trial.without(others | group - {node}) >= trial.enough, node


def check_edges(trial: Trial) -> None:
    truth = trial.truth
    assert truth.edges <= set(trial.edges)
    others = set(trial.edges) - truth.edges
    assert trial.without(edges=others) >= trial.enough
    for group in truth.redundant:
        for node in group:
            assert trial.without(group - {node}, others) >= trial.enough, node
    for edge in truth.edges:
        sender, receiver = edge.split("->")
        gone = trial.stand_ins(sender) | trial.stand_ins(receiver.split(".")[0])
        assert trial.without(gone, [edge]) < 0.8, edge


@pytest.mark.parametrize("seed", quick_of([0, 1], 0))
@pytest.mark.parametrize("make", quick_of([*MODELS, *SMALLEST, *OTHERS], *MODELS), ids=name)
def test_every_question_is_answered(make: Make, seed: int) -> None:
    model = make(seed=seed)
    examples = model.sample(1_000, seed=seed)
    assert model.accuracy(examples) == 1.0
    assert (examples.answers != examples.wrong)[examples.mask].all()
    assert examples.mask.any()
    assert not examples.answers[~examples.mask].any()
    assert not examples.wrong[~examples.mask].any()
    assert examples.tokens.shape == (1_000, model.model.cfg.n_ctx)
    answers = model.model(examples.corrupted).argmax(-1)
    assert torch.equal(answers[examples.mask], examples.wrong[examples.mask])


@pytest.mark.parametrize("norm", quick_of(["RMS", "LN"], "LN"))
@every_model
def test_norms_change_next_to_nothing(make: Make, norm: str) -> None:
    model, plain = make(norm=norm), make()
    assert model.model.cfg.normalization_type == norm
    examples = model.sample(300)
    assert model.accuracy(examples) == 1.0
    asked = examples.mask
    logits, expected = model.model(examples.tokens)[asked], plain.model(examples.tokens)[asked]
    torch.testing.assert_close(logits, expected, atol=0.01, rtol=0.01)


@pytest.mark.parametrize("norm", [None, "LN"])
@pytest.mark.parametrize("seed", quick_of([0, 1], 0))
@every_model
def test_distractors_change_few_answers(make: Make, seed: int, norm: str | None) -> None:
    model = make(seed=seed, norm=norm, **DISTRACTED)
    assert model.accuracy(model.sample(500, seed)) >= 0.99
    cfg = model.model.cfg
    assert len(model.distractors) >= 8 * cfg.n_layers
    assert set(model.roles.values()) | set(model.distractors) == {
        f"L{layer}{letter}{i}"
        for layer in range(cfg.n_layers)
        for letter, n in (("H", cfg.n_heads), ("N", cfg.d_mlp))
        for i in range(n)
    }


@both_kinds
@pytest.mark.parametrize("make", quick_of([*MODELS, *SMALLEST], *QUICK), ids=name)
def test_the_truth_is_what_the_model_needs(make: Make, kind: str) -> None:
    trial = Trial(make(), kind)
    check_nodes(trial)
    check_edges(trial)


@pytest.mark.slow
@both_kinds
@every_model
def test_the_truth_is_what_the_model_needs_behind_a_norm(make: Make, kind: str) -> None:
    trial = Trial(make(norm="LN", seed=1), kind)
    check_nodes(trial)
    check_edges(trial)


@pytest.mark.slow
@both_kinds
@every_model
def test_the_truth_is_what_the_model_needs_among_distractors(make: Make, kind: str) -> None:
    trial = Trial(make(**DISTRACTED, norm="RMS", seed=2), kind)
    check_nodes(trial)
    check_edges(trial)


@pytest.mark.slow
@both_kinds
@every_model
def test_no_single_edge_outside_of_the_truth_matters(make: Make, kind: str) -> None:
    trial = Trial(make(), kind, n=20)
    for edge in set(trial.edges) - trial.truth.edges:
        assert trial.without(edges=[edge]) == 1.0, edge


@both_kinds
@every_model
def test_nodes_matter_only_where_the_truth_says(make: Make, kind: str) -> None:
    trial = Trial(make(), kind)
    assert trial.truth.positions.keys() == trial.truth.nodes
    for node, place in trial.truth.positions.items():
        assert trial.without([node], where=~trial.examples.places[place]) == 1.0, node
        gone = trial.stand_ins(node)
        assert trial.without([node, *gone], where=trial.examples.places[place]) < 0.8, node


def test_the_oracle_cuts_all_or_nothing() -> None:
    model = planted.indirect_object(**DISTRACTED, norm="LN").model
    nodes, examples = all_nodes(model), planted.indirect_object().sample(20)
    other = outputs(model, examples.corrupted, nodes)
    run = partial(model.run_with_hooks, examples.tokens)
    torch.testing.assert_close(run(fwd_hooks=cut(model, all_edges(nodes), other)), model(examples.corrupted))
    torch.testing.assert_close(run(fwd_hooks=cut(model, [], other)), model(examples.tokens))


def test_cutting_every_edge_from_a_node_is_ablating_it() -> None:
    model = planted.indirect_object(**DISTRACTED, norm="LN").model
    nodes, examples = all_nodes(model), planted.indirect_object().sample(20)
    other = outputs(model, examples.corrupted, nodes)
    for node in nodes:
        edges = [edge for edge in all_edges(nodes) if edge.startswith(f"{node}->")]
        one_way = model.run_with_hooks(examples.tokens, fwd_hooks=cut(model, edges, other))
        other_way = model.run_with_hooks(examples.tokens, fwd_hooks=ablated([node], other))
        torch.testing.assert_close(one_way, other_way, msg=node)


@every_model
def test_samples_depend_on_their_seed_alone(make: Make) -> None:
    first, again, other = (make(seed=seed).sample(50, sample) for seed, sample in ((0, 3), (1, 3), (0, 4)))
    for field in ("tokens", "mask", "answers", "corrupted", "wrong"):
        assert torch.equal(getattr(first, field), getattr(again, field))
    assert not torch.equal(first.tokens, other.tokens)


def test_a_tie_is_no_answer() -> None:
    one = torch.ones(1, 2, dtype=torch.long)
    examples = Examples(tokens=one, mask=one.bool(), answers=one, corrupted=one, wrong=0 * one)
    assert examples.accuracy(torch.tensor([[[0.0, 1.0, 1.0], [0.0, 1.0, 0.5]]])) == 0.5


def test_heads_stand_in_random_places() -> None:
    assert len({planted.induction(distractor_heads=3, seed=seed).roles["previous"] for seed in range(10)}) > 1
    model = planted.induction(distractor_heads=3, seed=4)
    pattern = model.model.run_with_cache(model.sample(10).tokens)[1]["pattern", 0]
    head = int(model.roles["previous"].removeprefix("L0H"))
    assert pattern[:, head].diagonal(-1, -2, -1).min() > 0.99


def test_the_fractions_of_tracrs_example() -> None:
    model = planted.fraction_of_previous_tokens(d_vocab=5, n_ctx=5)
    hello = torch.tensor([[2, 1, 0, 0, 3]])  # the letter counted is token 0
    _, logits_and_stream = model.model.run_with_cache(hello)
    stream = logits_and_stream["resid_post", 0]
    counted, others = stream[0, :, model.spaces["counted"]], stream[0, :, model.spaces["others"]]
    torch.testing.assert_close((counted / (counted + others))[:, 0], torch.tensor([0, 0, 1 / 3, 1 / 2, 2 / 5]))


@pytest.mark.parametrize(
    ("make", "role", "looks_at"),
    [
        (planted.previous_token, "previous", lambda pos: pos - 1),
        (partial(planted.k_back, distance=4), "back", lambda pos: pos - 4),
        (planted.current_token, "current", lambda pos: pos),
        (planted.first_token, "first", lambda pos: 0),
    ],
    ids=name,
)
def test_heads_look_where_they_are_said_to_look(make: Make, role: str, looks_at: Callable[[int], int]) -> None:
    of = make(distractor_heads=2, norm="RMS")
    pattern = of.model.run_with_cache(of.sample(5).tokens)[1]["pattern", 0][:, int(of.roles[role].removeprefix("L0H"))]
    for pos in range(4, of.model.cfg.n_ctx):
        assert pattern[:, pos, looks_at(pos)].min() > 0.99


def test_the_successor_head_raises_the_next_item_above_all_others_of_its_list() -> None:
    model = planted.successor(n_lists=3, n_items=4).model
    logits = model.W_E @ model.W_V[0, 0] @ model.W_O[0, 0] @ model.W_U
    for items in planted.successor_lists(n_lists=3, n_items=4).tolist():
        of_items = logits[items][:, items]
        assert of_items[:-1].argmax(1).tolist() == [1, 2, 3]
        assert not of_items[-1].any()
    assert planted.successor_lists(2, 3).tolist() == [[1, 2, 3], [4, 5, 6]]


@pytest.mark.parametrize("period", [3, 8, 13])
def test_induction_scores_are_those_of_the_theory(period: int) -> None:
    """Without BOS, position 0 is its own previous token: half of the attention to its successor goes there."""
    for bos, expected in ((True, 1.0), (False, (period - 1 / 2) / period)):
        model = planted.induction(d_vocab=20, n_ctx=2 * period + bos, periods=(period, period), max_phase=0, bos=bos)
        tokens = torch.arange(1, period + 1).repeat(2)[None]
        tokens = torch.cat((torch.zeros(1, 1, dtype=torch.long), tokens), dim=-1) if bos else tokens
        pattern = model.model.run_with_cache(tokens)[1]["pattern", 1][0, 0]
        score = pattern.diagonal(1 - period)[bos + 1 :].mean()  # queries in the second copy
        torch.testing.assert_close(score.item(), expected, atol=1e-6, rtol=0)


def test_induction_is_composed_through_keys_alone() -> None:
    model = planted.induction().model
    W_OV, W_QK = model.W_V @ model.W_O, model.W_Q @ model.W_K.mT
    ov, qk = W_OV[0, 0], W_QK[1, 0]
    assert (ov @ qk.T).norm() / (ov.norm() * qk.norm()) > 0.2
    assert (ov @ qk).norm() == 0
    assert (ov @ W_OV[1, 0]).norm() == 0


def test_ablating_the_previous_token_head_leaves_no_induction() -> None:
    model = planted.induction()
    assert model.accuracy(model.sample(500), ablated([model.roles["previous"]], {})) == 0.0


def test_the_backup_mover_wakes_when_the_mover_is_zeroed_but_not_when_it_is_resampled() -> None:
    model = planted.indirect_object()
    examples, mover, backup = model.sample(100), model.roles["mover"], model.roles["backup"]
    other = outputs(model.model, examples.corrupted, [mover])

    def written_by_backup(hooks: Any) -> Tensor:
        with model.model.hooks(fwd_hooks=hooks):
            result = outputs(model.model, examples.tokens, [backup])[backup]
        return result[:, -1, model.spaces["answer"]].gather(-1, examples.answers[:, -1:])

    assert written_by_backup(ablated([mover], {})).min() > 0.9
    for asleep in ([], ablated([mover], other)):
        assert written_by_backup(asleep).max() < 0.01
    assert model.accuracy(examples, ablated([mover], {})) == 1.0
    assert model.accuracy(examples, ablated([mover], other)) == 0.0


def test_the_suppressor_lowers_what_was_predicted_and_was_there() -> None:
    model = planted.copy_suppression()
    tokens = torch.tensor([[0, 5, 6, 8, 8, 8, 8, 8, 8, 4], [0, 7, 6, 8, 8, 8, 8, 8, 8, 4]])  # 4 predicts 5, and 6 less
    direct = torch.zeros(model.model.cfg.d_vocab).index_add(0, torch.tensor([5, 6]), torch.tensor([1.0, 0.5]))
    lowered = direct - torch.eye(model.model.cfg.d_vocab)[5]
    logits = model.model(tokens)[:, -1]
    torch.testing.assert_close(logits, torch.stack((lowered, direct)), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("make", "bad", "message"),
    [
        (planted.previous_token, {"norm": "batch"}, "norm='batch'; allowed: None, 'RMS', 'LN'"),
        (planted.previous_token, {"d_vocab": 1, "n_ctx": 1}, "d_vocab=1, at least 3; n_ctx=1, at least 4"),
        (planted.fraction_of_previous_tokens, {"n_parts": 0}, "n_parts=0, at least 1"),
        (planted.duplicate_token, {"d_vocab": 11, "n_ctx": 12}, "d_vocab=11, at least 12"),
        (planted.induction, {"periods": (5, 4)}, "longest_period=4, at least 5"),
        (planted.induction, {"periods": (1, 4)}, "shortest_period=1, at least 2"),
        (planted.induction, {"d_vocab": 9}, "d_vocab=9, at least 10"),
        (planted.induction, {"n_ctx": 10}, "n_ctx=10, at least 11"),
        (planted.copy, {"n_fillers": 8}, "n_ctx=10, at least 11"),
        (planted.k_back, {"distance": 0}, "distance=0, at least 1"),
        (planted.k_back, {"distance": 10}, "n_ctx=10, at least 11"),
        (planted.both, {"n_ctx": 1}, "n_ctx=1, at least 4"),
        (planted.successor, {"n_items": 2, "n_ctx": 5}, "n_items=2, at least 3; n_ctx=5, at least 6"),
        (planted.copy_suppression, {"d_vocab": 4}, "d_vocab=4, at least 5"),
        (planted.skip_trigram, {"n_trigrams": 1}, "n_trigrams=1, at least 2"),
        (planted.indirect_object, {"n_ctx": 9}, "n_ctx=9, at least 10"),
        (planted.either, {"distractor_heads": -1}, "distractor_heads=-1, at least 0"),
    ],
)
def test_what_cannot_be_built_is_refused(make: Make, bad: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="cannot be built") as error:
        make(**bad)
    assert message in str(error.value)


def test_a_matrix_between_subspaces_has_their_sizes() -> None:
    m = Build("test", d_vocab=3, n_ctx=4, spaces={"token": 3, "pair": 2})
    with pytest.raises(ValueError, match=r"test, token to pair: \[3, 3\] given, \[3, 2\] needed"):
        m.head("mover", 0, attends={}, moves={("token", "pair"): torch.eye(3)})
    with pytest.raises(ValueError, match=r"test, pair: \[3, 1\] given, \[3, 2\] needed"):
        m.embed(pair=torch.ones(3, 1))


def test_an_unknown_option_is_refused() -> None:
    with pytest.raises(TypeError, match="distractors"):
        planted.copy(distractors=3)  # pyright: ignore
