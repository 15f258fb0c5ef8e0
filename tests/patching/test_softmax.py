"""AtP*: what queries and keys do is as if each had been put in and its softmax computed; and what cancels shows."""

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from interp import HookedGPT, metrics
from interp.interventions import Scale, Site
from interp.patching import activation_patching, attribution_patching
from interp.zoo import planted
from interp.zoo.planted.build import SHARP, Build
from tests.patching.test_activation import padded
from tests.patching.test_planted import answers, area
from tests.variants import some_tokens, variant

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


def pair(n: int = 3) -> tuple[Tensor, Tensor]:
    clean = some_tokens(n)
    corrupted = clean.clone()
    corrupted[:, 1:] = clean[:, 1:].roll(1, 0)
    return clean, corrupted


def sharpened(name: str, dtype: torch.dtype, by: float, **changes: Any) -> HookedGPT:
    """With attention scores so many times as large: some rows look at one key alone, weights of 1e-30 beside it."""
    model = variant(name, dtype, **changes)
    with torch.no_grad():
        for block in model.blocks:
            block.attn.q_norm.w.mul_(by) if model.cfg.use_qk_norm else block.attn.W_Q.mul_(by)  # type: ignore[union-attr]
    return model


def by_brute_force(
    model: HookedGPT, own: Tensor, other: Tensor, metric: Any, mask: Tensor | None, cells: Sequence[Sequence[Any]]
) -> Tensor:
    """Each edit made, the pattern then less the pattern before, times the gradient there: [cell prompt].

    A cell is some (hook, where) of the last layer. All of them are rows of one pass.
    """
    start = f"blocks.{model.cfg.n_layers - 1}.attn.hook_"
    _, values = model.run_with_cache(other, attention_mask=mask)
    _, cache = model.run_with_cache(
        own,
        names_filter=[f"{start}pattern"],
        incl_bwd=True,
        attention_mask=mask,
        loss_fn=lambda logits: metric(logits[:, -1:], metrics.Rows.of(own, mask)).sum(),
    )
    n, rows = len(cells), len(own)
    at_hook: dict[str, list[tuple[int, Any]]] = {}
    for i, cell in enumerate(cells):
        for hook, where in cell:
            at_hook.setdefault(start + hook, []).append((i, where))

    def change(x: Tensor, hook: Any) -> Tensor:
        for i, where in at_hook[hook.name]:
            x[i * rows : (i + 1) * rows][where] = values[hook.name][where]
        return x

    _, new = model.run_with_cache(
        own.repeat(n, 1),
        names_filter=[f"{start}pattern"],
        attention_mask=None if mask is None else mask.repeat(n, 1),
        fwd_hooks=[(name, change) for name in at_hook],
    )
    moved = new[f"{start}pattern"].unflatten(0, (n, rows)) - cache[f"{start}pattern"]
    return (moved * cache[f"{start}pattern_grad"]).flatten(2).sum(2).detach()


def cells_of(model: HookedGPT, hook: str, by: Sequence[str], n_pos: int) -> list[list[Any]]:
    n_heads = model.cfg.n_heads if hook.endswith("q") else model.cfg.n_key_value_heads
    ranges = {"head": range(n_heads), "pos": range(n_pos), "neuron": range(model.cfg.d_head)}
    every = slice(None)
    found = []
    for each in product(*(ranges[axis] for axis in ("head", "pos", "neuron") if axis in by)):
        at = dict(zip((axis for axis in ("head", "pos", "neuron") if axis in by), each, strict=True))
        found.append([(hook, (every, at.get("pos", every), at.get("head", every), at.get("neuron", every)))])
    return found


