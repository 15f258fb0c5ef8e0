"""Path patching: what one part says to another, with every other way between them held shut (Wang et al., 2022)."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from interp.hooks import HookPoint
from interp.interventions import Freeze, Patch, Site
from interp.metrics import AnyMetric
from interp.model import HookedGPT
from interp.model.attention import Attention, Pass
from interp.patching.activation import first_difference, pair_of_runs
from interp.patching.engine import Base, Packed, Row
from interp.patching.memory import Chunks, Job
from interp.patching.sites import label, sites_of
from interp.patching.sweep import Sweep
from interp.results import Result, labelled, provenance

Receiver = str | Site
_WRITERS = ("hook_z", "hook_result", "hook_attn_out", "hook_mlp_out", "hook_post", "hook_resid_pre")
_READERS = ("hook_q", "hook_k", "hook_v", "hook_rot_q", "hook_rot_k", "hook_mlp_in", "hook_pre", "hook_pre_linear")
_AT_ONCE = 2**13  # tokens of a chunk


class Frozen(Packed):
    """A pass in which every head mixes what it mixed in the base run; what the receivers read is kept for each row."""

    def __init__(self, base: Base, rows: list[Row], mixed: list[Tensor], read: dict[str, Tensor]) -> None:
        prepared = [base.prepared(row) for row in rows]
        super().__init__(base, prepared, torch.empty(len(base.tokens), 0, dtype=torch.long))
        self.mixed = mixed
        self.read = {name: values[self.prompt] for name, values in read.items()}  # [row pos …]

    def run(self) -> dict[str, Float[Tensor, "row pos ..."]]:
        """What each row's receivers read."""
        self.logits()
        return self.read

    def _pass(self, is_last: bool) -> Pass:
        return super()._pass(is_last=False)

    def _look(self, attn: Attention, q: Tensor, k: Tensor, v: Tensor) -> Float[Tensor, "1 query_pos head d_head"]:
        return self.mixed[attn.layer][self.of_prompt, self.columns][None]

    def _listening(self) -> AbstractContextManager[None]:
        return self.model.recording(list(self.read), self._take)

    def _take(self, x: Tensor, point: HookPoint) -> None:
        lengths = torch.tensor([self.base.n_pos - self.starts[i] for i in self.on_board])
        row = torch.tensor(self.on_board).repeat_interleave(lengths).to(self.device)
        self.read[point.name][row, self.columns] = x[0]


def path_patching(
    model: HookedGPT,
    clean: Any,
    corrupted: Any,
    senders: Literal["heads", "mlps"] | Sequence[Site],
    receivers: Sequence[Receiver | Sequence[Receiver]],
    metric: AnyMetric,
    *,
    direction: Literal["denoise", "noise"] = "noise",
    mlps: Literal["recomputed", "frozen"] = "recomputed",
    attention_mask: Tensor | None = None,
    memory: int | None = None,
    progress: bool = True,
) -> Result:
    """The metric when a receiver hears the other run from a sender, and from nowhere else, exactly.

    First the sender alone is patched, with all attention held as it was: what the receiver then reads is put into a
    plain run. A receiver is a hook that reads the stream ("blocks.3.attn.hook_q", `Site("q", 3, head=1)`, an `mlp_in`),
    several that are patched together, or "logits". MLPs between the two are "recomputed", and pass on what they hear,
    or "frozen", which leaves the direct path. "noise" stays in the clean run, "denoise" in the corrupted one.
    """
    if mlps not in ("recomputed", "frozen"):
        raise ValueError(f"mlps={mlps!r}; allowed: 'recomputed', 'frozen'")
    runs = pair_of_runs(model, clean, corrupted, direction, attention_mask)
    tokens, mask, n_layers = runs.own, runs.mask, model.cfg.n_layers
    axes, sending = _senders(model, senders, tokens)
    hearing = [_together(model, each) for each in receivers]
    points = {each.point(model).name for group in hearing for each in group}
    z_names = [f"blocks.{layer}.attn.hook_z" for layer in range(n_layers)]
    mlp_names = [n for n in model.hook_dict if n.endswith("hook_mlp_out")] if mlps == "frozen" else []
    with torch.no_grad():
        _, own = model.run_with_cache(tokens, None, attention_mask=mask, names_filter=[*z_names, *points, *mlp_names])
        sent = [each.point(model).name for each in sending]
        _, other = model.run_with_cache(runs.other, None, attention_mask=mask, names_filter=sent)
    base = Base(model, tokens, mask)
    if not base.is_packed or base.outer:
        why = "its attention looks ahead" if model.cfg.attention_dir == "bidirectional" else "others listen to it"
        raise ValueError(f"path patching holds the attention of a causal model as it was, heard by nobody else: {why}")
    starts = first_difference(tokens, runs.other)
    held = [Freeze(Site(name), own[name]) for name in mlp_names]
    rows = []
    for site in sending:
        layer = site.point(model).layer()
        behind = tuple(each for each in held if each.site.point(model).layer() >= layer)
        edits = (*behind, Patch(site, other[site.point(model).name]))
        rows += [Row(prompt, edits, start) for prompt, start in enumerate(starts)]
    sweep = Sweep(base, metric, progress=False)
    mixed, read = [own[name] for name in z_names], {name: own[name] for name in sorted(points)}

    def once(chunk: list[int]) -> Float[Tensor, "row receiver"]:
        heard, found = Frozen(base, [rows[i] for i in chunk], mixed, read).run(), []
        for group in hearing:
            told = [_told(model, rows[i], group, heard, read, at) for at, i in enumerate(chunk)]
            found.append(sweep.values(told))
        return torch.stack(found, 1)

    chunks = Chunks(model.device, memory)
    chunks.plan.largest = max(chunks.plan.largest, _AT_ONCE)
    jobs = [Job(i, "path", base.n_pos) for i in range(len(rows))]
    values = torch.empty(len(hearing), len(rows), dtype=torch.float64)
    with tqdm(total=values.numel(), desc="path patching", unit=" rows", delay=1.0, disable=not progress) as bar:
        for chunk, found in chunks.run(jobs, once, are_small=True):
            values[:, chunk] = found.T
            bar.update(found.numel())
    about = provenance(model, metric, tokens, "path patching") | {"direction": direction, "mlps": mlps, **sweep.work}
    labels = [" + ".join(map(label, group)) for group in hearing]
    shape = [len(hearing), *map(len, axes.values()), len(tokens)]
    base_values = sweep.base_values()
    return labelled(
        values.view(shape), {"receiver": labels, **axes, "prompt": range(len(tokens))}, "metric", about, base_values
    )


