from collections.abc import Callable, Sequence
from inspect import unwrap
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from interp import HookedGPT, metrics
from interp.interventions import Site
from interp.metrics import AnyMetric, Metric, measured
from interp.patching import activation_patching
from interp.patching.attribution import attribution_patching
from interp.patching.memory import Peak
from interp.results import Result
from tests.patching.test_activation import padded
from tests.variants import some_tokens, variant

pytestmark = pytest.mark.slow  # beside the quick tests of the same functions on planted models

ALL = slice(None)
# The hook, its axes in a result, and where a cell lies in its value.
CELLS: list[tuple[str, tuple[str, ...], Callable[..., tuple[Any, ...]]]] = [
    ("resid_pre", ("pos",), lambda pos: (ALL, pos)),
    ("z", ("head",), lambda head: (ALL, ALL, head)),
    ("k", ("head",), lambda head: (ALL, ALL, head)),
    ("v", ("head", "pos"), lambda head, pos: (ALL, pos, head)),
    ("attn_scores", ("head",), lambda head: (ALL, head)),
    ("pattern", ("head", "pos"), lambda head, pos: (ALL, head, pos)),
    ("post", ("neuron",), lambda neuron: (ALL, ALL, neuron)),
    ("resid_post", ("pos", "neuron"), lambda pos, neuron: (ALL, pos, neuron)),
]


def pair() -> tuple[Tensor, Tensor]:
    clean = some_tokens()
    corrupted = clean.clone()
    corrupted[:, 2:] = clean[:, 2:].roll(1, 0)
    return clean, corrupted


