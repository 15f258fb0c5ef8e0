"""What every page reads: the model, the prompt, the position; and what was computed from them, kept within bounds."""

import importlib.metadata
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from fnmatch import fnmatch
from functools import cache
from typing import Any, Literal, TypeVar

import numpy as np
import streamlit as st
import torch
import xarray
from jaxtyping import Float, Int
from streamlit.runtime.scriptrunner import get_script_run_ctx
from torch import Tensor

from dashboards.parts.models import Trouble
from interp import ActivationCache, HookedGPT
from interp.zoo.planted import Planted

Result = TypeVar("Result")

LARGEST = 256 * 2**20  # bytes of results that are kept for a session
IN_ALL = 4 * LARGEST  # … and for all of them

# What pages read of a run, of which there is one: of a long prompt each has its own, of what it reads alone.
OFTEN = (
    "hook_embed", "hook_pos_embed", "*.hook_resid_mid", "*.hook_resid_post", "*.hook_attn_out", "*.hook_mlp_out",
    "*.attn.hook_z", "*.mlp.hook_post", "*.hook_scale",
)  # fmt: skip
LONG = 512  # tokens


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


@cache
def version(package: str) -> str:
    """The version that is installed, if it is."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


class Store:
    """Results of all sessions; those not asked for longest go first, of a session that keeps too much its own."""

    def __init__(self) -> None:
        self._found: OrderedDict[Hashable, tuple[Any, int, str]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, name: Hashable) -> Any:
        """The result of this name, if it is still there."""
        with self._lock:
            if name not in self._found:
                return None
            self._found.move_to_end(name)
            return self._found[name][0]

    def put(self, name: Hashable, result: Any) -> None:
        """Keep a result for the session that runs."""
        context = get_script_run_ctx(suppress_warning=True)
        owner, size = context.session_id if context else "", size_of(result)
        with self._lock:
            self._found[name] = result, size, owner
            self._found.move_to_end(name)
            own = {each: n for each, (_, n, of) in self._found.items() if of == owner}
            self._drop(own, LARGEST, name)
            self._drop({each: n for each, (_, n, _) in self._found.items()}, IN_ALL, name)

    def _drop(self, sizes: dict[Hashable, int], most: int, last: Hashable) -> None:
        total = sum(sizes.values())
        for name, size in sizes.items():
            if total <= most or name == last:
                return
            del self._found[name]
            total -= size

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._found.clear()

    def __len__(self) -> int:
        return len(self._found)


store = Store()


def cached(fn: Callable[..., Result], *key: Hashable) -> Result:
    """`fn(model, tokens, *key)` of what is on show, computed once for all sessions.

    `fn` stands at the top of a module, so that its name says which it is, and takes all it depends on: results are
    known by the weights, the tokens, `fn`'s name and `key`. They are shared: nobody writes into them.
    """
    now = chosen()
    return kept(now.fingerprint, now.tokens, fn, (now.model, now.tokens, *key), key)


def run(now: Chosen, *names: str) -> ActivationCache:
    """The activations with these names (globs too) of what is on show; what was recorded before is not made again."""
    points = now.model.hook_dict
    wanted = [point for point in points if any(fnmatch(point, name) for name in names)]
    of = (now.fingerprint, tuple(now.tokens.flatten().tolist()))
    found = {point: store.get((*of, point)) for point in wanted}
    if any(x is None for x in found.values()):
        often = [] if len(now.labels) > LONG else [p for p in points if any(fnmatch(p, name) for name in OFTEN)]
        with torch.no_grad():
            _, made = now.model.run_with_cache(
                now.tokens, names_filter=list(dict.fromkeys([*wanted, *often])), return_type=None
            )
        for point, x in made.items():
            store.put((*of, point), x)
        found |= {point: made[point] for point in wanted}
    return ActivationCache(found, now.model, tokens=now.tokens)


def logits_at(now: Chosen, first: int, last: int) -> Float[Tensor, "pos d_vocab_out"]:
    """The model's logits at these positions, from the end of its run."""
    end = run(now, f"blocks.{now.model.cfg.n_layers - 1}.hook_resid_post")["resid_post", -1]
    with torch.no_grad():
        return now.model.read_off(now.model.ln_final(end[:, first:last]))[0]


def kept(
    fingerprint: str, tokens: Tensor, fn: Callable[..., Result], arguments: tuple[Any, ...], key: tuple[Hashable, ...]
) -> Result:
    """`fn(*arguments)`, unless it is still there."""
    if "<" in fn.__qualname__:
        raise ValueError(f"{fn.__qualname__} has no name of its own to be kept under: define it at the top of a module")
    name = (fingerprint, tuple(tokens.flatten().tolist()), fn.__module__, fn.__qualname__, key)
    found = store.get(name)
    if found is None:
        with torch.no_grad():
            found = fn(*arguments)
        store.put(name, found)
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


def _or_stop(found: Any) -> Any:
    if isinstance(found, Trouble):
        st.stop()
    return found
