"""What values write: the tokens that a value vector promotes, and whether they follow what fires its key.

A value W_out[neuron] is read by the unembedding, without any bias of it. Where a norm stands between the MLP and the
stream, its gain and centring are part of the value. `norm` says what is made of it before the unembedding:

- "final": the model's final norm, as if the value were the whole stream (as in Geva et al., 2022);
- "gain": of that norm the gain and the centring alone, so that a value twice as long says twice as much;
- None: nothing (Geva et al., 2021).
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.memories.triggers import Triggers, check_layers, check_of
from interp.model import HookedGPT
from interp.model.block import Block, SharedNormBlock
from interp.results import token_texts
from interp.weights.stream import W_U, carried, checked_index, effective_embedding, embeddings, exact, is_post, through

if TYPE_CHECKING:
    from xarray import Dataset
else:
    Dataset = Any

NormKind = Literal["final", "gain"] | None
_AT_ONCE = 2**24  # logits that are held at once


@torch.no_grad()
def promoted(
    model: HookedGPT,
    layer: int,
    neuron: int | Sequence[int] | None = None,
    k: int = 10,
    *,
    norm: NormKind = "final",
    sign: Literal[1, -1] = 1,
) -> Dataset:
    """The k tokens that a value promotes most: an `xarray.Dataset` [rank], of several neurons or all [neuron rank].

    Each with its `probability`, the softmax of the value's logits, and its `logit`. With `sign=-1` those of the negated
    value, which a negative coefficient writes.
    """
    return _table(model, layer, neuron, k, norm, sign, largest=True)


@torch.no_grad()
def suppressed(
    model: HookedGPT,
    layer: int,
    neuron: int | Sequence[int] | None = None,
    k: int = 10,
    *,
    norm: NormKind = "final",
    sign: Literal[1, -1] = 1,
) -> Dataset:
    """The k tokens that a value lowers most, as `promoted` tells those that it raises."""
    return _table(model, layer, neuron, k, norm, sign, largest=False)


@torch.no_grad()
def promoters(
    model: HookedGPT,
    token: int | str,
    k: int = 10,
    *,
    layer: int | Sequence[int] | None = None,
    norm: NormKind = "final",
    sign: Literal[1, -1] = 1,
) -> Dataset:
    """The k values that promote a token most, of one layer, some, or all: an `xarray.Dataset` [rank].

    Each with its `memory` ("L2N17"), `layer` and `neuron`, the token's `logit` (see `promoted`), and how many tokens
    the value promotes more than this one (`token_rank`). With `sign=-1` those whose negated value promotes it.
    """
    from xarray import Dataset

    own = model.to_single_token(token) if isinstance(token, str) else token
    if not 0 <= own < model.cfg.d_vocab_out:
        raise ValueError(f"token={token}; the model predicts tokens 0 to {model.cfg.d_vocab_out - 1}")
    layers, n = check_layers(model, layer), model.cfg.d_mlp
    if not 1 <= k <= len(layers) * n:
        raise ValueError(f"k={k}; allowed: 1 to {len(layers) * n}, the memories of layers {layers}")
    logits = torch.cat([_read(model, each, norm, sign, None) @ W_U(model)[:, own] for each in layers])
    top = logits.topk(k)
    found_in, neurons = torch.tensor(layers)[top.indices.cpu() // n], top.indices.cpu() % n
    token_rank = torch.zeros(k, dtype=torch.long)
    for each in layers:
        here = (found_in == each).nonzero()[:, 0]
        if len(here):
            by_value = torch.cat(list(read_off(model, each, norm, sign, neurons[here])))
            token_rank[here] = (by_value > by_value[:, own, None]).sum(-1).cpu()
    found: dict[str, Any] = {
        "memory": [f"L{where}N{which}" for where, which in zip(found_in.tolist(), neurons.tolist(), strict=True)],
        "layer": found_in.numpy(),
        "neuron": neurons.numpy(),
        "logit": top.values.cpu().numpy(),
        "token_rank": token_rank.numpy(),
    }
    about = {"method": "promoters of a token", "token": token_texts(model, torch.tensor([own]))[0], "token_id": own}
    about |= {"norm": str(norm), "sign": sign, "layers": layers, "model": model.fingerprint()}
    return Dataset({name: ("rank", x) for name, x in found.items()}, {"rank": range(k)}, about)


@torch.no_grad()
def key_tokens(
    model: HookedGPT, layer: int, neuron: int, k: int = 10, *, effective: bool = False, sign: Literal[1, -1] = 1
) -> Dataset:
    """The k tokens that by themselves fire a key most: an `xarray.Dataset` [rank] with each one's `coefficient`.

    The key reads a token's embedding as if that were the whole stream before the MLP, through the norm that stands
    there; positions, attention and other MLPs are left out. If `effective`, in layers behind the first it reads what
    MLP0 makes of the embedding too (`weights.effective_embedding`). With `sign=-1` those that make it most negative.
    """
    from xarray import Dataset

    layer, own = check_layer(model, layer), int(check_neurons(model, neuron))
    if not 1 <= k <= model.cfg.d_vocab:
        raise ValueError(f"k={k}; allowed: 1 to {model.cfg.d_vocab}, the tokens that the model reads")
    block, is_past_mlp0 = model.blocks[layer], effective and layer > 0
    stream = (effective_embedding(model) if is_past_mlp0 else embeddings(model)).to(model.dtype)
    stream = carried(model, stream, int(is_past_mlp0), layer, lambda norm, x: norm.unheard(x))
    before = block.ln1 if isinstance(block, SharedNormBlock) else block.ln2
    stream = before.unheard(block.ln1_post.unheard(stream) if is_post(model) else stream)
    top = (sign * exact(block.mlp.of_neuron(stream, own))).topk(k)
    found: dict[str, Any] = {
        "token": token_texts(model, top.indices.cpu()),
        "token_id": top.indices.cpu().numpy(),
        "coefficient": (sign * top.values).cpu().numpy(),
    }
    about = {"method": "tokens that fire a key", "layer": layer, "neuron": own, "effective": effective, "sign": sign}
    about |= {"model": model.fingerprint()}
    return Dataset({name: ("rank", x) for name, x in found.items()}, {"rank": range(k)}, about)


def _table(
    model: HookedGPT,
    layer: int,
    neuron: int | Sequence[int] | None,
    k: int,
    norm: NormKind,
    sign: Literal[1, -1],
    largest: bool,
) -> Dataset:
    from xarray import Dataset

    layer = check_layer(model, layer)
    if not 1 <= k <= model.cfg.d_vocab_out:
        raise ValueError(f"k={k}; allowed: 1 to {model.cfg.d_vocab_out}, the tokens that the model predicts")
    is_one, neurons = isinstance(neuron, int), check_neurons(model, neuron)
    parts = []
    for logits in read_off(model, layer, norm, sign, neurons):
        top = logits.topk(k, largest=largest)
        parts.append((top.indices, top.values, (top.values - logits.logsumexp(-1, keepdim=True)).exp()))
    ids, logits, probability = (torch.cat(each).cpu() for each in zip(*parts, strict=True))
    found: dict[str, Any] = {"token": token_texts(model, ids), "token_id": ids.numpy()}
    found |= {"probability": probability.numpy(), "logit": logits.numpy()}
    coords = {"neuron": neurons.tolist(), "rank": range(k)}
    about = {"method": "promoted tokens" if largest else "suppressed tokens", "norm": str(norm), "sign": sign}
    about |= {"layer": layer, "model": model.fingerprint()}
    table = Dataset({name: (list(coords), x) for name, x in found.items()}, coords, about)
    return table.isel(neuron=0) if is_one else table


@torch.no_grad()
def agreement(model: HookedGPT, found: Triggers, *, norm: NormKind = "final") -> Dataset:
    """Whether values promote what follows the triggers of their keys: an `xarray.Dataset`.

    By key, [layer neuron]: the token that the value promotes most (`token_id`) and its `probability`, the token after
    the strongest trigger that is not the last of its row (`next_id`; -1 where there is none), if they are the same
    (`agrees`), and how many tokens the value promotes more than that one (`next_rank`; -1). By layer: the `rate` of
    agreement among keys that have such a token (`n_keys`), the standard `error` of it, its `chance` where the same
    tokens are dealt to the keys at random, and the `median_rank`.
    """
    from xarray import Dataset

    check_of(model, found)
    after, by_key = found.tokens(1), []
    next_id = after.gather(-1, (after >= 0).long().argmax(-1, keepdim=True))[..., 0]
    for layer, wanted in zip(found.layers, next_id, strict=True):
        tops, probabilities, ranks, first = [], [], [], 0
        for logits in read_off(model, layer, norm, found.about["sign"]):
            own = wanted[first : (first := first + len(logits))].to(logits.device)
            best = logits.max(-1)
            tops.append(best.indices)
            probabilities.append((best.values - logits.logsumexp(-1)).exp())
            own_logit = logits.gather(1, own.clamp(min=0)[:, None])
            ranks.append((logits > own_logit).sum(-1).masked_fill(own < 0, -1))
        by_key.append([torch.cat(each).cpu() for each in (tops, probabilities, ranks)])
    token_id, probability, next_rank = map(torch.stack, zip(*by_key, strict=True))
    agrees, has_next = token_id == next_id, next_id >= 0
    keys: dict[str, Tensor] = {
        "token_id": token_id, "probability": probability, "next_id": next_id, "agrees": agrees, "next_rank": next_rank
    }  # fmt: skip
    n = has_next.sum(-1)
    rate = agrees.sum(-1) / n
    layers: dict[str, Any] = {
        "rate": rate,
        "error": (rate * (1 - rate) / n).sqrt(),
        "chance": torch.stack([_by_chance(*each) for each in zip(token_id, next_id, has_next, strict=True)]),
        "median_rank": torch.stack([ranks[own].float().quantile(0.5) if own.any() else torch.tensor(torch.nan)
                                    for ranks, own in zip(next_rank, has_next, strict=True)]),
        "n_keys": n,
    }  # fmt: skip
    coords = {"layer": found.layers, "neuron": range(token_id.shape[1])}
    arrays = {name: (["layer", "neuron"], x.numpy()) for name, x in keys.items()}
    arrays |= {name: (["layer"], x.numpy()) for name, x in layers.items()}
    about = {"method": "agreement of values with the tokens after triggers", "norm": str(norm)}
    return Dataset(arrays, coords, about | {"model": found.about["model"], "corpus": found.about["corpus"]})


def _by_chance(token_id: Int[Tensor, " key"], next_id: Int[Tensor, " key"], has_next: Tensor) -> Float[Tensor, ""]:
    """The rate of agreement expected of keys with each other's next tokens."""
    n = int(has_next.sum())
    size = int(torch.cat((token_id, next_id)).max()) + 1
    counts = [torch.bincount(ids[has_next], minlength=size).double() for ids in (token_id, next_id)]
    return (counts[0] @ counts[1] / n**2 if n else torch.tensor(torch.nan)).float()


