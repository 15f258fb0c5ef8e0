"""Edge patching: what changes when one component alone reads what another would have written in another run.

Senders write to the residual stream: `embed` (token and position), heads `L0H1`, layers of neurons `MLP0`, and each of
their neurons `L0N3`. Receivers read the sum of what was written before them: each head's queries, keys and values
`L1H0.k`, `MLP1`, `L1N3`, and `logits`. An MLP is all of its neurons: `MLP0->MLP1` is every edge `L0N3->L1N5`, and one
of these beside it changes nothing.

1. The run that is stayed in and the other one are made once; what the senders write is kept of both.
2. A receiver reads the stream plus the sum, over its patched edges, of (sender in the other run - sender now). It reads
   before its norm, so that is exact; and "now" is in the patched run, so any set of edges can be patched in one pass
   (the masked differences of Miller et al., 2024).
3. A row is one entry of edges in one prompt. It begins at the layer of its first receiver, from the stream of the run
   that is stayed in, in a batch with others that begin there.
"""

import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from interp.hooks import HookPoint
from interp.interventions.edits import edits_in_force
from interp.metrics import AnyMetric, Rows, at_positions, name_of, narrowed, values_of
from interp.model import HookedGPT
from interp.model.linear import product
from interp.model.mlp import GatedMLP, SoLU
from interp.patching.activation import Direction, Pair, pair_of_runs
from interp.patching.memory import Chunks, Job
from interp.results import Result, labelled, provenance

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
    itself, with MLPs whole. "noise" puts edges of the corrupted run into the clean one, "denoise" the other way round.
    With grouped queries, the head in `L1H0.k` and `L1H0.v` is a key-value head. `memory`: bytes that a batch may take.
    """
    if edits_in_force(model) != []:
        raise ValueError(
            "edge patching puts many runs side by side, and others listen to them: leave their hooks or edits"
        )
    runs = pair_of_runs(model, clean, corrupted, direction, attention_mask)
    entries, n_prompts = _entries(model, edges), len(runs.own)
    nothing = _entry([], model.cfg.n_layers)
    rows = [(entry, prompt) for entry in (*entries, nothing) for prompt in range(n_prompts)]
    values, work = _values(_Runs.of(model, runs, entries), metric, rows, memory, progress)
    values = values.view(-1, n_prompts)
    about = provenance(model, metric, runs.own, "edge patching") | {"direction": direction, **work}
    axes = {"edge": [entry.label for entry in entries], "prompt": range(n_prompts)}
    return labelled(values[:-1], axes, "metric", about, values[-1])


def all_edges(model: HookedGPT, *, neurons: Collection[int] = ()) -> list[str]:
    """Every edge: receivers in order of computation (queries, keys, values, MLP), for each its senders in theirs.

    `neurons`: the layers whose neurons stand in the place of their MLP.
    """
    _refuse_normed_outputs(model)
    with_mlps = [] if model.cfg.attn_only else list(range(model.cfg.n_layers))
    if strange := [layer for layer in neurons if layer not in with_mlps]:
        raise ValueError(f"neurons={neurons}: this model has no MLP in layers {strange}; allowed: {with_mlps}")
    senders, is_parallel = _senders(model, neurons).values(), model.cfg.parallel_attn_mlp
    return [
        f"{sender.name}->{receiver.name}"
        for receiver in _receivers(model, neurons).values()
        for sender in senders
        if _is_before(sender, receiver, is_parallel)
    ]


@dataclass(frozen=True)
class _Node:
    """A sender or a receiver: at which hook point it is found, and which head or neuron there."""

    name: str
    point: str
    layer: int
    unit: int | None = None

    @property
    def mlp(self) -> str:
        """The MLP that a neuron is part of; of no other node."""
        return f"MLP{self.layer}" if ".mlp." in self.point else ""


@dataclass(frozen=True, eq=False)
class _Reading:
    """What a receiver reads; neurons of a layer that read the same do so together."""

    point: str
    head: int | None
    units: Sequence[int]  # the head, or the neurons
    senders: Mapping[str, Sequence[int]]  # their hook point -> which heads or neurons there


@dataclass(frozen=True, eq=False)
class _Entry:
    """Edges that are patched together."""

    label: str
    reads: Sequence[_Reading]
    board: int  # the layer of the first receiver


def _senders(model: HookedGPT, neurons: Collection[int] = ()) -> dict[str, _Node]:
    cfg = model.cfg
    nodes = [_Node("embed", "blocks.0.hook_resid_pre", -1)]
    for layer in range(cfg.n_layers):
        nodes += [_Node(f"L{layer}H{h}", f"blocks.{layer}.attn.hook_z", layer, h) for h in range(cfg.n_heads)]
        nodes += _mlp(model, layer, layer in neurons, "hook_mlp_out", "hook_post")
    return {node.name: node for node in nodes}


def _receivers(model: HookedGPT, neurons: Collection[int] = ()) -> dict[str, _Node]:
    cfg, nodes = model.cfg, []
    n_heads = {"q": cfg.n_heads, "k": cfg.n_key_value_heads, "v": cfg.n_key_value_heads}
    for layer in range(cfg.n_layers):
        for slot, n in n_heads.items():
            nodes += [_Node(f"L{layer}H{h}.{slot}", f"blocks.{layer}.attn.hook_{slot}", layer, h) for h in range(n)]
        nodes += _mlp(model, layer, layer in neurons, "hook_mlp_in", "hook_pre")
    return {node.name: node for node in (*nodes, _Node("logits", "", cfg.n_layers))}


def _mlp(model: HookedGPT, layer: int, in_neurons: bool, whole: str, each: str) -> list[_Node]:
    """A layer's MLP, by itself or neuron by neuron, found at these hook points."""
    if model.cfg.attn_only:
        return []
    if not in_neurons:
        return [_Node(f"MLP{layer}", f"blocks.{layer}.{whole}", layer)]
    return [_Node(f"L{layer}N{n}", f"blocks.{layer}.mlp.{each}", layer, n) for n in range(model.cfg.d_mlp)]


