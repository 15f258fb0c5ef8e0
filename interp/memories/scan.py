"""The largest coefficients of every key, kept while a corpus streams by (Geva et al., 2021).

1. Of each row and key, the largest coefficient. Most are no larger than the least that the key keeps, and that is all.
2. Where one is larger: at which position. Of a document, the largest alone, once all of the document was read.
3. These join what the key keeps: of equal contexts the largest; of all the k largest; of equal values the first.

A position's place, row * n_ctx + column, is its number in the corpus: by it, parts that were read apart are one again.
Only what is above 0 counts. A context is the last tokens of the row, up to the position.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

BEFORE, AFTER = 24, 8  # tokens around a trigger that are kept
_SAME = 8  # tokens that make two contexts the same
_MIXER = 6364136223846793005  # odd: a polynomial in it, modulo 2^64, tells contexts apart
_MANY = 4  # times k
_PART = 16  # columns
_AT_ONCE = {"cpu": 128}  # positions whose coefficients stay in the processor's cache
_KEYS_AT_ONCE = 2**10  # whose candidates are compared in pairs
_UNSETTLED = {"cpu": (2**6, 2**21), "cuda": (2**9, 2**24)}  # rows, and rows times keys, that wait to be joined
_COMPACTED = 2**14  # kept contexts that are looked through for those that no key needs any more
_PARTS = 16  # of them: small tensors among large ones that come and go would keep these from being given back
N_LEVELS, LOWEST = 32, -16  # a histogram's: sizes from 2**LOWEST on, each twice the one before

State = dict[str, Tensor]
Coefficients = Float[Tensor, "row pos key"]
Candidates = tuple[Float[Tensor, "key candidate"], Int[Tensor, "key candidate"], Int[Tensor, "key candidate"]]


@dataclass(frozen=True, eq=False)
class Batch:
    """Rows of a corpus: tokens, which of them are real, and where they come from."""

    tokens: Int[Tensor, "row pos"]
    real: Bool[Tensor, "row pos"]
    place: Int[Tensor, "row pos"]
    document: Int[Tensor, " row"]
    start: Int[Tensor, " row"]

    @cached_property
    def is_whole(self) -> bool:
        return bool(self.real.all())

    @cached_property
    def context(self) -> Int[Tensor, "row pos"]:
        """A number that two positions share if their last tokens are the same."""
        seen = F.pad((self.tokens + 1) * self.real, (_SAME - 1, 0))
        found = torch.zeros_like(self.tokens)
        for each in seen.unfold(1, _SAME, 1).unbind(-1):
            found = found * _MIXER + each
        return found

    @cached_property
    def group(self) -> Int[Tensor, " row"]:
        """The number of a row's document among those of the batch."""
        return F.pad((self.document[1:] != self.document[:-1]).long(), (1, 0)).cumsum(0)

    @classmethod
    def joined(cls, batches: Sequence["Batch"]) -> "Batch":
        """Batches that follow one another as one."""
        width = max(batch.tokens.shape[1] for batch in batches)
        tokens, real, place = (
            torch.cat([F.pad(x, (0, width - x.shape[1])) for x in each])
            for each in zip(*((batch.tokens, batch.real, batch.place) for batch in batches), strict=True)
        )
        document, start = torch.cat([b.document for b in batches]), torch.cat([b.start for b in batches])
        return cls(tokens, real, place, document, start)


