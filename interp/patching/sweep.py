"""A sweep: many rows through the engine in chunks that fit into memory, and their metric."""

import glob
import os
from collections import defaultdict
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from interp.interventions import Edit
from interp.interventions.edits import Index
from interp.metrics import AnyMetric, Metric, Rows, name_of, narrowed, values_of
from interp.patching.engine import Base, Packed, Prepared, Row, Whole
from interp.patching.memory import Chunks, Job
from interp.patching.sites import label as label_of
from interp.patching.sweep_file import SweepFile
from interp.recording import positions

Progress = bool | Callable[[int, int], None]  # a function is told how many rows are done, and of how many

_SMALL = 2**12  # tokens that go through the layers, or whose logits are read


@dataclass
class Sweep:
    """How to run many rows: within how much memory (bytes, beside the base run's), shown or not, or told to a function.

    With `file`, which serves one call of `values`, each finished chunk is kept there: after a kill the same call goes
    on where it stood. Processes that `torchrun` started divide the rows, and each of them gets all values; each keeps a
    file of its own beside the one named, and what is in any of them is not run again, by however many processes.
    """

    base: Base
    metric: AnyMetric
    memory: int | None = None
    progress: Progress = True
    file: str | os.PathLike[str] | None = None
    work: dict[str, int] = field(
        default_factory=lambda: {"rows": 0, "chunks": 0, "tokens through a layer": 0, "full runs": 0}
    )

    def __post_init__(self) -> None:
        if self.base.is_lockstep and (self.memory is not None or self.file is not None):
            raise ValueError(
                "functions are hooked in around this sweep: its passes are of all prompts at once, and what they do is "
                "not known; leave out memory= and file=, or the hooks (edits may stay)"
            )
        self.wanted = _wanted(self.metric, self.base)
        tokens, self.narrow = narrowed(self.metric, self.base.model.cfg.d_vocab_out)
        self.tokens = None if tokens is None else tokens.to(self.base.model.device)
        self.chunks = Chunks(self.base.model.device, self.memory)
        self.unchanged: Tensor | None = None

    def base_values(self) -> Float[Tensor, " prompt"]:
        """The metric of the base run."""
        if self.unchanged is None:
            self.unchanged = self._base_values()
        return self.unchanged

    @torch.no_grad()
    def _base_values(self) -> Float[Tensor, " prompt"]:
        def once(some: list[int]) -> Tensor:
            logits, _ = self._pass([self.base.unchanged(prompt) for prompt in some])
            with _noted("in the base run, where nothing is changed"):
                return self._measured(logits, some)

        if self.base.is_lockstep:
            return once(list(range(len(self.base.tokens))))
        n_tokens = self.wanted.shape[1] if self.base.is_packed else self.base.n_pos
        jobs = [Job(prompt, "base run", n_tokens) for prompt in range(len(self.base.tokens))]
        found = list(self.chunks.run(jobs, once, self._are_small(jobs)))
        order = torch.tensor([i for chunk, _ in found for i in chunk]).argsort()
        values = torch.cat([values for _, values in found])
        return values[order.to(values.device)]

    @torch.no_grad()
    def values(self, rows: Sequence[Row]) -> Float[Tensor, " row"]:
        """The metric of each row, as if it had been run alone."""
        prepared = [self.base.prepared(row) for row in rows]
        _ = self.base.allowed  # made now, or it would count as the need of the first chunk
        unchanged = self._finite_base_values(rows)
        values = unchanged[[row.prompt for row in rows]]
        last_wanted = self.wanted.max(1).values.tolist()
        moves = [i for i, row in enumerate(prepared) if row.start <= last_wanted[row.prompt]]
        moves.sort(key=lambda i: (prepared[i].board, prepared[i].start))
        own = torch.zeros_like(values)
        with _together(own, self.base.model.device), self._saved(rows, unchanged) as saved:
            mine = moves[_rank() :: _n_processes()]
            held = {} if saved is None else {i: saved.saved[i] for i in mine if i in saved.saved}
            if saved is not None and saved.plan is not None:
                self.chunks.take_up(saved.plan)
            elif saved is not None:
                saved.add([], values[:0], self.chunks.plan)
            for i, value in held.items():
                own[i] = value
            for chunk, found in self._run(rows, prepared, mine, held):
                own[chunk] = found
                if saved is not None:
                    saved.add(chunk, found, self.chunks.plan)
        values[moves] = own[moves]
        return values

    def _finite_base_values(self, rows: Sequence[Row]) -> Float[Tensor, " prompt"]:
        """The base run's values; raise if one that a row departs from is no number."""
        values = self.base_values().double().cpu()
        bad = [prompt for prompt in sorted({row.prompt for row in rows}) if not values[prompt].isfinite()]
        if bad:
            raise ValueError(
                f"{name_of(self.metric)} is {values[bad[0]]} in the base run itself, where nothing is changed: "
                f"prompts {bad[:8]}"
            )
        return values

    def _saved(self, rows: Sequence[Row], unchanged: Tensor) -> SweepFile | nullcontext[None]:
        if self.file is None:
            return nullcontext()
        size, whole = _n_processes(), Path(self.file)
        beside = sorted(whole.parent.glob(f"{glob.escape(whole.name)}.*-of-*"))
        own = whole if size == 1 else whole.with_name(f"{whole.name}.{_rank()}-of-{size}")
        file = SweepFile(own, self.base, self.metric, rows, unchanged)
        try:
            for other in (whole, *beside):
                if other != own and other.is_file():
                    file.take_over(other)
        except BaseException:
            file.close()
            raise
        return file

    def _run(
        self, rows: Sequence[Row], prepared: list[Prepared], wanted: list[int], held: Container[int] = ()
    ) -> Iterator[tuple[list[int], Float[Tensor, " row"]]]:
        """The values of those rows that are wanted and not held already, chunk by chunk."""

        def once(chunk: list[int]) -> Tensor:
            logits, n_tokens = self._pass([prepared[i] for i in chunk])
            with _noted(f"in a chunk of {len(chunk)} rows that begins with {label(rows[chunk[0]])}"):
                values = self._measured(logits, [prepared[i].prompt for i in chunk])
            self.work["rows"] += len(chunk)
            self.work["chunks"] += 1
            self.work["tokens through a layer"] += n_tokens
            self.work["full runs"] += 0 if self.base.is_packed else len(chunk)
            return values

        if self.base.is_lockstep:
            chunks = ((chunk, once(chunk)) for chunk in _rounds(prepared, wanted))
        else:
            jobs = [self._job(i, prepared[i]) for i in wanted]
            left = [job for job in jobs if job.index not in held]
            chunks = self.chunks.run(left, once, self._are_small(jobs))
        tell = self.progress if callable(self.progress) else None
        is_shown = tell is None and self.progress and _rank() == 0
        n_held = sum(i in held for i in wanted)
        if tell is not None:
            tell(n_held, len(wanted))
        with tqdm(total=len(wanted) - n_held, desc="sweep", unit=" rows", delay=1.0, disable=not is_shown) as bar:
            for chunk, values in chunks:
                values = values.double().cpu()
                if bad := [n for n, is_finite in enumerate(values.isfinite().tolist()) if not is_finite]:
                    some = "; ".join(f"{values[n]} for {label(rows[chunk[n]])}" for n in bad[:4])
                    more = f"; and {len(bad) - 4} more of this chunk" if len(bad) > 4 else ""
                    raise ValueError(f"{name_of(self.metric)} is {some}{more}; in the base run it is finite")
                yield chunk, values
                bar.update(len(chunk))
                if tell is not None:
                    n_held += len(chunk)
                    tell(n_held, len(wanted))

    def _are_small(self, jobs: Sequence[Job]) -> bool:
        return sum(job.n_tokens for job in jobs) <= _SMALL and len(jobs) * self.wanted.shape[1] <= _SMALL

    def _job(self, index: int, row: Prepared) -> Job:
        """A row for its chunk; of one kind are rows with like edits: what one of them listens to, all must keep.

        The heaviest goes through whole layers, and is long. Where memory is counted, rows that copy keys of the base
        run are a kind of their own.
        """
        n_tokens = self.base.n_pos - row.start
        kinds = {(point.name.split(".", 2)[-1], len(where) == 1, *_extent(edit)) for point, edit, where in row.acts}
        is_whole = row.board < self.base.model.cfg.n_layers - 1
        copies = self.memory is not None and row.start > 0
        return Job(index, f"{sorted(map(str, kinds))} {copies}", n_tokens, (is_whole, n_tokens))

    def _pass(self, rows: list[Prepared]) -> tuple[Float[Tensor, "row wanted token"], int]:
        """What is read of the logits of some rows, and how many tokens went through a layer for that."""
        base = self.base
        if base.is_lockstep:
            of_prompt = {row.prompt: row for row in rows}
            every = [of_prompt.get(prompt) or base.unchanged(prompt) for prompt in range(len(base.tokens))]
            whole = Whole(base, every, self.wanted)
            return whole.logits(self.tokens)[[row.prompt for row in rows]], whole.n_tokens
        packed = (Packed if base.is_packed else Whole)(base, rows, self.wanted)
        return packed.logits(self.tokens), packed.n_tokens

    def _measured(self, logits: Tensor, of_prompts: list[int]) -> Float[Tensor, " row"]:
        base, prompts = self.base, torch.tensor(of_prompts, device=self.base.model.device)
        mask = None if base.mask is None else base.mask[prompts]
        return values_of(self.narrow, logits, Rows(base.tokens[prompts], prompts, len(base.tokens), mask))


