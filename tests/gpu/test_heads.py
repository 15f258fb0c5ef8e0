"""Heads on a GPU: the CPU's patterns and statistics, in half precision too."""

import numpy as np
import pytest
import torch

from interp import heads
from interp.heads import corpus_statistics, patterns
from tests.variants import some_tokens, variant

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
MASK = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1] * 7, [1, 1, 1, 1, 1, 1, 0]])
NAMES = ["gpt2", "llama", "qwen3", "gemma2", "encoder"]


def corpus() -> list[np.ndarray]:
    draw = np.random.default_rng(0)
    return [draw.integers(0, 13, n) for n in (11, 3, 30, 1)]


@pytest.mark.parametrize("name", NAMES)
def test_patterns_are_those_of_the_pass(name: str) -> None:
    model, tokens, mask = variant(name).cuda(), some_tokens().cuda(), MASK.cuda()
    found = patterns(model, tokens, attention_mask=mask)
    _, cache = model.run_with_cache(tokens, attention_mask=mask)
    for layer in range(model.cfg.n_layers):
        for head in range(model.cfg.n_heads):
            torch.testing.assert_close(found[layer, head], cache["pattern", layer][:, head], atol=1e-6, rtol=0)
    assert found.weighted(1, 2).isfinite().all()


@pytest.mark.parametrize("at_once", [60, 2**26])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-12), (torch.float32, 1e-4), (torch.bfloat16, 0.1)])
def test_statistics_are_those_of_the_cpu(
    name: str, dtype: torch.dtype, atol: float, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = corpus_statistics(variant(name, torch.float64), corpus(), progress=False)
    monkeypatch.setattr("interp.heads.corpus._AT_ONCE_ELSEWHERE", at_once)
    found = corpus_statistics(variant(name).to(dtype).cuda(), corpus(), progress=False)
    for each in wanted:
        np.testing.assert_allclose(found[each].values, wanted[each].values, rtol=0, atol=atol, err_msg=str(each))


def test_who_listens_to_patterns_changes_nothing() -> None:
    model = variant("gemma2").cuda()
    free = corpus_statistics(model, corpus(), progress=False)
    with model.recording("*hook_pattern", lambda x, point: None):
        heard = corpus_statistics(model, corpus(), progress=False)
    for each in free:
        np.testing.assert_allclose(heard[each].values, free[each].values, rtol=0, atol=1e-5, err_msg=str(each))


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2"])
def test_scores_are_those_of_the_cpu(name: str) -> None:
    tokens = torch.randint(0, 5, (6, 9), generator=torch.Generator().manual_seed(3))
    on_cpu = heads.scores(variant(name, torch.float64), tokens, progress=False)
    on_gpu = heads.scores(variant(name, torch.float64).cuda(), tokens.cuda(), progress=False)
    for column in ("low", "high", "threshold", "null", "by_distance"):
        np.testing.assert_allclose(on_gpu[column], on_cpu[column], atol=1e-6)
    np.testing.assert_allclose(on_gpu, on_cpu, atol=1e-6)
