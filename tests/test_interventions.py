"""Edits as data: each is the hook function that one would write by hand, wherever it acts, and goes through JSON."""

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jaxtyping
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from interp import ActivationCache, HookedGPT, HookPoint
from interp.hooks import Hooks
from interp.interventions import Ablate, Edit, Freeze, Patch, Scale, Site, Steer, load, save
from tests.variants import quick_of, some_tokens, variant

TOKENS = some_tokens()
OTHER = (TOKENS * 5 + 4) % 13
RIGHT = torch.tensor([[1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1, 0]])
MASKS = {"none": None, "right": RIGHT, "left": RIGHT.flip(1)}
LAST = {"none": [6, 6, 6], "right": [6, 3, 5], "left": [6, 6, 6]}
Z, RESID, POST = "blocks.1.attn.hook_z", "blocks.1.hook_resid_pre", "blocks.1.mlp.hook_post"
OUT, PATTERN, SCORES, Q = (
    "blocks.0.hook_mlp_out",
    "blocks.0.attn.hook_pattern",
    "blocks.1.attn.hook_attn_scores",
    "blocks.0.attn.hook_q",
)
at = np.s_

each_variant = pytest.mark.parametrize(
    "name", quick_of(["gpt2", "llama", "gptj", "olmo2", "gemma2", "encoder"], "gemma2")
)
each_padding = pytest.mark.parametrize("padding", list(MASKS))

# a site, its hook point, and the same part in literal indices
PARTS: list[tuple[Site, str, Any]] = [
    (Site("hook_embed"), "hook_embed", at[:]),
    (Site("embed", pos=2), "hook_embed", at[:, 2]),
    (Site(Z, head=1), Z, at[:, :, 1]),
    (Site("z", 1, head=[0, 2], pos=3), Z, at[:, 3, [0, 2]]),
    (Site("hook_z", -1, head=-1, pos=-2), Z, at[:, 5, -1]),
    (Site("z", 1, head=slice(1), neuron=4), Z, at[:, :, 0, 4]),
    (Site("z", 1, head=[2, 0, 2], pos=[1, -1], neuron=[3, 1]), Z, (at[:], *np.ix_([1, 6], [0, 2], [1, 3]))),
    (Site("k", 0, head=1, pos=slice(1, 6, 2)), "blocks.0.attn.hook_k", at[:, 1:6:2, 1]),
    (Site("v", -2, head=[0, 1], neuron=slice(1, 3)), "blocks.0.attn.hook_v", at[:, :, :2, 1:3]),
    (Site("pattern", 0, head=2, pos=3), PATTERN, at[:, 2, 3]),
    (Site(PATTERN, pos=slice(5, None, -2), neuron=0), PATTERN, at[:, :, [5, 3, 1], 0]),
    (Site("attn_scores", 1, pos=[0, 4]), SCORES, at[:, :, [0, 4]]),
    (Site("resid_post", -1, neuron=3), "blocks.1.hook_resid_post", at[..., 3]),
    (Site("post", 1, neuron=slice(3, 9), pos=-7), POST, at[:, 0, 3:9]),
    (Site("attn_out", 0, pos=torch.arange(7) > 4), "blocks.0.hook_attn_out", at[:, 5:]),
    (Site("mlp_out", 0, pos=RIGHT == 0), "blocks.0.hook_mlp_out", at[[1, 1, 1, 2], [4, 5, 6, 6]]),
    (Site("q_input", 0, head=0), "blocks.0.hook_q_input", at[:, :, 0]),
]


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def doubles(name: str) -> HookedGPT:
    return variant(name, torch.float64)


def run_cache(model: HookedGPT, tokens: Tensor, mask: Tensor | None = None) -> ActivationCache:
    return model.run_with_cache(tokens, attention_mask=mask)[1]


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def basis(n: int, of: int) -> Tensor:
    return torch.linalg.qr(random(n, of)).Q


