from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from interp import HookedGPT, metrics
from interp.interventions import Patch, Site
from interp.patching import ablation, interaction, removals
from interp.patching.ablation import Kind
from tests.patching.oracle import Change, one_by_one
from tests.variants import VARIANTS, some_tokens, variant

pytestmark = pytest.mark.slow

METRIC = metrics.loss()


def model_of(name: str) -> HookedGPT:
    return variant(name, torch.float64)


def to(value: Any, *index: Any) -> Change:
    def change(x: torch.Tensor) -> torch.Tensor:
        x[index] = value
        return x

    return change


def close(found: Any, wanted: torch.Tensor, atol: float = 1e-10) -> None:
    torch.testing.assert_close(torch.from_numpy(np.asarray(found)), wanted, rtol=0, atol=atol, check_dtype=False)


def padding() -> torch.Tensor:
    mask = torch.ones(3, 7, dtype=torch.bool)
    mask[1, :2] = False
    return mask


KINDS: list[Kind] = ["zero", "mean", "resample", "mean_per_position"]
EACH_HEAD: list[tuple[str, Kind, Any]] = [(name, kind, None) for name in ("gpt2", "llama") for kind in KINDS]
# prompts of different lengths have no positions to exchange
EACH_HEAD += [(name, kind, padding()) for name in ("gpt2", "llama") for kind in KINDS if kind != "resample"]
EACH_HEAD += [(name, "mean", padding()) for name in VARIANTS if name not in ("gpt2", "llama")]


@pytest.mark.parametrize(("name", "kind", "mask"), EACH_HEAD)
def test_each_head_by_itself(name: str, kind: Kind, mask: torch.Tensor | None) -> None:
    model, tokens = model_of(name), some_tokens()
    found = ablation(model, tokens, "z", METRIC, kind=kind, attention_mask=mask, progress=False)
    _, cache = model.run_with_cache(tokens, attention_mask=mask, names_filter="*hook_z")
    real = torch.ones(3, 7, dtype=torch.bool) if mask is None else mask
    sites = []
    for layer, head in product(range(model.cfg.n_layers), range(model.cfg.n_heads)):
        z = cache[f"blocks.{layer}.attn.hook_z"][:, :, head]
        if kind == "zero":
            value = torch.zeros_like(z)
        elif kind == "mean":
            value = z[real].mean(0).expand_as(z)
        elif kind == "mean_per_position":
            value = torch.stack([z[real[:, i], i].mean(0) for i in range(7)]).expand_as(z)
        else:
            continue
        sites.append([(f"blocks.{layer}.attn.hook_z", to(value, slice(None), slice(None), head))])
    assert found.dims == ("layer", "head", "prompt")
    if kind == "resample":  # another prompt's values: of the three, each is some other's
        candidates = [
            one_by_one(
                model, tokens, METRIC, [[("blocks.1.attn.hook_z", to(cache["blocks.1.attn.hook_z"].roll(k, 0)))]]
            )
            for k in (1, 2)
        ]
        whole = ablation(model, tokens, [Site("z", 1)], METRIC, kind=kind, progress=False)
        assert min(np.abs(whole.to_numpy() - each.numpy()).max() for each in candidates) < 1e-10
        return
    wanted = one_by_one(model, tokens, METRIC, sites, mask).view(model.cfg.n_layers, model.cfg.n_heads, 3)
    close(found, wanted)
    close(found.base, one_by_one(model, tokens, METRIC, [[]], mask)[0])


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.data())
def test_sites_drawn_at_random(data: st.DataObject) -> None:
    model, tokens = model_of(data.draw(st.sampled_from(list(VARIANTS)))), some_tokens()
    mask, kind = data.draw(st.sampled_from([None, padding()])), data.draw(st.sampled_from(["zero", "mean"]))
    points = [
        p for p in ("z", "mlp_out", "attn_out", "resid_pre") if f"blocks.0.hook_{p}" in model.hook_dict or p == "z"
    ]
    position = st.one_of(
        st.none(), st.integers(2, 6), st.slices(7), st.lists(st.integers(0, 6), min_size=1, unique=True)
    )
    sites, changes = [], []
    for _ in range(data.draw(st.integers(1, 6))):
        name, layer, pos = data.draw(st.sampled_from(points)), data.draw(st.integers(0, 1)), data.draw(position)
        head = data.draw(st.one_of(st.none(), st.integers(0, 2))) if name == "z" else None
        sites.append(Site(name, layer, head=head, pos=pos))
        full = sites[-1].point(model).name
        _, cache = model.run_with_cache(tokens, attention_mask=mask, names_filter=full)
        real = torch.ones(3, 7, dtype=torch.bool) if mask is None else mask
        columns = list(range(7)) if pos is None else list(range(7))[pos] if isinstance(pos, slice) else pos
        where = [slice(None), columns] if head is None else [slice(None), columns, head]
        mean = cache[full][real].mean(0)
        value = 0.0 if kind == "zero" else mean if head is None else mean[head]
        changes.append([(full, to(value, *where))])
    found = ablation(model, tokens, sites, METRIC, kind=kind, attention_mask=mask, progress=False)
    close(found, one_by_one(model, tokens, METRIC, changes, mask))