def _is_before(sender: _Node, receiver: _Node, is_parallel: bool) -> bool:
    """Whether what a sender writes is in the stream that a receiver reads."""
    from_attn_to_mlp = ".attn." in sender.point and ".attn." not in receiver.point
    return sender.layer < receiver.layer or (sender.layer == receiver.layer and from_attn_to_mlp and not is_parallel)


def _entries(model: HookedGPT, edges: Edges) -> list[_Entry]:
    """The entries; raise, naming every edge that the model has not."""
    _refuse_normed_outputs(model)
    listed = all_edges(model) if edges == "all" else [edges] if isinstance(edges, str) else edges
    groups = [(each,) if isinstance(each, str) else tuple(each) for each in listed]
    layers = {int(layer) for group in groups for edge in group for layer in re.findall(r"L(\d+)N", edge)}
    senders, receivers = ({**of(model), **of(model, layers)} for of in (_senders, _receivers))
    is_parallel = model.cfg.parallel_attn_mlp
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
            + ". An edge is 'sender->receiver', from embed, L0H1, MLP0 or a neuron L0N3 to a later L1H0.q, L1H0.k,"
            " L1H0.v, MLP1, L1N3 or logits; see interp.patching.all_edges(model)"
        )
    return entries


def _entry(edges: Sequence[tuple[_Node, _Node]], n_layers: int) -> _Entry:
    senders: dict[str, set[_Node]] = defaultdict(set)  # by the name of the receiver
    for sender, receiver in edges:
        senders[receiver.name].add(sender)
    alike: dict[tuple[str, int | None, tuple[_Node, ...]], list[int]] = defaultdict(list)
    for receiver in dict.fromkeys(receiver for _, receiver in edges):
        every = senders[receiver.name] | senders.get(receiver.mlp, set())
        names = {sender.name for sender in every}
        some = tuple(sorted((sender for sender in every if sender.mlp not in names), key=lambda sender: sender.name))
        head = None if receiver.mlp else receiver.unit
        alike[receiver.point, head, some] += [] if receiver.unit is None else [receiver.unit]
    reads = [_Reading(point, head, units, _by_point(some)) for (point, head, some), units in alike.items()]
    label = " + ".join(f"{sender.name}->{receiver.name}" for sender, receiver in edges)
    return _Entry(label, reads, min((receiver.layer for _, receiver in edges), default=n_layers))