def assert_equal(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def assert_is(model: HookedGPT, edits: list[Any], by_hand: Hooks, tokens: Tensor = TOKENS, **how: Any) -> None:
    """The edits make of the model what the hooks make of it, which is not what it is without."""
    expected = model.run_with_hooks(tokens, fwd_hooks=by_hand, **how)
    assert not torch.allclose(expected, model(tokens, **how))
    with model.edit(edits):
        assert_equal(model(tokens, **how), expected)


def sets(index: Any, value: Tensor | float | Callable[[Tensor], Tensor]) -> Callable[..., None]:
    """A hook function that writes there: a number, what a tensor has there, or what becomes of the value there."""

    def fn(x: Tensor, hook: HookPoint) -> None:
        x[index] = value(x[index]) if callable(value) else value[index] if isinstance(value, Tensor) else value

    return fn


@each_variant
def test_patch_and_ablate_are_the_hook_written_by_hand(name: str) -> None:
    model, points = doubles(name), [point for _, point, _ in PARTS]
    other = model.run_with_cache(OTHER, names_filter=points)[1]
    for site, point, index in PARTS:
        assert_is(model, [Patch(site, other[point])], [(point, sets(index, other[point]))])
        assert_is(model, [Ablate(site)], [(point, sets(index, 0))])


@each_padding
@pytest.mark.parametrize(
    "pos", quick_of([-1, [-2, 0], [-4, -3], 6, slice(-3, None), slice(1, 4)], [-2, 0], slice(-3, None))
)
def test_a_negative_position_counts_from_the_last_real_token_of_its_row(padding: str, pos: Any) -> None:
    model, mask = doubles("llama"), MASKS[padding]
    source = run_cache(model, OTHER, mask)

    def fn(x: Tensor, hook: HookPoint) -> None:
        for row, last in enumerate(LAST[padding]):
            for p in range(7)[pos] if isinstance(pos, slice) else pos if isinstance(pos, list) else [pos]:
                column = p if p >= 0 else last + 1 + p
                where = (row, 1, column) if hook.name == PATTERN else (row, column, 1)
                x[where] = source[hook.name][where]

    for point in (Z, PATTERN):
        edit = Patch(Site(point, pos=pos, head=1), source[point])
        assert_is(model, [edit], [(point, fn)], attention_mask=mask)


def test_a_source_of_one_prompt_serves_all_and_a_batch_may_be_one() -> None:
    model = doubles("llama")
    one = run_cache(model, OTHER[:1])
    for point, index in ((RESID, at[:, 2]), (PATTERN, at[:, :, 2])):
        everywhere = one[point].expand(3, *one[point].shape[1:])
        assert_is(model, [Patch(Site(point, pos=2), one[point])], [(point, sets(index, everywhere))])
        patch = Patch(Site(point, pos=(torch.arange(7) == 2)[None]), one[point])
        assert_is(model, [patch], [(point, sets(index, one[point]))], TOKENS[:1])


@each_variant
def test_a_run_patched_into_itself_stays_and_frozen_whole_it_is_the_other(name: str) -> None:
    model = doubles(name)
    own, other = run_cache(model, TOKENS), run_cache(model, OTHER)
    with model.edit([Patch(Site(point, pos=pos), own[point]) for point in own for pos in (None, [1, -1])]):
        again = run_cache(model, TOKENS)
    assert all(torch.equal(again[point], own[point]) for point in own)
    frozen = Freeze.all(other, [point for point in other if point.startswith("blocks")])
    with model.edit([Ablate(Site("resid_pre", 0)), *frozen, Steer(Site("embed"), random(14))]):
        assert_equal(model(TOKENS), model(OTHER))
    with model.edit(Freeze.all(other, other)):
        cache = run_cache(model, TOKENS)
    assert all(torch.equal(cache[point], other[point]) for point in other)


@each_padding
def test_means_are_over_real_tokens_alone(padding: str) -> None:
    model, mask = doubles("llama"), MASKS[padding]
    real = torch.ones(3, 7).bool() if mask is None else mask.bool()
    for tokens in (TOKENS, torch.where(real, TOKENS, OTHER)):
        seen = run_cache(model, tokens, mask)
        for point, part, part_of_mean in ((Z, at[:, :, 2], at[:, [2, 6]]), (PATTERN, at[:, 2], at[:, :, [2, 6]])):
            swapped = (1, 2) if point == PATTERN else (1, 1)
            x = seen[point].transpose(*swapped)
            mean = torch.stack([x[r, p] for r in range(3) for p in range(7) if real[r, p]]).mean(0)
            by_column = [torch.stack([x[r, p] for r in range(3) if real[r, p]]).mean(0) for p in range(7)]
            mean, by_column = (torch.stack(m).expand_as(x).transpose(*swapped) for m in ([mean] * 7, by_column))
            edit = Ablate.from_reference(Site(point, head=2), "mean", seen[point], mask)
            assert_is(model, [edit], [(point, sets(part, mean))])
            edit = Ablate.from_reference(Site(point, pos=[2, -1]), "mean_per_position", seen[point], mask)
            assert_is(model, [edit], [(point, sets(part_of_mean, by_column))])


def test_resampling_gives_every_prompt_another_ones_value() -> None:
    model, tokens = doubles("gpt2"), some_tokens(n_rows=5)
    own = run_cache(model, tokens)
    for point, index in ((Z, at[:, :, 0]), (PATTERN, at[:, 0])):
        drawn: list[list[int]] = []
        for seed, mask in ((0, None), (1, None), (2, None), (0, torch.ones(5, 7))):
            edit = Ablate.from_reference(Site(point, head=0), "resample", own[point], mask, seed)
            assert edit.value is not None
            drawn.append([next(j for j in range(5) if torch.equal(value, own[point][j])) for value in edit.value])
            assert sorted(drawn[-1]) == list(range(5))
            assert all(i != other for i, other in enumerate(drawn[-1]))
            assert_is(model, [edit], [(point, sets(index, own[point][drawn[-1]]))], tokens)
        assert drawn[0] == drawn[3]
        assert drawn[0] != drawn[1] != drawn[2]


@each_variant
def test_scaling_multiplies_the_part_that_is_meant(name: str) -> None:
    model = doubles(name)
    for factor in (0, 2, -0.5):
        for site, point, index in PARTS[3], PARTS[9], PARTS[13]:
            assert_is(model, [Scale(site, factor)], [(point, sets(index, lambda x, by=factor: by * x))])
    twos = basis(17, 2)
    within = lambda x, hook: x + x @ twos @ twos.T
    assert_is(model, [Scale(Site("post", 1, subspace=twos), 2)], [(POST, within)])


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_value_may_be_a_number_a_vector_or_all_of_it(name: str) -> None:
    model = doubles(name)
    n_heads, d_head = model.cfg.n_heads, model.cfg.d_head
    for shape in [(), (1,), (d_head,), (n_heads, 1), (n_heads, d_head)]:
        value, everywhere = random(*shape), random(*shape).expand(3, 7, n_heads, d_head)
        heads, neurons = Site("z", 1, head=[0, 2]), Site("z", 1, neuron=[1, 4], pos=3)
        assert_is(model, [Ablate(heads, "value", value)], [(Z, sets(at[:, :, [0, 2]], everywhere))])
        assert_is(model, [Ablate(neurons, "value", value)], [(Z, sets(at[:, 3, :, [1, 4]], everywhere))])


@each_variant
def test_steering_is_its_formula(name: str) -> None:
    model = doubles(name)
    d_head = model.cfg.d_head
    stream, of_head, of_two, neurons = random(14), random(d_head), random(2, d_head), torch.eye(17).double()

    def turned(x: Tensor) -> Tensor:
        new = x + 2.5 * stream
        return new / new.square().sum(-1, keepdim=True).sqrt() * x.square().sum(-1, keepdim=True).sqrt()

    added, added_to_two = sets(at[:, 2:5], lambda x: x + 3 * stream), sets(at[:, :, [0, 2]], lambda x: x - of_two / 2)
    taken_out = sets(at[:, :, 1], lambda x: x - (x @ of_head)[..., None] * of_head / of_head.square().sum())
    assert_is(model, [Steer(Site(RESID, pos=slice(2, 5)), stream, 3)], [(RESID, added)])
    assert_is(model, [Steer(Site(Z, head=[0, 2]), of_two, -0.5)], [(Z, added_to_two)])
    assert_is(model, [Steer(Site(Z, head=1), of_head, project_out=True)], [(Z, taken_out)])
    assert_is(model, [Steer(Site("embed"), stream, 2.5, keep_norm=True)], [("hook_embed", sets(at[:], turned))])
    two_neurons = Steer(Site("post", 1, neuron=[3, 7]), torch.tensor([2.0, -1.0]))
    assert_is(model, [two_neurons], [(POST, lambda x, hook: x + 2 * neurons[3] - neurons[7])])
    own, project = run_cache(model, TOKENS)[RESID], Steer(Site(RESID), stream, project_out=True, keep_norm=True)
    with model.edit([project]):
        kept = run_cache(model, TOKENS)[RESID]
    assert (kept @ stream).abs().max() < 1e-12
    assert_equal(kept.norm(dim=-1), own.norm(dim=-1))
    with model.edit([Ablate(Site(RESID)), project]):
        assert not run_cache(model, TOKENS)[RESID].any()


@each_variant
def test_only_the_subspace_changes(name: str) -> None:
    model = doubles(name)
    own, other = run_cache(model, TOKENS), run_cache(model, OTHER)
    of_head: dict[str, Any] = {"head": 1, "pos": [2, -1]}
    for point, part, index in ((RESID, {}, at[:]), (Z, of_head, at[[[0], [1], [2]], [2, 6], 1])):
        width = own[point].shape[-1]
        some, rest = basis(width, width).split([2, width - 2], 1)
        site, number = Site(point, **part, subspace=some), torch.tensor(2.0)
        patch = Patch(site, other[point])
        for edit, new in ((patch, other[point][index]), (Ablate(site, "value", number), number.double())):
            by_hand = own[point].clone()
            by_hand[index] += (new - own[point][index]) @ some @ some.T
            assert_is(model, [edit], [(point, sets(at[:], by_hand))])
            with model.edit([edit]):
                edited = run_cache(model, TOKENS)[point][index]
            assert_equal(edited @ rest, own[point][index] @ rest)
            assert_equal(edited @ some, new.expand_as(edited) @ some)
        full = Patch(Site(point, **part, subspace=torch.cat((some, rest), 1)), other[point])
        assert_is(model, [full], [(point, sets(index, other[point]))])
        with model.edit([Steer(site, rest[:, 0])]):
            assert_equal(run_cache(model, TOKENS)[point], own[point])


def test_edits_act_in_their_order_and_the_cache_holds_what_goes_on() -> None:
    model, direction = doubles("gptj"), random(14)
    put, add = Ablate(Site(RESID, pos=3), "value", torch.tensor(2.0)), Steer(Site("resid_pre", 1), direction)
    puts, adds = (RESID, sets(at[:, 3], 2)), (RESID, lambda x, hook: x + direction)
    assert_is(model, [put, add], [puts, adds])
    assert_is(model, [add, put], [adds, puts])
    with model.edit([put]) as within, model.edit([add]):
        _, cache = model.run_with_cache(TOKENS, fwd_hooks=[(RESID, lambda x, hook: 2 * x)])
    assert_equal(cache[RESID][:, 3], (4 + 2 * direction).expand(3, 14))
    assert within is model
    assert not model.is_observed()
    assert_is(model, [put], [puts], random(3, 7, 14), start_at_layer=1)
    assert_is(model, [put], [puts], stop_at_layer=2)


@pytest.mark.parametrize("name", quick_of(["gpt2", "llama", "gptj", "olmo2", "gemma2"], "gemma2"))
@pytest.mark.parametrize("mask", [None, torch.tensor([[1] * 5, [0, 1, 1, 1, 1], [0, 0, 1, 1, 1]])])
def test_generation_edits_the_same_positions_as_runs_without_kv_cache(name: str, mask: Tensor | None) -> None:
    model, tokens, point = doubles(name), TOKENS[:, :5], "blocks.1.attn.hook_pattern"
    full, is_meant, direction = run_cache(model, some_tokens(3, 11, 12)), torch.arange(11) % 3 == 2, 4 * random(14)

    def patched(x: Tensor, hook: HookPoint) -> None:
        for p in {2, 7} & set(range(x.shape[1])):
            x[:, p] = full[RESID][:, p]

    def frozen(x: Tensor, hook: HookPoint) -> None:
        x[:, 0] = full[point][:, 0, : x.shape[-1], : x.shape[-1]]

    steered = is_meant[None, :, None] * direction
    edits_and_hooks: list[tuple[Edit, tuple[str, Any]]] = [
        (Patch(Site(RESID, pos=[2, 7]), full[RESID]), (RESID, patched)),
        (Ablate(Site(PATTERN, head=1, pos=slice(4, None))), (PATTERN, sets(at[:, 1, 4:], 0))),
        (Freeze(Site("pattern", 1, head=0), full[point]), (point, frozen)),
        (Steer(Site(OUT, pos=is_meant), direction), (OUT, lambda x, hook: x + steered[:, : x.shape[1]])),
        (Ablate(Site(Z, pos=is_meant[:4].expand(3, 4))), (Z, sets(at[:, 2], 0))),
    ]
    chosen: dict[str, Any] = {"max_new_tokens": 6, "temperature": 0, "attention_mask": mask}
    for n in (1, 5):
        edits, hooks = zip(*edits_and_hooks[:n], strict=True)
        seen, real = tokens, mask
        for _ in range(6):
            logits = model.run_with_hooks(seen, fwd_hooks=hooks, attention_mask=real)
            seen = torch.cat((seen, logits[:, -1:].argmax(-1)), 1)
            real = None if real is None else torch.cat((real, torch.ones(3, 1).long()), 1)
        with model.edit(edits):
            assert torch.equal(model.generate(tokens, **chosen), seen)
            cache = model.generate(tokens, **chosen, cache=RESID).cache
        assert_equal(cache[RESID][:, [2, 7]], full[RESID][:, [2, 7]])
        assert not torch.equal(model.generate(tokens, **chosen), seen)


def test_in_generation_the_last_token_is_the_newest() -> None:
    model, direction = doubles("llama"), 9 * random(14)
    chosen: dict[str, Any] = {"max_new_tokens": 5, "temperature": 0, "attention_mask": RIGHT[:2, 2:]}

    def fn(x: Tensor, hook: HookPoint) -> None:
        x[:, -1] += direction

    with model.hooks([(RESID, fn)]):
        expected = model.generate(TOKENS[:2, 2:], **chosen)
    with model.edit([Steer(Site(RESID, pos=-1), direction)]):
        assert torch.equal(model.generate(TOKENS[:2, 2:], **chosen), expected)
    assert not torch.equal(model.generate(TOKENS[:2, 2:], **chosen), expected)


@torch.enable_grad()
def test_gradients_flow_through_edits_and_checkpointing_replays_them() -> None:
    model, twin = doubles("llama"), doubles("llama")
    for block in twin.blocks:
        run = block.forward
        setattr(block, "forward", lambda *args, run=run: checkpoint(run, *args, use_reentrant=False))  # noqa: B010
    source, direction = random(3, 7, 4, 6).requires_grad_(), random(14).requires_grad_()

    def turned(x: Tensor, hook: HookPoint) -> Tensor:
        new = x + 2 * direction
        return new * x.norm(dim=-1, keepdim=True) / new.norm(dim=-1, keepdim=True)

    patched, moved = sets(at[[0, 1, 2], [5, 2, 4], 1], source), sets(at[:, :, 2], lambda x: x + direction[:6])
    by_hand: Hooks = [(Z, patched), (RESID, turned), (Q, moved)]
    patch, move = Patch(Site(Z, head=1, pos=-2), source), Steer(Site(Q, head=[2, -2]), direction[:6])
    edits, grads = [patch, Steer(Site(RESID), direction, 2, keep_norm=True), move], []
    for net, hooks in ((model, by_hand), (model, []), (twin, [])):
        with net.hooks(hooks), net.edit([] if hooks else edits):
            loss = net(TOKENS, "loss", attention_mask=RIGHT)
        grads.append(torch.autograd.grad(loss, [source, direction, *net.parameters()]))
    assert all(grad.any() for grad in grads[0][:2])
    for expected, ours, replayed in zip(*grads, strict=True):
        assert_equal(ours, expected)
        assert_equal(replayed, expected)


def test_edits_inside_a_hook_function_act_on_its_own_call() -> None:
    model, inner = doubles("gpt2"), [Ablate(Site(RESID, pos=-1), "value", random(14))]
    with model.edit(inner):
        expected = run_cache(model, OTHER[:, :4])[Z]

    def fn(x: Tensor, hook: HookPoint) -> None:
        with model.edit(inner):
            x[:, :4] = run_cache(model, OTHER[:, :4])[Z]

    with model.edit([Ablate(Site("embed")), Ablate(Site(Z, pos=-1))]), model.hooks([(Z, fn)]):
        z = run_cache(model, TOKENS, RIGHT)[Z]
    assert_equal(z[:, :4], expected)
    assert not z[[0, 2], [6, 5]].any()
    assert z[2, 6].any()


def test_half_precision_keeps_what_it_is_given() -> None:
    model, source, direction = variant("llama", torch.bfloat16), random(3, 7, 14), random(14)
    whole = Ablate(Site(RESID, pos=[2, 5], subspace=basis(14, 14)))
    with model.edit([Patch(Site(RESID), source), Steer(Site(RESID, pos=1), direction), whole]):
        x = run_cache(model, TOKENS)[RESID]
    assert torch.equal(x[:, 3], source[:, 3].bfloat16())
    assert torch.equal(x[:, 1], source[:, 1].bfloat16() + direction.bfloat16())
    assert x[:, [2, 5]].abs().max() < 0.05


def test_threads_have_edits_of_their_own() -> None:
    model, barrier = doubles("gpt2"), threading.Barrier(2, timeout=20)
    edits = [Ablate(Site(Z, head=0, pos=-1))], [Ablate(Site(Z, head=2, pos=[1, 2]))]
    runs: list[tuple[Tensor, Tensor | None]] = [(TOKENS, RIGHT), (OTHER[:, :6], None)]

    def work(i: int, wait: Callable[[], Any] = barrier.wait) -> list[Tensor]:
        with model.edit(edits[i]):
            return [model(runs[i][0], attention_mask=runs[i][1]) for _ in range(10) if wait() is not None]

    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(work, range(2)))
    for i in range(2):
        assert all(torch.equal(a, b) for a, b in zip(together[i], work(i, wait=lambda: 1), strict=True))