def _told(
    model: HookedGPT, row: Row, group: tuple[Site, ...], heard: dict[str, Tensor], read: dict[str, Tensor], at: int
) -> Row:
    """A run in which receivers read what they heard; those that heard nothing new are left alone."""
    edits = []
    for site in group:
        name = site.point(model).name
        if not torch.equal(heard[name][at], read[name][row.prompt]):
            edits.append(Patch(site, heard[name][at : at + 1]))
    return Row(row.prompt, tuple(edits), row.start)


def _senders(
    model: HookedGPT, senders: Literal["heads", "mlps"] | Sequence[Site], tokens: Tensor
) -> tuple[dict[str, Sequence[Any]], list[Site]]:
    if isinstance(senders, str) and senders not in ("heads", "mlps"):
        raise ValueError(f"senders={senders!r}; allowed: 'heads', 'mlps', or a list of Sites")
    named = {"heads": "z", "mlps": "mlp_out"}.get(senders) if isinstance(senders, str) else None
    by = () if senders == "mlps" else ("head",)
    chosen = [] if isinstance(senders, str) else list(senders)
    if strange := [each for each in chosen if not isinstance(each, Site)]:
        raise TypeError(f"senders={strange[:3]!r}; allowed: 'heads', 'mlps', or a list of Sites")
    axes, groups = sites_of(model, named or [(each,) for each in chosen], by, None, tokens)
    sites = [site for group in groups for site in group]
    for site in sites:
        name = site.point(model).name
        if not name.endswith(_WRITERS):
            raise ValueError(f"{name} writes nothing to the stream; senders are sites at {list(_WRITERS)}")
    return axes, sites


def _together(model: HookedGPT, receiver: Receiver | Sequence[Receiver]) -> tuple[Site, ...]:
    """The sites of one receiver, or of several that are patched together."""
    several = [receiver] if isinstance(receiver, str | Site) else list(receiver)
    if several == ["logits"]:
        return (Site("resid_post", layer=model.cfg.n_layers - 1),)
    if "logits" in several:
        raise ValueError('"logits" is a receiver by itself: patched, the last stream hears of no other receiver')
    sites = tuple(Site(each) if isinstance(each, str) else each for each in several)
    for site in sites:
        name = site.point(model).name
        if not name.endswith(tuple("." + reader for reader in _READERS)):
            raise ValueError(f"{name} does not read the stream; receivers are sites at {list(_READERS)}, or 'logits'")
    return sites
