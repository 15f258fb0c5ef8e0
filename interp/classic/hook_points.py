"""HookPoint and HookedRootModule with the classic calls, for any module; there is one hook system, `interp.hooks`.

Hooks that last are kept in lists with their level and whether they are permanent; what acts is made of these lists.
"""

# pyright: reportIncompatibleMethodOverride=false
# What is overridden is called in the classic way here.

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from interp import hooks
from interp.hooks import NOBODY, Listeners, Names
from interp.recording import PosSlice, Recording, positions

Direction = Literal["fwd", "bwd"]
Directions = Literal["fwd", "bwd", "both"]
NamesFilter = Names | None
M = TypeVar("M", bound="HookedRootModule")


@dataclass(frozen=True)
class LensHandle:
    """A hook that lasts until it is removed."""

    fn: Callable[..., Any]
    dir: Direction
    is_permanent: bool = False
    context_level: int | None = None


class HookPoint(hooks.HookPoint):
    """The place where one quantity can be read or changed. `ctx` is a dict for what hooks want to remember."""

    def __init__(self) -> None:
        super().__init__("...", "what passes through it")
        self.adopt()

    def adopt(self) -> None:
        """Be a classic point from now on, whatever made it."""
        self.__class__ = HookPoint  # type: ignore[assignment]
        self.ctx: dict[Any, Any] = {}
        self.handles: list[LensHandle] = []

    def add_hook(
        self,
        hook: Callable[..., Any],
        dir: Direction = "fwd",
        is_permanent: bool = False,
        level: int | None = None,
        prepend: bool = False,
    ) -> None:
        """Call `hook(tensor, hook=self)` in every pass from now on."""
        if dir not in ("fwd", "bwd"):
            raise ValueError(f"Invalid direction {dir}; allowed: 'fwd', 'bwd'")
        handle = LensHandle(hook, dir, is_permanent, level)
        self.handles = [handle, *self.handles] if prepend else [*self.handles, handle]
        self._settle()

    def add_perma_hook(self, hook: Callable[..., Any], dir: Direction = "fwd") -> None:
        """Add a hook that `reset_hooks` leaves alone."""
        self.add_hook(hook, dir, is_permanent=True)

    def remove_hooks(
        self, dir: Directions = "fwd", including_permanent: bool = False, level: int | None = None
    ) -> None:
        """Remove those of a direction and a level (None: all)."""
        self.handles = [
            each
            for each in self.handles
            if (dir not in ("both", each.dir))
            or (each.is_permanent and not including_permanent)
            or (level is not None and each.context_level != level)
        ]
        self._settle()

    def has_hooks(self, dir: Directions = "both", including_permanent: bool = True, level: int | None = None) -> bool:
        """Whether a hook lasts here, of a direction and a level (None: any)."""
        return any(
            dir in ("both", each.dir)
            and (including_permanent or not each.is_permanent)
            and (level is None or each.context_level == level)
            for each in self.handles
        )

    @property
    def fwd_hooks(self) -> list[LensHandle]:
        return [each for each in self.handles if each.dir == "fwd"]

    @property
    def bwd_hooks(self) -> list[LensHandle]:
        return [each for each in self.handles if each.dir == "bwd"]

    def clear_context(self) -> None:
        """Forget what hooks remembered."""
        self.ctx = {}

    def _settle(self) -> None:
        acting = NOBODY
        for each in self.handles:
            one = (each.fn,) if each.dir == "fwd" else (_first_of(each.fn),)
            acting = acting.then(
                Listeners(edits=one) if each.dir == "fwd" else Listeners(backward=one, starts_graph=True)
            )
        self.lasting = acting if self.handles else None


def _first_of(fn: Callable[..., Any]) -> Callable[..., Any]:
    """A backward hook of the kind that returns a tuple, as one that returns its first part."""

    def hook(grad: Tensor, hook: HookPoint) -> Any:
        returned = fn(grad, hook=hook)
        return returned[0] if isinstance(returned, tuple) else returned

    return hook


