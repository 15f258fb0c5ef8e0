"""Roles on models whose mechanism is known, and on models that have none."""

from functools import cache
from itertools import cycle
from typing import Any

import numpy as np
import pytest
import torch
from xarray import Dataset

from interp import HookedGPT, heads, zoo
from interp.heads import null as nulls
from interp.heads import trials
from interp.zoo import planted
from tests.heads.fixed_period import fixed_period
from tests.heads.fixed_period import rows as fixed_rows
from tests.variants import quick_of

# What each head was built to be; the rest, distractors among them, are nothing that has a name.
BUILT: dict[str, dict[str, set[str]]] = {
    "previous_token": {"previous": {"previous token", "copying"}},
    "k_back": {"back": {"3 back", "copying"}},
    "current_token": {"current": {"current token"}},
    "first_token": {"first": {"first token", "copying"}},
    "either": {"one": {"previous token", "copying"}, "other": {"previous token", "copying"}},
    "both": {"first": {"2 back"}, "second": {"previous token"}},  # pairs are answered, not tokens copied
    "induction": {"previous": {"previous token"}, "induction": {"induction", "copying"}},
    "duplicate_token": {"duplicate": {"duplicate token"}},
    "copy": {"mover": {"copying"}},
    "copy_suppression": {"suppressor": {"copy suppression"}},
    "indirect_object": {"mover": {"copying"}},
    "memories": {"previous": {"previous token"}},
    "successor": {"successor": {"successor"}},
    "skip_trigram": {},
    "fraction_of_previous_tokens": {},
    "modular_addition": {},
    "balanced_brackets": {},
}
# A normed stream carries a constant on which half of the shuffled heads rest, at the first token or anywhere: where
# chance does as much, no head can be told by it.
UNTOLD = {("first_token", "first")}


def roles_of(found: Dataset) -> dict[str, set[str]]:
    names = {f"L{i}H{j}": str(role) for (i, j), role in np.ndenumerate(found.role.to_numpy())}
    return {name: set(role.split(", ")) for name, role in names.items() if role != "unclassified"}


@pytest.mark.slow
@pytest.mark.parametrize("seed", quick_of([0, 1], 0))
@pytest.mark.parametrize("name", quick_of(BUILT, "induction"))
def test_every_planted_head_is_found_among_distractors_and_nothing_else_is_named(name: str, seed: int) -> None:
    model = getattr(planted, name)(distractor_heads=3, seed=seed)
    examples = model.sample(100)
    lists = planted.successor_lists().tolist() if name == "successor" else None
    found = heads.detect(model.model, examples.tokens, queries=examples.mask, lists=lists, progress=False)
    assert roles_of(found) == {model.roles[role]: named for role, named in BUILT[name].items()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "norm"),
    list(zip([name for name in BUILT if name not in ("copy", "indirect_object")], cycle(["RMS", "LN"]))),
)
def test_behind_norms_too(name: str, norm: str) -> None:
    model = getattr(planted, name)(distractor_heads=3, norm=norm, seed=1)
    examples = model.sample(100)
    lists = planted.successor_lists().tolist() if name == "successor" else None
    found = heads.detect(model.model, examples.tokens, queries=examples.mask, lists=lists, progress=False)
    looks = {name: role - {"copying"} for name, role in roles_of(found).items()}
    wanted = {
        model.roles[role]: named - {"copying"} for role, named in BUILT[name].items() if (name, role) not in UNTOLD
    }
    assert {name: role for name, role in looks.items() if role} == {name: role for name, role in wanted.items() if role}


@pytest.mark.slow
def test_a_head_that_acts_at_some_positions_alone_is_found_there() -> None:
    model = planted.indirect_object(distractor_heads=3)
    examples = model.sample(100)
    found = heads.detect(model.model, examples.tokens, queries=examples.places["second_subject"], progress=False)
    assert roles_of(found)[model.roles["duplicate"]] == {"duplicate token"}


def test_a_head_that_has_nothing_to_do_rests_and_has_no_role(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nulls, "_HEADS", 100)
    model = planted.sink_head(d_vocab=12, n_ctx=20)
    tokens = torch.randint(1, 12, (40, 20), generator=torch.Generator().manual_seed(0))
    tokens[:, 0] = 0
    found = heads.detect(model, tokens, progress=False)
    assert float(found.value.sel(score="first").max()) > 0.99
    assert not roles_of(found)
    assert found.rests.to_numpy().sum() == 1


@pytest.mark.slow
@pytest.mark.parametrize("make", quick_of(["uniform_head", "fixed_offset_head"], "fixed_offset_head"))
def test_decoys_are_nothing_but_positional(make: str) -> None:
    choices: dict[str, Any] = {"offset": 5} if make == "fixed_offset_head" else {}
    model = getattr(planted, make)(d_vocab=30, n_ctx=40, distractor_heads=3, **choices)
    named = roles_of(heads.detect(model, progress=False))  # random rows whose periods differ
    looks = [role - {"copying"} for role in named.values()]  # what they find they do copy
    assert looks == ([{"5 back"}] if make == "fixed_offset_head" else [set()])


