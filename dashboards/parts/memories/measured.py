"""What the page on memories shows: each number is computed by `interp`, and kept."""

import fnmatch
from collections.abc import Callable, Hashable, Iterator
from time import perf_counter
from typing import Any

import streamlit as st
import torch
from jaxtyping import Float
from torch import Tensor
from xarray import DataArray, Dataset

from dashboards.parts.state import Chosen, Result, kept, run
from interp import ActivationCache, HookedGPT, lens, memories, metrics
from interp.corpus import standard_library
from interp.memories import NeuronCard, Triggers

# What an attribution reads: no patterns among them, which grow with the square of the prompt.
NAMES = (
    "hook_*embed", "*hook_resid_mid", "*hook_resid_post", "*hook_attn_out", "*hook_mlp_out", "*.mlp.hook_post",
    "*hook_scale",
)  # fmt: skip
BEGINNING = 2000  # characters of a file that a scan reads, so that it reads many
ROW = 256  # tokens of a scan's rows, at most
ROUGHLY = 1.5  # a scan takes so many times as long as a bare pass over its tokens


def cache_of(now: Chosen) -> ActivationCache:
    """The run on show."""
    return run(now, *names_of(now.model))


def names_of(model: HookedGPT) -> tuple[str, ...]:
    """Those of the names that this model has."""
    return tuple(name for name in NAMES if fnmatch.filter(model.hook_dict, name))


def parts_of(now: Chosen) -> DataArray:
    """What each part of the model, each neuron by itself, adds to the target less the foil at the position read."""
    key = (now.q, now.target, now.foil)
    return kept(now.fingerprint, now.tokens, by_neuron, (now.model, cache_of(now), *key), key)


def by_neuron(model: HookedGPT, cache: ActivationCache, q: int, target: int, foil: int) -> DataArray:
    """For `kept`."""
    return lens.direct_logit_attribution(model, cache, target, foil, by="neuron", pos=q)


def updates_of(now: Chosen, layer: int | None) -> DataArray:
    """What each memory of a layer, or of all, adds to the target less the foil at the position read: [top prompt]."""
    key = (layer, now.q, now.target, now.foil)
    given = (now.model, cache_of(now), parts_of(now), *key)
    return kept(now.fingerprint, now.tokens, sub_updates, given, key)


def sub_updates(
    model: HookedGPT, cache: ActivationCache, parts: DataArray, layer: int | None, q: int, target: int, foil: int
) -> DataArray:
    """For `kept`: all of them."""
    n = model.cfg.d_mlp * (model.cfg.n_layers if layer is None else 1)
    return memories.sub_updates(model, cache, target, foil, layer=layer, pos=q, top=n, parts=parts)


def mlps_of(now: Chosen, layer: int | None) -> tuple[float, float]:
    """What the MLPs of a layer, or of all, add, and the part of it that their biases add: by other ways to the sum."""
    key, parts = (now.q, now.target, now.foil), parts_of(now)
    whole = kept(now.fingerprint, now.tokens, by_component, (now.model, cache_of(now), *key), key)
    labels = [f"L{each} mlp" for each in (range(now.model.cfg.n_layers) if layer is None else [layer])]
    biases = [f"{label} bias" for label in labels if f"{label} bias" in parts.component]
    return float(whole.sel(component=labels).sum()), float(parts.sel(component=biases).sum())


def by_component(model: HookedGPT, cache: ActivationCache, q: int, target: int, foil: int) -> DataArray:
    """For `kept`."""
    return lens.direct_logit_attribution(model, cache, target, foil, pos=q)


def coefficients_of(now: Chosen, layer: int, neuron: int) -> Float[Tensor, " pos"]:
    """How much a key fires on each token."""
    return cache_of(now)["post", layer][0, :, neuron].float()


def value_of(now: Chosen, layer: int, neuron: int, n: int = 10) -> tuple[Dataset, Dataset]:
    """The tokens that a value promotes, and those that it suppresses."""
    n = min(n, now.model.cfg.d_vocab_out)
    return _of_weights(now, memories.promoted, layer, neuron, n), _of_weights(
        now, memories.suppressed, layer, neuron, n
    )


def says_of(now: Chosen, layers: tuple[int, ...], neurons: tuple[int, ...]) -> list[str]:
    """The token that each of these values promotes most."""
    return _of_weights(now, sayings, layers, neurons)


def sayings(model: HookedGPT, layers: tuple[int, ...], neurons: tuple[int, ...]) -> list[str]:
    """For `kept`: some of a layer at a time."""
    said: dict[tuple[int, int], str] = {}
    for layer in sorted(set(layers)):
        own = [neuron for each, neuron in zip(layers, neurons, strict=True) if each == layer]
        tokens = memories.promoted(model, layer, own, 1).token.values[:, 0]
        said |= {(layer, neuron): str(token) for neuron, token in zip(own, tokens, strict=True)}
    return [said[each] for each in zip(layers, neurons, strict=True)]