@pytest.mark.parametrize(
    ("name", "dtype", "by", "side"),
    [
        ("gpt2", torch.float32, 1.0, None),
        ("gpt2", torch.float32, 40.0, None),
        ("gpt2", torch.float64, 40.0, "right"),
        ("llama", torch.float32, 1.0, "left"),
        ("llama", torch.float32, 40.0, None),
        ("llama", torch.float64, 40.0, "left"),
        ("relu2", torch.float64, 1.0, "left"),
        ("output_ln", torch.float64, 1.0, None),
        pytest.param("gemma2", torch.float64, 10.0, None, marks=pytest.mark.slow),
        pytest.param("qwen3", torch.float64, 10.0, None, marks=pytest.mark.slow),
        pytest.param("encoder", torch.float64, 40.0, "right", marks=pytest.mark.slow),
        pytest.param("width_norm", torch.float64, 10.0, None, marks=pytest.mark.slow),
    ],
)
def test_each_query_and_key_does_what_it_does_by_brute_force(
    name: str, dtype: torch.dtype, by: float, side: str | None
) -> None:
    model, mask, (clean, corrupted) = sharpened(name, dtype, by), padded(side), pair()
    metric = metrics.logit_diff(model, [1, 2, 3], 5, pos=6)
    if by > 1 and name != "gemma2":
        weights = model.run_with_cache(corrupted, attention_mask=mask)[1]["pattern", -1]
        assert (weights > 1 - 1e-6).any()
        assert ((weights > 0) & (weights < 1e-12)).any() or name == "qwen3"
    kinds: list[tuple[str, ...]] = [("head", "pos"), ("head",)]
    if name == "llama" and by == 1:
        kinds = [("pos",), ("neuron",), ("pos", "neuron"), ()]
    elif name == "width_norm":
        kinds = [("head", "pos"), ("head", "neuron"), ("pos",)]
    hooks = ("q", "k", "rot_q", "rot_k") if name == "llama" and dtype == torch.float64 else ("q", "k")
    for hook, axes in product(hooks, kinds):
        given: Any = axes
        found = attribution_patching(
            model, clean, corrupted, hook, metric, by=given, layers=[-1], method="atp*", attention_mask=mask
        )
        wanted = by_brute_force(model, corrupted, clean, metric, mask, cells_of(model, hook, axes, 7))
        assert found.dims == ("layer", *axes, "prompt")
        np.testing.assert_allclose(found.values.reshape(-1, 3), wanted, rtol=0, atol=TOLERANCE[dtype])


def test_queries_and_keys_that_are_put_in_together_meet_each_other() -> None:
    model, mask, (clean, corrupted) = sharpened("llama", torch.float64, 20.0), padded("left"), pair()
    metric, every = metrics.logit_diff(model, [1, 2, 3], 5, pos=6), slice(None)
    basis = torch.eye(6, dtype=torch.float64)[:, :2]
    sites: list[list[Site]] = [
        [Site("q", 1, head=[0, 3], pos=5), Site("k", 1, pos=slice(2, 4))],
        [Site("k", 1, subspace=basis)],
        [Site("rot_q", 1, head=1), Site("k", 1, head=0)],
    ]
    cells = [
        [("q", (every, [[5]], [0, 3])), ("k", (every, slice(2, 4)))],
        [("k", (every, every, every, slice(0, 2)))],
        [("rot_q", (every, every, 1)), ("k", (every, every, 0))],
    ]
    found = attribution_patching(model, clean, corrupted, sites, metric, method="atp*", attention_mask=mask)
    wanted = by_brute_force(model, corrupted, clean, metric, mask, cells)
    assert wanted.abs().min() > 1e-6
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-10)
    alone = attribution_patching(model, clean, corrupted, [Site("z", 1)], metric, attention_mask=mask)
    both = [[*sites[0], Site("z", 1)]]
    more = attribution_patching(model, clean, corrupted, both, metric, method="atp*", attention_mask=mask)
    np.testing.assert_allclose(more[0], found[0] + alone[0], atol=1e-10)


@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_behind_the_last_attention_a_saturated_key_has_its_true_effect(direction: Any) -> None:
    model, (clean, corrupted) = sharpened("attn_only", torch.float64, 60.0), pair()
    metric = metrics.logit_diff(model, [1, 2, 3], 5)
    choices: Any = {"by": ("head", "pos"), "direction": direction, "layers": [-1], "progress": False}
    for hook in ("q", "k"):
        exact = activation_patching(model, clean, corrupted, hook, metric, **choices)
        anew, slope = (
            attribution_patching(model, clean, corrupted, hook, metric, method=method, **choices)
            for method in ("atp*", "gradient")
        )
        wanted = (exact - exact.base).values
        assert np.abs(wanted).max() > 0.1
        np.testing.assert_allclose(anew.values, wanted, rtol=0, atol=1e-10)
        assert np.abs(slope.values - wanted).max() > 0.1


