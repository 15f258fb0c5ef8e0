import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from interp import HookedGPT, metrics
from interp.interventions import Site
from interp.patching import activation_patching
from interp.patching.edges import all_edges, edge_patching
from interp.zoo import planted
from interp.zoo.planted import Examples, Planted
from tests.patching.test_planted import NAMES, answers
from tests.variants import SIZES, SOLU, config, some_tokens, variant
from tests.zoo.oracle import Hooks, ablated, all_nodes, cut, parts, place
from tests.zoo.oracle import all_edges as every_pair

pytestmark = pytest.mark.slow  # beside the quick tests of the same functions on planted models

CAPS = {"attn_scores_soft_cap": 2.0, "output_logits_soft_cap": 1.5}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in ("gpt2", "llama", "gptj", "neox", "qwen3", "width_norm", "attn_only")},
    "solu": ("gpt2", SOLU),
    "capped": ("llama", CAPS),
    "bidirectional": ("gpt2", {"attention_dir": "bidirectional"}),
    "parallel, grouped": ("neox", {"n_heads": 4, "n_key_value_heads": 2}),
}
WITH_MLPS = [name for name in MODELS if name != "attn_only"]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small run faster so."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def a_model(name: str) -> HookedGPT:
    kind, changes = MODELS[name]
    return variant(kind, torch.float64, n_layers=3, **changes)


def two_runs(side: str | None = None) -> tuple[Tensor, Tensor, Tensor | None]:
    tokens = some_tokens(3, 6)
    mask = None
    if side is not None:
        mask = torch.ones(3, 6, dtype=torch.bool)
        mask[1, :2] = side != "left"
        mask[2, -1:] = side != "right"
    return tokens, (tokens + torch.tensor([[1], [4], [7]])) % SIZES["d_vocab"], mask


def patched_literally(model: HookedGPT, tokens: Tensor, other: Tensor, mask: Tensor | None, edges: list[str]) -> Tensor:
    """Logits with every receiver's input written out at its own hook point, and every sender's output at its own.

    What a neuron gives is taken from a run in which its whole MLP reads what the neuron reads.
    """
    split = [tuple(edge.split("->")) for edge in with_senders_apart(model, edges)]
    by_node = {sender: place(sender) for sender, _ in split}

    def kept(tokens: Tensor, names: list[str], hooks: Hooks) -> Any:
        with model.hooks(hooks):
            return model.run_with_cache(tokens, attention_mask=mask, names_filter=names)[1]

    def cut_into(of: Callable[[str], str | None]) -> Hooks:
        edges = dict.fromkeys(f"{sender}->{of(receiver)}" for sender, receiver in split if of(receiver))
        return cut(model, edges, by)

    with torch.no_grad():
        cache = kept(other, [hook for hook, _ in by_node.values()], [])
        by = {sender: cache[hook][index] for sender, (hook, index) in by_node.items()}
        fired: Hooks = []
        for neuron in sorted({receiver for _, receiver in split if is_neuron(receiver)}):  # layer by layer
            mlp, (hook, index) = f"MLP{parts(neuron)[0]}", place(neuron)

            def read_as_one(node: str, neuron: str = neuron, mlp: str = mlp) -> str | None:
                return mlp if node == neuron else None if is_neuron(node) else node

            post = kept(tokens, [hook], fired + cut_into(read_as_one))[hook][index]
            fired += ablated([neuron], {neuron: post})
        hooks = fired + cut_into(lambda node: None if is_neuron(node) else node)
        return model.run_with_hooks(tokens, fwd_hooks=hooks, attention_mask=mask)


def is_neuron(node: str) -> bool:
    return re.fullmatch(r"L\d+N\d+", node) is not None


def with_senders_apart(model: HookedGPT, edges: list[str]) -> list[str]:
    """The same edges, each once, where those from an MLP are those from all of its neurons."""
    layers = {parts(sender)[0] for edge in edges if is_neuron(sender := edge.split("->")[0])}
    every = {f"MLP{layer}": [f"L{layer}N{neuron}" for neuron in range(model.cfg.d_mlp)] for layer in layers}
    split = [edge.split("->") for edge in edges]
    return list(
        dict.fromkeys(f"{each}->{receiver}" for sender, receiver in split for each in every.get(sender, [sender]))
    )


