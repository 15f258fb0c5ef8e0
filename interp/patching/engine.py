"""Many runs, each changed at a site of its own, in one pass through the layers.

1. The base run is made once; its stream before every layer and its keys and values are kept.
2. A row boards at the layer that its first edit touches, from the base run's stream, with the tokens from its first
   changed position on: what lies before is as in the base run.
   Where launching work costs more than doing it, it begins a little earlier: rows that begin together go together.
3. The tokens of all rows on board are packed side by side without padding. To the blocks they are one long sequence;
   attention alone knows rows, and looks at the base run's keys and values for what lies before a row's first token.
4. In the last layer only the positions that the metric reads ask, and only their logits are computed.

Edits that act on every call around a sweep act on its rows. Under other functions that are hooked in around it each
pass is a full one of all prompts, as they expect; and where attention looks ahead, rows are full runs, too (`Whole`).
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import groupby

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.hooks import HookPoint, silence
from interp.interventions import Edit, Patch
from interp.interventions.edits import Places, edits_in_force, last_real, tokens_first
from interp.model import HookedGPT, KVCache
from interp.model.attention import Attention, Pass
from interp.model.inputs import allowed_attention, distance, positions
from interp.model.rotary import rotations

_GROUP = {"cuda": 1.2e10}  # floating-point operations that take as long as the steps of a group of its own
_TOGETHER = 2**9  # tokens of two runs; in so few, reading the weights takes most of the time


@dataclass(frozen=True, eq=False)
class Row:
    """A run of one of the prompts, with these edits; `start`: nothing changes before this position."""

    prompt: int
    edits: tuple[Edit, ...]
    start: int = 0


@dataclass(frozen=True, eq=False)
class Prepared:
    """A row that is ready: from where on it differs from the base run, in which layer and at which position."""

    prompt: int
    start: int
    board: int
    acts: list[tuple[HookPoint, Edit, Int[Tensor, " _"]]]


class Base:
    """The run that rows depart from, and what they need of it.

    `cache` has the values at `names`, of the run `other` if there is one, or else of this one.
    """

    def __init__(
        self,
        model: HookedGPT,
        tokens: Int[Tensor, "prompt pos"],
        mask: Tensor | None = None,
        *,
        other: Int[Tensor, "prompt pos"] | None = None,
        names: Sequence[str] = (),
    ) -> None:
        self.model, self.tokens = model, tokens.to(model.device)
        self.mask = None if mask is None or bool(mask.all()) else mask.bool().to(model.device)
        n_rows, self.n_pos = tokens.shape
        self.where = positions(self.mask, 0, self.n_pos, model.device)
        self.last = last_real(self.mask, n_rows, self.n_pos, torch.device("cpu"))
        looks_ahead = model.cfg.attention_dir == "bidirectional"
        outer = edits_in_force(model)
        self.is_packed = outer is not None and not looks_ahead
        self.is_lockstep = outer is None or (looks_ahead and bool(outer))  # each pass is of all prompts, in order
        self.outer = outer if outer is not None and self.is_packed else []
        self.kept = None if looks_ahead else KVCache(room=self.n_pos)
        self.resid: list[Float[Tensor, "prompt pos d_model"]] = []  # before each layer, and after the last
        self.cache: dict[str, Tensor] = {}
        self._new: dict[int, tuple[Tensor, Tensor]] = {}  # a source of patches, by its id -> itself, where it is new
        stream = ["blocks.*.hook_resid_pre", f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"]
        self.beside: Float[Tensor, "prompt pos d_model"] | None = None  # the positions that queries and keys read
        beside = ["hook_pos_embed"] if model.cfg.is_shortformer else []
        runs, padding, n_before = self.tokens, self.mask, 0
        is_alone = outer is None or bool(outer) or 2 * tokens.numel() > _TOGETHER
        apart = other if is_alone else None
        if other is not None and apart is None:
            runs, n_before = torch.cat((runs, other.to(model.device))), n_rows
            padding = None if padding is None else padding.repeat(2, 1)

        def keep(x: Tensor, point: HookPoint) -> None:
            self.cache[point.name] = x[n_before:]

        def keep_beside(x: Tensor, point: HookPoint) -> None:  # noqa: ARG001
            self.beside = x[:n_rows]

        with (
            torch.no_grad(),
            model.recording(beside, keep_beside),
            model.recording(stream, lambda x, point: self.resid.append(x)),  # noqa: ARG005
            model.recording(names if apart is None else [], keep),
        ):
            model(runs, None, attention_mask=padding, past_kv_cache=self.kept)
        if apart is not None:
            with torch.no_grad(), model.recording(names, keep):
                model(apart.to(model.device), None, attention_mask=padding)

    def prepared(self, row: Row) -> "Prepared":
        """A row, and where in the pass each of its edits acts."""
        if not 0 <= row.prompt < len(self.tokens):
            raise IndexError(f"prompt {row.prompt} is out of range: there are {len(self.tokens)}")
        columns = torch.arange(row.start if self.is_packed else 0, self.n_pos)
        places = Places(torch.full_like(columns, row.prompt), columns)
        acts = []
        for edit in row.edits:
            edit.site.check_positions(len(self.tokens), self.n_pos, self.mask)
            point, meant = edit.site.point(self.model), edit.site.includes(places, self.last, self.n_pos)
            if point.name in ("hook_embed", "hook_pos_embed"):
                raise ValueError(f"a sweep changes the stream from its first block on: not {point.name}, but resid_pre")
            where = columns if meant is None else columns[meant]
            if len(row.edits) == 1 and (differs := self._differs(point, edit)) is not None:
                where = where[differs[row.prompt, where]]
            acts.append((point, edit, where))
        acts = [(point, edit, where) for point, edit, where in acts if len(where)]
        start = min((int(where[0]) for _, _, where in acts), default=self.n_pos)
        n_layers = self.model.cfg.n_layers
        board = min((_layer(point, n_layers) for point, _, _ in acts), default=n_layers)
        if not self.is_packed and acts:
            start = board = 0
        if start < self.n_pos:
            start -= start % self.grain
        return Prepared(row.prompt, start, board, [*self._outer_acts(row.prompt, start, board), *acts])

    def unchanged(self, prompt: int) -> "Prepared":
        """The base run as a row."""
        n_layers = self.model.cfg.n_layers
        return Prepared(prompt, self.n_pos, n_layers, self._outer_acts(prompt, self.n_pos, n_layers))

    def _outer_acts(self, prompt: int, start: int, board: int) -> list[tuple[HookPoint, Edit, Int[Tensor, " _"]]]:
        """What the edits around a sweep do to a row that boards there: the stream that it comes with has seen them."""
        n_layers, acts = self.model.cfg.n_layers, []
        for point, edit in self.outer:
            layer = _layer(point, n_layers)
            columns = torch.arange(start if layer < n_layers else 0, self.n_pos)
            if layer > board or (layer == board and not point.name.endswith(".hook_resid_pre")):
                meant = edit.site.includes(Places(torch.full_like(columns, prompt), columns), self.last, self.n_pos)
                acts.append((point, edit, columns if meant is None else columns[meant]))
        return [act for act in acts if len(act[2])]

    def _differs(self, point: HookPoint, edit: Edit) -> Bool[Tensor, "prompt pos"] | None:
        """Where a patch of the first stream puts something new: prompts that differ in a token are alike at all others.

        None: not known.
        """
        here = self.resid[0][: len(self.tokens)]
        if not isinstance(edit, Patch) or point.name != "blocks.0.hook_resid_pre" or edit.source.shape != here.shape:
            return None
        key = id(edit.source)
        if key not in self._new:
            self._new[key] = edit.source, (edit.source.to(here.device) != here).any(-1).cpu()
        return self._new[key][1]

    @cached_property
    def grain(self) -> int:
        """Rows begin at multiples of it: on a GPU, groups are fewer for it, and the few more tokens cost less."""
        block = self.model.blocks[0]
        per_token = 2 * sum(p.numel() for p in block.parameters())
        return max(1, int((_GROUP.get(self.model.device.type, 0) / per_token) ** 0.5))

    @cached_property
    def distance(self) -> Int[Tensor, "#prompt 1 query_pos key_pos"] | None:
        """How far each key stands before each query, where scores depend on it."""
        return distance(self.where, self.where) if self.model.cfg.leans else None

    @cached_property
    def allowed(self) -> dict[bool, Bool[Tensor, "#prompt 1 query_pos key_pos"]]:
        """Who may look where, in layers without a window and with one."""
        n, device = self.n_pos, self.model.device
        causal = torch.ones(n, n, dtype=torch.bool, device=device).tril()[None, None]
        found = {}
        for is_local in (False, True):
            window = self.model.cfg.window_size if is_local else None
            mask = allowed_attention(self.mask, 0, n, True, window, device)
            found[is_local] = causal if mask is None else mask
        return found


@dataclass
class Group:
    """Rows on board that start at the same position: their tokens lie side by side in the packed stream."""

    rows: list[int]
    start: int
    first: int  # the packed token with which it begins
    n_each: int  # tokens of a row

    @property
    def tokens(self) -> slice:
        return slice(self.first, self.first + len(self.rows) * self.n_each)


@dataclass
class Before:
    """Stands where a KV cache does: the base run's keys and values, before those of a group's own tokens."""

    keys: Float[Tensor, "row kv_head key_pos d_head"]
    values: Float[Tensor, "row kv_head key_pos d_head"]

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values that a group looks at."""
        k, v = k.transpose(1, 2), v.transpose(1, 2)
        if not self.keys.shape[2]:
            return k, v
        return torch.cat((self.keys, k), 2), torch.cat((self.values, v), 2)