class Largest:
    """The k largest coefficients of every key: `value`, `place`, `context` [layer key rank], 0 and -1 where none is.

    With `by_document`, a document gives its largest alone, and of equal contexts one is kept; it must have been read
    to its end before it counts, so parts that are merged may not share one.
    """

    def __init__(self, n_layers: int, n_keys: int, k: int, by_document: bool, device: torch.device) -> None:
        self.k, self.by_document = k, by_document
        self.value = torch.zeros(n_layers, n_keys, k, device=device)
        self.place = torch.full((n_layers, n_keys, k), -1, device=device)
        self.context = torch.zeros_like(self.place)
        self.document = torch.tensor(-1)  # the one that is being read, and its largest so far [layer key]
        self.own_value = torch.zeros(n_layers, n_keys, device=device)
        self.own_place = torch.full((n_layers, n_keys), -1, device=device)
        self.own_context = torch.zeros_like(self.own_place)
        self._highest: list[list[tuple[Tensor, Tensor]]] = [[] for _ in range(n_layers)]  # of rows not yet settled
        self._found: list[tuple[Tensor, Tensor]] = []
        self._most = _UNSETTLED.get(device.type, _UNSETTLED["cpu"])

    def add(self, layer: int, x: Coefficients, place: Int[Tensor, "row pos"]) -> None:
        """Take in what a layer's keys are at these places of the corpus."""
        if self.by_document:
            self._highest[layer].append(_highest(x))
            return
        self._check(x.amax(1), layer)
        row, column, key = self._passing(layer, x).nonzero(as_tuple=True)
        key, order = key.sort(stable=True)
        row, column = row[order], column[order]
        counts = torch.bincount(key, minlength=x.shape[2])
        nth = torch.arange(len(key), device=x.device) - (counts.cumsum(0) - counts)[key]
        value = x.new_zeros(x.shape[2], int(counts.max()))
        of_key = torch.full(value.shape, -1, device=x.device)
        value[key, nth], of_key[key, nth] = x[row, column, key], place[row, column]
        self._join(slice(layer, layer + 1), value, of_key, torch.zeros_like(of_key))
        self._found.append((row, column))

    @property
    def is_due(self) -> bool:
        """Whether what was taken in is to be settled before more is: of positions, each batch."""
        n_rows = sum(len(highest) for highest, _ in self._highest[-1])
        return not self.by_document or n_rows >= self._most[0] or n_rows * self.own_value.numel() > self._most[1]

    def settle(self, batch: Batch) -> tuple[Int[Tensor, " found"], Int[Tensor, " found"]]:
        """Keep the largest of what all layers have taken in, `batch`: the rows and columns that may be kept."""
        if self.by_document:
            return self._settle_documents(batch)
        row, column = (torch.cat(each) for each in zip(*self._found, strict=True))
        self._found = []
        return row, column

    def _check(self, highest: Float[Tensor, "row key"], layer: int) -> None:
        is_finite = highest.isfinite()
        if not is_finite.all():
            more, key = divmod(int((~is_finite).any(0).nonzero()[0]), self.value.shape[1])
            raise ValueError(f"coefficients are NaN or infinite: key {key} of layer {layer + more} of those scanned")

    def _passing(self, layer: int, x: Coefficients) -> Bool[Tensor, "row pos key"]:
        """What is larger than the least that its key keeps, and among the k largest of the batch where that is much."""
        passes = x > self.value[layer, :, -1]
        many = passes.view(torch.uint8).flatten(0, 1).sum(0, dtype=torch.int32) > _MANY * self.k
        if many.any():
            some = x[..., many]
            kth = some.flatten(0, 1).mT.contiguous().topk(self.k).values[:, -1]
            passes[..., many] &= some >= kth
        return passes

    def _settle_documents(self, batch: Batch) -> tuple[Int[Tensor, " found"], Int[Tensor, " found"]]:
        device, n_layers = self.value.device, len(self.value)
        parts = [[torch.cat(each) for each in zip(*layer, strict=True)] for layer in self._highest]
        highest, columns = (torch.stack(each, 1).flatten(1) for each in zip(*parts, strict=True))
        self._highest = [[] for _ in range(n_layers)]
        self._check(highest, 0)
        goes_on = int(batch.document[0]) == int(self.document)
        n_groups = int(batch.group[-1]) + 1
        first = torch.searchsorted(batch.group, torch.arange(n_groups)).to(device)
        group, place, context = (each.to(device) for each in (batch.group, batch.place, batch.context))
        best = highest.new_zeros(n_groups, highest.shape[1])
        best.scatter_reduce_(0, group[:, None].expand_as(highest), highest, "amax")
        wins = (highest == best[group]) & (highest > self.value[..., -1].flatten())
        if goes_on:
            wins &= (highest > self.own_value.flatten()) | (group > 0)[:, None]
        nth = wins.cumsum(0)
        before = (nth - wins.long())[first]
        row, key = (wins & (nth - before[group] == 1)).nonzero(as_tuple=True)
        column = columns[row, key]
        shape = highest.shape[1], n_groups + (not goes_on)
        candidates = [highest.new_zeros(shape), torch.full(shape, -1, device=device), place.new_zeros(shape)]
        own = [self.own_value, self.own_place, self.own_context]
        new = [highest[row, key], place[row, column], context[row, column]]
        at = group[row] + (not goes_on)
        for held, each, some in zip(candidates, own, new, strict=True):
            held[:, 0] = each.flatten()
            held[key, at] = some
            each.copy_(held[:, -1].view_as(each))
        self.document = batch.document[-1]
        self._join(slice(0, n_layers), *(each[:, :-1] for each in candidates))
        return row, column

    def end(self) -> None:
        """The corpus is read: so is the last document."""
        own = (self.own_value, self.own_place, self.own_context)
        self._join(slice(0, len(self.value)), *(x.flatten()[:, None] for x in own))
        self.own_value.zero_()
        self.own_place.fill_(-1)
        self.own_context.zero_()

    def merge(self, other: "Largest") -> None:
        """Take in what was kept of another part of the corpus. Both parts have ended."""
        for layer in range(len(self.value)):
            parts = [
                torch.cat((mine[layer], theirs[layer].to(mine)), 1)
                for mine, theirs in (
                    (self.place, other.place),
                    (self.value, other.value),
                    (self.context, other.context),
                )
            ]
            order = parts[0].argsort(dim=1)
            place, value, context = (x.gather(1, order) for x in parts)
            self.value[layer], self.place[layer], self.context[layer] = self._best(value, place, context)

    def _join(self, layers: slice, *candidates: Tensor) -> None:
        """Candidates [key candidate] stand later in the corpus than all that is kept, and in its order where equal."""
        kept = [x[layers].flatten(0, 1) for x in (self.value, self.place, self.context)]  # views
        keys = (candidates[0] > kept[0][:, -1:]).any(1).nonzero()[:, 0]
        joined = [torch.cat((x[keys], new[keys]), 1) for x, new in zip(kept, candidates, strict=True)]
        for x, best in zip(kept, self._best(*joined), strict=True):
            x[keys] = best

    def _best(self, value: Tensor, place: Tensor, context: Tensor) -> Candidates:
        if self.by_document:
            ordered = context.sort(1).values  # 0 where none is
            is_again = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] != 0)
            for keys in is_again.any(1).nonzero()[:, 0].split(_KEYS_AT_ONCE):
                value[keys] = _without_repeats(value[keys], context[keys])
        order = value.sort(dim=1, descending=True, stable=True).indices[:, : self.k]
        value, place, context = (x.gather(1, order) for x in (value, place, context))
        return value, place.masked_fill(value == 0, -1), context.masked_fill(value == 0, 0)

    def state(self) -> State:
        names = ("value", "place", "context", "document", "own_value", "own_place", "own_context")
        return {name: getattr(self, name) for name in names}

    def load(self, state: Mapping[str, Tensor]) -> None:
        for name, held in self.state().items():
            setattr(self, name, state[name].to(held, copy=True))


