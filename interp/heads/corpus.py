"""What every head looks at in a corpus, in one pass over it and in a memory that does not grow with it.

1. Rows are packed side by side without padding; to the blocks they are one long sequence, attention alone knows rows.
2. For each row, block by block of queries small enough for the processor's cache: scores with the keys in reach, and
   e = exp(score - highest), not yet divided by its sum.
3. One product of e with [values | one column for each class of tokens] gives what attention mixes and the mass on each
   class; the classes add up to the sum that both are divided by.
4. The entropy is log(sum) - (e · log e) / sum.
5. e lies in a buffer whose rows are padded on the left. Read with a stride one longer than a row, a column is a
   diagonal: the mass at each offset is a product of 1 / sum with it.

While somebody listens to patterns or scores, the model makes them as it always does, and steps 3 to 5 read those.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from interp.config import GPTConfig
from interp.heads.classes import TokenClasses
from interp.heads.patterns import run
from interp.hooks import is_heard
from interp.model import HookedGPT
from interp.model.attention import Attention, Pass
from interp.model.inputs import checked_mask, distance
from interp.model.rotary import rotations
from interp.passages import Corpus, Passage, passages

if TYPE_CHECKING:
    from xarray import Dataset
else:
    Dataset = Any

_AT_ONCE = {"cpu": 2**19}  # scores of a block of queries: 1 MB for each of two cores stays in their caches
_AT_ONCE_ELSEWHERE = 2**26
_MASKED = -1e30  # finite: times e = 0 it is 0

Made = Float[Tensor, "head query_pos key_pos"]


@torch.no_grad()
def corpus_statistics(
    model: HookedGPT,
    corpus: Corpus,
    *,
    n_ctx: int | None = None,
    batch_size: int = 8,
    max_tokens: int | None = None,
    progress: bool = True,
) -> Dataset:
    """What each head looks at in a corpus, which is whatever `passages` reads: an `xarray.Dataset`, [layer head …].

    All are means over queries, of those alone that have such a key in reach (`n_at_offset` counts them). `by_offset`:
    the pattern so many tokens back; `itself` and `previous` are offsets 0 and 1. `first`: the row's first token.
    `entropy` in nats, and `relative_entropy`, divided by the log of the number of keys in reach, of queries that have
    more than one. `by_class`: the mass on each class of tokens (see `TokenClasses`), and `by_query_class` for the
    queries of each class; beside them what a head has that looks at all keys in reach alike: `class_share` and
    `class_share_by_query`.
    """
    if model.training and model.cfg.dropout:
        raise ValueError("the model drops activations at random while it trains; call model.eval() first")
    scan = _Scan(model, model.cfg.n_ctx if n_ctx is None else n_ctx)
    batches = passages(model, corpus, n_ctx, batch_size, max_tokens)
    with tqdm(desc="patterns of a corpus", unit=" tokens", unit_scale=True, disable=not progress) as bar:
        for passage in batches:
            scan.read(passage)
            bar.update(int(passage.mask.sum()))
    return scan.found()


@dataclass(frozen=True, eq=False)
class _Row:
    """One row of the corpus, as attention meets it."""

    at: slice  # its tokens among those of the pass
    classes: Float[Tensor, "pos key_class"]  # 1 at each token's class

    def __len__(self) -> int:
        return len(self.classes)


class _Reach:
    """How many keys the queries of a kind of layer have in reach, summed over the corpus."""

    def __init__(self, cfg: GPTConfig, window: int | None, n_ctx: int, n_classes: int, device: torch.device) -> None:
        self.is_causal, self.window = cfg.attention_dir == "causal", window
        self.n_ctx = n_ctx
        self.at_offset = torch.zeros(n_ctx if self.is_causal else 2 * n_ctx - 1, dtype=torch.long, device=device)
        self.first, self.several = 0, 0
        self.shares = torch.zeros(n_classes, n_classes, dtype=torch.float64, device=device)

    def span(self, n: int) -> int:
        return n if self.window is None else min(n, self.window)

    def add(self, row: _Row) -> None:
        n = len(row)
        back = torch.arange(self.span(n), device=self.at_offset.device)
        self.at_offset[self.zero + back] += n - back
        if not self.is_causal:
            self.at_offset[self.zero - back[1:]] += n - back[1:]
        self.first += self.span(n) if self.is_causal else n
        self.several += int((self.n_keys(n) > 1).sum())
        self.shares += row.classes.double().T @ self.of_queries(row)

    @property
    def zero(self) -> int:
        """Where offset 0 stands."""
        return 0 if self.is_causal else self.n_ctx - 1

    def n_keys(self, n: int) -> Int[Tensor, " query_pos"]:
        """How many keys each query has."""
        device = self.at_offset.device
        return (
            torch.arange(1, n + 1, device=device).clamp(max=self.span(n))
            if self.is_causal
            else torch.full((n,), n, device=device)
        )

    def of_queries(self, row: _Row) -> Float[Tensor, "query_pos key_class"]:
        """The share of each class among a query's keys."""
        n, upto = len(row), row.classes.double().cumsum(0)
        if not self.is_causal:
            return upto[-1:].expand(n, -1) / n
        span = self.span(n)
        within = torch.cat((upto[:span], upto[span:] - upto[:-span])) if span < n else upto
        return within / self.n_keys(n)[:, None]