def _by_point(senders: Sequence[_Node]) -> Mapping[str, Sequence[int]]:
    units: dict[str, list[int]] = {}
    for sender in senders:
        at = units.setdefault(sender.point, [])
        at += [] if sender.unit is None else [sender.unit]
    return units


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
        senders = {point for entry in entries for reading in entry.reads for point in reading.senders}
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
        self.readings: dict[str, dict[int | None, list[tuple[int, _Reading]]]] = {}  # hook point -> head -> with rows
        for i, entry in enumerate(self.entries):
            for reading in entry.reads:
                self.readings.setdefault(reading.point, {}).setdefault(reading.head, []).append((i, reading))

    def final(self) -> Float[Tensor, "row pos d_model"]:
        """The stream that the logits are read off."""
        n_layers, mask = self.model.cfg.n_layers, self.runs.mask
        x = self.runs.base[_stream(self.first, n_layers)][self.prompt]
        edits = [(point, self._read) for point in self.readings if point and ".mlp." not in point]
        edits += [(name, self._fire) for point in self.readings if ".mlp." in point for name in self._fired_at(point)]
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
        for readings in self.readings.get("", {}).values():
            x = x.index_add(0, *self._added(readings))
        return x

    def _fired_at(self, point: str) -> list[str]:
        """Where neurons fire that read at a point. Those that depend on each other do so behind their activation."""
        if isinstance(self.model.blocks[0].mlp, SoLU):
            return [point.replace("hook_pre", "hook_post")]
        return [point, f"{point}_linear"] if self.model.cfg.gated_mlp else [point]

    def _remembered(self) -> list[str]:
        """The streams that heads and neurons read, and what senders write that may differ from the base run."""
        points = {point for entry in self.entries for reading in entry.reads for point in reading.senders}
        later = {point for point in points if int(point.split(".")[1]) >= self.first}
        beside = {"hook_pos_embed"} if self.model.cfg.is_shortformer else set[str]()
        return sorted(
            later
            | beside
            | {self._read_from(point) for point in self.readings if ".attn." in point or ".mlp." in point}
        )

    def _read_from(self, point: str) -> str:
        """The hook point of the stream that heads or neurons at a point read."""
        is_mid = ".mlp." in point and not self.model.cfg.parallel_attn_mlp
        return f"blocks.{point.split('.')[1]}.hook_resid_{'mid' if is_mid else 'pre'}"

    def _read(self, x: Tensor, hook: HookPoint) -> None:
        """Let heads or an MLP read what they read in their rows."""
        block = self.model.blocks[hook.layer()]
        for head, readings in self.readings[hook.name].items():
            rows, added = self._added(readings)
            if head is None:
                x.index_add_(0, rows, added)
                continue
            stream = self.now[self._read_from(hook.name)][rows] + added
            attn, slot = block.attn, hook.name[-1].upper()
            weight, bias = getattr(attn, f"W_{slot}")[head], getattr(attn, f"b_{slot}")
            normed = block.ln1.unheard(stream)
            if slot != "V" and self.model.cfg.is_shortformer:
                normed = normed + self.now["hook_pos_embed"][rows]
            read = normed @ weight
            x[:, :, head] = x[:, :, head].index_copy(0, rows, read if bias is None else read + bias[head])

    def _fire(self, x: Tensor, hook: HookPoint) -> None:
        """Let neurons read what they read in their rows; gated ones do so at two points."""
        block = self.model.blocks[hook.layer()]
        mlp = block.mlp
        if hook is mlp.hook_pre or isinstance(mlp, SoLU):
            readings = self.readings[mlp.hook_pre.name][None]
            rows, added = self._added(readings)
            norm = block.ln1 if self.model.cfg.parallel_shared_norm else block.ln2
            normed = norm.unheard(self.now[self._read_from(hook.name)][rows] + added)
            self.heard = rows, normed, self._is_chosen([reading.units for _, reading in readings], self.model.cfg.d_mlp)
        rows, normed, is_read = self.heard
        chosen = is_read.any(0).nonzero()[:, 0]
        reading, at = is_read[:, chosen].nonzero(as_tuple=True)
        if isinstance(mlp, SoLU):
            read = mlp.together(mlp.up(normed))[..., chosen]
        else:
            linear = mlp.gate if isinstance(mlp, GatedMLP) and hook is mlp.hook_pre else mlp.up
            read = product(normed, linear.weight[chosen], None if linear.bias is None else linear.bias[chosen])
        x[rows[reading], :, chosen[at]] = read[reading, :, at]

    def _added(
        self, readings: Sequence[tuple[int, _Reading]]
    ) -> tuple[Int[Tensor, " reading"], Float[Tensor, "reading pos d_model"]]:
        """The row of each reading, and what its patched edges add to the stream."""
        rows = torch.tensor([row for row, _ in readings], device=self.model.device)
        added = torch.zeros(
            len(rows), self.runs.tokens.shape[1], self.model.cfg.d_model, dtype=self.model.dtype, device=rows.device
        )
        senders: dict[str, list[tuple[int, Sequence[int]]]] = defaultdict(list)
        for i, (_, reading) in enumerate(readings):
            for point, units in reading.senders.items():
                senders[point].append((i, units))
        for point, listed in senders.items():
            at = torch.tensor([i for i, _ in listed], device=rows.device)
            added.index_add_(0, at, self._difference(point, rows[at], [units for _, units in listed]))
        return rows, added

    def _difference(
        self, point: str, rows: Int[Tensor, " reading"], units: Sequence[Sequence[int]]
    ) -> Float[Tensor, "reading pos d_model"]:
        """What is written at a point in the other run less what is written now: by some heads or neurons for each."""
        block = self.model.blocks[self.model.hook_dict[point].layer()]
        if point.endswith("hook_z"):
            is_patched = self._is_chosen(units, self.model.cfg.n_heads)
            z = self._change(point, rows).where(is_patched[:, None, :, None], 0)
            return product(z.flatten(-2), block.attn.out.weight, None)  # b_O is the same in both runs
        if point.endswith("hook_post"):
            is_patched = self._is_chosen(units, self.model.cfg.d_mlp)
            chosen = is_patched.any(0).nonzero()[:, 0]
            post = self._change(point, rows, chosen).where(is_patched[:, None, chosen], 0)
            return product(post, block.mlp.down.weight[:, chosen], None)
        return self._change(point, rows)

    def _change(
        self, point: str, rows: Int[Tensor, " reading"], at: Tensor | slice = slice(None)
    ) -> Float[Tensor, "reading pos ..."]:
        """The value at a point in the other run less the one now, at some of its last axis."""
        prompt = self.prompt[rows]
        now = self.now[point][..., at][rows] if point in self.now else self.runs.base[point][..., at][prompt]
        return self.runs.other[point][..., at][prompt] - now

    def _is_chosen(self, units: Sequence[Sequence[int]], n: int) -> Bool[Tensor, "reading unit"]:
        """Which of n heads or neurons are meant in each reading."""
        is_chosen = torch.zeros(len(units), n, dtype=torch.bool)
        for i, some in enumerate(units):
            is_chosen[i, list(some)] = True
        return is_chosen.to(self.model.device)


