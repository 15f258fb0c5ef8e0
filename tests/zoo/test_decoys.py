"""Decoys look like what they are not, in the way that they say."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from interp import HookedGPT
from interp.training import repeated_tokens
from interp.training.measures import head_scores
from interp.zoo import planted

DECOYS: list[Callable[..., HookedGPT]] = [planted.uniform_head, planted.sink_head, planted.fixed_offset_head]
NORMS = [None, "RMS", "LN"]


def behind_bos(model: HookedGPT, n: int = 20) -> Tensor:
    tokens = torch.randint(1, model.cfg.d_vocab, (n, model.cfg.n_ctx), generator=torch.Generator().manual_seed(0))
    tokens[:, 0] = 0
    return tokens


def attention(model: HookedGPT, tokens: Tensor) -> Tensor:
    return model.run_with_cache(tokens)[1]["pattern", 0][:, 0]


@pytest.mark.parametrize("norm", NORMS)
def test_the_uniform_head_attends_to_all_alike_and_counts_tokens(norm: str | None) -> None:
    model = planted.uniform_head(d_vocab=7, n_ctx=12, norm=norm)
    tokens = behind_bos(model)
    n_seen = torch.arange(1, 13)
    torch.testing.assert_close(attention(model, tokens), torch.ones(20, 12, 12).tril() / n_seen[:, None])
    shares = torch.eye(7)[tokens].cumsum(1) / n_seen[:, None]
    torch.testing.assert_close(model(tokens), shares, atol=0.01, rtol=0)
    assert not (model.W_Q @ model.W_K.mT).any()


@pytest.mark.parametrize("norm", NORMS)
def test_the_sink_head_rests_on_bos_and_moves_nothing(norm: str | None) -> None:
    model = planted.sink_head(norm=norm)
    logits, cache = model.run_with_cache(behind_bos(model), names_filter=["*hook_pattern", "*hook_result"])
    assert cache["pattern", 0][..., 0].min() > 0.999
    assert cache["result", 0].abs().max() < 1e-6
    assert logits.abs().max() < 1e-6
    assert model(behind_bos(model)[:, 1:]).max() > 0.5  # what it would copy, were it not for BOS


@pytest.mark.parametrize("norm", NORMS)
def test_the_fixed_offset_is_perfect_induction_at_one_period_and_none_at_others(norm: str | None) -> None:
    model = planted.fixed_offset_head(offset=9, d_vocab=33, norm=norm)

    def score(period: int) -> float:
        draw = repeated_tokens(33, 64, (period, period), bos=0)
        return head_scores(model, draw(torch.Generator().manual_seed(0), 8).tokens)["induction"].max().item()

    assert score(10) > 0.999
    assert score(5) > 0.9  # it divides ten: the head finds the occurrence before the last
    assert max(score(period) for period in (8, 9, 11, 12, 15, 25)) < 0.05


@pytest.mark.parametrize("make", DECOYS, ids=lambda make: make.__name__)
def test_a_decoy_hides_among_distractors_and_depends_on_its_seed_alone(make: Callable[..., HookedGPT]) -> None:
    some: dict[str, Any] = {"distractor_heads": 3, "distractor_neurons": 5, "norm": "LN"}
    first, again, other = make(seed=1, **some), make(seed=1, **some), make(seed=2, **some)
    assert (first.cfg.n_heads, first.cfg.d_mlp) == (4, 5)
    assert first.fingerprint() == again.fingerprint() != other.fingerprint()


@pytest.mark.parametrize("make", DECOYS, ids=lambda make: make.__name__)
def test_a_decoy_too_small_is_refused(make: Callable[..., HookedGPT]) -> None:
    with pytest.raises(ValueError, match="cannot be built: d_vocab=1, at least"):
        make(d_vocab=1)
