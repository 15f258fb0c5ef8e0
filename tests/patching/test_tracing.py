"""Causal tracing: as in a loop of runs with hooks; on a model that was given its facts by hand, where they are."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from interp import HookedGPT, metrics
from interp.interventions import Site
from interp.metrics import measured
from interp.patching import causal_tracing
from tests.patching.recalled import BEGINS, LENGTH, MEMORY, MOVER, questions, recalling
from tests.patching.test_activation import padded
from tests.variants import some_tokens, variant


def in_a_loop(
    model: HookedGPT, tokens: Tensor, mask: Tensor | None, subject: Tensor, metric: Any, site: str, around: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Every run by itself: the metric with each state put back, and with none; 3 draws of noise, seed 5."""
    _, clean = model.run_with_cache(tokens, attention_mask=mask)
    embed, draw = clean["hook_embed"], torch.Generator().manual_seed(5)
    sigma = 2.0 * embed[subject].double().std()
    n_layers, restored, base = model.cfg.n_layers, [], []
    for _ in range(3):
        added = torch.zeros_like(embed, dtype=torch.float64)
        added[subject] = sigma * torch.randn(embed[subject].shape, generator=draw, dtype=torch.float64)
        noised = [("hook_embed", lambda x, hook, added=added: x + added.to(x.dtype))]
        with model.hooks(noised):
            base.append(measured(model, tokens, metric, mask))
            for layer in range(n_layers):
                for pos in range(tokens.shape[1]):
                    put = []
                    for near in around(layer, n_layers):
                        name = Site(site, near).point(model).name

                        def back(x: Tensor, hook: Any, pos: int = pos) -> Tensor:
                            x[:, pos] = clean[hook.name][:, pos]
                            return x

                        put.append((name, back))
                    with model.hooks(put):
                        restored.append(measured(model, tokens, metric, mask))
    values = torch.stack(restored).view(3, n_layers, tokens.shape[1], -1).mean(0)
    return values.detach().numpy(), torch.stack(base).mean(0).detach().numpy()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "site", "window", "side"),
    [("gpt2", "resid_post", 1, None), ("llama", "mlp_out", 2, "left"), ("neox", "attn_out", 3, "right")],
)
def test_every_state_put_back_is_a_run_of_its_own_under_the_same_noise(
    name: str, site: str, window: int, side: str | None
) -> None:
    model, tokens, mask = variant(name, torch.float64, n_layers=3), some_tokens(3, 7), padded(side)
    metric = metrics.prob(model, [1, 2, 3])
    subject = torch.zeros(3, 7, dtype=torch.bool)
    subject[0, 2:4], subject[1, 4], subject[2, 3:6] = True, True, True

    def around(layer: int, n: int) -> list[int]:
        before = {1: 0, 2: 1, 3: 1}[window]
        return [near for near in range(layer - before, layer - before + window) if 0 <= near < n]

    found = causal_tracing(
        model, tokens, subject, metric, noise=2.0, samples=3, seed=5, site=site, window=window, attention_mask=mask
    )
    restored, base = in_a_loop(model, tokens, mask, subject, metric, site, around)
    assert found.dims == ("layer", "pos", "prompt")
    np.testing.assert_allclose(found.base, base, rtol=0, atol=1e-10)
    np.testing.assert_allclose(found, restored, rtol=0, atol=1e-10)
    np.testing.assert_allclose(found.clean, measured(model, tokens, metric, mask), rtol=0, atol=1e-10)
    assert np.abs(found - found.base).max() > 1e-3
    assert (found.is_subject.values == subject.numpy().T).all()


def test_a_fact_is_where_it_was_put() -> None:
    (model, _), (tokens, answers) = recalling(), questions()
    metric, subject, last = metrics.prob(model, answers), [BEGINS, BEGINS + 1], BEGINS + 1
    gain, lost = {}, []
    for site in ("resid_post", "mlp_out", "attn_out"):
        found = causal_tracing(model, tokens, subject, metric, site=site, samples=5, progress=False)
        assert (found.clean > 0.99).all()
        assert found.base.mean() < 0.5
        lost.append(found.base.to_numpy())
        gain[site] = (found - found.base).mean("prompt").to_numpy()
    assert gain["resid_post"].argmax(1).tolist() == [last, last, LENGTH - 1]  # carried, looked up, moved
    np.testing.assert_allclose(gain["resid_post"][MOVER, -1], (found.clean - found.base).mean(), atol=1e-6)
    np.testing.assert_array_equal(lost, [lost[0]] * 3)  # the same noise for every site
    for site, peak in (("mlp_out", (MEMORY, last)), ("attn_out", (MOVER, LENGTH - 1))):
        assert np.unravel_index(gain[site].argmax(), gain[site].shape) == peak
        assert np.sort(gain[site].ravel())[-2] < 0.6 * gain[site][peak]


