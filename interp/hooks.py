"""Hook points, and the contexts in which somebody listens to them.

Each quantity of the network passes through a `HookPoint`. Who listens is kept in a context variable, so hooks belong
to the calls made inside a `with` block, in that thread alone, and are gone when the block is left, however it is left.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any, Literal, NoReturn, TypeVar

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling

HookFn = Callable[..., Tensor | None]
Recorder = Callable[[Tensor, "HookPoint"], None]
Names = str | Sequence[str] | Callable[[str], bool]
Hooks = Iterable[tuple[Names, HookFn]]
M = TypeVar("M", bound="HookedModule")


@dataclass(frozen=True)
class Listeners:
    """Who listens to one hook point. Edits act first, in order; recorders see the value that goes on."""

    edits: tuple[HookFn, ...] = ()
    backward: tuple[HookFn, ...] = ()
    recorders: tuple[Recorder, ...] = ()
    starts_graph: bool = False  # gradients are wanted here, also where no weight asks for one

    def then(self, later: "Listeners") -> "Listeners":
        return Listeners(
            self.edits + later.edits,
            self.backward + later.backward,
            self.recorders + later.recorders,
            self.starts_graph or later.starts_graph,
        )


NOBODY = Listeners()
Table = Mapping["HookPoint", Listeners]


@dataclass(frozen=True)
class Span:
    """What the pass under way reads: tokens behind `n_past` others, of rows that are real where the mask is True."""

    n_past: int = 0
    mask: Tensor | None = None  # [batch key_pos]; None: all are


@dataclass(frozen=True)
class Heard:
    """Who listens in a context: what each enclosing `with` added, outermost first, and all of it together."""

    entries: tuple[Table, ...] = ()
    table: Table = field(default_factory=dict)
    is_inside_hook: bool = False  # then lasting hooks are silent too
    span: Span = Span()

    def plus(self, added: Table) -> "Heard":
        table = {**self.table, **{p: self.table.get(p, NOBODY).then(later) for p, later in added.items()}}
        return Heard((*self.entries, added), table, self.is_inside_hook, self.span)

    def without(self, added: Table) -> "Heard":
        left = Heard(is_inside_hook=self.is_inside_hook, span=self.span)
        for entry in self.entries:
            left = left if entry is added else left.plus(entry)
        return left


_heard: ContextVar[Heard] = ContextVar("heard", default=Heard())  # noqa: B039 (frozen)


class HookPoint(nn.Module):
    """The place where one quantity of the network can be read or changed; the identity while nobody listens."""

    def __init__(self, axes: str, formula: str, on_demand: bool = False) -> None:
        super().__init__()
        self.axes = axes
        self.formula = formula
        self.on_demand = on_demand  # computed only while somebody listens
        self.is_cached_by_default = not on_demand
        self.name = ""
        self.lasting: Listeners | None = None

    def layer(self) -> int:
        """The index of the block that this point belongs to."""
        if not self.name.startswith("blocks."):
            raise ValueError(f"{self.name} belongs to no layer")
        return int(self.name.split(".")[1])

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise TypeError(f"{self.name} has no torch hooks: use model.hooks, model.run_with_hooks or model.add_hook")

    register_forward_hook = register_forward_pre_hook = _refuse
    register_full_backward_hook = register_full_backward_pre_hook = _refuse

    def __call__(self, x: Tensor) -> Tensor:
        # Straight to the point: nn.Module's own call machinery would cost more than the rest of an unheard hook point.
        if is_compiling():
            return x  # the model's door has seen that nobody listens
        heard = _heard.get()
        listeners = heard.table.get(self)
        if listeners is None and self.lasting is None:
            return x
        return self._pass_on(x, listeners or NOBODY, None if heard.is_inside_hook else self.lasting)

    def _pass_on(self, x: Tensor, listeners: Listeners, lasting: Listeners | None) -> Tensor:
        if listeners.backward and not torch.is_grad_enabled():
            raise RuntimeError(f"a backward hook at {self.name} cannot fire: gradients are switched off")
        if lasting is not None:
            listeners = lasting.then(listeners)
        for fn in listeners.edits:
            x = self._edited(x, fn)
        if torch.is_grad_enabled() and (x.requires_grad or listeners.starts_graph):
            # A node of its own: its gradient is that of this quantity alone, also where one tensor has two names.
            x = x.view_as(x) if x.requires_grad else x.detach().requires_grad_()
            for fn in listeners.backward:
                x.register_hook(lambda grad, fn=fn: self._edited(grad, fn))
        for record in listeners.recorders:
            record(x, self)
        return x

    def _edited(self, x: Tensor, fn: HookFn) -> Tensor:
        """What `fn` makes of a copy of its own. Models called by `fn` are not heard by the hooks around it."""
        own = x.clone()
        outside = _heard.set(Heard(is_inside_hook=True, span=_heard.get().span))
        try:
            returned = fn(own, hook=self)
        except Exception as error:
            error.add_note(f"raised by the hook at {self.name}")
            raise
        finally:
            _heard.reset(outside)
        edited = own if returned is None else returned
        if not isinstance(edited, Tensor):
            raise TypeError(
                f"the hook at {self.name} returned a {type(edited).__name__}; it must return a tensor or None"
            )
        if edited.shape != x.shape or edited.device != x.device or _kind(edited) != _kind(x):
            raise ValueError(
                f"the hook at {self.name} returned {_described(edited)}; "
                f"the value there [{self.axes}] is {_described(x)}"
            )
        return edited.to(x.dtype)


def is_heard(*points: HookPoint) -> bool:
    """Whether anybody listens to any of these points in this call."""
    if is_compiling():
        return False
    table = _heard.get().table
    for point in points:  # noqa: SIM110  (a generator would cost more than all the rest)
        if point.lasting is not None or point in table:
            return True
    return False


def is_touched(point: HookPoint) -> bool:
    """Whether a hook may change the value, or wants the gradient, at a point in this call."""
    here, lasting = _heard.get().table.get(point, NOBODY), point.lasting or NOBODY
    return any(listeners.edits or listeners.starts_graph for listeners in (here, lasting))


def listeners_at(point: HookPoint) -> Listeners:
    """Who listens to a point in this context."""
    heard = _heard.get()
    lasting = None if heard.is_inside_hook else point.lasting
    return (lasting or NOBODY).then(heard.table.get(point, NOBODY))


@contextmanager
def silence() -> Iterator[None]:
    """In this context nobody listens who did so before."""
    token = _heard.set(Heard(is_inside_hook=True, span=_heard.get().span))
    try:
        yield
    finally:
        _heard.reset(token)


def hooks_in_force() -> Heard | None:
    """Who listens in this context; None if nobody does."""
    if is_compiling():
        return None
    heard = _heard.get()
    return heard if heard.table else None


@contextmanager
def replayed(heard: Heard) -> Iterator[None]:
    """In this context, the edits of an earlier one act again; its recorders have seen what they came for."""
    if _heard.get() is heard:
        yield
        return
    table = {point: replace(listeners, backward=(), recorders=()) for point, listeners in heard.table.items()}
    token = _heard.set(Heard((table,), table, span=heard.span))
    try:
        yield
    finally:
        _heard.reset(token)


@contextmanager
def spanning(span: Span) -> Iterator[None]:
    """In this context, the pass under way reads these tokens."""
    token = _heard.set(replace(_heard.get(), span=span))
    try:
        yield
    finally:
        _heard.reset(token)


def span_of_pass() -> Span:
    """What the pass that calls a hook function reads."""
    return _heard.get().span


@contextmanager
def _listen(added: Table) -> Iterator[None]:
    """In this context, `added` listen too, after those who already do."""
    before = _heard.get()
    within = before.plus(added)
    _heard.set(within)
    try:
        yield
    finally:
        now = _heard.get()  # not what we set, where contexts held by generators end out of order
        _heard.set(before if now is within else now.without(added))


class HookedModule(nn.Module):
    """A module whose hook points have names. A subclass calls `setup()` at the end of its `__init__`."""

    hook_dict: dict[str, HookPoint]
    hooks_by_part: dict[str, list[str]]  # the last part of a name -> the names that end so

    def setup(self) -> None:
        """Name every hook point by its path in the module tree."""
        for module in self.modules():  # nn.Module looks its parts up by a slow road, hundreds of times in a pass
            module.__dict__.update({name: part for name, part in module._modules.items() if name.isidentifier()})
        self.hook_dict = {name: module for name, module in self.named_modules() if isinstance(module, HookPoint)}
        self.hooks_by_part = {}
        for name, point in self.hook_dict.items():
            point.name = name
            self.hooks_by_part.setdefault(name.rpartition(".")[2], []).append(name)

    def hook_names(self, names: Names) -> list[str]:
        """The names of the hook points meant by a name, a glob, a list of those, or a predicate on names."""
        if callable(names):
            if not (found := [name for name in self.hook_dict if names(name)]):
                raise KeyError(f"the predicate {names} accepts no hook point; see model.describe_hooks()")
            return found
        found: list[str] = []
        unknown: list[str] = []
        for wanted in [names] if isinstance(names, str) else names:
            if not isinstance(wanted, str):
                raise TypeError(f"a hook name is a string, not {wanted!r}")
            is_glob = wanted not in self.hook_dict
            matches = [name for name in self.hook_dict if fnmatchcase(name, wanted)] if is_glob else [wanted]
            found += matches
            unknown += [] if matches else [wanted]
        if unknown:
            nearest = {name: get_close_matches(name, self.hook_dict, n=4, cutoff=0.5) for name in unknown}
            hints = "; ".join(f"{name!r}: did you mean {near}?" for name, near in nearest.items() if near)
            raise KeyError(f"no such hook points: {unknown}; {hints or 'none is near'}; see model.describe_hooks()")
        return list(dict.fromkeys(found))

    def _listeners(self, hooks: Hooks, kind: Literal["edits", "backward"]) -> dict[HookPoint, Listeners]:
        listeners: dict[HookPoint, Listeners] = {}
        for entry in hooks:
            if not (isinstance(entry, tuple | list) and len(entry) == 2 and callable(entry[1])):
                raise TypeError(f"a hook is a pair (name, function), not {entry!r}")
            made = (
                Listeners(edits=(entry[1],)) if kind == "edits" else Listeners(backward=(entry[1],), starts_graph=True)
            )
            for name in self.hook_names(entry[0]):
                point = self.hook_dict[name]
                listeners[point] = listeners.get(point, NOBODY).then(made)
        return listeners

    @contextmanager
    def hooks(self: M, fwd_hooks: Hooks = (), bwd_hooks: Hooks = ()) -> Iterator[M]:
        """Within this context, each `(name, fn)` has `fn(tensor, hook=point)` called whenever the quantity is computed.

        What `fn` returns goes on in its place; if it returns None, its argument does, with any edits made in place.
        Backward hooks get the gradient, and fire also when `backward` runs after the context.
        """
        with _listen(self._listeners(fwd_hooks, "edits")), _listen(self._listeners(bwd_hooks, "backward")):
            yield self

    @contextmanager
    def recording(self, names: Names, recorder: Recorder, starts_graph: bool = False) -> Iterator[None]:
        """Within this context, `recorder(tensor, point)` sees the value that goes on, after all edits."""
        points = [self.hook_dict[name] for name in self.hook_names(names)]
        with _listen({point: Listeners(recorders=(recorder,), starts_graph=starts_graph) for point in points}):
            yield

    def run_with_hooks(self, *args: Any, fwd_hooks: Hooks = (), bwd_hooks: Hooks = (), **kwargs: Any) -> Any:
        """Call the model once with these hooks."""
        fwd_hooks, bwd_hooks = list(fwd_hooks), list(bwd_hooks)
        with self.hooks(fwd_hooks, bwd_hooks):
            self.check_reach([hook[0] for hook in (*fwd_hooks, *bwd_hooks)], **kwargs)
            return self(*args, **kwargs)

    def check_reach(self, names: Sequence[Names], **kwargs: Any) -> None:
        """Raise if a hook named exactly could not fire in a call with these arguments."""

    def add_hook(self, names: Names, fn: HookFn, dir: Literal["fwd", "bwd"] = "fwd") -> None:
        """Listen in every call from now on, in every thread, until `reset_hooks`."""
        if dir not in ("fwd", "bwd"):
            raise ValueError(f"dir={dir!r}; allowed: 'fwd', 'bwd'")
        for point, listeners in self._listeners([(names, fn)], "edits" if dir == "fwd" else "backward").items():
            point.lasting = (point.lasting or NOBODY).then(listeners)

    def reset_hooks(self) -> None:
        """Remove what `add_hook` added."""
        for point in self.hook_dict.values():
            point.lasting = None

    def is_observed(self) -> bool:
        """Whether anybody listens to any of this module's points in this context."""
        return is_heard(*self.hook_dict.values())


def _kind(x: Tensor) -> str:
    return "float" if x.is_floating_point() else "bool" if x.dtype == torch.bool else "int"


def _described(x: Tensor) -> str:
    return f"{list(x.shape)} {x.dtype} on {x.device}"
