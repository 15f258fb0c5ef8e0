"""What the page on comparing shows: numbers of two models or prompts, each computed by `interp`, and kept."""

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from xarray import DataArray

from dashboards.parts.heads.measured import HERE, direct, statistic
from dashboards.parts.sidebar import log_probs_at
from dashboards.parts.state import Chosen, kept
from interp.plots.theme import seen

DIRECT = "direct effect"
SHOWN = [DIRECT, *HERE]
TOP = 10  # likeliest tokens of either


def by_head(now: Chosen, what: str) -> DataArray:
    """What is shown, [layer head]."""
    return direct(now) if what == DIRECT else statistic(now, what)


def log_probs(now: Chosen) -> Tensor:
    """Of each token, after the position that is read."""
    return kept(now.fingerprint, now.tokens, log_probs_at, (now.model, now.tokens, now.q), (now.q,))


def next_tokens(a: Chosen, b: Chosen) -> pd.DataFrame:
    """The likeliest next tokens of either, with their probabilities."""
    probs = [log_probs(each).double().exp() for each in (a, b)]
    n = min(TOP, len(probs[0]))
    either = torch.cat([each.topk(n).indices for each in probs]).unique()
    ids = either[torch.maximum(*probs)[either].argsort(descending=True, stable=True)]
    one, other = (each[ids].numpy() for each in probs)
    names = [str(i) if a.model.tokenizer is None else seen(a.model.to_single_str_token(i)) for i in ids.tolist()]
    return pd.DataFrame({"token": names, "A": one, "B": other, "B − A": other - one})


def changes(a: DataArray, b: DataArray) -> pd.DataFrame:
    """Head by head, the largest change first; last what was not computed."""
    one, other = (each.transpose("layer", "head").to_numpy() for each in (a, b))
    names = [f"L{i}H{j}" for i in range(one.shape[0]) for j in range(one.shape[1])]
    found = pd.DataFrame({"head": names, "A": one.ravel(), "B": other.ravel()})
    found["B − A"] = found["B"] - found["A"]
    return found.sort_values("B − A", key=lambda change: -change.abs(), kind="stable", ignore_index=True)


def strongest_change(a: DataArray, b: DataArray) -> tuple[int, int]:
    """The head that changes most."""
    change = np.abs(np.nan_to_num((b - a).transpose("layer", "head").to_numpy()))
    layer, head = np.unravel_index(int(change.argmax()), change.shape)
    return int(layer), int(head)
