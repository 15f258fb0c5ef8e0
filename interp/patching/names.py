"""Parts of a model by name: the one notation of scripts, study files, the command line and the dashboard."""

import re
from collections.abc import Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from itertools import product
from typing import Any

from interp.hooks import HookPoint
from interp.interventions import Site
from interp.model import HookedGPT
from interp.patching.sites import label

_INDEX = r"\*|\d{1,7}(?:-\d{1,7})?"
_NAME = re.compile(rf"L?(?P<layer>{_INDEX})(?:(?P<kind>[HN.])(?P<index>{_INDEX})| ?(?P<whole>ATTN|MLP))?")
_WORDS = {"heads": "L*H*", "neurons": "L*N*", "mlps": "L* mlp", "attns": "L* attn", "layers": "L*"}
_NAMED = "they are named L5H1, L2N14, L7, L7 attn, L7 mlp, or by their hook: resid_pre layer 2 pos 5"
_LONGEST = 200  # characters


def parts_named(model: HookedGPT, names: str | Sequence[str], n_pos: int | None = None) -> dict[str, tuple[Site, ...]]:
    """The sites of heads (`L5H1`, or `5.1`), neurons (`L2N14`), and layers: `L7`, or one half, `L7 attn`, `L7 mlp`.

    Heads are taken at their `z`, neurons at `post`, MLPs at `mlp_out`. Any other site is named by its hook and what is
    meant of it: `resid_pre layer 2 pos 5`; of a layer that is not said, every one. An index may be `*` or a range,
    `L0-2H*`, `L3N0-63`; a hook's whole name may have a `*`. `heads`, `mlps`, `attns`, `neurons` and `layers` are all of
    those, `all` is heads and MLPs. `pos *` is every position of `n_pos`. Raises for what is no such name or part.
    """
    listed = [name.strip() for name in (names.split(",") if isinstance(names, str) else names)]
    every = ("heads",) if model.cfg.attn_only else ("heads", "mlps")
    given = [each for name in filter(None, listed) for each in (every if name.lower() == "all" else (name,))]
    found, wrong = dict[str, tuple[Site, ...]](), list[str]()
    for name in given:
        match = _NAME.fullmatch(_WORDS.get(name.lower(), name).upper())
        try:
            sites = _by_hook(model, name, n_pos) if match is None else _by_part(model, name, match)
        except ValueError as error:
            wrong.append(str(error))
        else:
            found |= sites
    if wrong:
        raise ValueError("; ".join(wrong[:4]) + (f"; and {len(wrong) - 4} more" if len(wrong) > 4 else ""))
    return found


def _by_part(model: HookedGPT, name: str, match: re.Match[str]) -> dict[str, tuple[Site, ...]]:
    """The parts that a name like `L5H1` means."""
    cfg, kind, whole = model.cfg, match["kind"], match["whole"]
    layers = _indices(match["layer"], cfg.n_layers, f"{name}: there are {cfg.n_layers} layers")
    if cfg.attn_only and (kind == "N" or whole == "MLP"):
        raise ValueError(f"{name}: the model has no MLPs")
    if kind is None:
        halves = {"ATTN": "z"} if cfg.attn_only else {"ATTN": "z", "MLP": "mlp_out"}
        wanted = [halves[half] for half in halves if whole in (None, half)]
        said = f" {whole.lower()}" if whole else ""
        return {f"L{layer}{said}": tuple(Site(site, layer) for site in wanted) for layer in layers}
    n, what = (cfg.d_mlp, "neurons") if kind == "N" else (cfg.n_heads, "heads")
    chosen = _indices(match["index"], n, f"{name}: there are {n} {what} in a layer")
    if kind == "N":
        return {f"L{layer}N{i}": (Site("post", layer, neuron=i),) for layer in layers for i in chosen}
    return {f"L{layer}H{i}": (Site("z", layer, head=i),) for layer in layers for i in chosen}


