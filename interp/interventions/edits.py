"""Edits as data: where a run is changed, and to what.

An edit says where it acts, a `Site`, and what it makes of the value there. It acts on each token by itself, so that it
means the same in a full pass, in generation over a KV cache, and in the packed rows of a sweep:

    with model.edit([Ablate(Site("z", layer=3, head=7)), Steer(Site("resid_post", layer=2), direction, scale=4.0)]):
        model.generate(prompt)
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from interp.generation import current_step
from interp.hooks import HookedModule, HookPoint, Hooks, listeners_at, span_of_pass

Index = int | Sequence[int] | slice | None
Values = Shaped[Tensor, "token ..."]  # of some tokens, without the axes batch and pos
Kind = Literal["zero", "value", "mean", "mean_per_position", "resample"]
_OF_QUERIES = ("pattern", "attn_scores")  # in these the heads stand before the positions


@dataclass(frozen=True)
class Places:
    """Where each of some tokens stands: the prompt that its row is a run of, and its column among the prompt's."""

    prompt: Int[Tensor, " token"]
    pos: Int[Tensor, " token"]
    n_prompts: int | None = None  # where given, a source of several prompts must have as many


@dataclass(frozen=True, eq=False)
class Site:
    """A hook point, and the part of its value that is meant; of what is left out, all.

    `name` is a hook's name, or its last part with `layer`. `pos` means the queries' positions in patterns and scores; a
    negative one counts from each row's last real token, and a tensor is a mask, [pos] or [batch pos]. `neuron` is of
    the last axis, whatever that is. `subspace` is an orthonormal basis there: all that is orthogonal to it stays.
    """

    name: str
    layer: int | None = None
    head: Index = None
    pos: Index | Bool[Tensor, "*batch pos"] = None
    neuron: Index = None
    subspace: Float[Tensor, "coordinate basis"] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.pos, Tensor) and (self.pos.dtype != torch.bool or self.pos.ndim not in (1, 2)):
            given = f"{list(self.pos.shape)} of {self.pos.dtype}"
            raise ValueError(f"pos: a tensor is a mask, [pos] or [batch pos] of torch.bool; given: {given}")
        if self.subspace is not None:
            if self.subspace.ndim != 2:
                raise ValueError(f"subspace: it is [coordinate basis]; given: {list(self.subspace.shape)}")
            gram = self.subspace.double().T @ self.subspace.double()
            if not torch.allclose(gram, torch.eye(len(gram), dtype=torch.float64, device=gram.device), atol=1e-4):
                raise ValueError("subspace: its columns must be orthonormal; torch.linalg.qr(basis).Q makes them so")
            if self.neuron is not None:
                raise ValueError("a site has neuron= or subspace=, not both: both choose among the last axis")

    def point(self, model: HookedModule) -> HookPoint:
        """The hook point in a model; raise if there is none, or if it has no such part."""
        points, layer = model.hook_dict, self.layer
        if layer is not None and self.name in points:
            raise ValueError(f"{self.name!r} is a whole name already: leave out layer={layer}")
        if layer is not None and layer < 0:
            layer += 1 + max((p.layer() for name, p in points.items() if name.startswith("blocks.")), default=-1)
        block = "" if layer is None else f"blocks.{layer}."
        short = (self.name, f"hook_{self.name}")
        found = [self.name] if self.name in points else []
        found = found or [n for s in short for n in model.hooks_by_part.get(s, []) if n.startswith(block)]
        if len(found) != 1:
            likely = self.name if "." in self.name else f"{block}hook_{self.name.removeprefix('hook_')}"
            near = found or get_close_matches(likely, points, n=4, cutoff=0.5)
            which = "could mean any of" if found else "is no hook point here; nearest:"
            raise KeyError(f"{self.name!r}, layer {self.layer}, {which} {near[:6]}; see model.describe_hooks()")
        point = points[found[0]]
        if self.head is not None and not {"head", "kv_head"} & set(point.axes.split()):
            raise ValueError(f"{point.name} [{point.axes}] has no heads")
        return point

    def mesh(self, axes: Sequence[str], sizes: Sequence[int], device: torch.device) -> list[Tensor]:
        """Indices into the axes behind the token's, each of which is broadcast over the others."""
        chosen = []
        for i, (axis, size) in enumerate(zip(axes, sizes, strict=True)):
            wanted = self.head if axis in ("head", "kv_head") else self.neuron if i == len(axes) - 1 else None
            index = torch.tensor(_indices(wanted, size, axis), device=device)
            chosen.append(index.view([-1 if j == i + 1 else 1 for j in range(len(axes) + 1)]))
        return chosen

    def check_positions(self, n_prompts: int, n_pos: int, mask: Bool[Tensor, "prompt pos"] | None) -> None:
        """Raise if a position is meant that these prompts do not have."""
        if isinstance(self.pos, Tensor):
            if self.pos.shape[-1] != n_pos:
                raise ValueError(f"pos: the mask has shape {list(self.pos.shape)}; the run has {[n_prompts, n_pos]}")
        elif self.pos is not None and not isinstance(self.pos, slice):
            n_real = n_pos
            if mask is not None:
                n_before, n_behind = mask.long().argmax(1), mask.flip(1).long().argmax(1)
                n_real = int((n_pos - n_before - n_behind).min())
            if bad := [i for i in _listed(self.pos) if not -n_real <= i < n_pos]:
                real = f", in the shortest prompt {n_real}" if n_real < n_pos else ""
                raise IndexError(f"pos {bad} is out of range: there are {n_pos} positions{real}")

    def includes(self, places: Places, last: Int[Tensor, " prompt"], n_pos: int) -> Bool[Tensor, " token"] | None:
        """Which tokens are meant; None: all. `last` is each prompt's last real column, of `n_pos`."""
        if self.pos is None:
            return None
        column = places.pos
        if isinstance(self.pos, Tensor):
            mask = torch.atleast_2d(self.pos).to(column.device)
            if len(mask) not in (1, len(last)):
                raise ValueError(
                    f"pos: the mask has {len(mask)} prompts; the run has {len(last)}: give one, or as many"
                )
            row = places.prompt if len(mask) > 1 else torch.zeros_like(places.prompt)
            return (column < mask.shape[1]) & mask[row, column.clamp(max=mask.shape[1] - 1)]
        if isinstance(self.pos, slice):
            return torch.isin(column, torch.tensor(range(n_pos)[self.pos], dtype=torch.long, device=column.device))
        is_meant = torch.zeros_like(column, dtype=torch.bool)
        for wanted in _listed(self.pos):
            is_meant |= column == (wanted if wanted >= 0 else last[places.prompt] + 1 + wanted)
        return is_meant


