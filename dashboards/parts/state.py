"""What every page reads: the model, the prompt, the position; and what was computed from them, kept within bounds."""

import importlib.metadata
import sys
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Literal, TypeVar

import numpy as np
import streamlit as st
import torch
import xarray
from jaxtyping import Float, Int
from torch import Tensor

from dashboards.parts.models import Trouble
from interp import ActivationCache, HookedGPT
from interp.zoo.planted import Planted

Result = TypeVar("Result")

LARGEST = 256 * 2**20  # bytes of results that a session keeps


@dataclass(frozen=True, eq=False)
class Opened:
    """The model on show."""

    name: str
    model: HookedGPT
    fingerprint: str
    planted: Planted | None = None


@dataclass(frozen=True, eq=False)
class Chosen:
    """The model and the prompt on show, and the position in it that is read."""

    name: str
    model: HookedGPT
    fingerprint: str
    prompt: str
    tokens: Int[Tensor, "1 pos"]
    labels: list[str]  # a visible text for each token
    q: int
    target: int  # the token asked for at q, the likeliest unless another is named
    foil: int  # what it is compared with, the second likeliest unless another is named
    bos: bool  # whether the first token was put there
    is_dark: bool
    planted: Planted | None = None  # how the model was made, if it was set by hand

    @property
    def theme(self) -> Literal["light", "dark"]:
        return "dark" if self.is_dark else "light"


def show(opened: Opened | Trouble, chosen: Chosen | Trouble) -> None:
    """Say what the pages of this session show from now on."""
    st.session_state["_opened"], st.session_state["_chosen"] = opened, chosen


def opened() -> Opened:
    """The model on show, with or without a prompt that it can read; a page without one stops."""
    return _or_stop(st.session_state["_opened"])


def chosen() -> Chosen:
    """What is on show; a page without it stops: why has been said above it."""
    return _or_stop(st.session_state["_chosen"])


def about() -> dict[str, Any]:
    """What a file that leaves the dashboard says about itself."""
    model, now = st.session_state["_opened"], st.session_state["_chosen"]
    said = {
        "model": model.name,
        "fingerprint": model.fingerprint,
        "interp": version("interp"),
        "torch": version("torch"),
    }
    if isinstance(now, Chosen):
        said |= {"prompt": now.prompt, "begins with BOS": now.bos, "position": now.q}
        said |= {"target": now.target, "foil": now.foil}
    return said


def version(package: str) -> str:
    """The version that is installed, if it is."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def cached(fn: Callable[..., Result], *key: Hashable) -> Result:
    """`fn(model, tokens, *key)` of what is on show, computed once a session.

    `fn` stands at the top of a module, so that its name says which it is, and takes all it depends on: results are
    known by the weights, the tokens, `fn`'s name and `key`. Those not asked for longest go first. They are shared:
    nobody writes into them.
    """
    now = chosen()
    return kept(now.fingerprint, now.tokens, fn, (now.model, now.tokens, *key), key)


def run(now: Chosen, *names: str) -> tuple[Float[Tensor, "1 pos d_vocab_out"], ActivationCache]:
    """The logits of what is on show, and the activations with these names (globs too), or all usual ones."""
    return kept(now.fingerprint, now.tokens, _run, (now.model, now.tokens, *names), names)


def kept(
    fingerprint: str, tokens: Tensor, fn: Callable[..., Result], arguments: tuple[Any, ...], key: tuple[Hashable, ...]
) -> Result:
    """`fn(*arguments)`, unless this session still has it."""
    if "<" in fn.__qualname__:
        raise ValueError(f"{fn.__qualname__} has no name of its own to be kept under: define it at the top of a module")
    results: OrderedDict[Hashable, tuple[Any, int]] = st.session_state.setdefault("_results", OrderedDict())
    name = (fingerprint, tuple(tokens.flatten().tolist()), fn.__module__, fn.__qualname__, key)
    if name not in results:
        with torch.no_grad():
            result = fn(*arguments)
        results[name] = result, size_of(result)
    results.move_to_end(name)
    found = results[name][0]
    while len(results) > 1 and sum(size for _, size in results.values()) > LARGEST:
        results.popitem(last=False)
    return found


def size_of(result: Any) -> int:
    """About how many bytes a result takes; models, which are kept elsewhere, count nothing."""
    if isinstance(result, torch.nn.Module):
        return 0
    if isinstance(result, Tensor | np.ndarray | xarray.DataArray | xarray.Dataset):
        return int(result.nbytes)
    if callable(getattr(result, "nbytes", None)):
        return result.nbytes()
    if isinstance(result, Mapping):
        return sum(map(size_of, result.values()))
    if isinstance(result, list | tuple | set | frozenset):
        return sum(map(size_of, result))
    if is_dataclass(result):
        return sum(size_of(getattr(result, field.name)) for field in fields(result))
    return sys.getsizeof(result)


def _run(model: HookedGPT, tokens: Tensor, *names: str) -> tuple[Tensor, ActivationCache]:
    return model.run_with_cache(tokens, names_filter=list(names) or None)


def _or_stop(found: Any) -> Any:
    if isinstance(found, Trouble):
        st.stop()
    return found
