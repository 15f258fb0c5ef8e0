"""The training loop: one batch, one update; beside it evaluation, measures, checkpoints and a log."""

import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import islice
from math import exp, isfinite, log
from os import PathLike
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from tqdm.auto import tqdm

from interp.model import HookedGPT
from interp.training.config import TrainingConfig, optimiser
from interp.training.data import IGNORED, Batch, Data, Held
from interp.training.parallel import Ranks, Spread
from interp.training.run import RunFolder
from interp.training.trouble import where_it_went_wrong

Measure = Callable[[HookedGPT], Any]
HALF = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


def train(
    model: HookedGPT,
    data: Data,
    cfg: TrainingConfig,
    out: str | PathLike[str] | None = None,
    *,
    held_out: Held | None = None,
    measures: Mapping[str, Measure] | None = None,
    resume: bool = False,
    progress: bool = True,
    about: Mapping[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """Train a model, and return the log: a row a step, and a row for each evaluation and measurement.

    With `out`, the run is a folder with `config.json`, `log.jsonl` and checkpoints, each of which is a model folder;
    `resume=True` goes on with a run from its last checkpoint, exactly. Under `torchrun` the processes share each batch.
    `about` is kept in `config.json`. Ctrl-C ends the run after a whole step, with a checkpoint.
    """
    ranks = Ranks()
    if not isinstance(data, Data) or not isinstance(held_out, Held | None):
        raise TypeError(
            f"data is a {type(data).__name__}, held_out a {type(held_out).__name__}; see interp.training.data"
        )
    data.check(model.cfg)
    if held_out is not None:
        held_out.check(model.cfg)
    if model.dtype.itemsize == 2 and cfg.precision == "float16":
        raise ValueError(f"precision='float16' scales the gradients of a wider model; this one is {model.dtype}")
    if cfg.batch_size % (ranks.size * cfg.accumulate):
        parts = f"accumulate={cfg.accumulate} × {ranks.size} processes"
        raise ValueError(f"batch_size={cfg.batch_size} must be a multiple of {parts}")
    _check_last_only(data.batch(0, cfg.batch_size, ranks.share(cfg.batch_size)), cfg)
    with ranks.joined():
        folder = None if out is None else RunFolder(out)
        config = {"training": cfg, "model": model.cfg, "data": data.identity(), "about": dict(about or {})}
        if folder is not None:
            folder.begin(config, resume, ranks)
        loop = _Loop(model, data, cfg, folder, held_out, dict(measures or {}), ranks, progress)
        with _interruptible(loop):
            return loop.run()


@torch.no_grad()
def evaluate(
    model: HookedGPT,
    data: Held,
    *,
    n_rows: int = 32,
    n_batches: int | None = None,
    cfg: TrainingConfig | None = None,
    ranks: Ranks | None = None,
) -> dict[str, float]:
    """Mean loss a token, perplexity, accuracy, and bits a byte where a tokenizer tells how long tokens are."""
    ranks, cfg = ranks or Ranks(), cfg or TrainingConfig(steps=1, batch_size=1)
    lengths = None
    if model.tokenizer is not None:
        known = model.tokenizer.byte_lengths()  # what the model has beyond them stands for no text
        known += [0] * (model.cfg.d_vocab_out - len(known))
        lengths = torch.tensor(known, device=model.device)
    loss, n_right, n_tokens, n_bytes = totals = torch.zeros(4, dtype=torch.float64, device=model.device)
    was_training = model.training
    model.eval()
    try:
        for batch in islice(data.whole(n_rows), n_batches):
            mine = batch[ranks.share(len(batch))]
            if len(mine) == 0:  # a sharded model needs every process in every pass
                mine = Batch(batch.tokens[:1], torch.full_like(batch.targets[:1], IGNORED))
            _check_last_only(mine, cfg)
            mine = mine.to(model.device)
            with _autocast(model, cfg):
                logits, targets = _asked(model, mine, cfg)
            loss += _total_loss(logits, targets, cfg, smoothing=0.0)
            n_right += (logits.argmax(-1) == targets).sum()
            asked = targets[targets != IGNORED]
            n_tokens += len(asked)
            if lengths is not None:
                n_bytes += lengths[asked].sum()
    finally:
        model.train(was_training)
    nats, right, tokens, bytes_ = ranks.sum(totals).tolist()
    if tokens == 0:
        raise ValueError("the held-out data asks for no token")
    found = {"loss": nats / tokens, "perplexity": exp(min(700.0, nats / tokens)), "accuracy": right / tokens}
    return found | ({"bits_per_byte": nats / log(2) / bytes_} if bytes_ else {})


class _Loop:
    def __init__(
        self,
        model: HookedGPT,
        data: Data,
        cfg: TrainingConfig,
        folder: RunFolder | None,
        held_out: Held | None,
        measures: dict[str, Measure],
        ranks: Ranks,
        progress: bool,
    ) -> None:
        self.model, self.data, self.cfg, self.folder, self.ranks = model, data, cfg, folder, ranks
        self.held_out, self.measures, self.progress = held_out, measures, progress
        self.spread = Spread(model, ranks, cfg)
        self.device = model.device
        self.optimiser = optimiser(model, cfg)
        self.parameters = list(model.parameters())  # found once: walking all modules takes its time
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=cfg.precision == "float16")
        self.log: list[dict[str, Any]] = []
        self.is_interrupted = False
        self.zero, self.one = torch.tensor([0.0, 1.0], device=self.device)
        self.bad = self.zero  # 1 from the first loss or gradient on that is not finite
        # A GPU is asked for a loss while it works on the next. A scaler decides by itself, so it is waited for.
        self.lag = int(self.device.type == "cuda" and not self.scaler.is_enabled())
        self.n_overflows = 0
        self.pending: deque[tuple[dict[str, Any], Tensor]] = deque()

    def run(self) -> list[dict[str, Any]]:
        cfg, first = self.cfg, 0
        measured_at = cfg.measured_at()
        self.model.train()
        self.started = time.perf_counter()
        shown = self.progress and self.ranks.is_first
        devices = [self.device] if self.device.type == "cuda" else []
        try:
            if self.folder is not None:
                first, self.log = self.folder.restore(self.model, self.optimiser, self.scaler, self.ranks)
                self.started -= max((row["seconds"] for row in self.log if "seconds" in row), default=0)
            self.done = first
            with (
                torch.random.fork_rng(devices),
                tqdm(total=cfg.steps, initial=first, desc="training", unit=" steps", disable=not shown) as self.bar,
            ):
                for step in range(first, cfg.steps):
                    self.between_steps(step, measured_at, saves=step > first and _is_due(cfg.checkpoint_every, step))
                    self.step(step)
                    if self.read(self.lag):
                        break
                self.read(0)
                self.between_steps(self.done, measured_at, saves=self.done > first)
        finally:
            self.spread.undo()
            self.model.eval()
        if self.done < cfg.steps:
            kept = "nothing was kept" if self.folder is None else f"{self.folder.path} goes on with resume=True"
            raise KeyboardInterrupt(f"stopped after {self.done} of {cfg.steps} steps; {kept}")
        return self.log

    def step(self, step: int) -> None:
        """One update."""
        cfg = self.cfg
        batch = self.data.batch(step, cfg.batch_size, self.ranks.share(cfg.batch_size))
        _check_last_only(batch, cfg)
        batch = batch.to(self.device)
        if self.model.cfg.dropout:
            torch.manual_seed(hash((cfg.seed, step, self.ranks.rank)) % 2**63)  # so that a step can be repeated
        n_targets = self.ranks.sum((batch.targets != IGNORED).sum()).clamp(min=1)
        share = n_targets / self.ranks.size  # gradients are averaged over the processes
        total = self.zero
        for i, part in enumerate(self.parts(batch)):
            with self.spread.synchronised(is_last=i == cfg.accumulate - 1):
                with _autocast(self.model, cfg):
                    logits, targets = _asked(self.spread.call, part, cfg)
                    loss = _total_loss(logits, targets, cfg, cfg.label_smoothing) / share
                self.scaler.scale(loss).backward()
            total = total + loss.detach()
        self.scaler.unscale_(self.optimiser)
        norm = nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        norm = norm.float()
        total, stop = self.ranks.sum(torch.stack((total, self.one if self.is_interrupted else self.zero)))
        is_finite = (total if self.scaler.is_enabled() else total + norm).isfinite()
        self.bad = torch.where(is_finite, self.bad, self.one)
        lr = cfg.lr_at(step)
        for group in self.optimiser.param_groups:
            group["lr"] = lr
        if not self.scaler.is_enabled():  # a scaler passes over such steps by itself
            on_cpu = self.device.type == "cpu"  # there, a look at a value waits for nothing
            # if it is bad, the weights stay as they are
            self.optimiser.found_inf = None if on_cpu and not self.bad else self.bad  # type: ignore[attr-defined]
            if cfg.clip is not None:  # AdamW divides as it reads: clipping needs no pass of its own over the gradients
                scale = ((norm + 1e-6) / cfg.clip).clamp(min=1)
                self.optimiser.grad_scale = None if on_cpu and scale == 1 else scale  # type: ignore[attr-defined]
        elif cfg.clip is not None:
            nn.utils.clip_grads_with_norm_(self.parameters, cfg.clip, norm)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        for parameter in self.parameters:
            parameter.grad = None
        self.pending.append(({"step": step, "lr": lr}, torch.stack((total, stop, norm, self.bad, n_targets))))

    def parts(self, batch: Batch) -> list[Batch]:
        """What goes through the model in turn."""
        n, of = len(batch), self.cfg.accumulate
        return [batch] if of == 1 else [batch[i * n // of : (i + 1) * n // of] for i in range(of)]

    def read(self, lag: int) -> bool:
        """Put on the log what the device has worked out; whether to stop."""
        stop = False
        while len(self.pending) > lag:
            row, stats = self.pending.popleft()
            loss, wants_to_stop, norm, bad, n_targets = stats.tolist()
            loss /= self.ranks.size
            self.n_overflows = 0 if isfinite(norm) else self.n_overflows + 1
            if bad or self.n_overflows == 20:  # halved so often, a scale has left the range in which it helps
                self.fail(row["step"])
            stop = stop or wants_to_stop > 0
            self.done = row["step"] + 1
            self.bar.update()
            self.bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
            if row["step"] % self.cfg.log_every == 0:
                seconds = round(time.perf_counter() - self.started, 3)
                self.write(row | {"loss": loss, "grad_norm": norm, "targets": int(n_targets), "seconds": seconds})
        return stop

    def between_steps(self, step: int, measured_at: set[int], saves: bool) -> None:
        """Before a step, or after the last: a checkpoint, an evaluation, measures."""
        cfg = self.cfg
        if self.folder is not None and saves:
            self.read(0)
            self.folder.checkpoint(step, self.model, self.optimiser, self.scaler, self.ranks, cfg.keep)
        if self.held_out is not None and (step == cfg.steps or _is_due(cfg.eval_every, step)):
            self.read(0)
            found = evaluate(
                self.model,
                self.held_out,
                n_rows=cfg.batch_size // cfg.accumulate,
                n_batches=cfg.eval_batches,
                cfg=cfg,
                ranks=self.ranks,
            )
            self.write({"step": step} | {f"held_out_{name}": value for name, value in found.items()})
        if self.measures and step in measured_at:
            self.read(0)
            self.model.eval()
            with torch.no_grad():
                self.write(
                    {"step": step} | {name: _plain(measure(self.model)) for name, measure in self.measures.items()}
                )
            self.model.train()

    def write(self, row: dict[str, Any]) -> None:
        self.log.append(row)
        if self.folder is not None and self.ranks.is_first:
            self.folder.write(row)

    def fail(self, step: int) -> None:
        """Say where the first value arose that is not finite. The weights are those that the step was given."""
        batch = self.data.batch(step, self.cfg.batch_size, self.ranks.share(self.cfg.batch_size)).to(self.device)
        with _autocast(self.model, self.cfg):
            places = [where_it_went_wrong(self.model, part) for part in self.parts(batch)]
        place = next((each for each in places if each), "no place that a second look at this process's rows shows")
        kept = [] if self.folder is None else self.folder.steps()
        raise FloatingPointError(
            f"step {step}: the loss or a gradient is not finite; first at {place}. "
            f"The batch is data.batch({step}, {self.cfg.batch_size})"
            + (f"; {self.folder.path} has a checkpoint of step {kept[-1]}" if self.folder and kept else "")
        )


def _is_due(every: int, step: int) -> bool:
    """Whether something done every so many steps, or never, is done before this step."""
    return every > 0 and step % every == 0


def _check_last_only(batch: Batch, cfg: TrainingConfig) -> None:
    if cfg.last_only and (batch.targets[:, :-1] != IGNORED).any():
        raise ValueError("last_only, but the data asks at other positions too")


def _asked(
    call: Callable[..., Tensor], batch: Batch, cfg: TrainingConfig
) -> tuple[Float[Tensor, "batch pos d_vocab_out"], Tensor]:
    """The logits of a batch, and the targets that belong to them."""
    logits = call(batch.tokens, last_only=cfg.last_only)
    return logits, batch.targets[:, -1:] if cfg.last_only else batch.targets


def _total_loss(logits: Tensor, targets: Tensor, cfg: TrainingConfig, smoothing: float) -> Float[Tensor, ""]:
    """Cross-entropy summed over what is asked for."""
    exact = logits.double() if cfg.loss_in_float64 else logits.float() if logits.dtype.itemsize == 2 else logits
    return F.cross_entropy(
        exact.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum", label_smoothing=smoothing
    )


def _autocast(model: HookedGPT, cfg: TrainingConfig) -> AbstractContextManager[Any]:
    half = HALF[cfg.precision]
    return nullcontext() if half is None else torch.autocast(model.device.type, half)


def _plain(value: Any) -> Any:
    """As JSON holds it."""
    if isinstance(value, Tensor):
        return value.tolist()
    return {k: _plain(v) for k, v in value.items()} if isinstance(value, Mapping) else value


@contextmanager
def _interruptible(loop: _Loop) -> Iterator[None]:
    """Ctrl-C, once, lets the step end; twice, it does not."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: Any) -> None:
        if loop.is_interrupted:
            raise KeyboardInterrupt
        loop.is_interrupted = True

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