@dataclass(frozen=True, eq=False)
class Edit(ABC):
    """Something done at a site."""

    site: Site
    kinds: ClassVar[dict[str, type["Edit"]]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        Edit.kinds[cls.__name__] = cls

    @abstractmethod
    def of(self, part: Values, places: Places, mesh: list[Tensor], sizes: Sequence[int]) -> Tensor:
        """What the part of each token's value that `mesh` chooses among `sizes` becomes."""

    def changed(self, values: Values, axes: Sequence[str], places: Places) -> Values:
        """The values of some tokens after the edit; `axes` are those behind the token's."""
        sizes, basis = values.shape[1:], self.site.subspace
        if basis is not None and len(basis) != sizes[-1]:
            raise ValueError(f"the subspace's basis has {len(basis)} coordinates; {axes[-1]} has {sizes[-1]}")
        mesh = self.site.mesh(axes, sizes, values.device)
        where = (torch.arange(len(values), device=values.device).view(-1, *[1] * len(axes)), *mesh)
        part = values[where]
        new = self.of(part, places, mesh, sizes).to(part.dtype).expand_as(part)
        if basis is not None:
            basis = basis.to(part)
            new = part + (new - part) @ basis @ basis.T
        return values.index_put(where, new)


@dataclass(frozen=True, eq=False)
class Patch(Edit):
    """Put in the value of another run, [prompt pos …] as its cache has it; one prompt serves all."""

    source: Tensor

    def of(self, part: Values, places: Places, mesh: list[Tensor], sizes: Sequence[int]) -> Tensor:
        """See `Edit`."""
        return _looked_up(self.site, self.source, places, mesh, sizes, "the source run")


@dataclass(frozen=True, eq=False)
class Freeze(Patch):
    """Hold at the value of another run, whatever else is changed: what would pass through here does not."""

    @classmethod
    def all(cls, cache: Mapping[str, Tensor], names: Iterable[str]) -> list["Freeze"]:
        """One for each of these names of a cache."""
        return [cls(Site(name), cache[name]) for name in names]


@dataclass(frozen=True, eq=False)
class Ablate(Edit):
    """Take away what a part knows: put a value there that does not depend on the token.

    "zero"; "value", as given; "mean" over all tokens of a reference set; "mean_per_position"; "resample", the value of
    another prompt of the set at the same position. `Ablate.from_reference` works these out.
    """

    kind: Kind = "zero"
    value: Tensor | None = None

    def __post_init__(self) -> None:
        if self.kind not in ("zero", "value", "mean", "mean_per_position", "resample"):
            raise ValueError(f"kind={self.kind!r}; allowed: 'zero', 'value', 'mean', 'mean_per_position', 'resample'")
        if (self.kind == "zero") != (self.value is None):
            raise ValueError(
                f"kind={self.kind!r} {'needs no value' if self.kind == 'zero' else 'needs a value: see from_reference'}"
            )

    @classmethod
    def from_reference(
        cls,
        site: Site,
        kind: Kind,
        activations: Float[Tensor, "prompt pos ..."],
        mask: Tensor | None = None,
        seed: int = 0,
    ) -> "Ablate":
        """With the mean, or a shuffling, of the site's activations on a reference set (`mask`: True on real tokens)."""
        if kind == "zero":
            return cls(site)
        values = _tokens_second(site, activations)
        real = torch.ones(values.shape[:2], dtype=torch.bool) if mask is None else mask.bool()
        real = real.to(values.device)
        if real.shape != values.shape[:2]:
            raise ValueError(f"mask has shape {list(real.shape)}; [prompt pos] is {list(values.shape[:2])}")
        if kind == "mean":
            if not real.any():
                raise ValueError("mask: the reference set has no real token to take a mean over")
            return cls(site, kind, values[real].mean(0))
        if kind == "mean_per_position":
            if empty := (~real.any(0)).nonzero().flatten().tolist():
                raise ValueError(f"mask: no prompt of the reference set has a real token at positions {empty}")
            is_padding = ~real.view(*real.shape, *[1] * (values.ndim - 2))
            mean = values.masked_fill(is_padding, 0).sum(0) / (~is_padding).sum(0)
            return cls(site, kind, _tokens_second(site, mean[None])[0])
        if kind == "resample":
            if len(values) < 2:
                raise ValueError("kind='resample' takes another prompt's value: the reference set has one prompt alone")
            other = _derangement(len(values), seed).to(values.device)
            if (real & ~real[other]).any():
                raise ValueError("kind='resample' would put padding in place of tokens: give prompts of one length")
            return cls(site, kind, activations[other])
        raise ValueError(f"kind={kind!r}; of a reference set: 'zero', 'mean', 'mean_per_position', 'resample'")

    def of(self, part: Values, places: Places, mesh: list[Tensor], sizes: Sequence[int]) -> Tensor:
        """See `Edit`."""
        if self.value is None:
            return torch.zeros_like(part)
        value = self.value.to(part.device)
        if self.kind in ("mean_per_position", "resample"):
            source = value[None] if self.kind == "mean_per_position" else value
            return _looked_up(self.site, source, places, mesh, sizes, "the reference set")
        if not _is_spread_over(value.shape, sizes):  # one number, one vector for every head, or all of it
            raise ValueError(f"the value has shape {list(value.shape)}; a token's value here is {list(sizes)}")
        return value.expand(*sizes)[tuple(each.squeeze(0) for each in mesh)]


@dataclass(frozen=True, eq=False)
class Steer(Edit):
    """Add a direction, `scale` times; or take it out of the value. `keep_norm`: only the value's direction changes."""

    direction: Float[Tensor, "..."]
    scale: int | float = 1.0
    project_out: bool = False
    keep_norm: bool = False

    def __post_init__(self) -> None:
        if self.project_out and self.scale != 1:
            raise ValueError(f"project_out takes out all that lies along the direction: no scale={self.scale}")
        if self.project_out and not self.direction.norm(dim=-1).all():
            raise ValueError("project_out: the direction is zero")

    def of(self, part: Values, places: Places, mesh: list[Tensor], sizes: Sequence[int]) -> Tensor:
        """See `Edit`."""
        direction = self.direction.to(part)
        chosen = part.shape[1:]
        if direction.shape[-1:] != chosen[-1:] or not _is_spread_over(direction.shape, chosen):
            raise ValueError(
                f"the direction has shape {list(direction.shape)}; the site has {list(chosen)} of each token"
            )
        if self.project_out:
            unit = direction / direction.norm(dim=-1, keepdim=True)
            new = part - (part * unit).sum(-1, keepdim=True) * unit
        else:
            new = part + self.scale * direction
        if self.keep_norm:
            norm = new.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(new.dtype).tiny)
            new = new * part.norm(dim=-1, keepdim=True) / norm
        return new