@dataclass(frozen=True, eq=False)
class Act:
    """An edit of a row, at the positions that it changes."""

    row: int
    edit: Edit
    columns: Int[Tensor, " column"]  # on the CPU: where a token lies in the packed stream is worked out there
    nth: int  # of the edits of this row at this hook point, which act in their order

    def family(self) -> tuple[object, ...]:
        """What it shares with edits that can be made together with it."""
        site = self.edit.site
        rest = [getattr(self.edit, each.name) for each in fields(self.edit) if each.name != "site"]
        of_rest = [id(each) if isinstance(each, Tensor) else each for each in rest]
        return (self.nth, type(self.edit), str(site.head), str(site.neuron), id(site.subspace), *of_rest)


class Packed:
    """One pass of some rows, packed."""

    def __init__(self, base: Base, rows: Sequence[Prepared], wanted: Int[Tensor, "prompt wanted"]) -> None:
        self.base, self.model, self.device = base, base.model, base.model.device
        self.starts, self.boards = [row.start for row in rows], [row.board for row in rows]
        acts: dict[HookPoint, list[Act]] = defaultdict(list)
        for i, row in enumerate(rows):
            seen: Counter[HookPoint] = Counter()
            for point, edit, where in row.acts:
                acts[point].append(Act(i, edit, where, seen[point]))
                seen[point] += 1
        self.acts = {
            point: [list(some) for _, some in groupby(sorted(each, key=_sortable), key=Act.family)]
            for point, each in acts.items()
        }
        self.prompts = [row.prompt for row in rows]
        self.prompt = torch.tensor(self.prompts, device=self.device)
        self.wanted = wanted.cpu()[self.prompts]  # [row wanted]
        self.on_board: list[int] = []
        self.groups: list[Group] = []
        self.first: dict[int, int] = {}  # a row on board -> its first packed token
        self.nth: dict[int, int] = {}  # … -> how many rows stand before it
        self.looking: Group | None = None  # whose pattern is being made
        self.is_asking = False  # in the last layer, where only what is wanted goes on
        self.n_tokens = 0  # that went through a layer, in all

    @torch.no_grad()
    def logits(self, tokens: Int[Tensor, " token"] | None = None) -> Float[Tensor, "row wanted d_vocab_out"]:
        """The logits of each row at its wanted positions, of these tokens or of all."""
        model, n_layers = self.model, self.model.cfg.n_layers
        x = torch.empty(0, model.cfg.d_model, dtype=model.dtype, device=self.device)
        edits = [(point.name, self._act) for point in self.acts]
        with silence(), model.hooks(edits), self._listening():
            for layer, block in enumerate(model.blocks):
                x = self._boarded(x, layer)
                if len(x):
                    x = block(x[None], self._pass(is_last=layer == n_layers - 1))[0]
                    self.n_tokens += len(self.columns)
            final = self._final(x)
            self.groups = []
            return model.read_off(model.ln_final(final), tokens)

    def _listening(self) -> AbstractContextManager[None]:
        """In it, whoever is to see packed values does."""
        return nullcontext()

    # The packed stream: groups in order of their start, their rows in order, the tokens of a row in order.

    def _boarded(self, x: Float[Tensor, "token d_model"], layer: int) -> Float[Tensor, "boarded d_model"]:
        """The stream with those who board at a layer."""
        new = [i for i, board in enumerate(self.boards) if board == layer]
        if not new:
            return x
        n_pos = self.base.n_pos
        came, at = dict(self.first), len(x)
        for i in new:
            came[i], at = at, at + n_pos - self.starts[i]
        prompts, columns = self._tokens_of(new)
        joined = torch.cat((x, self.base.resid[layer][prompts, columns]))
        self.on_board = sorted(came, key=lambda i: (self.starts[i], i))
        self.nth = {i: n for n, i in enumerate(self.on_board)}
        self.groups, self.first, first = [], {}, 0
        for start, members in groupby(self.on_board, key=lambda i: self.starts[i]):
            group = Group(list(members), start, first, n_pos - start)
            self.groups.append(group)
            self.first |= {i: first + member * group.n_each for member, i in enumerate(group.rows)}
            first = group.tokens.stop
        self.of_prompt, self.columns = self._tokens_of(self.on_board)
        begin = torch.tensor([came[i] - self.starts[i] for i in self.on_board])
        lengths = torch.tensor([n_pos - self.starts[i] for i in self.on_board])
        index = begin.repeat_interleave(lengths).to(self.device) + self.columns
        return joined[index]

    def _tokens_of(self, rows: list[int]) -> tuple[Int[Tensor, " token"], Int[Tensor, " token"]]:
        """The prompt and the column of every token of some rows."""
        columns = torch.cat([torch.arange(self.starts[i], self.base.n_pos) for i in rows])
        lengths = torch.tensor([self.base.n_pos - self.starts[i] for i in rows])
        prompts = torch.tensor([self.prompts[i] for i in rows]).repeat_interleave(lengths)
        return prompts.to(self.device), columns.to(self.device)

    def _pass(self, is_last: bool) -> Pass:
        self.is_asking = is_last and not any(point in self.acts for point in self.model.blocks[-1].split_points)
        this = Pass(look=self._look, wanted=self._asked() if self.is_asking else None)
        if self.model.cfg.is_rotary:
            where = self.base.where.expand(len(self.base.tokens), -1)[self.of_prompt, self.columns]
            length = self.base.where.max() + 1
            this.rotations = rotations(self.model.cfg, where[None], self.model.dtype, length)
        if self.base.beside is not None:
            this.pos_embed = self.base.beside[self.of_prompt, self.columns][None]
        return this

    def _asked(self) -> Int[Tensor, " asked"]:
        """The packed tokens whose logits are wanted, as many for each row; its first one for those before it."""
        first, start = (torch.tensor([of[i] for i in self.on_board])[:, None] for of in (self.first, self.starts))
        return (first + (self.wanted[self.on_board] - start).clamp(min=0)).flatten().to(self.device)

    def _final(self, x: Float[Tensor, "token d_model"]) -> Float[Tensor, "row wanted d_model"]:
        """The stream after the last block: the base run's where nothing changed."""
        wanted = self.wanted.to(self.device)
        final = self.base.resid[-1][self.prompt[:, None], wanted]
        if not self.on_board:
            return final
        rows = torch.tensor(self.on_board, device=self.device)
        changed = (x if self.is_asking else x[self._asked()]).view(len(rows), -1, x.shape[-1])
        starts = torch.tensor([self.starts[i] for i in self.on_board], device=self.device)
        final[rows] = torch.where((wanted[rows] >= starts[:, None])[..., None], changed, final[rows])
        return final

    # Attention, which alone knows rows.

    def _look(self, attn: Attention, q: Tensor, k: Tensor, v: Tensor) -> Float[Tensor, "1 query_pos head d_head"]:
        assert self.base.kept is not None
        keys, values = self.base.kept.of(attn.layer)
        allowed, away, mixed, asked = self.base.allowed[attn.is_local], self.base.distance, [], 0
        n_wanted = self.wanted.shape[1]
        for group in self.groups:
            g, own = len(group.rows), group.tokens
            prompts = self.prompt[group.rows]
            mask, far = (x if x is None or len(x) == 1 else x[prompts] for x in (allowed, away))
            assert mask is not None
            if self.is_asking:
                queries, asked = q[0, asked : asked + g * n_wanted], asked + g * n_wanted
                asking = self.wanted[group.rows].clamp(min=group.start).to(self.device)
                rows = torch.arange(g, device=self.device)[:, None]
                mask = mask.expand(g, -1, -1, -1)[rows, 0, asking][:, None]
                far = None if far is None else far.expand(g, -1, -1, -1)[rows, 0, asking][:, None]
            else:
                queries, mask = q[0, own], mask[:, :, group.start :]
                far = None if far is None else far[:, :, group.start :]
            before = Before(keys[prompts, :, : group.start], values[prompts, :, : group.start])
            this = Pass(mask=mask, local_mask=mask, distance=far, is_causal=False, kv_cache=before)
            each = (g, -1)
            self.looking = group
            z = attn.look(queries.unflatten(0, each), k[0, own].unflatten(0, each), v[0, own].unflatten(0, each), this)
            mixed.append(z.flatten(0, 1))
        self.looking = None
        return torch.cat(mixed)[None]

    # Edits

    def _act(self, x: Tensor, hook: HookPoint) -> Tensor:
        """The value at a hook point after the edits of the rows on board."""
        order = tokens_first(hook)
        axes = [hook.axes.split()[i] for i in order[2:]]
        ordered = x.permute(order)
        flat = ordered.flatten(0, 1)
        for family in self.acts[hook]:
            found = [(*self._find(act, hook), act) for act in family]
            rows = [torch.full((len(columns),), act.row) for _, columns, act in found]
            index = torch.cat([index for index, _, _ in found]).to(self.device)
            if len(index):
                columns = torch.cat([columns for _, columns, _ in found]).to(self.device)
                prompts = self.prompt[torch.cat(rows).to(self.device)]
                places = Places(prompts, columns, len(self.base.tokens))
                flat[index] = family[0].edit.changed(flat[index], axes, places)
        return flat.view_as(ordered).permute(torch.tensor(order).argsort().tolist())

    def _find(self, act: Act, hook: HookPoint) -> tuple[Int[Tensor, " found"], Int[Tensor, " found"]]:
        """Where an edit's tokens lie in a value at a hook point, flattened over rows and positions; their columns."""
        group = self.looking if "query_pos" in hook.axes.split() else None  # patterns are made group by group
        if group is not None and self.starts[act.row] != group.start:
            none = torch.empty(0, dtype=torch.long)
            return none, none
        if self.groups and not (self.is_asking and not hook.name.endswith(_READ_WHOLE)):
            first = self.first[act.row] - (0 if group is None else group.first)
            return first + act.columns - self.starts[act.row], act.columns
        row = self.nth[act.row] if self.groups else act.row  # behind the last layer all rows are there
        if group is not None:
            row -= self.nth[group.rows[0]]
        at, which = (self.wanted[act.row][:, None] == act.columns).nonzero().T
        return row * self.wanted.shape[1] + at, act.columns[which]