def test_it_costs_what_was_to_be_expected() -> None:
    (model, _), (tokens, answers) = recalling(), questions()
    found = causal_tracing(model, tokens, [BEGINS, BEGINS + 1], metrics.prob(model, answers), samples=2, layers=[0, -1])
    assert found.layer.values.tolist() == [0, 2]
    behind = LENGTH - BEGINS  # before the subject nothing is lost, and no run is made
    assert found.attrs["rows"] == 2 * 2 * behind * len(tokens)
    np.testing.assert_array_equal(found[:, :BEGINS], found.base.broadcast_like(found)[:, :BEGINS])


def test_a_subject_is_found_by_its_text() -> None:
    model = HookedGPT.from_pretrained("stdlib-attn-2l")
    prompts = ["import os\nx = os.path", "import sys\nx = sys.argv[1]"]
    choices: Any = {"samples": 1, "layers": [0], "progress": False}
    found = causal_tracing(model, prompts, ["os", "sys.argv"], metrics.loss(), **choices)
    for prompt, (text, subject) in enumerate(zip(prompts, ("os", "sys.argv"), strict=True)):
        pieces = model.to_str_tokens(text)
        marked = [piece for piece, is_in in zip(pieces, found.is_subject.values[:, prompt], strict=False) if is_in]
        assert "".join(marked).strip().replace(" ", "") in (subject, subject * 2)
    again = causal_tracing(model, prompts, torch.from_numpy(found.is_subject.values.T), metrics.loss(), **choices)
    assert again.equals(found)
    other = causal_tracing(
        model, prompts, torch.from_numpy(found.is_subject.values.T), metrics.loss(), seed=1, **choices
    )
    assert not np.allclose(other.base, found.base)


def test_what_cannot_be_traced_is_refused() -> None:
    model, tokens = variant("gpt2"), some_tokens()
    metric = metrics.prob(model, 1)
    refused: list[tuple[Any, dict[str, Any], str]] = [
        ([2], {"noise": 0.0}, "noise=0.0"),
        ([2], {"samples": 0}, "samples=0"),
        ([2], {"window": 0}, "window=0"),
        ([2], {"layers": [7]}, r"layers=\[7\]; allowed"),
        ([2], {"site": "pattern"}, "not of one position"),
        ([], {}, r"subject=\[\] is not in prompts \[0, 1, 2\]"),
        (torch.ones(2, dtype=torch.bool), {}, r"a mask, \[7\] or \[3, 7\]"),
        ("a", {}, "no tokenizer"),
        (["a", "b"], {}, "2 were given for 3 prompts"),
    ]
    for subject, choices, told in refused:
        with pytest.raises(ValueError, match=told):
            causal_tracing(model, tokens, subject, metric, progress=False, **choices)
    with pytest.raises(IndexError, match=r"positions \[9\] are out of range"):
        causal_tracing(model, tokens, [9], metric, progress=False)
    named = HookedGPT.from_pretrained("stdlib-attn-2l")
    with pytest.raises(ValueError, match=r"subject='nowhere' is not in prompts \[0\]"):
        causal_tracing(named, "x = 1", "nowhere", metrics.prob(named, 1), progress=False)
    model.embed.W_E.data.zero_()
    with pytest.raises(ValueError, match="noise has no size"):
        causal_tracing(model, tokens, [2], metric, progress=False)


def test_progress_is_told_of_all_draws_together() -> None:
    (model, _), (tokens, answers) = recalling(), questions()
    told: list[tuple[int, int]] = []
    causal_tracing(
        model, tokens[:1], slice(2, 4), metrics.prob(model, answers[:1]), samples=2, progress=lambda *n: told.append(n)
    )
    assert told[-1][0] == told[-1][1] == 2 * 3 * (LENGTH - BEGINS)
    assert told == sorted(told)