@dataclass(frozen=True, eq=False)
class Scale(Edit):
    """Multiply the value: 0 takes it away, 2 makes it twice as large."""

    factor: int | float

    def of(self, part: Values, places: Places, mesh: list[Tensor], sizes: Sequence[int]) -> Tensor:
        """See `Edit`."""
        return self.factor * part


@dataclass(frozen=True, eq=False)
class Attend(Edit):
    """Of an attention pattern, [query key]: look where it does not depend on what is read.

    "uniform": at all tokens up to the query alike; "first": at the first token alone. Of causal attention over prompts
    without padding.
    """

    to: Literal["uniform", "first"] = "uniform"

    def __post_init__(self) -> None:
        if self.to not in ("uniform", "first"):
            raise ValueError(f"to={self.to!r}; allowed: 'uniform', 'first'")
        if not self.site.name.endswith("pattern"):
            raise ValueError(f"Attend is for the pattern, not for {self.site.name}")
        if self.site.neuron is not None:
            raise ValueError("Attend sets all keys of a query together: leave out neuron=")

    def of(self, part: Values, places: Places, mesh: list[Tensor], sizes: Sequence[int]) -> Tensor:
        """See `Edit`."""
        key = mesh[-1].to(places.pos.device)
        query = places.pos.view(-1, *[1] * len(sizes))
        weight = (key <= query) / (query + 1) if self.to == "uniform" else key == 0
        return weight.to(part)