def _by_hook(model: HookedGPT, name: str, n_pos: int | None) -> dict[str, tuple[Site, ...]]:
    """The sites that a name like `resid_pre layer 2 pos 5` means."""
    hook, *said = name.split() if len(name) <= _LONGEST else [name]
    points = [point for point in model.hook_dict.values() if len(hook) < _LONGEST and fnmatchcase(point.name, hook)]
    points = points or [
        model.hook_dict[full] for short in (hook, f"hook_{hook}") for full in model.hooks_by_part.get(short, [])
    ]
    if not points:
        parts = {short.removeprefix("hook_") for short in model.hooks_by_part}
        near = get_close_matches(hook[:20], sorted({*parts, *_WORDS, "all"}), n=3)
        raise ValueError(f"{name[:20]!r} is no part: {_NAMED}" + (f"; nearest: {', '.join(near)}" if near else ""))
    wanted = dict(zip(said[::2], said[1::2], strict=False))
    if len(wanted) * 2 != len(said) or set(wanted) - {"layer", "head", "pos", "neuron"}:
        raise ValueError(f"{name[:40]!r}: behind a hook stand layer, head, pos, neuron, each with its index")
    n_layers = model.cfg.n_layers
    layers = _indices(wanted.pop("layer", "*"), n_layers, f"{name[:40]}: there are {n_layers} layers")
    within = [point for point in points if not point.name.startswith("blocks.") or point.layer() in layers]
    if not within:
        raise ValueError(f"{name[:40]}: {hook} is in no such layer")
    sites = [site for point in within for site in _at(model, point, name[:40], wanted, n_pos)]
    return {_name(site): (site,) for site in sites}


def _at(model: HookedGPT, point: HookPoint, name: str, wanted: dict[str, str], n_pos: int | None) -> list[Site]:
    """The sites at a hook point, one for each index of each axis that is named."""
    cfg, axes = model.cfg, point.axes.split()
    widths = {"d_mlp": cfg.d_mlp, "d_model": cfg.d_model, "d_head": cfg.d_head, "key_pos": n_pos or 0}
    sizes = {"neuron": widths.get(axes[-1], 1)}
    if {"head", "kv_head"} & set(axes):
        sizes["head"] = cfg.n_heads if "head" in axes else cfg.n_key_value_heads
    chosen: dict[str, list[int]] = {}
    for word, said in wanted.items():
        if word == "pos":
            chosen[word] = _positions(said, n_pos, name)
        elif word not in sizes:
            raise ValueError(f"{name}: {point.name} [{point.axes}] has no heads")
        else:
            chosen[word] = _indices(said, sizes[word], f"{name}: of {word} there are {sizes[word]} at {point.name}")
    layer = point.layer() if point.name.startswith("blocks.") else None
    short = point.name.rpartition(".")[2].removeprefix("hook_")
    n_alike = sum(full.startswith(f"blocks.{layer}.") for full in model.hooks_by_part[f"hook_{short}"])
    where: tuple[Any, ...] = (short, layer) if layer is not None and n_alike == 1 else (point.name,)
    return [Site(*where, **dict(zip(chosen, each, strict=True))) for each in product(*chosen.values())]


def _positions(said: str, n_pos: int | None, name: str) -> list[int]:
    if re.fullmatch(r"-\d{1,7}", said):
        return [int(said)]
    if said == "*" and n_pos is None:
        raise ValueError(f"{name}: how many positions there are is not known here; name them, pos 0-7")
    return _indices(said, n_pos or 10**7, f"{name}: there are {n_pos} positions")


def _indices(said: str, n: int, otherwise: str) -> list[int]:
    """The indices that `3`, `0-7` or `*` means, of so many."""
    if not re.fullmatch(_INDEX, said):
        raise ValueError(f"{otherwise}; an index is a number, a range 0-7, or *")
    if said == "*":
        return list(range(n))
    first, _, last = said.partition("-")
    chosen = range(int(first), int(last or first) + 1)
    if not chosen or chosen[-1] >= n:
        raise ValueError(otherwise)
    return list(chosen)


def _name(site: Site) -> str:
    """What a site is called, whichever way it was named."""
    where = {axis: of for axis in ("head", "pos", "neuron") if (of := getattr(site, axis)) is not None}
    short = {"z": {(): " attn", ("head",): "H"}, "post": {("neuron",): "N"}, "mlp_out": {(): " mlp"}}
    kind = short.get(site.name, {}).get(tuple(where))
    return label(site) if kind is None else f"L{site.layer}{kind}{next(iter(where.values()), '')}"