@pytest.mark.slow
def test_what_learned_a_fixed_period_is_called_positional_on_others() -> None:
    model = fixed_period()
    there = heads.scores(model, fixed_rows()[:40], progress=False)
    assert float(there.sel(score="induction").max()) > 0.5, "on its own rows it would pass for induction"
    left = (there - there.by_distance).sel(score="induction")
    assert float(left.max()) < float(there.null.sel(score="induction")), "but for what distance explains"
    found = heads.detect(model, progress=False)
    named = roles_of(found)
    assert not any("induction" in role for role in named.values())
    assert any(role == {"23 back"} for role in named.values())


@cache
def bundled(name: str) -> HookedGPT:
    return HookedGPT.from_pretrained(name)


def false_names(model: HookedGPT, seed: int, **given: Any) -> tuple[int, int]:
    """How many (head, detector) pairs of a shuffled twin are named, and how many there are."""
    found = heads.detect(zoo.shuffled(model, seed), **given, seed=seed, progress=False)
    known = np.isfinite(found.value) & (found.score != "first_moved") & (found.score != "induction_moved")
    return int(found.named.sum()), int(known.sum())


@pytest.mark.long
def test_of_a_hundred_shuffled_twins_one_triple_in_a_hundred_is_named_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nulls, "_HEADS", 100)  # a fifth of the usual null, whose greatest score is easier to exceed
    n_named, n_all, n_twins = 0, 0, 0
    for name in BUILT:
        model = getattr(planted, name)(distractor_heads=3)
        lists = planted.successor_lists().tolist() if name == "successor" else None
        for seed in range(6):
            tokens = model.sample(40, seed).tokens
            named, of = false_names(model.model, seed, tokens=tokens, lists=lists)
            n_named, n_all, n_twins = n_named + named, n_all + of, n_twins + 1
    text = zoo.standard_library(tokens=4_000, split="held_out")
    for name, n in (("stdlib-4l", 2), ("stdlib-attn-2l", 3)):
        for seed in range(n):
            named, of = false_names(bundled(name), seed, text=text)
            n_named, n_all, n_twins = n_named + named, n_all + of, n_twins + 1
    print(f"{n_named} of {n_all} named, {n_twins} twins")
    assert n_twins >= 100
    assert n_named <= 0.01 * n_all


@pytest.mark.slow
def test_a_shuffled_twin_of_a_trained_model_has_no_roles() -> None:
    n_named, n_all = false_names(bundled("stdlib-attn-2l"), 0)
    assert n_named <= 0.01 * n_all


@pytest.mark.slow
def test_the_bundled_model_has_the_heads_that_its_card_names() -> None:
    found = heads.detect(bundled("stdlib-4l"), progress=False)
    named = roles_of(found)
    assert "previous token" in named["L0H1"]
    assert "induction" in named["L1H4"]
    assert found.value.sel(score="induction")[1, 4] > 0.85
    assert not any("induction" in role for name, role in named.items() if not name.startswith("L1"))


@pytest.mark.long
def test_three_induction_heads_matter_on_repeats_and_not_on_text_without() -> None:
    from itertools import combinations

    from interp.interventions import Ablate, Site

    model = bundled("stdlib-4l")
    found = heads.detect(model, progress=False)
    matter = found.value.sel(score="induction_moved").where(found.named.sel(score="induction"), 0).to_numpy()
    top = sorted(np.ndindex(*matter.shape), key=lambda place: -matter[place])[:3]
    layers = {layer for layer, _ in top}
    assert layers == {1}
    rows = {"repeats": trials.repeats(model), "text": trials.text_rows(model, None, 32)}
    costs: dict[str, dict[tuple[int, ...], float]] = {}
    for kind, some in rows.items():
        has_been_here = (some.tokens[:, :, None] == some.tokens[:, None]).tril(-1).any(-1)
        counts = ((has_been_here if kind == "repeats" else ~has_been_here) & some.real)[:, :-1] & some.real[:, 1:]

        def loss(some: trials.Rows = some, counts: torch.Tensor = counts) -> float:
            with torch.no_grad():
                each = model(some.tokens, "loss", loss_per_token=True, attention_mask=some.mask)
            return float((each * counts).sum() / counts.sum())

        with torch.no_grad():
            _, kept = model.run_with_cache(some.tokens, None, names_filter="*1*hook_z", attention_mask=some.mask)
        base, triples = loss(), combinations(range(model.cfg.n_heads), 3)
        costs[kind] = {}
        for three in triples if kind == "repeats" else [tuple(sorted(head for _, head in top))]:
            site = Site("z", 1, head=list(three))
            with model.edit([Ablate.from_reference(site, "mean", kept["z", 1], some.real)]):
                costs[kind][three] = loss() - base
    chosen = tuple(sorted(head for _, head in top))
    own, others = costs["repeats"].pop(chosen), np.array(list(costs["repeats"].values()))
    more = (others < own).mean()
    print(f"{chosen}: {own:.3f} nats on repeats, more than {more:.0%}; {costs['text'][chosen]:.3f} on text")
    assert more > 0.95
    assert costs["text"][chosen] < own / 4