@pytest.mark.parametrize("name", ["gpt2", "neox"])
def test_a_contribution_is_the_mean_size_with_each_layer_left_out(name: str) -> None:
    model, (clean, corrupted) = variant(name, torch.float64, n_layers=3), pair()
    metric = metrics.logit_diff(model, [1, 2, 3], 5)
    _, values = model.run_with_cache(clean)
    for hook in ("z", "attn_out", "resid_pre"):
        found = attribution_patching(model, clean, corrupted, hook, metric, by="pos", method="atp*", progress=False)
        plain = attribution_patching(model, clean, corrupted, hook, metric, by="pos", progress=False)
        np.testing.assert_allclose(found.values, plain.values, rtol=0, atol=1e-12)
        names = [Site(hook, layer).point(model).name for layer in range(3)]
        total = np.zeros(found.shape)
        for left_out in range(3):
            cut = [(f"blocks.{left_out}.hook_{end}", lambda x, hook: x.detach()) for end in ("attn_out", "mlp_out")]
            _, cache = model.run_with_cache(
                corrupted,
                names_filter=names,
                incl_bwd=True,
                loss_fn=lambda logits: metric(logits[:, -1:], metrics.Rows.of(corrupted)).sum(),
                fwd_hooks=cut,
            )
            for layer, each in enumerate(names):
                if hook == "attn_out" and layer == left_out:
                    continue  # its own way is cut behind it
                change = (values[each] - cache[each]) * cache[f"{each}_grad"]
                total[layer] += change.flatten(2).sum(2).T.abs().detach().numpy()
        assert found.contribution.dims == found.dims
        np.testing.assert_allclose(found.contribution.values, total / 2, rtol=0, atol=1e-12)


def test_what_a_later_layer_takes_away_again_shows_in_the_contribution_alone() -> None:
    n_ctx = 6
    m = Build(
        "copied_and_taken_back", d_vocab=4, n_ctx=n_ctx, spaces={"token": 4, "pos": n_ctx, "copy": 4, "answer": 4}
    )
    m.embed(token=torch.eye(4))
    m.pos_embed(pos=torch.eye(n_ctx))
    here = {("pos", "pos"): SHARP * torch.eye(n_ctx)}
    m.head("copies", 0, attends=here, moves={("token", "answer"): 1})
    m.head("takes back", 1, attends=here, moves={("answer", "answer"): -1})
    m.unembed(answer=torch.eye(4))
    model = m.model()
    clean, corrupted = torch.tensor([[0, 1, 2, 3, 0, 1]]), torch.tensor([[0, 1, 2, 3, 0, 2]])
    found = attribution_patching(
        model, clean, corrupted, "z", metrics.logit_diff(model, 1, 2), by="layer", method="atp*", progress=False
    )
    np.testing.assert_allclose(found.sel(layer=0), 0, atol=1e-6)
    np.testing.assert_allclose(found.contribution.sel(layer=0), 2, atol=1e-6)


def test_cells_that_are_verified_have_what_patching_them_does() -> None:
    model, (clean, corrupted) = variant("llama", torch.float64), pair()
    metric = metrics.logit_diff(model, [1, 2, 3], 5)
    runs: Any = (model, clean, corrupted, "q", metric)
    exact = activation_patching(*runs, progress=False)
    for method in ("gradient", "atp*"):
        plain = attribution_patching(*runs, method=method, progress=False)
        found = attribution_patching(*runs, method=method, verify=3, progress=False)
        size = np.abs(plain).mean("prompt")
        if method == "atp*":
            size = np.maximum(size, plain.contribution.mean("prompt"))
        top = size.values >= np.sort(size.values.ravel())[-3]
        assert top.sum() == 3
        assert (found.verified.values == top).all()
        effects = (exact - exact.base).values
        np.testing.assert_allclose(found.values[top], effects[top], atol=1e-12)
        np.testing.assert_array_equal(found.values[~top], plain.values[~top])
        assert np.abs(plain.values[top] - effects[top]).max() > 1e-4
        assert found.attrs["verified rows"] == 3 * 3
    everything = attribution_patching(*runs, verify=99, progress=False)
    assert everything.verified.all()
    np.testing.assert_allclose(everything, effects, atol=1e-12)