def _without_repeats(
    value: Float[Tensor, "key candidate"], context: Int[Tensor, "key candidate"]
) -> Float[Tensor, "key candidate"]:
    """Values, but 0 where the same context has a larger one, or an equal one before it."""
    n = value.shape[1]
    first = torch.ones(n, n, dtype=torch.bool, device=value.device).triu(1)
    one, other = value[:, :, None], value[:, None]
    is_before = (one > other) | ((one == other) & first)
    is_same = context[:, :, None] == context[:, None]
    return value.masked_fill((is_same & is_before & (one > 0)).any(1), 0)


def _highest(x: Coefficients) -> tuple[Float[Tensor, "row key"], Int[Tensor, "row key"]]:
    """The largest of every row and key, and its column; of equals the first."""
    if x.is_cuda:
        return x.max(1)
    parts = torch.stack([part.amax(1) for part in x.split(_PART, 1)], 1)  # two such steps are faster than one
    highest, part = parts.max(1)
    columns = part[:, None] * _PART + torch.arange(_PART)[:, None]
    within = x.gather(1, columns.clamp_(max=x.shape[1] - 1)).max(1).indices
    return highest, part * _PART + within


class Contexts:
    """The tokens around positions, in the order of the corpus."""

    _FIELDS = ("place", "document", "pos", "window")

    def __init__(self) -> None:
        width = BEFORE + 1 + AFTER
        none = torch.empty(0, dtype=torch.long)
        self._parts: list[list[Tensor]] = [[none, none, none, torch.empty(0, width, dtype=torch.int32)]]
        self._limit = _COMPACTED

    def __len__(self) -> int:
        return sum(len(part[0]) for part in self._parts)

    @property
    def is_large(self) -> bool:
        return len(self) > self._limit

    def add(self, batch: Batch, wanted: Bool[Tensor, "row pos"]) -> None:
        """Note the positions of a batch that are wanted."""
        row, column = wanted.nonzero(as_tuple=True)
        around = F.pad(batch.tokens.masked_fill(~batch.real, -1), (BEFORE, AFTER), value=-1)
        window = around.unfold(1, BEFORE + 1 + AFTER, 1)[row, column].int()
        self._parts.append([batch.place[row, column], batch.document[row], batch.start[row] + column, window])
        if len(self._parts) > _PARTS:
            self._parts = [list(self.state().values())]

    def keep(self, places: Int[Tensor, " place"]) -> None:
        """Forget all but these places."""
        held = self.state()
        at = torch.searchsorted(held["place"], places)
        self._parts = [[held[name][at] for name in self._FIELDS]]
        self._limit = max(_COMPACTED, 2 * len(self))

    def merge(self, other: "Contexts") -> None:
        """Take in those of another part of the corpus."""
        self._parts += other._parts
        order = self.state()["place"].argsort()
        self._parts = [[x[order] for x in self.state().values()]]

    def state(self) -> State:
        return dict(zip(self._FIELDS, map(torch.cat, zip(*self._parts, strict=True)), strict=True))

    def load(self, state: Mapping[str, Tensor]) -> None:
        self._parts = [[state[name].clone() for name in self._FIELDS]]