def measured(metric: Any, logits: Tensor, tokens: Tensor, mask: Tensor | None) -> Tensor:
    return metrics.values_of(metric, metrics.at_positions(logits, metric, mask), metrics.Rows.of(tokens, mask))


def assert_as_literally(model: HookedGPT, side: str | None, groups: list[list[str]], direction: Any = "noise") -> None:
    clean, corrupted, mask = two_runs(side)
    metric = metrics.logit_diff(model, [1, 2, 3], 5)
    found = edge_patching(
        model, clean, corrupted, groups, metric, direction=direction, attention_mask=mask, progress=False
    )
    tokens, other = (clean, corrupted) if direction == "noise" else (corrupted, clean)
    assert found.dims == ("edge", "prompt")
    assert list(found.edge.values) == [" + ".join(group) for group in groups]
    for group, values in zip(groups, found.values, strict=True):
        alone = measured(metric, patched_literally(model, tokens, other, mask, group), tokens, mask)
        torch.testing.assert_close(torch.from_numpy(values), alone, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", MODELS)
def test_every_edge_by_itself_is_a_run_with_the_receivers_input_written_out(name: str) -> None:
    model = a_model(name)
    every = all_edges(model)
    assert_as_literally(model, "left", [[edge] for edge in every[:: max(1, len(every) // 6)]])
    found = edge_patching(model, *two_runs()[:2], "all", metrics.logit(model, 1), progress=False)
    assert list(found.edge.values) == every
    assert (abs(found - found.base) > 1e-9).any("prompt").all()


@pytest.mark.parametrize("name", WITH_MLPS)
def test_neurons_write_and_read_by_themselves_as_literally(name: str) -> None:
    model = a_model(name)
    writing = ["L0N3->logits", "L0N3->MLP1", "L0N16->L1H1.k", "L1N0->L2H0.q"]
    reading = ["embed->L0N3", "L0H1->L1N4", "MLP0->L1N4", "L0N3->L1N4", "L1N7->L2N16"]
    together = [[f"L0H{n % 3}->L1N{n}" for n in range(17)] + [f"L1N{n}->logits" for n in range(17)]]
    assert_as_literally(model, "left", [*([edge] for edge in writing + reading), *together])


@pytest.mark.parametrize("name", ["gpt2", "llama", "neox"])
def test_an_mlp_is_all_of_its_neurons(name: str) -> None:
    model, (clean, corrupted, _) = a_model(name), two_runs()
    each, metric = range(model.cfg.d_mlp), metrics.logit_diff(model, [1, 2, 3], 5)
    alike = [
        ["MLP0->MLP2"],
        [f"L0N{n}->MLP2" for n in each],
        [f"MLP0->L2N{n}" for n in each],
        [f"L0N{n}->L2N{m}" for n in each for m in each],
        ["MLP0->MLP2", "MLP0->L2N5"],
        ["MLP0->MLP2", "L0N3->MLP2"],
        ["MLP0->MLP2", "L0N3->L2N5"],
        ["MLP0->L2N5", "L0N3->L2N5", "MLP0->MLP2"],
    ]
    found = edge_patching(model, clean, corrupted, alike, metric, progress=False)
    whole = torch.from_numpy(found.values)
    torch.testing.assert_close(whole, whole[:1].expand_as(whole), rtol=0, atol=1e-10)
    assert (abs(found - found.base) > 1e-9).all()


@settings(max_examples=12, deadline=None, derandomize=True)
@given(st.data())
def test_sets_of_edges_drawn_at_random_compose_in_one_pass(data: st.DataObject) -> None:
    model = a_model(data.draw(st.sampled_from(list(MODELS))))
    edge = st.sampled_from(all_edges(model))
    if not model.cfg.attn_only:
        edge |= st.sampled_from(all_edges(model, neurons=[0, 1]))
        senders, receivers = ("embed", "MLP0", "L0N2", "L0N5"), ("MLP1", "L1N0", "L1N3")
        edge |= st.sampled_from([f"{sender}->{receiver}" for sender in senders for receiver in receivers])
    group = st.lists(edge, min_size=1, max_size=40, unique=True)
    groups = data.draw(st.lists(group, min_size=1, max_size=4))
    side, direction = (
        data.draw(st.sampled_from([None, "left", "right"])),
        data.draw(st.sampled_from(["noise", "denoise"])),
    )
    assert_as_literally(model, side, groups, direction)


@pytest.mark.parametrize("name", MODELS)
def test_all_edges_are_the_other_run_and_none_is_the_own(name: str) -> None:
    model, (clean, corrupted, mask) = a_model(name), two_runs("left")
    every, metric = all_edges(model), metrics.logit_diff(model, 3, 5)
    apart = every if model.cfg.attn_only else all_edges(model, neurons=[0, 2])
    full = [every, apart, every + apart, *([edge for edge in some if "->logits" in edge] for some in (every, apart))]
    found = edge_patching(model, clean, corrupted, [*full, []], metric, attention_mask=mask, progress=False)
    own, other = (metrics.measured(model, tokens, metric, mask) for tokens in (clean, corrupted))
    expected = torch.stack([other] * len(full) + [own])
    torch.testing.assert_close(torch.from_numpy(found.values), expected, rtol=0, atol=1e-10)
    none = [*every[::7], *apart[::97], every, apart]
    same = edge_patching(model, clean, clean, none, metric, attention_mask=mask, progress=False)
    torch.testing.assert_close(torch.from_numpy(same.values), own.expand(same.shape), rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", [name for name in MODELS if name != "bidirectional"])
def test_all_edges_out_of_a_sender_are_its_output_patched(name: str) -> None:
    model, (clean, corrupted, mask) = a_model(name), two_runs("left")
    every, metric = all_edges(model), metrics.logit_diff(model, [1, 2, 3], 5)
    how: dict[str, Any] = {"direction": "denoise", "attention_mask": mask, "progress": False}
    n_layers, n_heads = model.cfg.n_layers, model.cfg.n_heads

    def out_of(senders: list[str], every: list[str] = every) -> Tensor:
        groups = [[edge for edge in every if edge.startswith(f"{sender}->")] for sender in senders]
        return torch.from_numpy(edge_patching(model, clean, corrupted, groups, metric, **how).values)

    def nodes(site: Any, **by: Any) -> Tensor:
        found = torch.from_numpy(activation_patching(model, clean, corrupted, site, metric, **by, **how).values)
        return found.reshape(-1, len(clean))

    heads = out_of([f"L{layer}H{head}" for layer in range(n_layers) for head in range(n_heads)])
    torch.testing.assert_close(heads, nodes("z", by="head"), rtol=0, atol=1e-10)
    torch.testing.assert_close(out_of(["embed"]), nodes("resid_pre", by="layer")[:1], rtol=0, atol=1e-10)
    if not model.cfg.attn_only:
        mlps = out_of([f"MLP{layer}" for layer in range(n_layers)])
        torch.testing.assert_close(mlps, nodes("mlp_out", by="layer"), rtol=0, atol=1e-10)
        neurons = out_of([f"L1N{neuron}" for neuron in range(4)], all_edges(model, neurons=[1, 2]))
        sites = [Site("post", 1, neuron=neuron) for neuron in range(4)]
        torch.testing.assert_close(neurons, nodes(sites), rtol=0, atol=1e-10)


def is_right(examples: Examples) -> metrics.Metric:
    """The share of the questions whose right answer wins."""

    def read(logits: metrics.Logits, rows: metrics.Rows) -> metrics.Values:
        asked, right = (rows.each(each, "of") for each in (examples.mask, examples.answers))
        others = logits.scatter(-1, right[..., None], -torch.inf).amax(-1)
        return ((logits.gather(-1, right[..., None])[..., 0] > others) * asked).sum(1) / asked.sum(1).clamp(min=1)

    return metrics.Metric("share of right answers", read, None)


# The direct path of the memories moves logits without deciding any answer; each neuron of greater_than answers too few
# of the examples for its mean to stand out from what distractors do to all of them.
GRADED = [name for name in NAMES if name not in ("memories", "greater_than")]


@pytest.mark.parametrize(
    "options", [{}, {"norm": "RMS", "distractor_heads": 2, "distractor_neurons": 3}], ids=["bare", "hidden"]
)
@pytest.mark.parametrize("name", NAMES)
def test_the_edges_of_a_planted_mechanism_are_found(name: str, options: dict[str, Any]) -> None:
    of: Planted = getattr(planted, name)(**options)
    truth = of.truth["resample"]
    edges = all_edges(of.model, neurons={parts(node)[0] for node in truth.nodes if is_neuron(node)})
    # inputs that keep their questions, as `corrupted` do, would show no edge into queries or keys
    examples, others = of.sample(24, seed=1), of.sample(24, seed=2).tokens

    def effects(metric: metrics.Metric) -> dict[str, float]:
        found = edge_patching(of.model, examples.tokens, others, edges, metric, progress=False)
        return dict(zip(edges, abs(found - found.base).mean("prompt").values, strict=True))

    answered = effects(is_right(examples))
    assert {edge for edge, effect in answered.items() if effect} == truth.edges
    if name in GRADED:
        by_logit = effects(answers(examples))
        others_at_most = max((effect for edge, effect in by_logit.items() if edge not in truth.edges), default=0)
        assert min(by_logit[edge] for edge in truth.edges) > 2 * others_at_most


def test_edges_are_all_pairs_of_a_sender_and_a_later_receiver_counted_by_hand() -> None:
    model = HookedGPT(config("gpt2", n_layers=3, n_heads=2))
    assert len(all_edges(model)) == 100
    assert set(all_edges(model)) == set(every_pair(all_nodes(model))) - {
        edge for edge in every_pair(all_nodes(model)) if "pos_embed" in edge
    }
    pairs = set(every_pair(all_nodes(model, in_neurons=[0, 2])))
    assert set(all_edges(model, neurons=[2, 0])) == {edge for edge in pairs if "pos_embed" not in edge}
    assert len(all_edges(HookedGPT(config("gpt2", n_layers=1, n_heads=2)), neurons=[0])) == 6 + 17 * 3 + 20
    for n_layers, n_heads in ((1, 3), (2, 5)):
        layers = [(3 * n_heads, 1 + layer * (n_heads + 1)) for layer in range(n_layers)]
        count = sum(readers * before + before + n_heads for readers, before in layers) + 1 + n_layers * (n_heads + 1)
        assert len(all_edges(HookedGPT(config("gpt2", n_layers=n_layers, n_heads=n_heads)))) == count
    parallel = all_edges(HookedGPT(config("gptj", n_layers=1, n_heads=2)))
    assert "L0H0->MLP0" not in parallel
    assert len(parallel) == 6 + 1 + 4
    grouped = all_edges(HookedGPT(config("llama", n_layers=1)))  # 4 query heads, 2 key-value heads
    assert [edge for edge in grouped if ".k" in edge] == ["embed->L0H0.k", "embed->L0H1.k"]
    assert len(grouped) == 4 + 2 + 2 + 5 + 6
    assert len(all_edges(HookedGPT(config("attn_only", n_layers=2, n_heads=1)))) == 3 + 6 + 3


def test_little_memory_makes_small_batches_and_the_same_values() -> None:
    model, (clean, corrupted, mask) = a_model("llama"), two_runs("left")
    metric = metrics.logit_diff(model, [1, 2, 3], 5)
    how: dict[str, Any] = {"attention_mask": mask, "progress": False}
    some = [*all_edges(model)[::12], *all_edges(model, neurons=[1])[::150]]
    plenty = edge_patching(model, clean, corrupted, some, metric, **how)
    little = edge_patching(model, clean, corrupted, some, metric, memory=60_000, **how)
    assert little.attrs["chunks"] > plenty.attrs["chunks"]
    assert little.attrs["rows"] == plenty.attrs["rows"] == plenty.size + 3
    torch.testing.assert_close(torch.from_numpy(little.values), torch.from_numpy(plenty.values), rtol=0, atol=1e-10)

    def no_room_for_more_than_two(logits: Tensor) -> Tensor:
        if len(logits) > 2:
            raise RuntimeError("can't allocate memory")
        return logits[:, -1, 3]

    halved = edge_patching(model, clean, corrupted, some, no_room_for_more_than_two, **how)
    whole = edge_patching(model, clean, corrupted, some, lambda logits: logits[:, -1, 3], **how)
    torch.testing.assert_close(torch.from_numpy(halved.values), torch.from_numpy(whole.values), rtol=0, atol=1e-10)


def test_a_result_says_where_it_came_from() -> None:
    model, (clean, corrupted, _) = variant("gpt2"), two_runs()
    metric = metrics.logit(model, 3)
    found = edge_patching(model, clean, corrupted, [["L0H1 -> L1H0.k", "MLP0->logits"], "embed->logits"], metric)
    assert list(found.edge.values) == ["L0H1->L1H0.k + MLP0->logits", "embed->logits"]
    assert found.attrs["method"] == "edge patching"
    assert found.attrs["direction"] == "noise"
    assert found.attrs["model"] == model.fingerprint()
    assert found.attrs["tokens through a layer"] == 18  # one row for each prompt, from layer 1 on
    one = edge_patching(model, clean, corrupted, "embed->logits", metric, progress=False)
    assert (one.values == found.values[1:]).all()
    assert edge_patching(model, clean, corrupted, [], metric, progress=False).shape == (0, 3)


def test_what_cannot_be_patched_is_refused_by_name() -> None:
    model, (clean, corrupted, _) = variant("llama"), two_runs()
    metric = metrics.logit(model, 3)

    def refused(message: str, edges: Any, model: HookedGPT = model, other: Tensor = corrupted, **how: Any) -> None:
        with pytest.raises(ValueError, match=message):
            edge_patching(model, clean, other, edges, metric, progress=False, **how)

    refused(r"'L9H0->logits' has 'L9H0', which is no sender.*'sender->receiver'.*all_edges", ["L9H0->logits"])
    refused(r"'L0H0->L1H3.k' has 'L1H3.k', which is no receiver", ["L0H0->L1H3.k"])  # 2 key-value heads
    refused(r"'L0H0->L1H0' has 'L1H0', which is no receiver", [["embed->logits", "L0H0->L1H0"]])
    refused(r"'L0N17->logits' has 'L0N17', which is no sender.*a neuron L0N3", ["L0N17->logits"])
    refused(r"'L0H0->L2N0' has 'L2N0', which is no receiver", ["L0H0->L2N0"])
    refused(r"'embed->L0N03' has 'L0N03', which is no receiver", ["embed->L0N03"])
    refused(r"'nothing' is no edge", "nothing")
    refused(r"'a->logits' has 'a'.*; 'MLP1->b' has 'b'", ["a->logits", ["MLP1->b"]])
    for backwards in (
        "L1H0->L0H0.q",
        "L1H0->L1H1.v",
        "MLP1->L1H0.q",
        "MLP0->MLP0",
        "MLP1->L0H0.k",
        "L0N1->L0N2",
        "L0N1->MLP0",
        "MLP0->L0N1",
    ):
        refused(f"'{backwards}' runs backwards: .* reads nothing that", [backwards])
    refused("'L0H0->MLP0' runs backwards", ["L0H0->MLP0"], variant("gptj"))
    refused("'L0H0->L0N0' runs backwards", ["L0H0->L0N0"], variant("gptj"))
    refused(
        "'MLP0->logits' has 'MLP0'.*'L0N0->logits' has 'L0N0'", ["MLP0->logits", "L0N0->logits"], variant("attn_only")
    )
    for of, allowed in ((model, r"\[0, 1\]"), (variant("attn_only"), r"\[\]")):
        with pytest.raises(
            ValueError, match=rf"neurons=\[7\]: this model has no MLP in layers \[7\]; allowed: {allowed}"
        ):
            all_edges(of, neurons=[7])
    refused(r"clean has \[3, 6\] tokens and corrupted \[3, 5\]", "all", other=corrupted[:, :5])
    for kind in ("post", "olmo2", "gemma2"):
        refused("norm_position=.* is no term of a sum", "all", variant(kind))
        with pytest.raises(ValueError, match="norm_position"):
            all_edges(variant(kind))


def test_a_metric_that_is_nan_names_the_edge() -> None:
    model, (clean, corrupted, _) = variant("gpt2"), two_runs()

    corrupted[[0, 2]] = clean[[0, 2]]
    own = model(clean)

    def broken(logits: Tensor) -> Tensor:
        distance = (logits[:, None] - own).abs().amax((2, 3)).amin(1)
        return torch.where(distance < 1e-4, 1.0, torch.nan)

    with pytest.raises(ValueError, match="metric broken is NaN with MLP0->logits patched in prompt 1: in 1 of 6 runs"):
        edge_patching(model, clean, corrupted, ["MLP0->logits"], broken, progress=False)
