"""Labelled results: what each number belongs to, and where it came from."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from interp.metrics import AnyMetric, name_of
from interp.model import HookedGPT

if TYPE_CHECKING:
    from xarray import DataArray as Result
else:
    Result = Any  # xarray brings pandas: a second that a user of the model alone need not wait for


def labelled(
    values: Tensor, axes: Mapping[str, Sequence[Any]], name: str, attrs: Mapping[str, Any], base: Tensor | None = None
) -> Result:
    """An `xarray.DataArray` with these axes and labels; `attrs` say what was done.

    `base` is the metric of each prompt with nothing changed, kept beside the prompts: `result - result.base` is what
    each change did.
    """
    from xarray import DataArray

    kept = {key: value for key, value in attrs.items() if value is not None}
    found = DataArray(
        values.cpu().numpy(), coords=[(axis, list(of)) for axis, of in axes.items()], name=name, attrs=kept
    )
    return found if base is None else found.assign_coords(base=("prompt", base.double().cpu().numpy()))


def provenance(model: HookedGPT, metric: AnyMetric, tokens: Tensor, method: str) -> dict[str, Any]:
    """What every result says of itself."""
    text = "" if model.tokenizer is None else model.tokenizer.decode(tokens[0].tolist())
    return {"method": method, "metric": name_of(metric), "model": model.fingerprint(), "first prompt": text}


def token_labels(model: HookedGPT, tokens: Tensor) -> list[str]:
    """A label for each position: its index, and its token where all prompts have the same one there."""
    texts, same = token_texts(model, tokens[0]), (tokens == tokens[:1]).all(0).tolist()
    return [f"{i} {text}" if is_same else str(i) for i, (text, is_same) in enumerate(zip(texts, same, strict=True))]


def token_texts(model: HookedGPT, ids: Int[Tensor, "*any"]) -> np.ndarray:
    """The text of each token, or without a tokenizer its id."""
    listed, where = ids.cpu().unique(return_inverse=True)
    known = listed.tolist()
    texts = list(map(str, known)) if model.tokenizer is None else model.tokenizer.token_strings(known)
    return np.array(texts, dtype=object)[where.numpy()]


def text_of(model: HookedGPT, ids: Int[Tensor, " pos"]) -> str:
    """The text of tokens one after the other, or without a tokenizer their ids."""
    return b"".join(token_pieces(model, ids)).decode("utf-8", "backslashreplace")


def token_pieces(model: HookedGPT, ids: Int[Tensor, " pos"]) -> list[bytes]:
    """The bytes of each token, which need not be whole characters; or without a tokenizer its id."""
    known = ids.tolist()
    return [str(i).encode() for i in known] if model.tokenizer is None else model.tokenizer.token_bytes(known)


def as_tokens(model: HookedGPT, prompts: Any, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Prompts as the model reads them."""
    if not isinstance(prompts, Tensor):
        prompts, mask = model.read_input(prompts, None, mask)
    tokens = torch.atleast_2d(prompts)
    return tokens.to(model.device), None if mask is None else torch.atleast_2d(mask).bool().to(model.device)
