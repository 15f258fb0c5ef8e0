"""Edge patching: what changes when one component alone reads what another would have written in another run.

Senders write to the residual stream: `embed` (token and position), heads `L0H1`, layers of neurons `MLP0`. Receivers
read the sum of what was written before them: each head's queries, keys and values `L1H0.k`, `MLP1`, and `logits`.

1. The run that is stayed in and the other one are made once; what the senders write is kept of both.
2. A receiver reads the stream plus the sum, over its patched edges, of (sender in the other run - sender now). It reads
   before its norm, so that is exact; and "now" is in the patched run, so any set of edges can be patched in one pass
   (the masked differences of Miller et al., 2024).
3. A row is one entry of edges in one prompt. It begins at the layer of its first receiver, from the stream of the run
   that is stayed in, in a batch with others that begin there.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from interp.hooks import HookPoint
from interp.metrics import AnyMetric, Rows, at_positions, name_of, values_of
from interp.model import HookedGPT
from interp.model.linear import product
from interp.patching.activation import Direction, Pair, pair_of_runs
from interp.patching.memory import Chunks, Job
from interp.patching.results import Result, labelled, provenance

Edges = str | Sequence[str | Sequence[str]]


@torch.no_grad()
def edge_patching(
    model: HookedGPT,
    clean: Any,
    corrupted: Any,
    edges: Edges,
    metric: AnyMetric,
    *,
    direction: Direction = "noise",
    attention_mask: Tensor | None = None,
    memory: int | None = None,
    progress: bool = True,
) -> Result:
    """The metric of each run in which some edges carry what they carry in the other run, exactly.

    An entry of `edges` is an edge, "L0H1->L1H0.k", or a group of edges that are patched together; "all": every edge by
    itself. "noise" puts edges of the corrupted run into the clean one, "denoise" the other way round. With grouped
    queries, the head in `L1H0.k` and `L1H0.v` is a key-value head. `memory`: bytes that a batch may take.
    """
    runs = pair_of_runs(model, clean, corrupted, direction, attention_mask)
    entries, n_prompts = _entries(model, edges), len(runs.own)
    nothing = _entry([], model.cfg.n_layers)
    rows = [(entry, prompt) for entry in (*entries, nothing) for prompt in range(n_prompts)]
    values, work = _values(_Runs.of(model, runs, entries), metric, rows, memory, progress)
    values = values.view(-1, n_prompts)
    about = provenance(model, metric, runs.own, "edge patching") | {"direction": direction, **work}
    axes = {"edge": [entry.label for entry in entries], "prompt": range(n_prompts)}
    return labelled(values[:-1], axes, "metric", about, values[-1])


def all_edges(model: HookedGPT) -> list[str]:
    """Every edge: receivers in order of computation (queries, keys, values, MLP), for each its senders in theirs."""
    _refuse_normed_outputs(model)
    senders, is_parallel = _senders(model).values(), model.cfg.parallel_attn_mlp
    return [
        f"{sender.name}->{receiver.name}"
        for receiver in _receivers(model).values()
        for sender in senders
        if _is_before(sender, receiver, is_parallel)
    ]


@dataclass(frozen=True)
class _Node:
    """A sender or a receiver: at which hook point it is found, and which head there."""

    name: str
    point: str
    layer: int
    head: int | None = None


@dataclass(frozen=True, eq=False)
class _Entry:
    """Edges that are patched together."""

    label: str
    reads: Mapping[_Node, Mapping[str, Sequence[int]]]  # receiver -> hook point of senders -> which heads there
    board: int  # the layer of the first receiver


def _senders(model: HookedGPT) -> dict[str, _Node]:
    cfg = model.cfg
    nodes = [_Node("embed", "blocks.0.hook_resid_pre", -1)]
    for layer in range(cfg.n_layers):
        nodes += [_Node(f"L{layer}H{h}", f"blocks.{layer}.attn.hook_z", layer, h) for h in range(cfg.n_heads)]
        if not cfg.attn_only:
            nodes += [_Node(f"MLP{layer}", f"blocks.{layer}.hook_mlp_out", layer)]
    return {node.name: node for node in nodes}


def _receivers(model: HookedGPT) -> dict[str, _Node]:
    cfg, nodes = model.cfg, []
    n_heads = {"q": cfg.n_heads, "k": cfg.n_key_value_heads, "v": cfg.n_key_value_heads}
    for layer in range(cfg.n_layers):
        for slot, n in n_heads.items():
            nodes += [_Node(f"L{layer}H{h}.{slot}", f"blocks.{layer}.attn.hook_{slot}", layer, h) for h in range(n)]
        if not cfg.attn_only:
            nodes += [_Node(f"MLP{layer}", f"blocks.{layer}.hook_mlp_in", layer)]
    return {node.name: node for node in (*nodes, _Node("logits", "", cfg.n_layers))}


def _is_before(sender: _Node, receiver: _Node, is_parallel: bool) -> bool:
    """Whether what a sender writes is in the stream that a receiver reads."""
    from_attn_to_mlp = sender.head is not None and receiver.head is None
    return sender.layer < receiver.layer or (sender.layer == receiver.layer and from_attn_to_mlp and not is_parallel)


def _entries(model: HookedGPT, edges: Edges) -> list[_Entry]:
    """The entries; raise, naming every edge that the model has not."""
    _refuse_normed_outputs(model)
    listed = all_edges(model) if edges == "all" else [edges] if isinstance(edges, str) else edges
    groups = [(each,) if isinstance(each, str) else tuple(each) for each in listed]
    senders, receivers, is_parallel = _senders(model), _receivers(model), model.cfg.parallel_attn_mlp
    faults: dict[str, str] = {}
    entries = []
    for group in groups:
        found: dict[tuple[_Node, _Node], None] = {}
        for edge in group:
            ends = [end.strip() for end in edge.split("->")]
            if len(ends) != 2:
                faults[edge] = "is no edge"
            elif unknown := [end for end, of in zip(ends, (senders, receivers), strict=True) if end not in of]:
                what = "sender" if ends[0] not in senders else "receiver"
                faults[edge] = f"has {unknown[0]!r}, which is no {what} of this model"
            elif not _is_before(sender := senders[ends[0]], receiver := receivers[ends[1]], is_parallel):
                faults[edge] = f"runs backwards: {receiver.name} reads nothing that {sender.name} writes"
            else:
                found[sender, receiver] = None
        entries.append(_entry(list(found), model.cfg.n_layers))
    if faults:
        raise ValueError(
            "; ".join(f"{edge!r} {fault}" for edge, fault in faults.items())
            + ". An edge is 'sender->receiver', from embed, L0H1 or MLP0 to a later L1H0.q, L1H0.k, L1H0.v, MLP1 or"
            " logits; see interp.patching.edges.all_edges(model)"
        )
    return entries


def _entry(edges: Sequence[tuple[_Node, _Node]], n_layers: int) -> _Entry:
    reads: dict[_Node, dict[str, list[int]]] = {}
    for sender, receiver in edges:
        heads = reads.setdefault(receiver, {}).setdefault(sender.point, [])
        heads += [] if sender.head is None else [sender.head]
    label = " + ".join(f"{sender.name}->{receiver.name}" for sender, receiver in edges)
    return _Entry(label, reads, min((receiver.layer for receiver in reads), default=n_layers))


def _refuse_normed_outputs(model: HookedGPT) -> None:
    if (position := model.cfg.norm_position) != "pre":
        raise ValueError(
            f"norm_position={position!r}: what components write passes through a norm on its way into the stream, and "
            "a head's part of a normed sum is no term of a sum; edges need norm_position='pre'"
        )


@dataclass(frozen=True, eq=False)
class _Runs:
    """The run that rows depart from, and the other one."""

    model: HookedGPT
    tokens: Int[Tensor, "prompt pos"]
    mask: Tensor | None
    base: Mapping[str, Tensor]  # by hook point: what senders write, and the stream where rows begin
    other: Mapping[str, Tensor]  # what senders write

    @classmethod
    def of(cls, model: HookedGPT, runs: Pair, entries: Sequence[_Entry]) -> "_Runs":
        n_layers = model.cfg.n_layers
        senders = {point for entry in entries for at in entry.reads.values() for point in at}
        begins = {_stream(layer, n_layers) for layer in (n_layers, *(entry.board for entry in entries))}

        def kept(tokens: Tensor, points: set[str]) -> dict[str, Tensor]:
            _, cache = model.run_with_cache(tokens, None, attention_mask=runs.mask, names_filter=sorted(points))
            return {point: cache[point] for point in points}

        return cls(model, runs.own, runs.mask, kept(runs.own, senders | begins), kept(runs.other, senders))


def _stream(layer: int, n_layers: int) -> str:
    """The hook point of the stream before a layer, or after the last."""
    return f"blocks.{layer}.hook_resid_pre" if layer < n_layers else f"blocks.{n_layers - 1}.hook_resid_post"


class _Batch:
    """One pass of some rows."""

    def __init__(self, runs: _Runs, rows: Sequence[tuple[_Entry, int]]) -> None:
        self.runs, self.model = runs, runs.model
        self.entries = [entry for entry, _ in rows]
        self.prompt = torch.tensor([prompt for _, prompt in rows], device=self.model.device)
        self.first = min(entry.board for entry in self.entries)
        self.now: dict[str, Tensor] = {}  # by hook point: the stream, and what senders write in this pass
        self.receivers: dict[str, dict[_Node, list[int]]] = defaultdict(dict)  # hook point -> receiver -> rows
        for i, entry in enumerate(self.entries):
            for receiver in entry.reads:
                self.receivers[receiver.point].setdefault(receiver, []).append(i)

    def final(self) -> Float[Tensor, "row pos d_model"]:
        """The stream that the logits are read off."""
        n_layers, mask = self.model.cfg.n_layers, self.runs.mask
        x = self.runs.base[_stream(self.first, n_layers)][self.prompt]
        edits = [(point, self._read) for point in self.receivers if point]
        with (
            self.model.hooks(edits),
            self.model.recording(self._remembered(), lambda x, point: self.now.update({point.name: x})),
        ):
            x = self.model(
                x,
                attention_mask=None if mask is None else mask[self.prompt],
                start_at_layer=self.first,
                stop_at_layer=n_layers,
            )
        for receiver, rows in self.receivers.get("", {}).items():
            x = x.index_add(0, *self._added(receiver, rows))
        return x

    def _remembered(self) -> list[str]:
        """The streams that heads' readers need, and what senders write that may differ from the base run."""
        points = {point for entry in self.entries for at in entry.reads.values() for point in at}
        later = {point for point in points if int(point.split(".")[1]) >= self.first}
        heads = {receiver for at in self.receivers.values() for receiver in at if receiver.head is not None}
        return sorted(later | {_stream(receiver.layer, self.model.cfg.n_layers) for receiver in heads})

    def _read(self, x: Tensor, hook: HookPoint) -> None:
        """Let the receivers at a hook point read what they read in their rows."""
        block = self.model.blocks[hook.layer()]
        for receiver, in_rows in self.receivers[hook.name].items():
            rows, added = self._added(receiver, in_rows)
            if receiver.head is None:
                x.index_add_(0, rows, added)
                continue
            stream = self.now[_stream(receiver.layer, self.model.cfg.n_layers)][rows] + added
            attn, slot = block.attn, receiver.point[-1].upper()
            weight, bias = getattr(attn, f"W_{slot}")[receiver.head], getattr(attn, f"b_{slot}")
            read = block.ln1.unheard(stream) @ weight
            x[:, :, receiver.head] = x[:, :, receiver.head].index_copy(
                0, rows, read if bias is None else read + bias[receiver.head]
            )

    def _added(
        self, receiver: _Node, in_rows: Sequence[int]
    ) -> tuple[Int[Tensor, " row"], Float[Tensor, "row pos d_model"]]:
        """The rows in which a receiver has patched edges, and what these add to the stream as it reads it."""
        rows = torch.tensor(in_rows, device=self.model.device)
        added = torch.zeros(
            len(rows), self.runs.tokens.shape[1], self.model.cfg.d_model, dtype=self.model.dtype, device=rows.device
        )
        senders: dict[str, list[tuple[int, Sequence[int]]]] = defaultdict(list)
        for i, row in enumerate(in_rows):
            for point, heads in self.entries[row].reads[receiver].items():
                senders[point].append((i, heads))
        for point, listed in senders.items():
            at = torch.tensor([i for i, _ in listed], device=rows.device)
            added.index_add_(0, at, self._difference(point, rows[at], [heads for _, heads in listed]))
        return rows, added

    def _difference(
        self, point: str, rows: Int[Tensor, " row"], heads: Sequence[Sequence[int]]
    ) -> Float[Tensor, "row pos d_model"]:
        """What is written at a point in the other run less what is written now; at z, by some heads of each row."""
        prompt = self.prompt[rows]
        now = self.now[point][rows] if point in self.now else self.runs.base[point][prompt]
        change = self.runs.other[point][prompt] - now
        if not point.endswith("hook_z"):
            return change
        is_patched = torch.zeros(len(rows), self.model.cfg.n_heads, dtype=torch.bool)
        for i, some in enumerate(heads):
            is_patched[i, list(some)] = True
        z = change.where(is_patched.to(change.device)[:, None, :, None], 0)
        attn = self.model.blocks[self.model.hook_dict[point].layer()].attn
        return product(z.flatten(-2), attn.out.weight, None)  # b_O is the same in both runs