class _Sums:
    """Sums over the queries of one layer, of each head."""

    def __init__(self, n_heads: int, n_offsets: int, n_classes: int, device: torch.device) -> None:
        def zeros(*sizes: int) -> Tensor:
            return torch.zeros(n_heads, *sizes, dtype=torch.float64, device=device)

        self.offset, self.classes = zeros(n_offsets), zeros(n_classes, n_classes)
        self.entropy, self.relative, self.first = zeros(), zeros(), zeros()


class _Scan:
    def __init__(self, model: HookedGPT, n_ctx: int) -> None:
        cfg, self.model, self.device = model.cfg, model, model.device
        self.of_token = TokenClasses(model)
        n_classes = len(self.of_token.names)
        windows = [
            cfg.window_size if block.attn.is_local and cfg.attention_dir == "causal" else None for block in model.blocks
        ]
        kinds = {window: _Reach(cfg, window, n_ctx, n_classes, self.device) for window in set(windows)}
        self.reaches = [kinds[window] for window in windows]
        self.kinds = list(kinds.values())
        self.sums = [_Sums(cfg.n_heads, len(reach.at_offset), n_classes, self.device) for reach in self.reaches]
        self.n_queries = torch.zeros(n_classes, dtype=torch.long, device=self.device)
        self.n_rows = 0
        self.rows: list[_Row] = []
        self.buffer = torch.empty(0, device=self.device)
        self.at_once = _AT_ONCE.get(self.device.type, _AT_ONCE_ELSEWHERE)

    def read(self, passage: Passage) -> None:
        """Add the rows of a passage."""
        is_packed = not self.model.is_observed()  # whoever listens is told [batch pos …]
        lengths, n_pos = passage.mask.sum(1).tolist(), passage.tokens.shape[1]
        self.rows, first = [], 0
        for i, n in enumerate(lengths):
            start = first if is_packed else i * n_pos
            classes = self.of_token(passage.tokens[i, :n])
            one_hot = torch.nn.functional.one_hot(classes, len(self.of_token.names)).to(self.device)
            exact = torch.promote_types(self.model.dtype, torch.float32)
            self.rows.append(_Row(slice(start, start + n), one_hot.to(exact)))
            self.n_queries += one_hot.sum(0)
            first += n
        for reach in self.kinds:
            for row in self.rows:
                reach.add(row)
        self.n_rows += len(self.rows)
        if is_packed:
            self._read_packed(passage)
        else:
            tokens = passage.tokens.to(self.device)
            mask = checked_mask(passage.mask, len(tokens), n_pos, None, self.device)
            run(self.model, tokens, mask, self._look, len(self.model.blocks))

    def _read_packed(self, passage: Passage) -> None:
        cfg = self.model.cfg
        tokens = passage.tokens[passage.mask][None].to(self.device)
        where = torch.cat([torch.arange(len(row)) for row in self.rows])[None].to(self.device)
        this = Pass(look=lambda attn, q, k, v: self._look(attn, q, k, v, None))
        if cfg.is_rotary:
            this.rotations = rotations(cfg, where, self.model.dtype)
        elif cfg.is_shortformer:
            this.pos_embed = self.model.placed(where, 1)
        resid = self.model.into_stream(tokens, where)
        for block in self.model.blocks:
            resid = block(resid, this)

    def _look(self, attn: Attention, q: Tensor, k: Tensor, v: Tensor, this: Pass | None) -> Tensor:
        if this is not None and is_heard(attn.hook_attn_scores, attn.hook_pattern):
            return self._look_at_pattern(attn, q, k, v, this)
        z = torch.zeros_like(q, memory_format=torch.contiguous_format)
        flat = z.flatten(0, 1)
        queries, keys, values = (x.flatten(0, 1) for x in (q, k, v))
        for row in self.rows:
            flat[row.at] = self._mix(attn, queries[row.at], keys[row.at], values[row.at], row)
        return z

    def _look_at_pattern(self, attn: Attention, q: Tensor, k: Tensor, v: Tensor, this: Pass) -> Tensor:
        """The model's own way; what goes on as its pattern, after all edits, is read."""
        taken: list[Tensor] = []
        with self.model.recording(attn.hook_pattern.name, lambda x, point: taken.append(x)):  # noqa: ARG005
            z = attn.look(q, k, v, this)
        for row, pattern in zip(self.rows, taken[0], strict=True):
            n = len(row)
            logs = pattern[:, :n, :n].to(row.classes.dtype).log().clamp(min=_MASKED)
            self._tally(
                attn.layer, row, slice(0, n), slice(0, n), logs, row.classes.expand(len(logs), -1, -1), is_pattern=True
            )
        return z

    def _mix(self, attn: Attention, q: Tensor, k: Tensor, v: Tensor, row: _Row) -> Float[Tensor, "pos head d_head"]:
        """What attention mixes for the queries of one row."""
        n, exact, reach = len(row), row.classes.dtype, self.reaches[attn.layer]
        n_heads = attn.cfg.n_heads
        group = n_heads // attn.cfg.n_key_value_heads
        queries = q.transpose(0, 1).to(exact)
        keys, values = (x.transpose(0, 1).to(exact).repeat_interleave(group, 0) for x in (k, v))
        mixed_in = torch.cat((values, row.classes.expand(n_heads, -1, -1)), -1)
        z = torch.empty_like(queries)
        size = max(1, self.at_once // (n_heads * n))
        for first in range(0, n, size):
            asking = slice(first, min(first + size, n))
            seen = slice(max(0, first + 1 - reach.span(n)), asking.stop) if reach.is_causal else slice(0, n)
            scores = attn.scores(queries[:, asking], keys[:, seen])
            places = torch.arange(n, device=scores.device)[None]
            if (lean := attn.lean(distance(places[:, asking], places[:, seen]), scores.dtype)) is not None:
                scores += lean[0]
            if reach.is_causal:
                _mask_future(scores, asking, seen, reach.window)
            scores -= scores.amax(-1, keepdim=True)
            z[:, asking] = self._tally(attn.layer, row, asking, seen, scores, mixed_in[:, seen])
        return z.transpose(0, 1).to(q.dtype)

    def _tally(
        self, layer: int, row: _Row, asking: slice, seen: slice, logs: Made, mixed_in: Tensor, is_pattern: bool = False
    ) -> Float[Tensor, "head query_pos d_head"]:
        """Add what some queries look at, given as logs; the mix of `mixed_in` without its last columns, the classes."""
        sums, reach = self.sums[layer], self.reaches[layer]
        n_classes = row.classes.shape[1]
        weights, diagonals = self._in_buffer(logs, reach.is_causal)
        torch.exp(logs, out=weights)
        mixed = weights @ mixed_in
        masses = mixed[..., -n_classes:]
        total = torch.ones_like(masses[..., :1]) if is_pattern else masses.sum(-1, keepdim=True)
        share = 1 / total
        mixed = mixed * share
        entropy = total.log()[..., 0] - (weights[..., None, :] @ logs[..., None])[..., 0, 0] * share[..., 0]
        n_keys = reach.n_keys(len(row))[asking].to(entropy)
        several = n_keys > 1
        sums.entropy += entropy.double().sum(-1)
        sums.relative += (entropy[:, several] / n_keys[several].log()).double().sum(-1)
        sums.classes += (row.classes[asking].T @ mixed[..., -n_classes:]).double()
        if seen.start == 0:
            sums.first += (weights[..., 0] * share[..., 0]).double().sum(-1)
        at_offsets = (share.transpose(1, 2) @ diagonals)[:, 0].flip(-1).double()
        last = reach.zero + asking.stop - 1 - seen.start
        sums.offset[:, last + 1 - at_offsets.shape[-1] : last + 1] += at_offsets
        return mixed[..., :-n_classes]

    def _in_buffer(self, like: Made, is_causal: bool) -> tuple[Made, Float[Tensor, "head query_pos diagonal"]]:
        """Room for a block, and its diagonals from the furthest back; of causal attention, to the query itself."""
        n_heads, n_queries, n_keys = like.shape
        pad = n_queries - 1
        width, size = pad + n_keys, n_heads * n_queries * (pad + n_keys)
        if len(self.buffer) < size + pad or self.buffer.dtype != like.dtype:
            self.buffer = like.new_empty(size + pad)
        room = self.buffer[:size].view(n_heads, n_queries, width)
        room[..., :pad] = 0
        self.buffer[size : size + pad] = 0  # the last row's diagonals end where another would begin
        n_diagonals = n_keys if is_causal else n_keys + pad
        return room[..., pad:], self.buffer.as_strided(
            (n_heads, n_queries, n_diagonals), (n_queries * width, width + 1, 1)
        )

    def found(self) -> Dataset:
        """The means."""
        from xarray import Dataset

        cfg, names, n = self.model.cfg, self.of_token.names, self.n_queries
        zero = self.reaches[0].zero
        at_offset = torch.stack([reach.at_offset for reach in self.reaches])
        every = {name: torch.stack([getattr(sums, name) for sums in self.sums]) for name in vars(self.sums[0])}
        first, several = (
            torch.tensor([getattr(r, of) for r in self.reaches], device=n.device)[:, None]
            for of in ("first", "several")
        )
        shares = torch.stack([reach.shares for reach in self.reaches])
        by_offset = every["offset"] / at_offset[:, None]
        seen = at_offset.any(0).cpu()
        nothing = torch.full_like(by_offset[..., 0], torch.nan)
        of_class = n[:, None]
        head, query, key = ("layer", "head"), "query_class", "key_class"
        columns = {
            "by_offset": ((*head, "offset"), by_offset[..., seen]),
            "itself": (head, by_offset[..., zero]),
            "previous": (head, by_offset[..., zero + 1] if zero + 1 < len(seen) else nothing),
            "first": (head, every["first"] / first),
            "entropy": (head, every["entropy"] / n.sum()),
            "relative_entropy": (head, every["relative"] / several),
            "by_class": ((*head, key), every["classes"].sum(-2) / n.sum()),
            "by_query_class": ((*head, query, key), every["classes"] / of_class),
            "class_share": (("layer", key), shares.sum(-2) / n.sum()),
            "class_share_by_query": (("layer", query, key), shares / of_class),
            "n_queries": ((query,), n),
            "n_at_offset": (("layer", "offset"), at_offset[:, seen]),
        }
        offsets = (torch.arange(len(seen)) - zero)[seen].tolist()
        coords = {"layer": range(cfg.n_layers), "head": range(cfg.n_heads), "offset": offsets, query: names, key: names}
        about = {
            "method": "corpus statistics",
            "model": self.model.fingerprint(),
            "tokens": int(n.sum()),
            "rows": self.n_rows,
        }
        return Dataset(
            {name: (axes, x.cpu().numpy()) for name, (axes, x) in columns.items()},
            coords={axis: list(labels) for axis, labels in coords.items()},
            attrs=about,
        )


def _mask_future(scores: Made, asking: slice, seen: slice, window: int | None) -> None:
    """Make scores of later keys, and of those further back than the window, so low that nothing is left of them."""
    n = asking.stop - asking.start
    if window is None:
        at = torch.arange(n, device=scores.device)
        scores[..., -n:].masked_fill_(at > at[:, None], _MASKED)
        return
    query = torch.arange(asking.start, asking.stop, device=scores.device)[:, None]
    key = torch.arange(seen.start, seen.stop, device=scores.device)
    scores.masked_fill_((key > query) | (query - key >= window), _MASKED)