def _values(
    runs: _Runs,
    metric: AnyMetric,
    rows: Sequence[tuple[_Entry, int]],
    memory: int | None,
    progress: bool,
) -> tuple[Float[Tensor, " row"], dict[str, int]]:
    """The metric of each row, and the work that it took."""
    model, n_pos = runs.model, runs.tokens.shape[1]
    tokens, narrow = narrowed(metric, model.cfg.d_vocab_out)
    work = {"rows": 0, "chunks": 0, "tokens through a layer": 0}

    def once(chunk: list[int]) -> Float[Tensor, " row"]:
        batch = _Batch(runs, [rows[i] for i in chunk])
        mask = None if runs.mask is None else runs.mask[batch.prompt]
        final = at_positions(batch.final(), metric, mask)  # no other logits are computed
        work["rows"] += len(chunk)
        work["chunks"] += 1
        work["tokens through a layer"] += (model.cfg.n_layers - batch.first) * n_pos * len(chunk)
        of = Rows(runs.tokens[batch.prompt], batch.prompt, len(runs.tokens), mask)
        return values_of(narrow, model.read_off(model.ln_final(final), tokens), of)

    values = torch.empty(len(rows), dtype=torch.float64)
    jobs = [
        Job(i, f"from layer {entry.board}", n_pos, (sum(len(reading.senders) for reading in entry.reads),))
        for i, (entry, _) in enumerate(rows)
    ]
    with tqdm(total=len(rows), desc="edges", unit=" rows", delay=1.0, disable=not progress) as bar:
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
