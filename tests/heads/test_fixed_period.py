"""The control is what it has to be: right on every second copy, by a head that looks back by a number of positions."""

import pytest
import torch

from interp.training.measures import head_scores
from tests.heads.fixed_period import PERIOD, fixed_period, repeats, rows

pytestmark = pytest.mark.slow  # trains for some ten seconds


@pytest.mark.long
def test_a_fixed_period_is_solved_by_a_head_that_would_pass_for_induction() -> None:
    model, tokens = fixed_period(), rows()
    with torch.no_grad():
        logits, cache = model.run_with_cache(tokens, names_filter="*hook_pattern")
    guessed = logits[:, :-1].argmax(-1)[:, PERIOD:]
    assert (guessed == tokens[:, PERIOD + 1 :]).float().mean() > 0.95
    second = slice(2, 2 + PERIOD)  # queries PERIOD + 1, where the second copy begins behind BOS, to 2 · PERIOD
    strict = torch.stack([cache["pattern", layer].diagonal(1 - PERIOD, -2, -1) for layer in range(2)])
    strict = strict[..., second].mean((1, 3))  # layer head
    assert strict[0].max() > 0.9
    assert strict[1].max() < 0.1
    assert cache["pattern", 0].diagonal(-1, -2, -1).mean((0, 2)).max() < 0.2  # no head for the previous token


def test_at_other_periods_its_head_finds_next_to_nothing() -> None:
    """Periods that divide its own are the exception: it finds the occurrence before the last."""
    model = fixed_period()
    assert head_scores(model, rows("induction-toy"))["induction"].max() < 0.3
    at = {period: head_scores(model, repeats(period))["induction"].max().item() for period in (12, 20, 23, 24, 25, 28)}
    assert min(at[12], at[24]) > 0.6
    assert max(at[period] for period in (20, 23, 25, 28)) < 0.1