def key_of(now: Chosen, layer: int, neuron: int, n: int = 10) -> Dataset:
    """The tokens that fire a key by themselves."""
    return _of_weights(now, memories.key_tokens, layer, neuron, min(n, now.model.cfg.d_vocab))


def promoters_of(now: Chosen, token: int, n: int = 20) -> Dataset:
    """The values that promote a token most."""
    return _of_weights(now, memories.promoters, token, min(n, now.model.cfg.n_layers * now.model.cfg.d_mlp))


def changed_tokens(
    model: HookedGPT, tokens: Tensor, cache: ActivationCache, memory: str, factor: float, q: int, is_everywhere: bool,
    target: int, foil: int,
) -> Dataset:  # fmt: skip
    """For `kept`."""
    n, where = min(10, model.cfg.d_vocab_out), None if is_everywhere else -1
    found = cache if model.cfg.attention_dir == "causal" else None
    metric = metrics.logit_diff(model, target, foil)
    return memories.next_tokens(model, [memory], tokens[:, : q + 1], factor, n, pos=where, metric=metric, cache=found)


def seconds_of(now: Chosen, layer: int, n_tokens: int) -> float:
    """About how long a scan of so many tokens takes, from layers that were timed once."""
    return ROUGHLY * _of_weights(now, seconds_a_token) * n_tokens * (layer + 1)


def seconds_a_token(model: HookedGPT) -> float:
    """For `kept`: what a layer takes for a token."""
    width = min(ROW, model.cfg.n_ctx)
    row = torch.arange(width, device=model.device)[None] % model.cfg.d_vocab
    n_layers = min(2, model.cfg.n_layers)
    start = perf_counter()
    model(row, stop_at_layer=n_layers)
    return (perf_counter() - start) / width / n_layers


def scan_of(now: Chosen, layer: int, n_tokens: int, tell: Callable[[float], None]) -> Triggers:
    """What fires the keys of a layer in text; `tell` hears how far it has come."""
    key = (layer, n_tokens)
    return _of_weights(now, scanned, *key, beside=(tell,))


def scanned(model: HookedGPT, layer: int, n_tokens: int, tell: Callable[[float], None]) -> Triggers:
    """For `kept`: of the standard library, or without a tokenizer of tokens drawn at random."""
    width = min(ROW, model.cfg.n_ctx)
    if model.tokenizer is None:
        draw = torch.Generator().manual_seed(0)
        texts = torch.randint(0, model.cfg.d_vocab, (max(1, n_tokens // width), width), generator=draw)
        return memories.triggers(model, texts, layer, n_ctx=width, progress=False)

    def heard() -> Iterator[str]:
        n_read = 0
        for text in standard_library():
            tell(min(1.0, n_read / (3.3 * n_tokens)))  # about so many characters make a token
            n_read += len(text[:BEGINNING])
            yield text[:BEGINNING]

    return memories.triggers(model, heard(), layer, n_ctx=width, max_tokens=n_tokens, progress=False)


def card_of(now: Chosen, layer: int, neuron: int, n_tokens: int, found: Triggers) -> NeuronCard:
    """All that is known of a memory."""
    return _of_weights(now, card, layer, neuron, n_tokens, beside=(found,))


def card(model: HookedGPT, layer: int, neuron: int, n_tokens: int, found: Triggers) -> NeuronCard:
    """For `kept`; a scan is known by its number of tokens."""
    assert n_tokens
    return memories.neuron_card(model, layer, neuron, found, min(8, model.cfg.d_vocab_out), progress=False)


def changed(now: Chosen, memory: str, factor: float, is_everywhere: bool) -> Dataset:
    """What follows the position read with a memory scaled; `attrs["metric"]`: the logit difference in both runs."""
    key = (memory, factor, now.q, is_everywhere, now.target, now.foil)
    return kept(now.fingerprint, now.tokens, changed_tokens, (now.model, now.tokens, cache_of(now), *key), key)


def asked(*what: Hashable) -> bool:
    """Whether this session asked for something that takes a while."""
    return what in st.session_state.get("_memories_asked", set())


def ask(*what: Hashable) -> None:
    """From now on it is shown."""
    st.session_state.setdefault("_memories_asked", set()).add(what)


def _of_weights(now: Chosen, fn: Callable[..., Result], *key: Hashable, beside: tuple[Any, ...] = ()) -> Result:
    """What hangs on the weights and `key` alone, whatever the prompt."""
    return kept(now.fingerprint, torch.empty(0), fn, (now.model, *key, *beside), key)
