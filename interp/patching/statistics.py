"""How sure a sweep's effects are: standard errors, bootstrap intervals, and a test, over prompts."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.results import Result

if TYPE_CHECKING:
    from xarray import Dataset
else:
    Dataset = Any


def summary(result: Result, *, level: float = 0.95, n_resamples: int = 4_000, seed: int = 0) -> Dataset:
    """Of a result over prompts: the mean effect (result - result.base), and how far it can be trusted.

    `standard_error` of the mean; `low` and `high`, the bootstrap's percentile interval over prompts; `p`, two-sided, of
    the sign-flip test: how often an effect as large comes about if each prompt's sign is a toss of a coin. All sign
    patterns are tried where there are no more than `n_resamples` of them. Cells share their resamples; for many cells,
    correct `p` for that.
    """
    from xarray import Dataset

    if "prompt" not in result.dims:
        raise ValueError(f"summary is over prompts; the result has the axes {list(result.dims)}")
    if not 0 < level < 1 or n_resamples < 1:
        raise ValueError(f"level={level}, n_resamples={n_resamples}; level lies between 0 and 1, n_resamples from 1")
    is_metric = result.name == "metric" and "base" in result.coords  # a difference that was taken has lost its name
    effect = (result - result.base if is_metric else result).transpose(..., "prompt")
    values = torch.from_numpy(effect.to_numpy()).double()
    cells, n = values.flatten(0, -2), values.shape[-1]
    draw = torch.Generator().manual_seed(seed)
    picks = torch.randint(n, (n_resamples, n), generator=draw)
    weights = torch.zeros(n_resamples, n, dtype=torch.float64).scatter_add_(
        1, picks, torch.ones(1).double().expand_as(picks)
    )
    tail = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    low, high = (cells @ weights.T / n).quantile(tail, dim=1)
    mean = cells.mean(1)
    columns = {
        "mean": mean,
        "standard_error": cells.std(1) / n**0.5 if n > 1 else torch.full_like(mean, torch.nan),
        "low": low,
        "high": high,
        "p": _sign_flip(cells, n_resamples, draw),
    }
    axes = [axis for axis in effect.dims if axis != "prompt"]
    coords = {name: of for name, of in effect.coords.items() if "prompt" not in of.dims}
    shape = values.shape[:-1]
    found = {name: (axes, column.view(shape).numpy()) for name, column in columns.items()}
    return Dataset(found, coords=coords, attrs={**result.attrs, "n": n, "level": level, "resamples": n_resamples})


def _sign_flip(cells: Tensor, n_resamples: int, draw: torch.Generator) -> Tensor:
    n = cells.shape[1]
    is_exact = n < 63 and 2**n <= n_resamples
    if is_exact:
        signs = 1.0 - 2.0 * (torch.arange(2**n)[:, None] >> torch.arange(n) & 1).double()
    else:
        signs = 1.0 - 2.0 * torch.randint(2, (n_resamples, n), generator=draw).double()
    seen = cells.sum(1, keepdim=True).abs()
    as_large = ((cells @ signs.T).abs() >= seen * (1 - 1e-12)).sum(1).double()
    return as_large / len(signs) if is_exact else (as_large + 1) / (len(signs) + 1)