def test_means_of_a_reference_set() -> None:
    model, tokens = model_of("gpt2"), some_tokens()
    others = some_tokens(5, 4).flip(0)
    found = ablation(model, tokens, "mlp_out", METRIC, by=(), kind="mean", reference=others, progress=False)
    _, cache = model.run_with_cache(others)
    sites = [
        [(n, to(cache[n].flatten(0, 1).mean(0)))]
        for n in (f"blocks.{i}.hook_mlp_out" for i in range(model.cfg.n_layers))
    ]
    close(found, one_by_one(model, tokens, METRIC, sites))


def test_padding_of_a_reference_set_is_left_out_of_its_mean() -> None:
    model, tokens = model_of("gpt2"), some_tokens()
    found = ablation(
        model, tokens, "mlp_out", METRIC, by=(), kind="mean", reference=tokens, reference_mask=padding(), progress=False
    )
    _, cache = model.run_with_cache(tokens, attention_mask=padding())
    sites = [[(n, to(cache[n][padding()].mean(0)))] for n in (f"blocks.{i}.hook_mlp_out" for i in range(2))]
    close(found, one_by_one(model, tokens, METRIC, sites))


def test_another_seed_takes_other_prompts_values() -> None:
    model, site = model_of("gpt2"), [Site("z", 1)]
    found = [
        ablation(model, some_tokens(), site, METRIC, kind="resample", seed=seed, progress=False) for seed in range(6)
    ]
    assert len({round(float(each.sum()), 9) for each in found}) == 2  # so many ways to give three prompts another's


def test_heads_of_keys_are_as_many_as_there_are_and_layers_count_from_the_end_too() -> None:
    model, tokens = model_of("llama"), some_tokens()
    found = ablation(model, tokens, "k", METRIC, layers=[-1], progress=False)
    sites = [[("blocks.1.attn.hook_k", to(0.0, slice(None), slice(None), head))] for head in range(2)]
    close(found[0], one_by_one(model, tokens, METRIC, sites))
    assert found.layer.values.tolist() == [1]


def test_a_query_no_longer_sees_a_key() -> None:
    model, tokens = model_of("gpt2"), some_tokens()
    found = ablation(
        model, tokens, "attn_scores", METRIC, kind="knockout", by=("head", "pos", "neuron"), layers=[1], progress=False
    )
    assert found.dims == ("layer", "head", "pos", "key_pos", "prompt")
    never = -torch.inf
    cells = [(0, 3, 1), (1, 6, 0), (1, 5, 4)]
    sites = [[("blocks.1.attn.hook_attn_scores", to(never, slice(None), h, q, k))] for h, q, k in cells]
    wanted = one_by_one(model, tokens, METRIC, sites)
    for (h, q, k), each in zip(cells, wanted, strict=True):
        close(found[0, h, q, k], each)
    close(found[0, 0, 2, 2], torch.from_numpy(found.base.to_numpy()))  # it always sees itself
    close(found[0, 0, 2, 5], torch.from_numpy(found.base.to_numpy()))  # and never what comes later


def test_two_at_a_time() -> None:
    model, tokens = model_of("gpt2"), some_tokens()
    found = ablation(model, tokens, "z", METRIC, mode="pairs", progress=False)
    names = [
        (f"blocks.{layer}.attn.hook_z", h) for layer in range(model.cfg.n_layers) for h in range(model.cfg.n_heads)
    ]
    sites = [
        [(a, to(0.0, slice(None), slice(None), i)), (b, to(0.0, slice(None), slice(None), j))]
        for (a, i), (b, j) in product(names, names)
    ]
    wanted = one_by_one(model, tokens, METRIC, sites).view(len(names), len(names), 3)
    close(found, wanted)
    base = one_by_one(model, tokens, METRIC, [[]])[0]
    i, j = 0, len(names) - 1
    beyond = (wanted[i, j] - base) - (wanted[i, i] - base) - (wanted[j, j] - base)
    close(interaction(found)[i, j], beyond)
    assert not interaction(found)[2, 2].any()
    with pytest.raises(ValueError, match="mode='pairs'"):
        interaction(found[0])