class Whole(Packed):
    """Rows as full runs, side by side, heard by whoever listens."""

    @torch.no_grad()
    def logits(self, tokens: Int[Tensor, " token"] | None = None) -> Float[Tensor, "row wanted d_vocab_out"]:
        """The logits of each row at its wanted positions, of these tokens or of all."""
        base, rows = self.base, torch.arange(len(self.prompts), device=self.device)
        mask = None if base.mask is None else base.mask[self.prompt]
        with self.model.hooks([(point.name, self._act) for point in self.acts]):
            logits = self.model(base.tokens[self.prompt], attention_mask=mask)
        self.n_tokens = self.model.cfg.n_layers * base.n_pos * len(rows)
        chosen = logits[rows[:, None], self.wanted.to(self.device)]
        return chosen if tokens is None else chosen[..., tokens]

    def _find(self, act: Act, hook: HookPoint) -> tuple[Int[Tensor, " found"], Int[Tensor, " found"]]:
        return act.row * self.base.n_pos + act.columns, act.columns


# In the last block these are computed at every position, also where nothing is wanted.
_READ_WHOLE = (
    ".hook_resid_pre", ".ln1.hook_scale", ".ln1.hook_normalized", ".hook_k", ".hook_v", ".hook_rot_k",
    ".k_norm.hook_scale", ".k_norm.hook_normalized",
)  # fmt: skip


def _layer(point: HookPoint, n_layers: int) -> int:
    """The layer at which a row boards that changes something there; behind the last one, none."""
    return point.layer() if point.name.startswith("blocks.") else n_layers


def _sortable(act: Act) -> tuple[str, ...]:
    return tuple(f"{each:04}" if isinstance(each, int) else str(each) for each in act.family())
