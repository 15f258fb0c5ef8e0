"""What heads are measured by, beside the same of heads with shuffled weights that read the same streams."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import ceil

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from interp.heads.looks import Asked
from interp.heads.trials import Rows
from interp.heads.weights import LayerHeads
from interp.hooks import HookPoint
from interp.model import HookedGPT
from interp.model.inputs import positions
from interp.weights import stream

_HEADS, _SHUFFLES = 500, 20  # at least
_CLEAR = 5.0  # standard deviations: a model has thousands of scores, and chance should name none of them
_AT_ONCE = 2**23  # numbers in a layer's patterns


@dataclass(frozen=True, eq=False)
class Looking:
    """A layer's heads, their own (`shuffle` is None) or shuffled, over some rows."""

    heads: LayerHeads
    shuffle: int | None
    asked: Asked
    part: int  # of which rows
    first_row: int
    resid_pre: Float[Tensor, "row pos d_model"]
    pattern: Float[Tensor, "row head query_pos key_pos"]
    lengths: Float[Tensor, "row head key_pos"]  # of what each key's value writes


Measure = Callable[[Looking], dict[str, Tensor]]  # [row head], or with a last axis of which the greatest counts


class Null:
    """Which layers' heads are shuffled, and how often: all in all some 500 heads, in 20 orders at least."""

    def __init__(self, model: HookedGPT, seed: int) -> None:
        self.model = model
        n = max(_SHUFFLES, ceil(_HEADS / model.cfg.n_heads), model.cfg.n_layers)
        self.shuffles = [(i % model.cfg.n_layers, seed * 100_003 + i) for i in range(n)]

    def __str__(self) -> str:
        n = len(self.shuffles)
        return f"{n * self.model.cfg.n_heads} heads with shuffled weights, {n} shuffles of a layer"

    def heads(self, layer: int) -> Iterator[tuple[int | None, LayerHeads]]:
        """The heads of a layer, and each shuffled set of them."""
        own = LayerHeads.of(self.model, layer)
        yield None, own
        for number, (at, seed) in enumerate(self.shuffles):
            if at == layer:
                yield number, own.shuffled(seed)


@dataclass(frozen=True, eq=False)
class Table:
    """What was measured of every head, and of shuffled ones, row by row."""

    own: Float[Tensor, "layer head row ..."]
    shuffled: Float[Tensor, "null row ..."]


@torch.no_grad()
def measured(null: Null, parts: Sequence[Rows], measure: Measure, progress: bool) -> dict[str, Table]:
    """All that `measure` gives, of all heads, over all parts."""
    model, n_layers = null.model, null.model.cfg.n_layers
    longest = max(rows.tokens.shape[1] for rows in parts)
    n_rows = max(1, _AT_ONCE // (model.cfg.n_heads * longest**2))
    batches = [(i, first, some) for i, rows in enumerate(parts) for first, some in rows.batches(n_rows)]
    own: dict[str, dict[int, list[Tensor]]] = defaultdict(lambda: defaultdict(list))
    shuffled: dict[str, dict[int, list[Tensor]]] = defaultdict(lambda: defaultdict(list))

    def hear(looking: Looking) -> None:
        for name, values in measure(looking).items():
            kept = own[name][looking.heads.layer] if looking.shuffle is None else shuffled[name][looking.shuffle]
            kept.append(values.double().cpu())

    with tqdm(total=len(batches) * n_layers, desc="heads", unit=" layers", delay=1.0, disable=not progress) as bar:
        for part, first_row, rows in batches:
            _look(null, rows.to(model.device), part, first_row, hear, bar)
    found = {}
    for name, layers in own.items():
        real = torch.stack([torch.cat(layers[layer]).transpose(0, 1) for layer in range(n_layers)])
        null_rows = [torch.cat(each).transpose(0, 1) for each in shuffled[name].values()]
        found[name] = Table(real, torch.cat(null_rows) if null_rows else real[0, :0])
    return found


def _look(null: Null, rows: Rows, part: int, first_row: int, hear: Callable[[Looking], None], bar: tqdm) -> None:
    """One pass over some rows, in which each layer's heads are heard, and its shuffled ones after them."""
    model, asked, seen = null.model, Asked(rows), dict[str, Tensor]()
    where = positions(rows.mask, 0, rows.tokens.shape[1], model.device)

    def take(x: Tensor, point: HookPoint) -> None:
        seen[point.name.rpartition(".")[2]] = x
        if not point.name.endswith("hook_pattern"):
            return
        resid_pre, this = seen["hook_resid_pre"], model.pass_over(where, rows.mask, n_rows=len(rows.tokens))
        for shuffle, heads in null.heads(point.layer()):
            if shuffle is None:
                pattern, lengths = stream.exact(x), heads.lengths(seen["hook_v"])
            else:
                pattern, lengths = heads.look(resid_pre, this)
            hear(Looking(heads, shuffle, asked, part, first_row, resid_pre, pattern, lengths))
        bar.update()

    names = [f"blocks.*.{end}" for end in ("hook_resid_pre", "attn.hook_v", "attn.hook_pattern")]
    with model.recording(names, take):
        model(rows.tokens, None, attention_mask=rows.mask)


class Score:
    """A score of every head: a mean over rows, how sure it is, and what shuffled heads reach.

    Where rows have a value for each of several choices, the score is what three rows in four reach, of the choice for
    which this is most: so a choice that suits a few rows alone counts nothing.
    """

    def __init__(self, table: Table) -> None:
        own, shuffled = table.own, table.shuffled
        if own.ndim == 4:
            reached = own.nanquantile(0.25, 2)
            self.choice, self.value = reached.nan_to_num(-torch.inf).argmax(-1), reached.nan_to_num(-torch.inf).amax(-1)
            own = own.take_along_dim(self.choice[..., None, None], 3)[..., 0]
            null = shuffled.nanquantile(0.25, 1).nan_to_num(-torch.inf).amax(-1)
        else:
            self.choice, self.value, null = None, own.nanmean(2), shuffled.nanmean(1)
        counts = own.isfinite().sum(2)
        squares = (own - own.nanmean(2, keepdim=True)).square().nansum(2)
        error = torch.where(counts > 1, (squares / (counts - 1) / counts).sqrt(), torch.nan)
        self.low, self.high = self.value - 1.96 * error, self.value + 1.96 * error
        self.n = int(counts.max())
        self.null, self.threshold = _bounds(null[null.isfinite()])

    @classmethod
    def unknown(cls, model: HookedGPT) -> "Score":
        """Of what cannot be measured."""
        nothing = torch.full((model.cfg.n_layers, model.cfg.n_heads, 1), torch.nan, dtype=torch.float64)
        return cls(Table(nothing, nothing[0, :, :]))


def _bounds(null: Float[Tensor, " known"]) -> tuple[float, float]:
    """The mean, and what lies clear of all."""
    if not len(null):
        return torch.nan, torch.nan
    mean, most = float(null.mean()), float(null.max())
    clear = mean + _CLEAR * float(null.std(correction=0))
    return mean, max(most, min(clear, (1 + most) / 2))  # 1 is a perfect score