@torch.no_grad()
def key_statistics(model: HookedGPT, found: Triggers, *, share: float = 0.1, dense: float = 0.5) -> Dataset:
    """How often each key fires, and how long it and its value are: an `xarray.Dataset` [layer neuron].

    `largest` is its largest coefficient. `active` is the share of random positions where it is above 0 (with ReLU), or
    above `share` of the key's largest size (with other activations); `active_negative` where it is as far below 0. A
    key that is never above 0 in the whole corpus is `is_dead` (a gated one: nor below 0 at the random positions); one
    that is active, either way, at more than `dense` of them is `is_dense`. `key_norm` (gated: `gate_norm` too) and
    `value_norm` are lengths of weights.
    """
    from xarray import Dataset

    check_of(model, found)
    if found.sample is None or found.about["sign"] != 1:
        raise ValueError("key_statistics needs a scan with a reservoir, and with sign=1")
    sample, largest, least = found.sample.float(), found.value[..., 0], least_active(model, found, share)
    above, below = ((each > least).float().mean(0) for each in (sample, -sample))
    is_dead = (largest <= 0) & ((sample >= 0).all(0) | (not model.cfg.gated_mlp))
    mlps = [model.blocks[layer].mlp for layer in found.layers]
    norms = {"key_norm": [mlp.W_in.mT for mlp in mlps], "value_norm": [mlp.W_out for mlp in mlps]}
    if model.cfg.gated_mlp:
        norms["gate_norm"] = [mlp.W_gate.mT for mlp in mlps]  # type: ignore[attr-defined]
    tensors = {
        "largest": largest, "active": above, "active_negative": below, "is_dead": is_dead,
        "is_dense": above + below > dense,
    } | {name: torch.stack([exact(W).norm(dim=-1) for W in each]).cpu() for name, each in norms.items()}  # fmt: skip
    coords = {"layer": found.layers, "neuron": range(largest.shape[1])}
    about = {"method": "key statistics", "share": share, "dense": dense, "positions": len(sample)}
    about |= {"model": found.about["model"], "corpus": found.about["corpus"]}
    return Dataset({name: (list(coords), x.numpy()) for name, x in tensors.items()}, coords, about)