@pytest.mark.parametrize(
    ("method", "forward", "backward"), [("gradient", 2, 1), ("integrated", 2 + 4, 4), ("atp*", 2, 1 + 3)]
)
def test_it_costs_as_many_passes_as_it_says(
    method: Any, forward: int, backward: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, (clean, corrupted) = variant("gpt2", n_layers=3), pair(5)
    metric = metrics.logit_diff(model, 3, 5)
    made = {"forward": 0, "backward": 0}
    through, differentiate = type(model.blocks[0]).forward, torch.autograd.grad

    def block(self: Any, x: Tensor, this: Any) -> Tensor:
        made["forward"] += len(x) * (self is model.blocks[0])
        return through(self, x, this)

    def grad(*args: Any, **kwargs: Any) -> Any:
        made["backward"] += 5
        return differentiate(*args, **kwargs)

    monkeypatch.setattr(type(model.blocks[0]), "forward", block)
    monkeypatch.setattr(torch.autograd, "grad", grad)
    found = attribution_patching(model, clean, corrupted, "q", metric, method=method, steps=4, progress=False)
    assert made == {"forward": 5 * forward, "backward": 5 * backward}
    assert (found.attrs["forward passes"], found.attrs["backward passes"]) == (5 * forward, 5 * backward)


@pytest.mark.parametrize(
    ("name", "plain_is"), [("induction", 0.2), ("duplicate_token", 0.0), ("balanced_brackets", 0.727)]
)
def test_on_planted_models_saturated_queries_and_keys_come_out_on_top(name: str, plain_is: float) -> None:
    of = getattr(planted, name)(distractor_heads=2, distractor_neurons=6)
    examples, cfg = of.sample(24, seed=1), of.model.cfg
    sites = {
        f"L{layer}H{head}.{each}": Site(each, layer, head=head)
        for layer, head, each in product(range(cfg.n_layers), range(cfg.n_heads), ("q", "k"))
    }
    is_true = np.array([name in {edge.split("->")[1] for edge in of.truth["resample"].edges} for name in sites])
    runs: Any = (of.model, examples.tokens, examples.corrupted, list(sites.values()), answers(examples))
    anew, plain = (
        attribution_patching(*runs, direction="noise", method=method, progress=False) for method in ("atp*", "gradient")
    )
    assert area(np.abs(anew).mean("prompt").to_numpy(), is_true) == 1.0
    assert area(anew.contribution.mean("prompt").to_numpy(), is_true) == 1.0
    assert area(np.abs(plain).mean("prompt").to_numpy(), is_true) == pytest.approx(plain_is, abs=0.01)


def test_attention_that_is_edited_cannot_be_computed_anew() -> None:
    model, (clean, corrupted) = variant("llama"), pair()
    metric = metrics.logit_diff(model, 3, 5)
    with (
        model.edit([Scale(Site("pattern", 1, head=0), 0.5)]),
        pytest.raises(ValueError, match=r"atp\* computes attention anew .*blocks.1.attn.hook_pattern"),
    ):
        attribution_patching(model, clean, corrupted, "k", metric, method="atp*", progress=False)
    sites = [[Site("q", 1), Site("rot_q", 1)]]
    with pytest.raises(ValueError, match="two names for one thing"):
        attribution_patching(model, clean, corrupted, sites, metric, method="atp*", progress=False)
    with pytest.raises(ValueError, match="verify=-1"):
        attribution_patching(model, clean, corrupted, "k", metric, verify=-1)