class Reservoir:
    """All coefficients at n positions of the corpus, drawn without regard to them: in float16, [position layer key].

    Every place has a number that the seed gives it, and the n least are kept: however the corpus is cut.
    """

    def __init__(self, n: int, n_layers: int, n_keys: int, seed: int, device: torch.device) -> None:
        self.n, self.seed = n, seed
        self.drawn = np.empty(0, np.uint64)
        self.place = torch.empty(0, dtype=torch.long)
        self.coefficients = torch.zeros(n, n_layers, n_keys, dtype=torch.float16, device=device)
        self._new: tuple[Tensor, ...] = (self.place, self.place, self.place)

    def draw(self, batch: Batch) -> Bool[Tensor, "row pos"]:
        """Which positions of a batch are kept, until others are."""
        drawn = _drawn(batch.place.numpy(), self.seed)
        drawn[~batch.real.numpy()] = np.iinfo(np.uint64).max
        every = np.concatenate((self.drawn, drawn.ravel()))
        n_held, n = len(self.drawn), min(self.n, len(self.drawn) + int(batch.real.sum()))
        best = np.argpartition(every, n - 1)[:n]
        new = np.sort(best[best >= n_held])
        is_free = np.ones(n, bool)
        is_free[best[best < n_held]] = False
        free = np.flatnonzero(is_free)
        slots = torch.from_numpy(free)
        row, column = (torch.from_numpy(x) for x in np.unravel_index(new - n_held, drawn.shape))
        self.drawn, self.place = (
            np.concatenate((self.drawn, np.zeros(n - n_held, np.uint64))),
            torch.cat((self.place, self.place.new_zeros(n - n_held))),
        )
        self.drawn[free], self.place[slots] = every[new], batch.place[row, column]
        device = self.coefficients.device
        self._new = tuple(x.to(device, non_blocking=True) for x in (slots, row, column))
        wanted = torch.zeros_like(batch.real)
        wanted[row, column] = True
        return wanted

    def add(self, layer: int, x: Coefficients) -> None:
        """Take in what a layer's keys are in the batch that was drawn from."""
        slots, row, column = self._new
        if len(slots):
            self.coefficients[slots, layer] = x[row, column].clamp(-65504, 65504).half()

    def merge(self, other: "Reservoir") -> None:
        """Take in that of another part of the corpus."""
        drawn = np.concatenate((self.drawn, other.drawn))
        best = torch.from_numpy(np.argsort(drawn)[: self.n])
        self.place = torch.cat((self.place, other.place))[best]
        held = [each.coefficients[: len(each.drawn)].to(self.coefficients) for each in (self, other)]
        self.coefficients[: len(best)] = torch.cat(held)[best.to(self.coefficients.device)]
        self.drawn = drawn[best.numpy()]

    def state(self) -> State:
        n = len(self.place)
        return {"sampled": self.place, "sample": self.coefficients[:n]}

    def load(self, state: Mapping[str, Tensor]) -> None:
        self.place = state["sampled"].clone()
        self.drawn = _drawn(self.place.numpy(), self.seed)
        self.coefficients[: len(self.place)] = state["sample"].to(self.coefficients)


