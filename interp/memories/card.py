"""All that is known of one memory: what fires its key, what its value says, what it needs of a trigger."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from interp.cards import Card, rows, shown
from interp.memories.patterns import removal_test, shared_patterns
from interp.memories.triggers import Triggers, check_of
from interp.memories.values import check_layer, check_neurons, key_statistics, promoted, suppressed
from interp.model import HookedGPT

if TYPE_CHECKING:
    from xarray import Dataset
else:
    Dataset = Any

_BEFORE = 48  # characters of a trigger's text that are printed


class NeuronCard(Card):
    """A memory's card; `card["triggers"]` is one of its tables (see `neuron_card`), and `print(card)` shows all."""

    of = "neuron"
    parts = ("key", "triggers", "shared", "promoted", "suppressed", "removal")

    @property
    def says(self) -> str:
        """Its value in a word: the token promoted most."""
        return str(self["promoted"].token.values[0])

    def __str__(self) -> str:
        attrs = self.tables.attrs
        lines = [f"{self.name}: promotes {self.says!r}    (model {str(attrs['model'])[:12]})", "", "key and value"]
        lines += [f"   {name:<16}{value:9.4g}" for name, value in rows(self["key"], "statistic", "value")]
        lines += ["", f"fires on [token] -> next   (of {attrs['corpus tokens']:,} tokens)"]
        lines += [
            f"   {value:8.3f}  {shown(before)[-_BEFORE:]}[{shown(token)}] -> {shown(after)}"
            for value, before, token, after in rows(self["triggers"], "value", "before", "token", "next_token")
        ]
        lines += ["", "which share"]
        lines += [
            f"   {shown(text):>24}  {share:4.0%}, at the end {at_end:4.0%}"
            for text, share, at_end in rows(self["shared"], "text", "share", "share_at_end")
        ]
        for part, share in (("promoted", f"; next tokens among these: {attrs['follows']:.0%}"), ("suppressed", "")):
            lines += ["", f"{part} by the value{share}"]
            lines += [f"   {shown(token):>24}{logit:9.3f}" for token, logit in rows(self[part], "token", "logit")]
        lines += ["", "without a token of the trigger: change of the coefficient, median"]
        removal = self["removal"]
        lines += [
            f"   {removed:<10}{float(removal.change.sel(removed=removed).median()):+.0%}"
            for removed in removal.removed.values
        ]
        return "\n".join(lines)


@torch.no_grad()
def neuron_card(
    model: HookedGPT, layer: int, neuron: int, found: Triggers, k: int = 8, *, progress: bool = True
) -> NeuronCard:
    """A memory's card; `found` is what `triggers` found of its layer.

    Its tables: "key", how often it fires and how long key and value are (see `key_statistics`); "triggers", the k
    strongest; "shared", the k n-grams that most of all its triggers have; "promoted" and "suppressed", k tokens each;
    "removal", what the coefficients of its k strongest triggers lose without a token (see `removal_test`).
    `tables.attrs["follows"]` is the share of all its triggers whose next token is among those promoted.
    """
    from xarray import Dataset

    layer, neuron = check_layer(model, layer), int(check_neurons(model, neuron))
    check_of(model, found)
    at = found.place_of(layer, neuron)
    own = _of_layer(found, layer)
    statistics = key_statistics(model, own).sel(layer=layer, neuron=neuron)
    values = [float(statistics[name]) for name in statistics.data_vars]
    best, after = promoted(model, layer, neuron, k), found.tokens(1)[at]
    follows = np.isin(after[after >= 0].numpy(), best.token_id.to_numpy())
    removal = removal_test(model, own, [neuron], n_triggers=k, progress=progress)
    tables = {
        "key": Dataset({"value": ("statistic", values)}, {"statistic": list(map(str, statistics.data_vars))}),
        "triggers": found[layer, neuron].isel(rank=slice(k)),
        "shared": shared_patterns(found, layer, neuron).isel(pattern=slice(k)),
        "promoted": best,
        "suppressed": suppressed(model, layer, neuron, k),
        "removal": removal.isel(layer=0, key=0, drop=True),
    }
    about = {"layer": layer, "neuron": neuron, "model": model.fingerprint(), "corpus": found.about["corpus"]}
    about |= {"corpus tokens": found.about["tokens"], "follows": float(follows.mean()) if len(follows) else np.nan}
    return NeuronCard.made(tables, about)


def _of_layer(found: Triggers, layer: int) -> Triggers:
    """What was found of one layer."""
    at = found.layers.index(layer)
    kept = {name: found.tensors[name][[at]] for name in ("value", "at", "counts") if name in found.tensors}
    if found.sample is not None:
        kept["sample"] = found.sample[:, [at]]
    return replace(found, about=found.about | {"layers": [layer]}, tensors=found.tensors | kept)