def _values(
    runs: _Runs,
    metric: AnyMetric,
    rows: Sequence[tuple[_Entry, int]],
    memory: int | None,
    progress: bool,
) -> tuple[Float[Tensor, " row"], dict[str, int]]:
    """The metric of each row, and the work that it took."""
    model, n_pos = runs.model, runs.tokens.shape[1]
    work = {"rows": 0, "chunks": 0, "tokens through a layer": 0}

    def once(chunk: list[int]) -> Float[Tensor, " row"]:
        batch = _Batch(runs, [rows[i] for i in chunk])
        mask = None if runs.mask is None else runs.mask[batch.prompt]
        final = at_positions(batch.final(), metric, mask)  # no other logits are computed
        work["rows"] += len(chunk)
        work["chunks"] += 1
        work["tokens through a layer"] += (model.cfg.n_layers - batch.first) * n_pos * len(chunk)
        of = Rows(runs.tokens[batch.prompt], batch.prompt, len(runs.tokens), mask)
        return values_of(metric, model.read_off(model.ln_final(final)), of)

    values = torch.empty(len(rows), dtype=torch.float64)
    jobs = [
        Job(i, f"from layer {entry.board}", n_pos, (sum(map(len, entry.reads.values())),))
        for i, (entry, _) in enumerate(rows)
    ]
    with tqdm(total=len(rows), desc="edges", unit=" rows", disable=not progress) as bar:
        for chunk, found in Chunks(model.device, memory).run(jobs, once):
            values[chunk] = found.double().cpu()
            bar.update(len(chunk))
    if len(bad := values.isnan().nonzero()):
        entry, prompt = rows[int(bad[0])]
        raise ValueError(
            f"{name_of(metric)} is NaN with {entry.label or 'no edge'} patched in prompt {prompt}: "
            f"in {len(bad)} of {len(rows)} runs"
        )
    return values, work
