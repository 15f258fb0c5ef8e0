"""What each head is: the roles that its scores bear out, or none."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from interp.heads.scores import SCORES, scores
from interp.model import HookedGPT
from interp.results import Result

if TYPE_CHECKING:
    from xarray import Dataset
else:
    Dataset = Any

ROLES = {
    "current": "current token",
    "previous": "previous token",
    "k_back": "{k} back",
    "first": "first token",
    "duplicate": "duplicate token",
    "induction": "induction",
    "induction_text": "induction in text",
    "copying": "copying",
    "negative": "copy suppression",
    "successor": "successor",
}
UNCLASSIFIED = "unclassified"


def detect(
    model: HookedGPT,
    tokens: Any = None,
    *,
    text: str | Sequence[str] | None = None,
    lists: Sequence[Sequence[int]] | None = None,
    queries: Tensor | None = None,
    attention_mask: Tensor | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Dataset:
    """Every head's roles, with the evidence; what is read is as in `scores`.

    An `xarray.Dataset`: `value` [score layer head] with all that `scores` says of it, `named` alike, and `role` and
    `rests` [layer head]. A role is named where even the lower end of the score's interval is above its threshold, and
    above chance without what looking a fixed distance back explains. "first" is named only where the head is not known
    to look elsewhere, and as much is moved from the first token as attention rests on it: where less is, the head has
    nothing to do there, and `rests`. Of a head without a role nothing is claimed: "unclassified".
    """
    chosen: dict[str, Any] = {"text": text, "lists": lists, "queries": queries, "attention_mask": attention_mask}
    return roles(scores(model, tokens, **chosen, seed=seed, progress=progress))


def roles(found: Result) -> Dataset:
    """The roles that these scores bear out, as `detect` names them."""
    from xarray import Dataset

    clear = (found.low > found.threshold) & (found.low - found.by_distance > found.null)  # False where not known
    first, moved = found.sel(score="first", drop=True), found.sel(score="first_moved", drop=True)
    attends, moves = (clear.sel(score=name, drop=True) for name in ("first", "first_moved"))
    named = clear.sel(score=list(ROLES))
    looks_elsewhere = named.drop_sel(score=["first", "copying", "successor"]).any("score")
    is_first = attends & moves & (moved.high >= first) & ~looks_elsewhere
    named = named.copy()
    named.loc[{"score": "first"}] = is_first
    listed = np.empty(first.shape, dtype=object)
    for layer, head in np.ndindex(*first.shape):
        own = [score for score in ROLES if bool(named.sel(score=score)[layer, head])]
        own = [score for score in own if not (score == "induction_text" and "induction" in own)]
        listed[layer, head] = ", ".join(ROLES[each].format(k=int(found.k[layer, head])) for each in own) or UNCLASSIFIED
    named = named.reindex(score=list(SCORES), fill_value=False).drop_vars(
        [name for name in named.coords if name not in named.dims]
    )
    axes = ("layer", "head")
    rests = (attends & (moved.high < first)).to_numpy()
    about = found.attrs | {"method": "head roles"}
    return Dataset({"value": found, "named": named, "role": (axes, listed), "rests": (axes, rests)}, attrs=about)
