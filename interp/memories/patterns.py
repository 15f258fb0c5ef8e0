"""What the triggers of a key have in common, and which token of them it needs (Geva et al., 2021)."""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from interp.hooks import HookPoint
from interp.memories.scan import BEFORE
from interp.memories.triggers import Triggers, check_of
from interp.memories.values import check_neurons
from interp.model import HookedGPT

if TYPE_CHECKING:
    from xarray import Dataset
else:
    Dataset = Any

REMOVED = ("nothing", "first", "last", "random")


def shared_patterns(
    found: Triggers, layer: int, neuron: int, *, longest: int = 3, least: float = 0.5, within: int = BEFORE + 1
) -> Dataset:
    """The n-grams that many of a key's triggers have, those of most triggers first: an `xarray.Dataset` [pattern].

    Each with its `text`, its length `n`, the `share` of the triggers whose last `within` tokens have it, and the share
    that end with it (`share_at_end`). One that is a part of a longer one, of the same triggers, is left out; so is one
    of fewer than two triggers, or than `least` of them.
    """
    from xarray import Dataset

    if longest < 1 or not 1 <= within <= BEFORE + 1:
        raise ValueError(f"longest={longest}, within={within}; both start from 1, and {BEFORE + 1} tokens are kept")
    at = found.at[found.place_of(layer, neuron)]
    windows = found.window[at[at >= 0]][:, BEFORE + 1 - within : BEFORE + 1].tolist()
    where: dict[tuple[int, ...], set[int]] = {}
    ends: Counter[tuple[int, ...]] = Counter()
    for i, row in enumerate(windows):
        prefix = [token for token in row if token >= 0]
        for n in range(1, longest + 1):
            for first in range(len(prefix) - n + 1):
                where.setdefault(tuple(prefix[first : first + n]), set()).add(i)
            ends[tuple(prefix[-n:])] += len(prefix) >= n
    enough = max(2, least * len(windows))
    many = {gram: rows for gram, rows in where.items() if len(rows) >= enough}
    inside = {
        longer[first : first + n]
        for longer, rows in many.items()
        for n in range(1, len(longer))
        for first in range(len(longer) - n + 1)
        if many[longer[first : first + n]] == rows
    }
    kept = sorted(many.keys() - inside, key=lambda gram: (-len(many[gram]), -ends[gram], -len(gram), gram))
    arrays: dict[str, Any] = {
        "text": found.texts([list(gram) for gram in kept]),
        "n": [len(gram) for gram in kept],
        "share": [len(many[gram]) / len(windows) for gram in kept],
        "share_at_end": [ends[gram] / len(windows) for gram in kept],
    }
    about = {"method": "shared patterns", "layer": layer, "neuron": neuron, "triggers": len(windows)}
    return Dataset({name: ("pattern", x) for name, x in arrays.items()}, {"pattern": range(len(kept))}, about)