def of_every_kind(model: HookedGPT) -> list[Edit]:
    other, z = run_cache(model, OTHER), Site("z", 0, head=1)
    return [
        *(Ablate(site) for site, _, _ in PARTS),
        Patch(Site(Z, head=(0, 2), pos=-1, subspace=basis(5, 2)), other[Z].mT.contiguous().mT),
        Freeze(Site("pattern", 1, pos=slice(-3, None)), other["pattern", 1]),
        Ablate(Site("post", 0), "value", torch.tensor(0.25, dtype=torch.bfloat16)),
        *(Ablate.from_reference(z, k, other["z", 0]) for k in ("zero", "mean", "mean_per_position", "resample")),
        Steer(Site("resid_post", 0, pos=RIGHT == 1), random(14), -3, keep_norm=True),
        Scale(Site("post", 0, neuron=[2, 5], pos=-1), 2.5),
        Steer(Site("resid_post", 1, pos=range(2)), random(1).expand(14), project_out=True),
    ]


def test_every_kind_of_edit_goes_through_json(tmp_path: Path) -> None:
    model, file = doubles("gpt2"), tmp_path / "edits.v2.json"
    edits = of_every_kind(model)
    save(edits, file)
    again = load(str(file))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["edits.v2.json", "edits.v2.safetensors"]
    assert [type(edit) for edit in again] == [type(edit) for edit in edits]
    for loaded, edit in zip(again, edits, strict=True):
        with model.edit([edit]):
            expected = model(TOKENS)
        with model.edit([loaded]):
            assert torch.equal(model(TOKENS), expected)
    plain, site = tmp_path / "plain.json", Site("z", -1, head=[1], pos=slice(None, 3))
    save([Ablate(site)], plain)
    assert not (tmp_path / "plain.safetensors").exists()
    assert vars(load(plain)[0].site) == vars(site)
    written = {"name": "z", "layer": -1, "head": [1], "pos": {"slice": [None, 3, None]}}
    assert json.loads(plain.read_text())["edits"] == [{"edit": "Ablate", "site": written, "kind": "zero"}]


