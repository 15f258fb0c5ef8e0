"""What fires each key: the positions of a corpus where its coefficient is largest (Geva et al., 2021)."""

import hashlib
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from interp.hooks import HookPoint
from interp.memories.folder import FORMAT, RESULT, Folder, parts, read, write_result
from interp.memories.scan import BEFORE, Batch, Contexts, Histogram, Largest, Reservoir, State
from interp.model import HookedGPT
from interp.passages import Corpus, Passage, passages
from interp.results import text_of
from interp.weights.stream import checked_index

if TYPE_CHECKING:
    from xarray import Dataset
else:
    Dataset = Any

_EVERY = 20.0  # seconds between two saved states
_ANOTHER_CORPUS = (
    "the folder belongs to a scan of another corpus: give the one that it was begun with, or another folder"
)


@dataclass(frozen=True, eq=False)
class Triggers:
    """What a scan found. `found[layer, neuron]` is one key's triggers, `found.table()` those of all keys.

    `value` [layer neuron rank] are the coefficients, 0 where a key has fewer triggers; the `window` of each, the tokens
    around it, is found by `at`. `sample` [position layer neuron] has all coefficients at random positions, and `counts`
    [layer neuron sign level] say how many there are of which size (`scan.Histogram`). `about` says of what all this is.
    """

    about: dict[str, Any]
    tensors: State
    model: HookedGPT | None = None

    def __repr__(self) -> str:
        n_layers, n_neurons, n_ranks = self.value.shape
        keys = f"{n_neurons:,} keys in layer{'s' if n_layers > 1 else ''} {', '.join(map(str, self.layers))}"
        return f"Triggers({keys}: the top {n_ranks} of {self.about['tokens']:,} tokens)"

    @property
    def layers(self) -> list[int]:
        return self.about["layers"]

    @property
    def value(self) -> Float[Tensor, "layer neuron rank"]:
        return self.tensors["value"]

    @property
    def at(self) -> Int[Tensor, "layer neuron rank"]:
        """The row of `window` and its kin; -1 where there is no trigger."""
        return self.tensors["at"]

    @property
    def window(self) -> Int[Tensor, "context around"]:
        """The tokens around positions, each position's own at `scan.BEFORE`; -1 where the row has none."""
        return self.tensors["window"]

    @property
    def sample(self) -> Float[Tensor, "position layer neuron"] | None:
        return self.tensors.get("sample")

    @property
    def counts(self) -> Int[Tensor, "layer neuron sign level"] | None:
        return self.tensors.get("counts")

    def tokens(self, offset: int = 0) -> Int[Tensor, "layer neuron rank"]:
        """The tokens that keys fire on, or those so far behind them; -1 where there is none."""
        if not len(self.window):
            return torch.full_like(self.at, -1)
        return self.window[:, BEFORE + offset].long()[self.at].masked_fill(self.at < 0, -1)

    def table(self) -> Dataset:
        """All triggers, as an `xarray.Dataset` [layer neuron rank]: value, document, pos, token and the next one, -1
        where there is none."""
        from xarray import Dataset

        found = {"value": self.value, "token_id": self.tokens(), "next_id": self.tokens(1)}
        for name in ("document", "pos"):
            held = self.tensors[name]
            found[name] = (held[self.at] if len(held) else self.at).masked_fill(self.at < 0, -1)
        n_neurons, n_ranks = self.value.shape[1:]
        coords = {"layer": self.layers, "neuron": range(n_neurons), "rank": range(n_ranks)}
        return Dataset({name: (list(coords), x.numpy()) for name, x in found.items()}, coords, self._attrs())

    def __getitem__(self, key: tuple[int, int]) -> Dataset:
        """The triggers of one key, the strongest first: an `xarray.Dataset` [rank].

        Of each its value, document, position in it, the token that the key fires on, the text before that and after
        it, and the next token.
        """
        from xarray import Dataset

        here = self.place_of(*key)
        at = self.at[here][self.at[here] >= 0]
        window = self.window[at]
        found: dict[str, Any] = {
            "value": self.value[here][: len(at)].numpy(),
            "document": self.tensors["document"][at].numpy(),
            "pos": self.tensors["pos"][at].numpy(),
            "token_id": window[:, BEFORE].numpy(),
            "before": self._around(window[:, :BEFORE]),
            "token": self._around(window[:, BEFORE : BEFORE + 1]),
            "after": self._around(window[:, BEFORE + 1 :]),
            "next_token": self._around(window[:, BEFORE + 1 : BEFORE + 2]),
        }
        attrs = self._attrs() | {"layer": key[0], "neuron": key[1]}
        return Dataset({name: ("rank", x) for name, x in found.items()}, {"rank": range(len(at))}, attrs)

    def place_of(self, layer: int, neuron: int) -> tuple[int, int]:
        """Where a key stands in the tensors."""
        if layer not in self.layers or not 0 <= neuron < self.value.shape[1]:
            there = f"layers are {self.layers}, neurons 0 to {self.value.shape[1] - 1}"
            raise KeyError(f"no key {(layer, neuron)}: {there}")
        return self.layers.index(layer), neuron

    def texts(self, rows: list[list[int]]) -> np.ndarray:
        """The text of each row of tokens; without a tokenizer, their ids."""
        if self.model is None or self.model.tokenizer is None:
            texts = [" ".join(map(str, row)) for row in rows]
        else:
            texts = [text_of(self.model, torch.tensor(row, dtype=torch.long)) for row in rows]
        return np.array(texts, dtype=object)

    def _around(self, windows: Int[Tensor, "rank around"]) -> np.ndarray:
        return self.texts([[token for token in row if token >= 0] for row in windows.tolist()])

    def _attrs(self) -> dict[str, Any]:
        kept = ("model", "per", "sign", "rows", "tokens", "documents", "corpus")
        return {"method": "trigger examples"} | {name: self.about[name] for name in kept}

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write all of it to a folder: a safetensors file, which has in its header what `triggers.json` shows."""
        write_result(Path(folder), self.tensors, self.about)

    @classmethod
    def load(cls, folder: str | os.PathLike[str], model: HookedGPT | None = None) -> "Triggers":
        """What a scan left in a folder, memory-mapped. With the model that was scanned, tokens are told as texts."""
        file = Path(folder) / RESULT
        if not file.is_file():
            begun = " (the scan that it holds has not ended)" if parts(Path(folder)) else ""
            raise FileNotFoundError(f"no file {file}{begun}")
        about, tensors = read(file)
        if model is not None and about["model"] != model.fingerprint():
            raise ValueError(f"{folder} is of another model, {about['model']}; this one is {model.fingerprint()}")
        return cls(about, tensors, model)


@torch.no_grad()
def triggers(
    model: HookedGPT,
    corpus: Corpus,
    layer: int | Sequence[int] | None = None,
    top: int = 20,
    *,
    per: Literal["document", "position"] = "document",
    sign: Literal[1, -1] = 1,
    n_ctx: int | None = None,
    batch_size: int = 8,
    max_tokens: int | None = None,
    reservoir: int = 2_000,
    histogram: bool = True,
    seed: int = 0,
    folder: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Triggers:
    """The `top` positions of a corpus (see `interp.passages`) that fire each key of a layer, several, or all.

    A document counts once, by its largest coefficient, and contexts of the same last 8 tokens once; with
    `per="position"` every position counts. Only coefficients above 0 do; with `sign=-1`, only those below, negated.
    Beside that, all coefficients at `reservoir` random positions, and a histogram of each key. Beginning-of-text tokens
    put before the rows are left out. Memory does not grow with the corpus.

    With `folder`, what was read is saved from time to time; after a kill, the same call on the same corpus goes on
    there. Processes of a `torch.distributed` group share the corpus, a document (or with "position", a row) each in
    turn, and each of them returns what one alone would.
    """
    layers = check_layers(model, layer)
    if per not in ("document", "position"):
        raise ValueError(f"per={per!r}; allowed: 'document', 'position'")
    if sign not in (1, -1):
        raise ValueError(f"sign={sign!r}; allowed: 1 (coefficients above 0), -1 (below)")
    if top < 1 or reservoir < 0:
        raise ValueError(f"top={top} must be at least 1, and reservoir={reservoir} at least 0")
    if folder is not None and model.is_observed():
        raise ValueError("folder= is for the model as it is: what hooks or edits around the scan do is not known later")
    width = model.cfg.n_ctx if n_ctx is None else n_ctx
    about = FORMAT | {"model": model.fingerprint(), "layers": layers, "top": top, "per": per, "sign": sign}
    about |= {"n_ctx": width, "max_tokens": max_tokens, "reservoir": reservoir, "histogram": histogram, "seed": seed}
    about["bos"] = n_bos = n_bos_of(model, corpus)
    rank, size = (dist.get_rank(), dist.get_world_size()) if _is_shared() else (0, 1)
    scan = _Scan(model, about, n_bos, rank, size)
    kept = None if folder is None else Folder(Path(folder), about, rank, size)
    failure: Exception | None = None
    try:
        rows = passages(model, corpus, width, batch_size * size, max_tokens)
        found = scan.run(rows, kept, max_tokens, progress and rank == 0)
    except Exception as error:
        failure, found = error, None
    if size > 1 and found is None:
        scan.gather(failure)
    if failure is not None:
        raise failure
    if found is None:
        found = Triggers(*scan.result(), model)
        if kept is not None and rank == 0:
            found.save(kept.path)
    if kept is not None and rank == 0:
        kept.clear()
    return found


class _Scan:
    """The reading of a corpus, and what has come of it."""

    def __init__(self, model: HookedGPT, about: dict[str, Any], n_bos: int, rank: int, size: int) -> None:
        self.model, self.about, self.n_bos, self.rank, self.size = model, about, n_bos, rank, size
        self.layers: list[int] = about["layers"]
        self.by_document = about["per"] == "document"
        shape = len(self.layers), model.cfg.d_mlp
        self.largest = Largest(*shape, about["top"], self.by_document, model.device)
        self.contexts = Contexts()
        n = about["reservoir"]
        self.reservoir = Reservoir(n, *shape, about["seed"], model.device) if n else None
        self.histogram = Histogram(*shape, model.device) if about["histogram"] else None
        self.unsettled: list[tuple[Batch, Tensor]] = []  # and which of its positions the reservoir keeps
        self.read = {"rows": 0, "tokens": 0, "documents": 0, "corpus": ""}

    @property
    def _parts(self) -> list[Largest | Contexts | Reservoir | Histogram]:
        return [each for each in (self.largest, self.contexts, self.reservoir, self.histogram) if each is not None]

    def run(
        self, rows: Iterator[Passage], kept: Folder | None, max_tokens: int | None, progress: bool
    ) -> Triggers | None:
        """Read on from where the folder was left, to the end. What the folder has, if it was the end already."""
        held = None if kept is None else kept.open()
        done, has_ended = (None, False) if held is None else (held.about, held.is_result)
        if held is not None and not has_ended:
            self.load(held.tensors)
        last = time.monotonic()
        with tqdm(total=max_tokens, desc="triggers", unit=" tokens", delay=1.0, disable=not progress) as bar:
            for passage in rows:
                own, n_tokens = self._counted(passage, done)
                if own and not has_ended:
                    self._take(passage, own)
                bar.update(n_tokens)
                if kept is not None and own and not has_ended and time.monotonic() - last >= _EVERY:
                    self._settle()
                    kept.save(self.state(), self.read)
                    last = time.monotonic()
        if done is not None and (self.read["rows"] < done["rows"] or (has_ended and self.read["rows"] > done["rows"])):
            raise ValueError(_ANOTHER_CORPUS)
        if held is not None and held.is_result:
            return Triggers(held.about, held.tensors, self.model)
        self._settle()
        self.largest.end()
        self._forget()
        return None

    def _counted(self, passage: Passage, done: dict[str, Any] | None) -> tuple[list[tuple[int, int]], int]:
        """Go past the rows of a passage: which are to be read here, with their numbers; and how many tokens it has."""
        own, n_tokens = [], 0
        for i, (tokens, mask) in enumerate(zip(passage.tokens, passage.mask, strict=True)):
            number, document = self.read["rows"], int(passage.document[i])
            ids = tokens[mask].numpy().astype("<i8")
            self.read["corpus"] = hashlib.sha256(
                self.read["corpus"].encode() + f" {document} ".encode() + ids.tobytes()
            ).hexdigest()
            n_tokens += len(ids) - self.n_bos
            self.read["rows"], self.read["documents"] = number + 1, document + 1
            if done is not None and number + 1 == done["rows"] and self.read["corpus"] != done["corpus"]:
                raise ValueError(_ANOTHER_CORPUS)
            is_own = (document if self.by_document else number) % self.size == self.rank
            if is_own and (done is None or number >= done["rows"]):
                own.append((i, number))
        self.read["tokens"] += n_tokens
        return own, n_tokens

    def _take(self, passage: Passage, own: list[tuple[int, int]]) -> None:
        rows, numbers = (torch.tensor(each) for each in zip(*own, strict=True))
        mask = passage.mask[rows]
        width = int(mask.sum(1).max())
        tokens, mask = passage.tokens[rows, :width], mask[:, :width]
        inner = tokens[:, self.n_bos :]
        place = numbers[:, None] * self.about["n_ctx"] + torch.arange(inner.shape[1])
        batch = Batch(inner, mask[:, self.n_bos :], place, passage.document[rows], passage.start[rows])
        wanted = torch.zeros_like(batch.real) if self.reservoir is None else self.reservoir.draw(batch)
        here = partial(Tensor.to, device=self.model.device, non_blocking=True)  # else each would wait for the device
        real, place = None if batch.is_whole else here(batch.real), here(batch.place)

        def take(x: Tensor, point: HookPoint) -> None:
            layer, x = self.layers.index(point.layer()), x.float()[:, self.n_bos :]
            if self.reservoir is not None:
                self.reservoir.add(layer, x)
            if self.histogram is not None:
                self.histogram.add(layer, x, real)
            signed = x if self.about["sign"] == 1 else -x
            self.largest.add(layer, signed if real is None else signed.where(real[..., None], 0), place)

        points = [f"blocks.{layer}.mlp.hook_post" for layer in self.layers]
        with self.model.recording(points, take):
            self.model(
                here(tokens),
                return_type=None,
                attention_mask=None if mask.all() else here(mask),
                stop_at_layer=max(self.layers) + 1,
            )
        self.unsettled.append((batch, wanted))
        if self.largest.is_due:
            self._settle()

    def _settle(self) -> None:
        """Join what was read to what is kept."""
        if not self.unsettled:
            return
        batches, wanted = zip(*self.unsettled, strict=True)
        whole = Batch.joined(batches)
        row, column = (x.cpu() for x in self.largest.settle(whole))
        chosen = torch.cat([F.pad(each, (0, whole.real.shape[1] - each.shape[1])) for each in wanted])
        chosen[row, column] = True
        self.contexts.add(whole, chosen)
        self.unsettled = []
        if self.contexts.is_large:
            self._forget()

    def _forget(self) -> None:
        """Contexts that no key needs any more."""
        places = [self.largest.place.flatten(), self.largest.own_place.flatten()]
        if self.reservoir is not None:
            places.append(self.reservoir.place.to(self.largest.place.device))
        needed = torch.cat(places).unique().cpu()
        self.contexts.keep(needed[needed >= 0])

    def gather(self, failure: Exception | None) -> None:
        """What all processes have found; if one of them failed, all do."""
        mine = None if failure else [{name: x.cpu() for name, x in part.state().items()} for part in self._parts]
        every: list[Any] = [None] * self.size
        dist.all_gather_object(every, mine)
        if failure is not None:
            return
        if any(each is None for each in every):
            raise RuntimeError("the scan failed in another process, which says why")
        for number, states in enumerate(every):
            other = self if number == 0 else _Scan(self.model, self.about, self.n_bos, self.rank, self.size)
            for part, whole, state in zip(other._parts, self._parts, states, strict=True):
                part.load(state)
                if number:
                    whole.merge(part)  # type: ignore[arg-type]
        self._forget()

    def result(self) -> tuple[dict[str, Any], State]:
        """What is to be said of it, and the tensors of `Triggers`."""
        contexts = self.contexts.state()
        place = self.largest.place.cpu()
        at = torch.searchsorted(contexts["place"], place).masked_fill(place < 0, -1)
        tensors = {name: contexts[name] for name in ("document", "pos", "window")}
        tensors |= {"value": self.largest.value.cpu(), "at": at}
        if self.reservoir is not None:
            order = self.reservoir.place.argsort()
            tensors["sampled"] = torch.searchsorted(contexts["place"], self.reservoir.place[order])
            tensors["sample"] = self.reservoir.coefficients[order.to(self.model.device)].cpu()
        if self.histogram is not None:
            tensors["counts"] = self.histogram.counts.cpu()
        return self.about | self.read, tensors

    def state(self) -> State:
        return {f"{type(part).__name__}.{name}": x for part in self._parts for name, x in part.state().items()}

    def load(self, state: State) -> None:
        for part in self._parts:
            name = f"{type(part).__name__}."
            part.load({key.removeprefix(name): x for key, x in state.items() if key.startswith(name)})


def check_layers(model: HookedGPT, layer: int | Sequence[int] | None) -> list[int]:
    """The layers that are meant, counted from the start; None: all."""
    if model.cfg.attn_only:
        raise ValueError("attn_only=True: the model has no MLP in any layer, and so no keys")
    given = range(model.cfg.n_layers) if layer is None else [layer] if isinstance(layer, int) else layer
    if not len(given):
        raise ValueError("no layer was given")
    return sorted({checked_index(model, "layer", each) for each in given})


def n_bos_of(model: HookedGPT, corpus: Corpus) -> int:
    """How many tokens `passages` puts before each row."""
    is_rows = isinstance(corpus, np.ndarray | Tensor) and corpus.ndim == 2
    return 0 if is_rows or model.tokenizer is None else len(model.bos_tokens())


def check_of(model: HookedGPT, found: Triggers) -> None:
    """Raise if a scan was of another model."""
    if found.about["model"] != model.fingerprint():
        raise ValueError(f"these triggers are of another model, {found.about['model']}, not {model.fingerprint()}")


def _is_shared() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