def _drawn(place: np.ndarray, seed: int) -> np.ndarray:
    """A number for each place that looks like chance (splitmix64, Steele et al., 2014): no two have the same."""
    with np.errstate(over="ignore"):
        z = place.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed * 0xD1342543DE82EF95 % 2**64)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


class Histogram:
    """How many coefficients of each key are of which size: `counts` [layer key sign level].

    Signs are positive and negative. Level i of N_LEVELS has sizes from 2**(LOWEST + i) up to twice that; the first
    takes in all that are smaller, zeros among them, the last all that are larger.
    """

    def __init__(self, n_layers: int, n_keys: int, device: torch.device) -> None:
        self.counts = torch.zeros(n_layers, n_keys, 2, N_LEVELS, dtype=torch.long, device=device)
        self._first = torch.arange(n_keys, device=device, dtype=torch.int32) * 512 + 256

    def add(self, layer: int, x: Float[Tensor, "*row key"], real: Bool[Tensor, "*row"] | None = None) -> None:
        """Count what a layer's keys are, where they are real."""
        found = torch.zeros(len(self._first) * 512, device=x.device)  # in float32 much faster, and exact to 2**24
        x, at_once = x.flatten(0, -2), _AT_ONCE.get(x.device.type, x.numel())
        one = torch.ones(1, device=x.device) if real is None else real.flatten()[:, None].to(x)
        for first in range(0, len(x), at_once):
            bits = x[first : first + at_once].view(torch.int32)
            bin_ = torch.empty(bits.shape, dtype=torch.long, device=x.device)
            torch.add(bits >> 23, self._first, out=bin_)  # the exponent, less 256 if the sign is negative
            weight = one if real is None else one[first : first + at_once]
            found.scatter_add_(0, bin_.flatten(), weight.expand(bin_.shape).reshape(-1))
        of_sign = found.view(-1, 2, 256).flip(1)
        low, high = LOWEST + 128, LOWEST + N_LEVELS + 126  # exponents, as float32 has them, of the inner levels
        smaller, larger = of_sign[..., :low].sum(-1, keepdim=True), of_sign[..., high:].sum(-1, keepdim=True)
        self.counts[layer] += torch.cat((smaller, of_sign[..., low:high], larger), -1).long()

    def merge(self, other: "Histogram") -> None:
        """Take in that of another part of the corpus."""
        self.counts += other.counts.to(self.counts)

    def state(self) -> State:
        return {"counts": self.counts}

    def load(self, state: Mapping[str, Tensor]) -> None:
        self.counts = state["counts"].to(self.counts, copy=True)