def test_files_that_hold_no_edits_are_refused(tmp_path: Path) -> None:
    file, beside = tmp_path / "edits.json", tmp_path / "edits.safetensors"
    edits = of_every_kind(doubles("gpt2"))[-1:]
    with pytest.raises(FileNotFoundError, match=r"edits.json"):
        load(file)
    with pytest.raises(ValueError, match=r"edits.safetensors: .* ends in .json"):
        save(edits, beside)
    beside.write_bytes(b"a model's weights")
    with pytest.raises(FileExistsError, match=r"edits.safetensors is there and is not of edits.*choose another name"):
        save(edits, file)
    assert beside.read_bytes() == b"a model's weights"
    assert not file.exists()
    beside.unlink()
    save([Steer(Site("embed"), random(14))], file)
    others = beside.read_bytes()
    save(edits, file)
    text, tensors = file.read_text(), beside.read_bytes()
    beside.unlink()
    with pytest.raises(FileNotFoundError, match=r"edits.safetensors"):
        load(file)
    damaged = [(text, tensors[:n], "is no complete safetensors file") for n in (0, 5, len(tensors) - 1)]
    damaged += [(text, others, "cannot be read: .*; its tensors are in .*edits.safetensors")]
    damaged += [(text[:n], tensors, "edits.json is no valid JSON") for n in range(0, len(text), 17)]
    damaged += [
        ("[1, 2]", tensors, "must hold an object, not a list"),
        (text.replace("edits", "edit"), tensors, "holds no edits: it has"),
        (text.replace('"edits": [', '"edits": [7, '), tensors, "cannot be read: 7 is no edit"),
        (text.replace("Steer", "Stear"), tensors, "no kind of edit: 'Stear'; there are .*'Steer'"),
        (text.replace("direction", "directions"), tensors, "cannot be read: .*direction"),
    ]
    for written, held, message in damaged:
        file.write_text(written)
        beside.write_bytes(held)
        with pytest.raises(ValueError, match=message):
            load(file)