def as_computed(taken: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same in the order of computation: gradients come last point first."""
    grads = [name for name in taken if name.endswith("_grad")]
    values = [name for name in taken if not name.endswith("_grad")]
    return {name: taken[name] for name in (*values, *reversed(grads))}


class HookedRootModule(hooks.HookedModule):
    """A module whose hook points have names. A subclass calls `setup()` at the end of its `__init__`."""

    mod_dict: dict[str, nn.Module]

    def __init__(self, *_: Any) -> None:
        super().__init__()

    def setup(self) -> None:
        """Name every hook point by its path in the module tree."""
        super().setup()
        for point in self.hook_dict.values():
            if not isinstance(point, HookPoint):
                HookPoint.adopt(point)  # type: ignore[arg-type]
        self.mod_dict = {name: module for name, module in self.named_modules() if name}

    def hook_points(self) -> Any:
        """Every hook point."""
        return self.hook_dict.values()

    def add_hook(
        self,
        name: Names,
        hook: Callable[..., Any],
        dir: Direction = "fwd",
        is_permanent: bool = False,
        level: int | None = None,
        prepend: bool = False,
    ) -> None:
        """Call `hook` at the points of this name, or that the predicate accepts, in every pass until `reset_hooks`."""
        for each in self.hook_names(name):
            self._point(each).add_hook(hook, dir, is_permanent, level, prepend)

    def add_perma_hook(self, name: Names, hook: Callable[..., Any], dir: Direction = "fwd") -> None:
        """Add a hook that `reset_hooks` leaves alone."""
        self.add_hook(name, hook, dir, is_permanent=True)

    def reset_hooks(
        self,
        clear_contexts: bool = True,
        direction: Directions = "both",
        including_permanent: bool = False,
        level: int | None = None,
    ) -> None:
        """Remove the hooks that `add_hook` added."""
        if clear_contexts:
            self.clear_contexts()
        self.remove_all_hook_fns(direction, including_permanent, level)

    def remove_all_hook_fns(
        self, direction: Directions = "both", including_permanent: bool = False, level: int | None = None
    ) -> None:
        """Remove the hooks of a direction and a level from every point."""
        for name in self.hook_dict:
            self._point(name).remove_hooks(direction, including_permanent, level)

    def clear_contexts(self) -> None:
        """Forget what hooks remembered, at every point."""
        for name in self.hook_dict:
            self._point(name).clear_context()

    def list_hooks(
        self, name_filter: NamesFilter = None, dir: Directions = "both", including_permanent: bool = True
    ) -> dict[str, list[LensHandle]]:
        """What lasts where."""
        kept = {
            name: [
                each
                for each in self._point(name).handles
                if dir in ("both", each.dir) and (including_permanent or not each.is_permanent)
            ]
            for name in (self.hook_dict if name_filter is None else self.hook_names(name_filter))
        }
        return {name: handles for name, handles in kept.items() if handles}

    @contextmanager
    def hooks(
        self: M,
        fwd_hooks: Sequence[tuple[Names, Callable[..., Any]]] = (),
        bwd_hooks: Sequence[tuple[Names, Callable[..., Any]]] = (),
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
    ) -> Iterator[M]:
        """These hooks within the block; with `reset_hooks_end=False` they last until `reset_hooks`."""
        backward = [(name, _first_of(fn)) for name, fn in bwd_hooks]
        if not reset_hooks_end:
            for dir, pairs in (("fwd", fwd_hooks), ("bwd", bwd_hooks)):
                for name, fn in pairs:
                    self.add_hook(name, fn, dir)  # type: ignore[arg-type]
            yield self
            return
        try:
            with super().hooks(fwd_hooks, backward):
                yield self
        finally:
            if clear_contexts:
                self.clear_contexts()

    def run_with_hooks(
        self,
        *model_args: Any,
        fwd_hooks: Sequence[tuple[Names, Callable[..., Any]]] = (),
        bwd_hooks: Sequence[tuple[Names, Callable[..., Any]]] = (),
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
        **model_kwargs: Any,
    ) -> Any:
        """Call the module once with these hooks. Backward hooks fire also when `backward` runs later."""
        with self.hooks(fwd_hooks, bwd_hooks, reset_hooks_end, clear_contexts):
            return self(*model_args, **model_kwargs)

    def run_with_cache(
        self,
        *model_args: Any,
        names_filter: NamesFilter = None,
        device: torch.device | str | None = None,
        remove_batch_dim: bool = False,
        incl_bwd: bool = False,
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
        pos_slice: PosSlice = None,
        **model_kwargs: Any,
    ) -> tuple[Any, dict[str, Tensor]]:
        """What the module returns, and what passed through its hook points; with `incl_bwd`, of a module that returns
        its loss, gradients too, as `NAME_grad`."""
        cut = None if pos_slice is None else positions(pos_slice, model_args[0].shape[-1], None)
        recording = Recording(cut, device, None, keep_nodes=incl_bwd)
        names = self._wanted(names_filter)
        with (
            self.recording(names, recording.take, incl_bwd),
            torch.set_grad_enabled(incl_bwd or torch.is_grad_enabled()),
        ):
            out = self(*model_args, **model_kwargs)
            if incl_bwd:
                recording.differentiate(out)
        if clear_contexts:
            self.clear_contexts()
        taken = as_computed(recording.taken)
        return out, {name: x[0] for name, x in taken.items()} if remove_batch_dim else taken

    def get_caching_hooks(
        self,
        names_filter: NamesFilter = None,
        incl_bwd: bool = False,
        device: torch.device | str | None = None,
        remove_batch_dim: bool = False,
        cache: dict[str, Tensor] | None = None,
        pos_slice: PosSlice = None,
    ) -> tuple[dict[str, Tensor], list[Any], list[Any]]:
        """A dict, and the forward and backward hooks that fill it."""
        kept: dict[str, Tensor] = {} if cache is None else cache

        def take(x: Tensor, hook: hooks.HookPoint, suffix: str = "") -> None:
            cut = x if pos_slice is None else positions(pos_slice, x.shape[1], None).of(x, 1)  # type: ignore[union-attr]
            value = cut.detach().to(device) if device is not None else cut.detach()
            kept[hook.name + suffix] = value[0] if remove_batch_dim else value

        names = self._wanted(names_filter)
        forward = [(name, take) for name in names]
        backward = [(name, lambda grad, hook: take(grad, hook, "_grad")) for name in names] if incl_bwd else []
        return kept, forward, backward

    def add_caching_hooks(
        self,
        names_filter: NamesFilter = None,
        incl_bwd: bool = False,
        device: torch.device | str | None = None,
        remove_batch_dim: bool = False,
        cache: dict[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """A dict that every pass from now on fills, until `reset_hooks`."""
        kept, forward, backward = self.get_caching_hooks(names_filter, incl_bwd, device, remove_batch_dim, cache)
        for dir, pairs in (("fwd", forward), ("bwd", backward)):
            for name, fn in pairs:
                self.add_hook(name, fn, dir)  # type: ignore[arg-type]
        return kept

    def cache_all(
        self,
        cache: dict[str, Tensor] | None,
        incl_bwd: bool = False,
        device: torch.device | str | None = None,
        remove_batch_dim: bool = False,
    ) -> None:
        """Fill this dict in every pass from now on."""
        self.add_caching_hooks(None, incl_bwd, device, remove_batch_dim, cache)

    def cache_some(
        self,
        cache: dict[str, Tensor] | None,
        names: Callable[[str], bool],
        incl_bwd: bool = False,
        device: torch.device | str | None = None,
        remove_batch_dim: bool = False,
    ) -> None:
        """Fill this dict with what the predicate accepts, in every pass from now on."""
        self.add_caching_hooks(names, incl_bwd, device, remove_batch_dim, cache)

    def _wanted(self, names: NamesFilter) -> list[str]:
        """The names of a filter, in the order of computation; None: all that is cached by default."""
        if names is None:
            return [name for name, point in self.hook_dict.items() if point.is_cached_by_default]
        wanted = set(self.hook_names(names))
        return [name for name in self.hook_dict if name in wanted]

    def _point(self, name: str) -> HookPoint:
        point = self.hook_dict[name]
        assert isinstance(point, HookPoint)
        return point