@torch.no_grad()
def removal_test(
    model: HookedGPT,
    found: Triggers,
    neurons: Sequence[int] | None = None,
    *,
    n_keys: int = 64,
    n_triggers: int = 5,
    batch_size: int = 64,
    seed: int = 0,
    progress: bool = True,
) -> Dataset:
    """What of a key's coefficient is lost when a token of its trigger's prefix is removed: an `xarray.Dataset`.

    `change`, [removed layer key trigger], is the coefficient at the last token of what is left, less the coefficient on
    the whole prefix, by the size of that one: -1 where nothing is left of it. Removed is the first token, the last, or
    one between them at random. A prefix is what the scan kept, at most 25 tokens up to the trigger, read from position
    0; `base` is the coefficient on it, and `value` what it was in the corpus. Keys are `neurons` in every layer, or
    `n_keys` random ones in each; `neuron` [layer key] says which. Prefixes of fewer than 3 tokens are NaN.
    """
    from xarray import Dataset

    check_of(model, found)
    n_triggers = min(n_triggers, found.value.shape[-1])
    if min(n_keys, n_triggers, batch_size) < 1:
        raise ValueError(f"n_keys={n_keys}, n_triggers={n_triggers}, batch_size={batch_size}; all start from 1")
    draw = torch.Generator().manual_seed(seed)
    n_neurons = found.value.shape[1]
    chosen = [
        torch.randperm(n_neurons, generator=draw)[:n_keys].sort().values if neurons is None
        else check_neurons(model, neurons)
        for _ in found.layers
    ]  # fmt: skip
    keys = torch.stack(chosen)
    at = found.at.gather(1, keys[..., None].expand(-1, -1, found.at.shape[-1]))[..., :n_triggers]
    is_asked = (at >= 0) & (found.window[at.clamp(min=0)][..., : BEFORE + 1] >= 0).sum(-1).ge(3)
    layer, key, trigger = is_asked.nonzero(as_tuple=True)
    prefixes = [[token for token in row if token >= 0] for row in found.window[at[is_asked]][:, : BEFORE + 1].tolist()]
    start = model.bos_tokens() if found.about["bos"] else []
    rows = [start + cut for prefix in prefixes for cut in _cuts(prefix, draw)]
    of = torch.stack((layer, keys[layer, key])).repeat_interleave(len(REMOVED), 1)
    m = found.about["sign"] * _last_coefficients(model, found.layers, rows, of, batch_size, progress)
    all_of = torch.full((len(REMOVED), *at.shape), torch.nan)
    all_of[:, layer, key, trigger] = m.view(-1, len(REMOVED)).T
    base = all_of[0]
    values = found.value.gather(1, keys[..., None].expand(-1, -1, found.value.shape[-1]))[..., :n_triggers]
    axes = ["layer", "key", "trigger"]
    arrays: dict[str, Any] = {
        "change": (["removed", *axes], ((all_of[1:] - base) / base.abs()).numpy()),
        "base": (axes, base.numpy()),
        "value": (axes, values.masked_fill(~is_asked, torch.nan).numpy()),
    }
    coords: dict[str, Any] = {"removed": list(REMOVED[1:]), "layer": found.layers}
    coords |= {"key": range(keys.shape[1]), "trigger": range(n_triggers), "neuron": (axes[:2], keys.numpy())}
    about = {"method": "removal of a token", "seed": seed, "model": found.about["model"]}
    return Dataset(arrays, coords, about | {"corpus": found.about["corpus"]})


def _cuts(prefix: list[int], draw: torch.Generator) -> list[list[int]]:
    """A prefix as it is, and without each of the tokens that are removed."""
    between = int(torch.randint(1, len(prefix) - 1, (), generator=draw))
    return [prefix, prefix[1:], prefix[:-1], prefix[:between] + prefix[between + 1 :]]


def _last_coefficients(
    model: HookedGPT,
    layers: list[int],
    rows: list[list[int]],
    of: Int[Tensor, "two row"],
    batch_size: int,
    progress: bool,
) -> Float[Tensor, " row"]:
    """The coefficient of one key for each row, (index of layer, neuron), at the row's last token."""
    found = torch.empty(len(rows))
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    with tqdm(total=len(rows), desc="removal", unit=" prefixes", delay=1.0, disable=not progress) as bar:
        for first in range(0, len(rows), batch_size):
            some = torch.tensor(order[first : first + batch_size])
            given = [rows[i] for i in some.tolist()]
            last = torch.tensor([len(row) - 1 for row in given])
            mask = torch.arange(int(last.max()) + 1) <= last[:, None]
            tokens = torch.full(mask.shape, model.pad_token_id())
            tokens[mask] = torch.tensor([token for row in given for token in row])
            at, neuron = of[:, some]

            def take(
                x: Tensor, point: HookPoint, some: Tensor = some, last: Tensor = last, at: Tensor = at,
                neuron: Tensor = neuron,
            ) -> None:  # fmt: skip
                own = (at == layers.index(point.layer())).nonzero()[:, 0]
                found[some[own]] = x[own, last[own], neuron[own]].float().cpu()

            with model.recording([f"blocks.{layer}.mlp.hook_post" for layer in layers], take):
                model(
                    tokens.to(model.device),
                    return_type=None,
                    attention_mask=None if mask.all() else mask.to(model.device),
                    stop_at_layer=max(layers) + 1,
                )
            bar.update(len(some))
    return found