def _rounds(rows: list[Prepared], wanted: list[int]) -> Iterator[list[int]]:
    """Those rows that are wanted, in turns of one row of each prompt."""
    of_prompt: dict[int, list[int]] = defaultdict(list)
    for i in wanted:
        of_prompt[rows[i].prompt].append(i)
    for turn in zip_longest(*of_prompt.values()):
        yield [i for i in turn if i is not None]


def label(row: Row) -> str:
    """What a row does, in words."""
    edits = " + ".join(f"{type(edit).__name__} {label_of(edit.site)}" for edit in row.edits) or "no edit"
    return f"prompt {row.prompt}: {edits}"


def _extent(edit: Edit) -> tuple[object, ...]:
    """What decides how much an edit keeps at once."""
    site = edit.site
    return type(edit).__name__, _size(site.head), _size(site.neuron), site.subspace is not None


def _size(index: Index) -> object:
    return index if index is None or isinstance(index, slice) else 1 if isinstance(index, int) else len(index)


def _n_processes() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _rank() -> int:
    return dist.get_rank() if _n_processes() > 1 else 0


@contextmanager
def _together(own: Float[Tensor, " row"], device: torch.device) -> Iterator[None]:
    """Afterwards, the sum over all processes of what each of them filled in; if one of them fails, all do."""
    if _n_processes() == 1:
        yield
        return
    failure: Exception | None = None
    try:
        yield
    except Exception as error:
        failure = error
    sent = torch.cat([own, own.new_tensor([failure is not None])]).to(device)
    dist.all_reduce(sent)
    if failure is not None:
        raise failure
    if sent[-1] > 0:
        raise RuntimeError("the sweep failed in another process, which says why")
    own.copy_(sent[:-1])


@contextmanager
def _noted(where: str) -> Iterator[None]:
    """Errors within it say where they came from."""
    try:
        yield
    except Exception as error:
        error.add_note(where)
        raise


def _wanted(metric: AnyMetric, base: Base) -> Int[Tensor, "prompt wanted"]:
    """The columns whose logits a metric reads."""
    n_prompts = len(base.tokens)
    if not isinstance(metric, Metric) or metric.positions is None:
        return torch.arange(base.n_pos).expand(n_prompts, -1)
    chosen = positions(list(metric.positions), base.n_pos, base.mask)
    assert chosen is not None
    assert isinstance(chosen.index, Tensor)
    return chosen.index.cpu().expand(n_prompts, -1)