SOURCE, ALL = torch.zeros(3, 7, 3, 5), Site(Z)
REFUSED: dict[type[Exception], list[tuple[Callable[[], Site | Edit], str]]] = {
    KeyError: [
        (lambda: Site("blocks.0.attn.hook_zz"), r"'blocks.0.attn.hook_zz', .*nearest: .*'blocks.0.attn.hook_z'"),
        (lambda: Site("blocks.*.attn.hook_z"), r"is no hook point here; nearest: .*'blocks.0.attn.hook_z'"),
        (lambda: Site("z", -3), r"'z', layer -3, is no hook point here"),
        (lambda: Site("z"), r"'z', .* could mean any of \['blocks.0.attn.hook_z', 'blocks.1.attn.hook_z'\]"),
        (lambda: Site("scale", 0), r"any of \['blocks.0.ln1.hook_scale', 'blocks.0.ln2.hook_scale'\]"),
    ],
    IndexError: [
        (lambda: Site("k", 0, head=[0, 3, -4]), r"kv_head \[3, -4\] is out of range: there are 3"),
        (lambda: Site("post", 0, neuron=17), r"d_mlp \[17\] is out of range: there are 17"),
        (lambda: Site(Z, head=slice(3, 5)), r"head slice\(3, 5, None\) chooses none: there are 3"),
        (lambda: Site(Z, pos=7), r"pos \[7\] is out of range: there are 7 positions, in the shortest prompt 4"),
        (lambda: Site(Z, pos=[0, -5]), r"pos \[-5\] is .* 7 positions, in the shortest prompt 4"),
        (lambda: Patch(ALL, SOURCE[:, :5]), r"the source run has 5 positions; position 6 was asked for"),
    ],
    ValueError: [
        (lambda: Site(Z, 1), r"'blocks.1.attn.hook_z' is a whole name already: leave out layer=1"),
        (lambda: Site(RESID, head=1), r"blocks.1.hook_resid_pre \[batch pos d_model\] has no heads"),
        (lambda: Site(Z, pos=RIGHT[0, :6] == 1), r"pos: the mask has shape \[6\]; the run has \[3, 7\]"),
        (lambda: Site(Z, pos=RIGHT[:2] == 1), r"the mask has 2 prompts; the run has 3: give one, or as many"),
        (lambda: Site(Z, pos=RIGHT), r"\[pos\] or \[batch pos\] of torch.bool; given: \[3, 7\] of torch.int64"),
        (lambda: Site(RESID, subspace=torch.ones(14, 2)), r"subspace: its columns must be orthonormal"),
        (lambda: Site(RESID, subspace=basis(9, 2)), r"basis has 9 coordinates; d_model has 14"),
        (lambda: Site(RESID, neuron=2, subspace=basis(14, 2)), r"neuron= or subspace=, not both"),
        (lambda: Patch(ALL, SOURCE[..., :4]), r"source run has shape \[3, 7, 3, 4\]; .* here is \[3, 5\]"),
        (lambda: Patch(ALL, SOURCE[:2]), r"source run has 2 prompts; the run has 3: give one, or as many"),
        (lambda: Patch(ALL, SOURCE.repeat(2, 1, 1, 1)), r"source run has 6 prompts; the run has 3"),
        (lambda: Steer(Site(RESID), torch.ones(9)), r"direction has shape \[9\]; the site has \[14\] of each"),
        (lambda: Steer(Site(Z, head=2), torch.ones(3, 5)), r"shape \[3, 5\]; the site has \[1, 5\] of each token"),
        (lambda: Steer(ALL, torch.ones(5), 2, project_out=True), r"project_out .* no scale=2"),
        (lambda: Steer(ALL, torch.zeros(5), project_out=True), r"the direction is zero"),
        (lambda: Ablate(ALL, "noise"), r"kind='noise'; allowed: 'zero', 'value', 'mean'"),  # type: ignore[arg-type]
        (lambda: Ablate(ALL, "value", torch.ones(4)), r"value has shape \[4\]; .* here is \[3, 5\]"),
        (lambda: Ablate.from_reference(ALL, "resample", SOURCE[:1]), r"the reference set has one prompt alone"),
        (lambda: Ablate.from_reference(ALL, "resample", SOURCE, RIGHT), r"would put padding in place of tokens"),
        (lambda: Ablate.from_reference(ALL, "mean_per_position", SOURCE[1:2], RIGHT[1:2]), r"at positions \[4, 5, 6\]"),
    ],
}


@pytest.mark.parametrize("error", REFUSED)
def test_bad_input_says_what_was_given_and_what_is_allowed(error: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # users have no annotations checked
    model = doubles("gpt2")
    for make, message in REFUSED[error]:
        with pytest.raises(error, match=message):  # noqa: PT012
            made = make()
            with model.edit([made if isinstance(made, Edit) else Ablate(made)]):
                model(TOKENS, attention_mask=RIGHT)