def cache_of(model: HookedGPT, tokens: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
    with torch.no_grad():
        return dict(model.run_with_cache(tokens, attention_mask=mask)[1])


def change_of(model: HookedGPT, tokens: Tensor, source: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
    """All that would change; scores that are masked out do not."""
    own, other = cache_of(model, tokens, mask), cache_of(model, source, mask)
    return {name: (other[name] - own[name]).nan_to_num(nan=0.0) for name in own}


def slope_along(
    model: HookedGPT,
    tokens: Tensor,
    mask: Tensor | None,
    metric: AnyMetric,
    changes: dict[str, Tensor],
    before: Sequence[Any] = (),
) -> Tensor:
    """How fast the metric of each prompt changes along these changes, by central differences: [prompt]."""
    t, found = 1e-5, []
    for sign in (t, -t):
        hooks = [(name, lambda x, hook, by=sign * change: x + by) for name, change in changes.items()]
        with model.hooks([*before, *hooks]):
            found.append(measured(model, tokens, metric, mask))
    return (found[0] - found[1]) / (2 * t)


def only(change: Tensor, index: tuple[Any, ...]) -> Tensor:
    part = torch.zeros_like(change)
    part[index] = change[index]
    return part


def assert_equal(found: Any, expected: Tensor | np.ndarray, rtol: float = 1e-6, atol: float = 1e-9) -> None:
    np.testing.assert_allclose(np.asarray(found), np.asarray(expected), rtol=rtol, atol=atol)


@pytest.mark.parametrize("side", [None, "left"])
@pytest.mark.parametrize("name", ["gpt2", "llama", "gptj", "neox", "post", "sandwich", "qwen3", "gemma2", "encoder"])
def test_effects_are_slopes_of_the_metric_times_what_would_be_changed(name: str, side: str | None) -> None:
    model, mask, (clean, corrupted) = variant(name, torch.float64), padded(side), pair()
    metric = metrics.log_prob(model, [1, 2, 3])
    change = change_of(model, corrupted, clean, mask)
    for hook, axes, index in CELLS:
        by: Any = axes
        effects = attribution_patching(
            model, clean, corrupted, hook, metric, by=by, layers=[-1], attention_mask=mask, progress=False
        )
        assert effects.dims == ("layer", *axes, "prompt")
        assert effects.name == "effect"
        full = Site(hook, -1).point(model).name
        cells = list(product(*map(range, effects.shape[1:-1])))
        n = len(cells)
        many = {full: torch.cat([only(change[full], index(*cell)) for cell in cells])}  # all cells in one batch
        tiled = None if mask is None else mask.repeat(n, 1)
        expected = slope_along(model, corrupted.repeat(n, 1), tiled, metrics.log_prob(model, [1, 2, 3] * n), many)
        assert_equal(effects.values.ravel(), expected)


@pytest.mark.parametrize("side", [None, "left", "right"])
@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_every_layer_and_either_direction_has_its_own_slope(direction: Any, side: str | None) -> None:
    model, mask, (clean, corrupted) = variant("llama", torch.float64, n_layers=3), padded(side), pair()
    metric = metrics.loss()
    effects = attribution_patching(
        model, clean, corrupted, "z", metric, direction=direction, attention_mask=mask, progress=False
    )
    tokens, source = (corrupted, clean) if direction == "denoise" else (clean, corrupted)
    change = change_of(model, tokens, source, mask)
    for layer in range(3):
        for head in range(4):
            full = f"blocks.{layer}.attn.hook_z"
            expected = slope_along(model, tokens, mask, metric, {full: only(change[full], (ALL, ALL, head))})
            assert_equal(effects.values[layer, head], expected)
    assert effects.attrs["direction"] == direction
    assert effects.attrs["base"] == pytest.approx(measured(model, tokens, metric, mask).mean().item(), abs=1e-12)


def test_layers_come_in_the_order_asked_for() -> None:
    model, (clean, corrupted) = variant("gpt2", torch.float64), pair()
    metric = metrics.logit_diff(model, 3, 5)
    found = [
        attribution_patching(model, clean, corrupted, "mlp_out", metric, layers=layers, progress=False)
        for layers in ([-1, 0], [0, 1])
    ]
    assert found[0].layer.values.tolist() == [1, 0]
    assert_equal(found[0].values[::-1], found[1].values)
    exact = activation_patching(model, clean, corrupted, "mlp_out", metric, layers=[-1, 0], progress=False)
    assert (found[0].dims, found[0].shape) == (exact.dims, exact.shape)
    for axis in exact.dims:
        assert found[0][axis].values.tolist() == exact[axis].values.tolist()


@pytest.mark.parametrize("direction", ["denoise", "noise"])
@pytest.mark.parametrize("hook", ["resid_post", "attn_out", "z"])
def test_where_the_metric_is_linear_the_estimate_is_exact(hook: str, direction: Any) -> None:
    model, (clean, corrupted) = variant("attn_only", torch.float64), pair()
    metric, by = metrics.logit_diff(model, [1, 2, 3], 5), ("head",) if hook == "z" else ("pos", "neuron")
    choices: Any = {"by": by, "direction": direction, "layers": [-1], "progress": False}
    effects = attribution_patching(model, clean, corrupted, hook, metric, **choices)
    exact = activation_patching(model, clean, corrupted, hook, metric, **choices)
    base = measured(model, corrupted if direction == "denoise" else clean, metric)
    assert np.abs(effects.values).max() > 0.1
    assert_equal(effects.values, exact.values - base.numpy(), rtol=0, atol=1e-10)


def test_all_gradients_along_the_way_from_one_run_to_the_other_count_alike() -> None:
    model, mask, (clean, corrupted) = variant("llama", torch.float64), padded("left"), pair()
    metric = metrics.logit_diff(model, [1, 2, 3], 5)
    effects = attribution_patching(
        model, clean, corrupted, "z", metric, method="integrated", steps=3, attention_mask=mask, progress=False
    )
    stream = "blocks.0.hook_resid_pre"
    own, change = cache_of(model, corrupted, mask), change_of(model, corrupted, clean, mask)
    for layer, head in product(range(2), range(4)):
        full = f"blocks.{layer}.attn.hook_z"
        part = {full: only(change[full], (ALL, ALL, head))}
        slopes = [
            slope_along(
                model, corrupted, mask, metric, part, [(stream, lambda x, hook, a=a: own[stream] + a * change[stream])]
            )
            for a in (1 / 6, 3 / 6, 5 / 6)
        ]
        assert_equal(effects.values[layer, head], torch.stack(slopes).mean(0))


@pytest.mark.parametrize("kind", ["logit_diff", "loss"])
def test_with_many_steps_what_the_embeddings_do_sums_to_what_they_changed(kind: str) -> None:
    model, mask, (clean, corrupted) = variant("gpt2", torch.float64), padded("left"), pair()
    metric = metrics.loss() if kind == "loss" else metrics.logit_diff(model, [1, 2, 3], 5)
    choices: Any = {"by": "pos", "attention_mask": mask, "progress": False}
    stream = cache_of(model, clean, mask)["blocks.0.hook_resid_pre"]
    base = measured(model, corrupted, metric, mask)
    with model.hooks([("blocks.0.hook_resid_pre", lambda x, hook: stream)]):
        difference = (measured(model, corrupted, metric, mask) - base).mean().item()
    errors = []
    for steps in (1, 8, 64):
        effects = attribution_patching(
            model, clean, corrupted, "resid_pre", metric, method="integrated", steps=steps, **choices
        )
        assert effects.attrs["steps"] == steps
        errors.append(effects.attrs["completeness_error"])
        total = effects.sel(layer=0).sum("pos").mean().item()
        assert errors[-1] == pytest.approx(total - difference, abs=1e-12)
    sizes = list(map(abs, errors))
    assert sizes[0] > 2 * sizes[1] > 4 * sizes[2]
    assert sizes[2] < 1e-3 * abs(difference)
    plain = attribution_patching(model, clean, corrupted, "resid_pre", metric, **choices)
    assert abs(plain.attrs["completeness_error"]) > 1e-2 * abs(difference)
    assert "steps" not in plain.attrs


@pytest.mark.parametrize("method", ["gradient", "integrated"])
@pytest.mark.parametrize("hook", ["z", "v", "pattern", "resid_mid"])
def test_parts_sum_to_the_whole(hook: str, method: Any) -> None:
    model, mask, (clean, corrupted) = variant("llama", torch.float64), padded("left"), pair()
    metric = metrics.logit_diff(model, [1, 2, 3], 5)

    def by(*axes: Any) -> Any:
        return attribution_patching(
            model, clean, corrupted, hook, metric, by=axes, method=method, attention_mask=mask, progress=False
        )

    whole = by()
    assert whole.dims == ("layer", "prompt")
    assert np.abs(whole.values).max() > 1e-3
    parts = [("pos",), ("neuron",), ("pos", "neuron")]
    parts += [("head",), ("head", "pos"), ("head", "pos", "neuron")] if hook != "resid_mid" else []
    for axes in parts:
        found = by(*axes[::-1])
        assert found.dims == ("layer", *axes, "prompt")
        assert_equal(found.sum(axes).values, whole.values, atol=1e-12)


def test_what_heads_mix_and_what_they_write_have_the_same_effect() -> None:
    model, mask, (clean, corrupted) = variant("gpt2", torch.float64), padded("left"), pair()
    metric = metrics.logit_diff(model, [1, 2, 3], 5)
    choices: Any = {"attention_mask": mask, "progress": False}
    z, result = (attribution_patching(model, clean, corrupted, hook, metric, **choices) for hook in ("z", "result"))
    written = attribution_patching(model, clean, corrupted, "attn_out", metric, by="layer", **choices)
    assert_equal(z.values, result.values, atol=1e-12)
    assert_equal(z.sum("head").values, written.values, atol=1e-12)


@pytest.mark.parametrize("side", [None, "left", "right"])
def test_sites_as_given_have_the_slope_of_just_the_part_they_mean(side: str | None) -> None:
    model, mask, (clean, corrupted) = variant("llama", torch.float64), padded(side), pair()
    metric = metrics.logit_diff(model, [1, 2, 3], 5)
    stream, mlp, z, pattern = (
        f"blocks.1.{end}" for end in ("hook_resid_pre", "mlp.hook_post", "attn.hook_z", "attn.hook_pattern")
    )
    change = change_of(model, corrupted, clean, mask)
    last = torch.tensor([6, 4 if side == "right" else 6, 6])
    chosen = torch.tensor([[0, 0, 1, 0, 1, 0, 0], [0, 0, 0, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1, 0]]).bool()
    basis = torch.linalg.qr(torch.randn(14, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(4))).Q
    two_before_the_end = only(change[stream], (torch.arange(3), last - 1))
    early = only(change[stream], (ALL, slice(2, 5)))
    given: list[tuple[Site | list[Site], dict[str, Tensor]]] = [
        (Site("resid_pre", 1), {stream: change[stream]}),
        (Site("resid_pre", -1, pos=-2), {stream: two_before_the_end}),
        (Site(stream, pos=[3, -2]), {stream: only(change[stream], (ALL, 3)) + two_before_the_end}),
        (Site(stream, pos=slice(2, 5)), {stream: early}),
        (Site(stream, pos=chosen), {stream: change[stream] * chosen[..., None]}),
        (Site(stream, subspace=basis), {stream: change[stream] @ basis @ basis.T}),
        (Site(stream, subspace=basis, pos=slice(2, 5)), {stream: early @ basis @ basis.T}),
        (Site(mlp, neuron=[2, -1], pos=5), {mlp: only(change[mlp], (ALL, [[5]], [2, 16]))}),
        (Site(z, head=[0, 3]), {z: only(change[z], (ALL, ALL, [0, 3]))}),
        (Site(pattern, head=1, pos=4), {pattern: only(change[pattern], (ALL, 1, 4))}),
        (Site("ln_final.hook_normalized"), {"ln_final.hook_normalized": change["ln_final.hook_normalized"]}),
        ([Site(z, head=2), Site(mlp)], {z: only(change[z], (ALL, ALL, 2)), mlp: change[mlp]}),
        ([Site(stream, pos=slice(2, 4)), Site(stream, pos=slice(3, 5))], {stream: early}),
        ([], {}),
    ]
    if side == "right":
        given[2] = (Site(stream, pos=3), {stream: only(change[stream], (ALL, 3))})  # else one column is named twice
    groups = [[each] if isinstance(each, Site) else each for each, _ in given]
    effects = attribution_patching(model, clean, corrupted, groups, metric, attention_mask=mask, progress=False)
    assert effects.dims == ("site", "prompt")
    for found, (_, changes) in zip(effects.values, given, strict=True):
        assert_equal(found, slope_along(model, corrupted, mask, metric, changes))
    single = [each for each, _ in given if isinstance(each, Site)]
    alone = attribution_patching(model, clean, corrupted, single, metric, attention_mask=mask, progress=False)
    assert_equal(alone.values, effects.values[: len(single)], atol=1e-12)


def test_sites_as_given_and_sites_by_name_agree_along_the_way_too() -> None:
    model, mask, (clean, corrupted) = variant("gemma2", torch.float64), padded("right"), pair()
    metric = metrics.kl(model, clean, attention_mask=mask)
    choices: Any = {"method": "integrated", "steps": 3, "attention_mask": mask, "progress": False}
    by_name = attribution_patching(model, clean, corrupted, "k", metric, by=("head", "pos"), **choices)
    sites = [Site("k", layer, head, pos) for layer, head, pos in product(range(2), range(2), range(7))]
    given = attribution_patching(model, clean, corrupted, sites, metric, **choices)
    assert_equal(given.values, by_name.values.reshape(-1, 3), atol=1e-12)


@pytest.mark.parametrize("is_frozen", [False, True])
def test_gradients_are_made_where_they_are_switched_off_and_left_alone_where_there_are_some(is_frozen: bool) -> None:
    model, (clean, corrupted) = variant("gpt2").requires_grad_(not is_frozen), pair()
    metric = metrics.logit_diff(model, 3, 5)
    bias = model.get_parameter("ln_final.b")
    bias.grad = torch.ones_like(bias)
    outside = attribution_patching(model, clean, corrupted, "z", metric, progress=False)
    with torch.no_grad():
        for method in ("gradient", "integrated"):
            inside = attribution_patching(model, clean, corrupted, "z", metric, method=method, progress=False)
            if method == "gradient":
                assert_equal(inside.values, outside.values, atol=0)
        assert not torch.is_grad_enabled()
    assert np.abs(outside.values).max() > 1e-3
    assert torch.equal(bias.grad, torch.ones_like(bias))
    assert all(each.grad is None for each in model.parameters() if each is not bias)
    with torch.inference_mode(), pytest.raises(ValueError, match="inference_mode"):
        attribution_patching(model, clean, corrupted, "z", metric, progress=False)


@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_a_check_is_the_sweep_of_the_same_cells(direction: Any) -> None:
    model, mask, (clean, corrupted) = variant("neox", torch.float64), padded("left"), pair()
    metric = metrics.logit_diff(model, [1, 2, 3], 5)
    choices: Any = {"direction": direction, "attention_mask": mask, "progress": False}
    base = measured(model, corrupted if direction == "denoise" else clean, metric, mask).numpy()
    sites = [Site("resid_post", 0, pos=pos) for pos in (-2, 3)] + [(Site("z", 0, head=1), Site("mlp_out", 1))]
    for site, n in (("z", 6), ([each if isinstance(each, tuple) else (each,) for each in sites], 3)):
        effects = attribution_patching(model, clean, corrupted, site, metric, check=99, **choices)
        exact = activation_patching(model, clean, corrupted, site, metric, **choices).values - base
        errors = np.abs(exact - effects.values).reshape(n, -1).max(1)
        assert effects.attrs["checked"] == n
        assert effects.attrs["check_max_error"] == pytest.approx(errors.max(), rel=1e-9)
        correlation = np.corrcoef(exact.ravel(), effects.values.ravel())[0, 1]
        assert effects.attrs["check_correlation"] == pytest.approx(correlation, rel=1e-9)
        drawn = {}
        for seed in (0, 0, 1, 2, 3, 4, 5):
            some = attribution_patching(model, clean, corrupted, site, metric, check=1, seed=seed, **choices)
            assert some.attrs["checked"] == 1
            found = some.attrs["check_max_error"]
            assert np.isclose(errors, found, rtol=1e-9).any()
            assert drawn.setdefault(seed, found) == found
        assert len({round(each, 12) for each in drawn.values()}) > 1
    unchecked = attribution_patching(model, clean, corrupted, "z", metric, **choices)
    assert not any(key.startswith("check") for key in unchecked.attrs)


def test_a_run_attributed_to_itself_has_no_effect_and_correlates_with_nothing() -> None:
    model, clean = variant("llama", torch.float64), some_tokens()
    effects = attribution_patching(
        model, clean, clean, "z", metrics.logit_diff(model, 3, 5), check=4, method="integrated", progress=False
    )
    assert not effects.values.any()
    assert effects.attrs["checked"] == 4
    assert effects.attrs["check_max_error"] < 1e-12
    assert "check_correlation" not in effects.attrs
    assert abs(effects.attrs["completeness_error"]) < 1e-12


def test_half_precision_estimates_the_same() -> None:
    model, (clean, corrupted) = variant("gpt2"), pair()
    metric = metrics.logit_diff(model, [1, 2, 3], 5)
    choices: Any = {"method": "integrated", "steps": 4, "progress": False}
    single = attribution_patching(model, clean, corrupted, "z", metric, **choices)
    half = attribution_patching(model.to(torch.bfloat16), clean, corrupted, "z", metric, **choices)
    assert half.values.dtype == np.float64
    assert np.corrcoef(single.values.ravel(), half.values.ravel())[0, 1] > 0.99


def test_what_cannot_be_attributed_is_refused() -> None:
    model, (clean, corrupted) = variant("gpt2"), pair()
    metric = metrics.logit_diff(model, 3, 5)

    def attributed(site: Any = "z", metric: AnyMetric = metric, **choices: Any) -> Any:
        return attribution_patching(model, clean, corrupted, site, metric, progress=False, **choices)

    refused: list[tuple[dict[str, Any], str]] = [
        ({"steps": 0}, "steps=0"),
        ({"check": -1}, "check=-1"),
        ({"site": "resid_pre", "by": "head"}, "head"),
        ({"site": [Site("hook_embed")]}, "hook_embed.*resid_pre"),
        ({"metric": metrics.rank(model, 3)}, "rank has no gradient"),
        ({"metric": lambda logits: logits[:, 0, 0] * torch.tensor([1.0, torch.nan, 1.0])}, r"NaN.*\[1\]"),
        ({"metric": Metric("bent", lambda logits, rows: (logits[:, 0, 0] * 0).sqrt(), (-1,))}, "gradient of bent"),
    ]
    for choices, told in refused:
        with pytest.raises(ValueError, match=told):
            attributed(**choices)
    with pytest.raises(IndexError, match="out of range"):
        attributed([Site("resid_pre", 0, pos=7)])
    unchecked: Any = unwrap(attribution_patching)  # without the type checks that are made of annotations in tests
    with pytest.raises(ValueError, match="method='gradients'; allowed: 'gradient', 'integrated', 'atp\\*'"):
        unchecked(model, clean, corrupted, "z", metric, method="gradients", progress=False)


def test_prompts_go_in_parts_that_keep_within_a_budget() -> None:
    model = variant("gpt2", n_ctx=40)
    clean = some_tokens(9, 40)
    corrupted, metric = clean.roll(1, 0), metrics.logit_diff(model, list(range(9)), 11)
    mask = torch.rand(9, 40, generator=torch.Generator().manual_seed(0)) > 0.5
    sites = [Site("z", 0, head=1, pos=mask), Site("pattern", 1), Site("resid_pre", 1, pos=-2)]

    def found(memory: int | None = None) -> Result:
        return attribution_patching(model, clean, corrupted, sites, metric, memory=memory, check=2, progress=False)

    plenty = found()
    with pytest.raises(ValueError, match=r"memory=1,000 bytes is too little: one row alone needs [\d,]+") as refused:
        found(memory=1000)
    one = int(str(refused.value).rpartition(" ")[2].replace(",", ""))
    with Peak() as most:
        found()
    with Peak() as peak:
        little = found(memory=3 * one)
    assert peak.bytes < 3 * one + 16 * little.size + 4 * 9 * 40 * 14 * 12 < most.bytes
    torch.testing.assert_close(torch.from_numpy(little.values), torch.from_numpy(plenty.values), rtol=1e-5, atol=1e-5)
    assert little.attrs["completeness_error"] == pytest.approx(plenty.attrs["completeness_error"], abs=1e-5)
    assert little.attrs["check_max_error"] == pytest.approx(plenty.attrs["check_max_error"], abs=1e-5)
