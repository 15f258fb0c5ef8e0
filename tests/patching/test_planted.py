"""On models whose mechanism was set by hand, sweeps find it, and nothing else."""

import numpy as np
import pytest
from torch import Tensor

from interp.interventions import Site
from interp.metrics import Logits, Metric, Rows, Values
from interp.patching import ablation, activation_patching, attribution_patching, interaction
from interp.patching.attribution import Method
from interp.zoo import planted
from interp.zoo.planted import Examples, Planted
from tests.variants import quick_of

METHODS: tuple[Method, ...] = ("gradient", "integrated")
NAMES = [each for each in planted.__all__ if getattr(planted, each).__annotations__.get("return") is Planted]


def answers(examples: Examples) -> Metric:
    """The right answer's logit minus the wrong one's, wherever one is asked."""

    def read(logits: Logits, rows: Rows) -> Values:
        asked, right, wrong = (rows.each(each, "of") for each in (examples.mask, examples.answers, examples.wrong))
        difference = logits.gather(-1, right[..., None]) - logits.gather(-1, wrong[..., None])
        return (difference[..., 0] * asked).sum(1) / asked.sum(1).clamp(min=1)

    return Metric("right minus wrong", read, None)


def components(of: Planted) -> dict[str, Site]:
    """Every head, and every neuron or, where the truth knows layers alone, every MLP."""
    cfg, nodes = of.model.cfg, of.truth["resample"].nodes
    found = {f"L{i}H{h}": Site("z", i, head=h) for i in range(cfg.n_layers) for h in range(cfg.n_heads)}
    if cfg.attn_only:
        return found
    if any(node.startswith("MLP") for node in nodes):
        return found | {f"MLP{i}": Site("mlp_out", i) for i in range(cfg.n_layers)}
    return found | {f"L{i}N{n}": Site("post", i, neuron=n) for i in range(cfg.n_layers) for n in range(cfg.d_mlp)}


def area(scores: np.ndarray, is_true: np.ndarray) -> float:
    """Under the ROC curve: how often a true one scores higher than another."""
    true, others = scores[is_true][:, None], scores[~is_true]
    return float((true > others).mean() + (true == others).mean() / 2)


def two_runs(of: Planted, n: int = 24) -> tuple[Examples, Tensor]:
    """Examples, and inputs with other answers. Those of the names share the place of the repeated name, which is all
    that the first head says: there, other examples show it."""
    examples = of.sample(n, seed=1)
    return examples, of.sample(n, seed=2).tokens if of.name == "indirect_object" else examples.corrupted


@pytest.mark.parametrize("name", quick_of(NAMES, "induction", "memories"))
def test_the_true_nodes_come_above_all_others(name: str) -> None:
    of = getattr(planted, name)(distractor_heads=2, distractor_neurons=6)
    examples, others = two_runs(of)
    sites, truth = components(of), of.truth["resample"]
    found = activation_patching(
        of.model, examples.tokens, others, list(sites.values()), answers(examples), direction="noise", progress=False
    )
    effect = np.abs(found - found.base).mean("prompt").to_numpy()
    is_true = np.array([node in truth.nodes for node in sites])
    assert 0 < is_true.sum() < len(is_true)
    assert area(effect, is_true) == 1.0


REDUNDANT = [name for name in NAMES if getattr(planted, name)().truth["zero"].redundant]


@pytest.mark.parametrize("name", REDUNDANT)
def test_two_that_stand_in_for_each_other_are_seen_in_pairs(name: str) -> None:
    of = getattr(planted, name)(distractor_heads=2)
    examples = of.sample(24, seed=1)
    sites = components(of)
    for group in of.truth["zero"].redundant:
        pair = [sites[node] for node in sorted(group)]
        found = ablation(of.model, examples.tokens, pair, answers(examples), mode="pairs", progress=False)
        whole, left = float(found.base.mean()), found.mean("prompt").to_numpy()
        assert left[0, 0] > 0.3 * whole  # either alone gives the answer
        assert left[1, 1] > 0.3 * whole
        assert left[0, 1] < 0.05 * whole  # without both it is gone
        beyond = float(interaction(found)[0, 1].mean())
        if name == "either":  # each gives half of the answer's logit, and that is all
            assert abs(beyond) < 1e-4 * whole
        else:  # one wakes when the other is gone
            assert beyond < -0.3 * whole


@pytest.mark.parametrize("name", quick_of(["balanced_brackets", "indirect_object", "induction"], "indirect_object"))
def test_the_mean_gradient_ranks_them_where_one_gradient_may_not(name: str) -> None:
    of = getattr(planted, name)(distractor_heads=2, distractor_neurons=6)
    examples, others = two_runs(of)
    sites = components(of)
    is_true = np.array([node in of.truth["resample"].nodes for node in sites])
    areas = {}
    for method in METHODS:
        found = attribution_patching(
            of.model,
            examples.tokens,
            others,
            list(sites.values()),
            answers(examples),
            direction="noise",
            method=method,
            progress=False,
        )
        areas[method] = area(abs(found).mean("prompt").to_numpy(), is_true)
    assert areas["integrated"] == 1.0
    if name == "induction":
        assert areas["gradient"] == 1.0
    else:  # a saturated softmax, or a ReLU that is off, has no slope that tells
        assert 0.85 < areas["gradient"] < 1.0
