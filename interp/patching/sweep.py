"""A sweep: many rows through the engine in chunks that fit into memory, and their metric."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from interp.metrics import AnyMetric, Metric, Rows, values_of
from interp.patching.engine import Base, Packed, Prepared, Row
from interp.patching.memory import Peak, budget_of, is_out_of_memory
from interp.recording import positions

_LARGEST = 2**14  # tokens of a chunk: more make no product faster, and leave the cache


@dataclass
class Sweep:
    """How to run many rows: within how much memory (bytes), shown or not."""

    base: Base
    metric: AnyMetric
    memory: int | None = None
    progress: bool = True
    work: dict[str, int] = field(default_factory=lambda: {"rows": 0, "chunks": 0, "tokens through a layer": 0})

    def __post_init__(self) -> None:
        self.wanted = _wanted(self.metric, self.base)
        self.bytes_per_token = 0.0

    @torch.no_grad()
    def base_values(self) -> Float[Tensor, " prompt"]:
        """The metric of the base run."""
        model, prompts = self.base.model, torch.arange(len(self.base.tokens), device=self.base.model.device)
        final = self.base.resid[-1][prompts[:, None], self.wanted.to(prompts.device)]
        return self._measured(model.read_off(model.ln_final(final)), prompts)

    def values(self, rows: Sequence[Row]) -> Float[Tensor, " row"]:
        """The metric of each row, as if it had been run alone."""
        prepared = [self.base.prepared(row) for row in rows]
        unchanged = self.base_values().cpu()
        values = unchanged[[row.prompt for row in rows]].double()
        last_wanted = self.wanted.max(1).values.tolist()
        moves = [i for i, row in enumerate(prepared) if row.start <= last_wanted[row.prompt]]
        moves.sort(key=lambda i: (prepared[i].board, prepared[i].start))
        with tqdm(total=len(moves), desc="sweep", unit=" rows", disable=not self.progress) as bar:
            at = 0
            while at < len(moves):
                chunk = self._chunk(prepared, moves[at:])
                values[chunk] = self._run([prepared[i] for i in chunk]).double().cpu()
                at += len(chunk)
                bar.update(len(chunk))
        return values

    def _chunk(self, prepared: list[Prepared], left: list[int]) -> list[int]:
        """As many of the rows left as fit into the budget; few at first, by which the need of one is measured."""
        budget = budget_of(self.base.model.device) if self.memory is None else self.memory
        most = min(_LARGEST, int(budget / self.bytes_per_token)) if self.bytes_per_token else 256
        chunk, n = [], 0
        for i in left:
            n += self.base.n_pos - prepared[i].start
            if chunk and n > most:
                break
            chunk.append(i)
        return chunk

    def _run(self, rows: list[Prepared]) -> Float[Tensor, " row"]:
        """The metric of a chunk; of its halves, should memory run out."""
        n_tokens = sum(self.base.n_pos - row.start for row in rows)
        try:
            if self.bytes_per_token:
                return self._once(rows)
            with Peak() as peak:
                found = self._once(rows)
            self.bytes_per_token = peak.bytes / n_tokens
            return found
        except RuntimeError as error:
            if not is_out_of_memory(error) or len(rows) == 1:
                raise
        half = len(rows) // 2
        self.bytes_per_token *= 2
        return torch.cat([self._run(rows[:half]), self._run(rows[half:])])

    def _once(self, rows: list[Prepared]) -> Float[Tensor, " row"]:
        packed = Packed(self.base, rows, self.wanted)
        values = self._measured(packed.logits(), packed.prompt)
        self.work["rows"] += len(rows)
        self.work["chunks"] += 1
        self.work["tokens through a layer"] += packed.n_tokens
        return values

    def _measured(self, logits: Tensor, prompts: Int[Tensor, " row"]) -> Float[Tensor, " row"]:
        base = self.base
        mask = None if base.mask is None else base.mask[prompts]
        return values_of(self.metric, logits, Rows(base.tokens[prompts], prompts, len(base.tokens), mask))


def _wanted(metric: AnyMetric, base: Base) -> Int[Tensor, "prompt wanted"]:
    """The columns whose logits a metric reads."""
    n_prompts = len(base.tokens)
    if not isinstance(metric, Metric) or metric.positions is None:
        return torch.arange(base.n_pos).expand(n_prompts, -1)
    chosen = positions(list(metric.positions), base.n_pos, base.mask)
    assert chosen is not None
    assert isinstance(chosen.index, Tensor)
    return chosen.index.cpu().expand(n_prompts, -1)