def least_active(model: HookedGPT, found: Triggers | None, share: float) -> Float[Tensor, "layer neuron"]:
    """Above how much, either way, a key of the scanned layers is active: with ReLU 0, else a share of its largest size.

    Without a scan, of all layers with ReLU.
    """
    is_relu = model.cfg.act_fn in ("relu", "relu2") and not model.cfg.gated_mlp
    if found is None:
        if not is_relu:
            raise ValueError(
                f"act_fn={model.cfg.act_fn!r}: only a scan tells how large the coefficients of a key are, and so when "
                "it is active; give found=triggers(model, corpus)"
            )
        return torch.zeros(model.cfg.n_layers, model.cfg.d_mlp)
    largest = found.value[..., 0]
    if found.sample is not None and len(found.sample):
        largest = torch.maximum(largest, found.sample.abs().amax(0).float())
    return torch.zeros_like(largest) if is_relu else share * largest


def value_vectors(model: HookedGPT, layer: int) -> Float[Tensor, "neuron d_model"]:
    """The values of a layer, as they stand in the stream at its end."""
    block, rows = model.blocks[layer], exact(model.blocks[layer].mlp.W_out)
    written = through(block.ln2_post, rows) if isinstance(block, Block) else rows
    return carried(model, written, layer + 1, model.cfg.n_layers)