def test_more_and_more_of_them() -> None:
    model, tokens = model_of("gpt2"), some_tokens()
    given = ablation(model, tokens, "mlp_out", METRIC, by=(), mode="cumulative", progress=False)
    hooks = [(f"blocks.{i}.hook_mlp_out", to(0.0)) for i in range(model.cfg.n_layers)]
    close(given, one_by_one(model, tokens, METRIC, [hooks[: i + 1] for i in range(len(hooks))]))
    greedy = ablation(model, tokens, "z", METRIC, mode="cumulative", order="greedy", n_steps=3, progress=False)
    names = [
        (f"blocks.{layer}.attn.hook_z", h) for layer in range(model.cfg.n_layers) for h in range(model.cfg.n_heads)
    ]
    gone: list[tuple[str, Change]] = []
    left = [(name, to(0.0, slice(None), slice(None), h)) for name, h in names]
    untaken = list(names)
    for step in range(3):
        tried = one_by_one(model, tokens, METRIC, [[*gone, each] for each in left])
        best = int(tried.mean(1).argmin())
        close(greedy[step], tried[best])
        gone.append(left.pop(best))
        layer, head = divmod(names.index(untaken.pop(best)), model.cfg.n_heads)
        assert greedy.site[step] == f"z layer {layer} head {head}"


def test_a_greedy_order_goes_on_where_it_stood(tmp_path: Path) -> None:
    model, tokens = model_of("gpt2"), some_tokens()
    choices: Any = {"mode": "cumulative", "order": "greedy_highest", "progress": False}
    plain = ablation(model, tokens, "z", METRIC, n_steps=3, **choices)
    lowest = ablation(model, tokens, "z", METRIC, n_steps=3, **choices | {"order": "greedy"})
    assert plain[0].mean() > lowest[0].mean()
    singles = ablation(model, tokens, "z", METRIC, progress=False)
    assert float(plain[0].mean()) == pytest.approx(float(singles.mean("prompt").max()))
    ablation(model, tokens, "z", METRIC, n_steps=2, file=tmp_path / "greedy", **choices)
    again = ablation(model, tokens, "z", METRIC, n_steps=3, file=tmp_path / "greedy", **choices)
    assert again.site.values.tolist() == plain.site.values.tolist()
    assert again.equals(plain)
    n_left = model.cfg.n_layers * model.cfg.n_heads - 2
    assert again.attrs["rows"] == n_left * len(tokens), "those of the third step"


@pytest.mark.parametrize("kind", ["uniform", "first"])
def test_heads_look_where_nothing_is_read(kind: Kind) -> None:
    model, tokens = model_of("gpt2"), some_tokens()
    sites = [Site("z", 0, head=1), Site("z", 1, head=2)]
    found = ablation(model, tokens, sites, METRIC, kind=kind, progress=False)
    for i, edits in enumerate(removals(model, {"a": sites[:1], "b": sites[1:]}, kind).values()):
        with model.edit(edits):
            close(found[i], metrics.measured(model, tokens, METRIC))
    with pytest.raises(ValueError, match="can be set for heads, and not for mlp_out layer 0"):
        ablation(model, tokens, [Site("mlp_out", 0)], METRIC, kind=kind)


def test_one_prompt_of_a_reference_stands_in_for_all() -> None:
    model, tokens = model_of("gpt2"), some_tokens()
    donor = tokens.roll(1, 1)[:1]
    found = ablation(model, tokens, [Site("z", 1)], METRIC, kind="resample", reference=donor, progress=False)
    _, cache = model.run_with_cache(donor)
    with model.edit([Patch(Site("z", 1), cache["z", 1])]):
        close(found[0], metrics.measured(model, tokens, METRIC))


def test_what_cannot_be_ablated() -> None:
    model, tokens = model_of("gpt2"), some_tokens()
    with pytest.raises(ValueError, match="mode='cumulative'"):
        ablation(model, tokens, "z", METRIC, n_steps=2)
    with pytest.raises(ValueError, match="attn_scores"):
        ablation(model, tokens, "z", METRIC, kind="knockout", by=("pos", "neuron"))
    with pytest.raises(ValueError, match="one query from one key"):
        ablation(model, tokens, "attn_scores", METRIC, kind="knockout", by="head")
    with pytest.raises(KeyError, match="nearest"):
        ablation(model, tokens, "zz", METRIC)