@dataclass(frozen=True)
class Acts:
    """A hook function that does what an edit says."""

    edit: Edit

    def __call__(self, x: Tensor, hook: HookPoint) -> Tensor:
        batch_axis, pos_axis, *rest = tokens_first(hook)
        axes = [hook.axes.split()[i] for i in rest]
        ordered = x.permute(batch_axis, pos_axis, *rest)
        n_rows, n_new = ordered.shape[:2]
        span = span_of_pass()
        n_pos = span.n_past + n_new
        if not span.n_past and current_step() is None:  # what is generated comes to its later positions yet
            self.edit.site.check_positions(n_rows, n_pos, span.mask)
        places = Places(
            torch.arange(n_rows, device=x.device).repeat_interleave(n_new),
            span.n_past + torch.arange(n_new, device=x.device).repeat(n_rows),
            n_rows,
        )
        last = last_real(span.mask, n_rows, n_pos, x.device)
        values, meant = ordered.flatten(0, 1), self.edit.site.includes(places, last, n_pos)
        if meant is None:
            new = self.edit.changed(values, axes, places)
        else:
            some = meant.nonzero().flatten()
            if not len(some):
                return x
            meant_places = Places(places.prompt[some], places.pos[some], n_rows)
            new = values.index_copy(0, some, self.edit.changed(values[some], axes, meant_places))
        back = torch.tensor([batch_axis, pos_axis, *rest]).argsort().tolist()
        return new.unflatten(0, (n_rows, n_new)).permute(back)


