from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from interp import HookedGPT, metrics
from interp.patching import activation_patching
from interp.patching.edges import all_edges, edge_patching
from interp.zoo.planted import both, induction, previous_token, skip_trigram
from interp.zoo.planted.truth import Planted
from tests.variants import SIZES, config, some_tokens, variant
from tests.zoo.oracle import all_edges as every_pair
from tests.zoo.oracle import all_nodes, cut, place

pytestmark = pytest.mark.slow  # beside the quick tests of the same functions on planted models

CAPS = {"attn_scores_soft_cap": 2.0, "output_logits_soft_cap": 1.5}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    **{
        name: (name, {}) for name in ("gpt2", "sinusoidal", "llama", "gptj", "neox", "qwen3", "width_norm", "attn_only")
    },
    "capped": ("llama", CAPS),
    "bidirectional": ("gpt2", {"attention_dir": "bidirectional"}),
    "parallel, grouped": ("neox", {"n_heads": 4, "n_key_value_heads": 2}),
}


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
    """Logits with every receiver's input written out at its own hook point, and every sender's output at its own."""
    senders = {edge.split("->")[0] for edge in edges}
    names = [place(sender)[0] for sender in senders]
    with torch.no_grad():
        _, cache = model.run_with_cache(other, attention_mask=mask, names_filter=names)
        by = {sender: cache[place(sender)[0]][place(sender)[1]] for sender in senders}
        return model.run_with_hooks(tokens, fwd_hooks=cut(model, edges, by), attention_mask=mask)


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


@settings(max_examples=12, deadline=None, derandomize=True)
@given(st.data())
def test_sets_of_edges_drawn_at_random_compose_in_one_pass(data: st.DataObject) -> None:
    model = a_model(data.draw(st.sampled_from(list(MODELS))))
    every = all_edges(model)
    group = st.lists(st.sampled_from(every), min_size=1, max_size=40, unique=True)
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
    into_logits = [edge for edge in every if edge.endswith("->logits")]
    found = edge_patching(
        model, clean, corrupted, [every, into_logits, []], metric, attention_mask=mask, progress=False
    )
    own, other = (metrics.measured(model, tokens, metric, mask) for tokens in (clean, corrupted))
    torch.testing.assert_close(torch.from_numpy(found.values), torch.stack((other, other, own)), rtol=0, atol=1e-10)
    same = edge_patching(model, clean, clean, [*every[::7], every], metric, attention_mask=mask, progress=False)
    torch.testing.assert_close(torch.from_numpy(same.values), own.expand(same.shape), rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", [name for name in MODELS if name != "bidirectional"])
def test_all_edges_out_of_a_sender_are_its_output_patched(name: str) -> None:
    model, (clean, corrupted, mask) = a_model(name), two_runs("left")
    every, metric = all_edges(model), metrics.logit_diff(model, [1, 2, 3], 5)
    how: dict[str, Any] = {"direction": "denoise", "attention_mask": mask, "progress": False}
    n_layers, n_heads = model.cfg.n_layers, model.cfg.n_heads

    def out_of(senders: list[str]) -> Tensor:
        groups = [[edge for edge in every if edge.startswith(f"{sender}->")] for sender in senders]
        return torch.from_numpy(edge_patching(model, clean, corrupted, groups, metric, **how).values)

    def nodes(site: str, **by: Any) -> Tensor:
        found = torch.from_numpy(activation_patching(model, clean, corrupted, site, metric, **by, **how).values)
        return found.reshape(-1, len(clean))

    heads = out_of([f"L{layer}H{head}" for layer in range(n_layers) for head in range(n_heads)])
    torch.testing.assert_close(heads, nodes("z", by="head"), rtol=0, atol=1e-10)
    torch.testing.assert_close(out_of(["embed"]), nodes("resid_pre", by="layer")[:1], rtol=0, atol=1e-10)
    if not model.cfg.attn_only:
        mlps = out_of([f"MLP{layer}" for layer in range(n_layers)])
        torch.testing.assert_close(mlps, nodes("mlp_out", by="layer"), rtol=0, atol=1e-10)


PLANTED = {"induction": induction, "previous token": previous_token, "skip trigram": skip_trigram, "both": both}


@pytest.mark.parametrize(
    "options", [{}, {"norm": "RMS", "distractor_heads": 2, "distractor_neurons": 3}], ids=["bare", "hidden"]
)
@pytest.mark.parametrize("name", PLANTED)
def test_the_edges_of_a_planted_mechanism_are_found(name: str, options: dict[str, Any]) -> None:
    planted: Planted = PLANTED[name](**options)
    examples, others = planted.sample(24, seed=3), planted.sample(24, seed=4)
    asked = examples.mask[:, -1]
    metric = metrics.logit(planted.model, examples.answers[asked, -1:])
    found = edge_patching(planted.model, examples.tokens[asked], others.tokens[asked], "all", metric, progress=False)
    effects = dict(zip(found.edge.values, abs(found - found.base).mean("prompt").values, strict=True))
    truth = planted.truth["resample"].edges
    ranked = sorted(effects, key=effects.__getitem__, reverse=True)
    assert set(ranked[: len(truth)]) == truth
    assert effects[ranked[len(truth) - 1]] > 2 * effects[ranked[len(truth)]]


def test_edges_are_all_pairs_of_a_sender_and_a_later_receiver_counted_by_hand() -> None:
    model = HookedGPT(config("gpt2", n_layers=3, n_heads=2))
    assert len(all_edges(model)) == 100
    assert set(all_edges(model)) == set(every_pair(all_nodes(model))) - {
        edge for edge in every_pair(all_nodes(model)) if "pos_embed" in edge
    }
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
    some = all_edges(model)[::12]
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
    refused(r"'nothing' is no edge", "nothing")
    refused(r"'a->logits' has 'a'.*; 'MLP1->b' has 'b'", ["a->logits", ["MLP1->b"]])
    for backwards in ("L1H0->L0H0.q", "L1H0->L1H1.v", "MLP1->L1H0.q", "MLP0->MLP0", "MLP1->L0H0.k"):
        refused(f"'{backwards}' runs backwards: .* reads nothing that", [backwards])
    refused("'L0H0->MLP0' runs backwards", ["L0H0->MLP0"], variant("gptj"))
    refused("'MLP0->logits' has 'MLP0'", ["MLP0->logits"], variant("attn_only"))
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