def read_off(
    model: HookedGPT,
    layer: int,
    norm: NormKind,
    sign: int = 1,
    neurons: Int[Tensor, " neuron"] | None = None,
) -> Iterator[Float[Tensor, "neuron d_vocab_out"]]:
    """The logits of a layer's values, some neurons at once."""
    unembed = W_U(model)
    for some in _read(model, layer, norm, sign, neurons).split(max(1, _AT_ONCE // model.cfg.d_vocab_out)):
        yield some @ unembed


def _read(
    model: HookedGPT, layer: int, norm: str | None, sign: int, neurons: Int[Tensor, " neuron"] | None
) -> Float[Tensor, "neuron d_model"]:
    """A layer's values as the unembedding reads them."""
    if norm not in ("final", "gain", None):
        raise ValueError(f"norm={norm!r}; allowed: 'final', 'gain', None")
    rows = sign * value_vectors(model, layer)
    rows = rows if neurons is None else rows[neurons.to(rows.device)]
    if norm == "final":
        return exact(model.ln_final.unheard(rows.to(model.dtype)))
    return through(model.ln_final, rows) if norm == "gain" else rows


def check_layer(model: HookedGPT, layer: int) -> int:
    """A layer's index from the start; raise if it has no keys."""
    if model.cfg.attn_only:
        raise ValueError("attn_only=True: the model has no MLP in any layer, and so no values")
    return checked_index(model, "layer", layer)


def check_neurons(model: HookedGPT, neuron: int | Sequence[int] | None) -> Int[Tensor, " neuron"]:
    """The neurons that are meant; None: all."""
    n = model.cfg.d_mlp
    given = list(range(n) if neuron is None else [neuron] if isinstance(neuron, int) else neuron)
    if not given:
        raise ValueError("no neuron was given")
    if wrong := [each for each in given if not -n <= each < n]:
        raise ValueError(f"no such neurons: {wrong}; the model has {n} in a layer: {-n} to {n - 1}")
    return torch.tensor([each % n for each in given])