def hooks_of(edits: Iterable[Edit], model: HookedModule) -> Hooks:
    """The edits as hooks, in their order."""
    return [(edit.site.point(model).name, Acts(edit)) for edit in edits]


def edits_in_force(model: HookedModule) -> list[tuple[HookPoint, Edit]] | None:
    """The edits that act on every call in this context, in their order at each point; None: others listen, too."""
    found: list[tuple[HookPoint, Edit]] = []
    for point in model.hook_dict.values():
        listeners = listeners_at(point)
        found += [(point, fn.edit) for fn in listeners.edits if isinstance(fn, Acts)]
        if len(listeners.edits) + len(listeners.backward) + len(listeners.recorders) > sum(
            isinstance(fn, Acts) for fn in listeners.edits
        ):
            return None
    return found


def last_real(
    mask: Bool[Tensor, "prompt pos"] | None, n_rows: int, n_pos: int, device: torch.device
) -> Int[Tensor, " prompt"]:
    """The column of each row's last real token."""
    if mask is None:
        return torch.full((n_rows,), n_pos - 1, device=device)
    return n_pos - 1 - mask.to(device).flip(1).long().argmax(1)


def tokens_first(point: HookPoint) -> list[int]:
    """The axes of a value with batch and position first."""
    axes = point.axes.split()
    pos = next(axis for axis in ("pos", "query_pos") if axis in axes)
    first = [axes.index("batch"), axes.index(pos)]
    return [*first, *(i for i in range(len(axes)) if i not in first)]


def _listed(wanted: int | Sequence[int]) -> list[int]:
    return [wanted] if isinstance(wanted, int) else list(wanted)


def _indices(wanted: Index, size: int, axis: str) -> list[int]:
    if wanted is None:
        return list(range(size))
    listed = list(range(size)[wanted]) if isinstance(wanted, slice) else _listed(wanted)
    if bad := [i for i in listed if not -size <= i < size]:
        raise IndexError(f"{axis} {bad} is out of range: there are {size}")
    if not listed:
        raise IndexError(f"{axis} {wanted} chooses none: there are {size}")
    return list(dict.fromkeys(i % size for i in listed))


def _is_spread_over(shape: Sequence[int], sizes: Sequence[int]) -> bool:
    """Whether something of this shape can be broadcast to these sizes."""
    return len(shape) <= len(sizes) and all(n in (1, m) for n, m in zip(shape[::-1], sizes[::-1], strict=False))


def _tokens_second(site: Site, value: Tensor) -> Tensor:
    """A value as a cache has it, with prompt and position first; the other way round, too."""
    return value.transpose(1, 2) if site.name.endswith(_OF_QUERIES) and value.ndim == 4 else value


def _looked_up(
    site: Site, source: Tensor, places: Places, mesh: list[Tensor], sizes: Sequence[int], what: str
) -> Tensor:
    """The part of a source, as a cache has it, that belongs to each token."""
    shape, source = list(source.shape), _tokens_second(site, source).to(places.pos.device)
    if site.name.endswith(_OF_QUERIES):
        source = source[..., : sizes[-1]]  # keys that are yet to come in a generation
    if source.shape[2:] != tuple(sizes):
        raise ValueError(f"{what} has shape {shape}; a token's value here is {list(sizes)}")
    if places.n_prompts is not None and len(source) not in (1, places.n_prompts):
        raise ValueError(f"{what} has {len(source)} prompts; the run has {places.n_prompts}: give one, or as many")
    if places.pos.numel() and int(places.pos.max()) >= source.shape[1]:
        raise IndexError(f"{what} has {source.shape[1]} positions; position {int(places.pos.max())} was asked for")
    one = [1] * len(mesh)
    row = places.prompt if len(source) > 1 else torch.zeros_like(places.prompt)
    return source[(row.view(-1, *one), places.pos.view(-1, *one), *mesh)]


def _derangement(n: int, seed: int) -> Int[Tensor, " n"]:
    """Another index for each: a shuffled ring, turned by one."""
    ring = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    return torch.empty_like(ring).scatter(0, ring, ring.roll(1))
