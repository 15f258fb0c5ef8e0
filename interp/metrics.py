"""One number per row, read off its logits: how much of a behaviour is there.

A metric is called `metric(logits, rows)`. `metric.positions` says which positions it reads (None: all), and then the
logits it gets are `[row, len(positions), d_vocab_out]`; negative positions count from each row's last real token. Any
function `logits -> [row]` is a metric too, and gets all positions.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from interp.recording import positions

Logits = Float[Tensor, "row pos d_vocab_out"]
Values = Float[Tensor, " row"]
Answers = str | int | Sequence[str] | Sequence[int] | Sequence[Sequence[str]] | Sequence[Sequence[int]] | Tensor


@dataclass(frozen=True)
class Rows:
    """The rows whose logits a metric reads: their tokens, padding, and the prompt that each is a run of."""

    tokens: Int[Tensor, "row pos"]
    prompt: Int[Tensor, " row"]
    n_prompts: int
    attention_mask: Bool[Tensor, "row pos"] | None = None

    @classmethod
    def of(cls, tokens: Tensor, attention_mask: Tensor | None = None) -> "Rows":
        """One row for each prompt."""
        tokens = torch.atleast_2d(tokens).long()
        mask = None if attention_mask is None else attention_mask.bool().to(tokens.device)
        return cls(tokens, torch.arange(len(tokens), device=tokens.device), len(tokens), mask)

    def each(self, of_prompts: Tensor, what: str) -> Tensor:
        """What belongs to each row's prompt, of something given for all prompts alike or for each."""
        if len(of_prompts) == 1:
            return of_prompts.to(self.prompt.device).expand(len(self.prompt), *of_prompts.shape[1:])
        if len(of_prompts) != self.n_prompts:
            raise ValueError(f"{what}: {len(of_prompts)} were given for {self.n_prompts} prompts; give one, or as many")
        return of_prompts.to(self.prompt.device)[self.prompt]


@runtime_checkable
class Runs(Protocol):
    """What a metric needs of a model: it runs, and it knows its tokens."""

    def __call__(self, input: Any, /, *args: Any, **kwargs: Any) -> Any: ...

    def read_input(self, input: Any, prepend_bos: bool | None, mask: Tensor | None) -> tuple[Tensor, Tensor | None]: ...

    def to_single_token(self, text: str) -> int: ...


@dataclass(frozen=True, eq=False)
class Metric:
    """A named metric; `between` makes it 0 on one run and 1 on another.

    Where it has `answers`, it reads the logits of these tokens alone, and `read` gets `[row pos answer]`.
    """

    name: str
    read: Callable[[Logits, Rows], Values]
    positions: tuple[int, ...] | None
    zero: float = 0.0
    unit: float = 1.0
    answers: Int[Tensor, "prompt answer"] | None = None

    def __call__(self, logits: Logits, rows: Rows) -> Values:
        if self.answers is not None:
            logits = _at(logits, self.answers, rows)
        return (self.read(logits, rows) - self.zero) / self.unit

    def between(self, model: Runs, zero: Any, one: Any, **kwargs: Any) -> "Metric":
        """The same, scaled so that its mean is 0 over the prompts `zero` and 1 over `one`.

        Means are taken before the ratio: a ratio of each prompt explodes where the two runs hardly differ.
        """
        low, high = (measured(model, tokens, self, **kwargs).double().mean().item() for tokens in (zero, one))
        if not abs(high - low) > 1e-9 * max(abs(high), abs(low), 1e-30):
            raise ValueError(f"{self.name} is {low:.6g} on one run and {high:.6g} on the other: nothing to scale by")
        unit = self.unit * (high - low)
        return replace(self, name=f"{self.name}, scaled", zero=self.zero + self.unit * low, unit=unit)


AnyMetric = Metric | Callable[[Logits], Values]


@torch.no_grad()
def measured(model: Runs, tokens: Any, metric: AnyMetric, attention_mask: Tensor | None = None) -> Values:
    """A metric of a plain run, one value for each prompt."""
    logits, rows = _run(model, tokens, attention_mask)
    return values_of(metric, at_positions(logits, metric, rows.attention_mask), rows)


def at_positions(
    logits: Logits, metric: AnyMetric, attention_mask: Tensor | None = None
) -> Float[Tensor, "row chosen d_vocab_out"]:
    """The logits that a metric reads."""
    if not isinstance(metric, Metric) or metric.positions is None:
        return logits
    return _chosen(logits, metric.positions, attention_mask)


def values_of(metric: AnyMetric, logits: Logits, rows: Rows) -> Values:
    """The metric of logits at the positions it reads; raise if it gives something else than a number for each row."""
    exact = logits.float() if logits.dtype.itemsize == 2 else logits
    values = metric(exact, rows) if isinstance(metric, Metric) else metric(exact)
    if not isinstance(values, Tensor) or values.shape != (len(logits),):
        given = f"shape {list(values.shape)}" if isinstance(values, Tensor) else f"a {type(values).__name__}"
        raise ValueError(
            f"{name_of(metric)} gave {given}; a metric gives one number for each of {len(logits)} rows, [{len(logits)}]"
        )
    return values


def narrowed(metric: AnyMetric, d_vocab_out: int) -> tuple[Int[Tensor, " token"] | None, AnyMetric]:
    """The only tokens whose logits a metric reads (None: all), and the metric of the logits of these."""
    if not isinstance(metric, Metric) or metric.answers is None:
        return None, metric
    check_known(metric.answers, d_vocab_out)
    tokens, answers = metric.answers.unique(return_inverse=True)
    return tokens, replace(metric, answers=answers)


def name_of(metric: AnyMetric) -> str:
    """What a metric is called."""
    return metric.name if isinstance(metric, Metric) else f"metric {getattr(metric, '__name__', repr(metric))}"


def logit_diff(
    model: Runs, correct: Answers, wrong: Answers, *, pos: int = -1, clean: Any = None, corrupted: Any = None
) -> Metric:
    """The logit of the correct answer minus that of the wrong one; of several answers, their mean.

    An answer is one for all prompts, one for each, or a list for each. Given both runs, it is scaled to be 1 on `clean`
    and 0 on `corrupted`.
    """
    of, minus = answer_ids(model, correct), answer_ids(model, wrong)
    n_prompts, n_correct = max(len(of), len(minus)), of.shape[1]
    if {len(of), len(minus)} - {1, n_prompts}:
        raise ValueError(f"correct is for {len(of)} prompts and wrong for {len(minus)}; give one, or as many")
    answers = torch.cat([each.expand(n_prompts, -1) if len(each) == 1 else each for each in (of, minus)], 1)

    def read(logits: Logits, rows: Rows) -> Values:  # noqa: ARG001
        return logits[:, 0, :n_correct].mean(1) - logits[:, 0, n_correct:].mean(1)

    return _scaled(Metric("logit difference", read, (pos,), answers=answers), model, clean, corrupted)


def logit(model: Runs, answer: Answers, *, pos: int = -1, clean: Any = None, corrupted: Any = None) -> Metric:
    """The logit of the answer; of several, their mean."""
    of = answer_ids(model, answer)
    metric = Metric("logit", lambda logits, rows: logits[:, 0].mean(1), (pos,), answers=of)  # noqa: ARG005
    return _scaled(metric, model, clean, corrupted)


def prob(model: Runs, answer: Answers, *, pos: int = -1, clean: Any = None, corrupted: Any = None) -> Metric:
    """The probability of the answer; of several, their sum."""
    of = answer_ids(model, answer)
    metric = Metric("probability", lambda logits, rows: _at(logits.softmax(-1), of, rows)[:, 0].sum(1), (pos,))
    return _scaled(metric, model, clean, corrupted)


def log_prob(model: Runs, answer: Answers, *, pos: int = -1, clean: Any = None, corrupted: Any = None) -> Metric:
    """The logarithm of the probability of the answer; of several, of their sum."""
    of = answer_ids(model, answer)

    def read(logits: Logits, rows: Rows) -> Values:
        return _at(logits.log_softmax(-1), of, rows)[:, 0].logsumexp(1)

    return _scaled(Metric("log-probability", read, (pos,)), model, clean, corrupted)


def log_odds(model: Runs, answer: Answers, *, pos: int = -1, clean: Any = None, corrupted: Any = None) -> Metric:
    """The logarithm of the answer's probability by that of all other tokens; several answers count together."""
    of = answer_ids(model, answer)

    def read(logits: Logits, rows: Rows) -> Values:
        own = _known(of, logits, rows)
        return logits[:, 0].gather(1, own).logsumexp(1) - logits[:, 0].scatter(1, own, -torch.inf).logsumexp(1)

    return _scaled(Metric("log-odds", read, (pos,)), model, clean, corrupted)


def rank(model: Runs, answer: Answers, *, pos: int = -1) -> Metric:
    """How many tokens the model prefers to the answer; of several answers, to the best of them."""
    of = answer_ids(model, answer)

    def read(logits: Logits, rows: Rows) -> Values:
        best = _at(logits, of, rows)[:, 0].amax(1, keepdim=True)
        return (logits[:, 0] > best).sum(1).to(logits.dtype)

    return Metric("rank", read, (pos,))


def accuracy(model: Runs, answer: Answers, *, pos: int = -1) -> Metric:
    """1 where the most probable token is the answer, or one of them, else 0."""
    of = answer_ids(model, answer)

    def read(logits: Logits, rows: Rows) -> Values:
        best = logits[:, 0].argmax(-1, keepdim=True)
        return (best == _known(of, logits, rows)).any(1).to(logits.dtype)

    return Metric("accuracy", read, (pos,))


def loss(of: Bool[Tensor, "prompt pos"] | None = None) -> Metric:
    """The mean next-token loss of each row, over its real tokens; with `of`, over those tokens alone."""

    def read(logits: Logits, rows: Rows) -> Values:
        if rows.tokens.shape[1] < 2:
            raise ValueError("the loss needs at least 2 tokens; 1 was given")
        each = F.cross_entropy(logits[:, :-1].transpose(1, 2), rows.tokens[:, 1:], reduction="none")
        if rows.attention_mask is None and of is None:
            return each.mean(1)
        counts = torch.ones_like(each, dtype=torch.bool)
        if rows.attention_mask is not None:
            counts = rows.attention_mask[:, 1:] & rows.attention_mask[:, :-1]
        if of is not None:
            counts = counts & rows.each(of, "tokens that the loss is of")[:, 1:]
        return (each * counts).sum(1) / counts.sum(1).clamp(min=1)

    return Metric("loss" if of is None else "loss of some tokens", read, None)


def loss_at(*pos: int) -> Metric:
    """The mean loss of the tokens that follow these positions."""

    def read(logits: Logits, rows: Rows) -> Values:
        targets = _chosen(rows.tokens, [p + 1 for p in pos], rows.attention_mask)
        return F.cross_entropy(logits.transpose(1, 2), targets, reduction="none").mean(1)

    if not pos or any(p == -1 for p in pos):
        raise ValueError(f"positions={list(pos)}; name at least one, and not the last: no token follows it")
    return Metric(f"loss at {', '.join(map(str, pos))}", read, pos)


def kl(model: Runs, reference: Any, *, pos: int | Sequence[int] = -1, attention_mask: Tensor | None = None) -> Metric:
    """KL(reference || run) of the next-token distribution, averaged over positions."""
    return _against(model, reference, pos, attention_mask, "KL from the reference run", _kl)


def js(model: Runs, reference: Any, *, pos: int | Sequence[int] = -1, attention_mask: Tensor | None = None) -> Metric:
    """The Jensen–Shannon divergence between the reference run and the run, averaged over positions."""

    def divergence(there: Tensor, here: Tensor) -> Tensor:
        middle = torch.logaddexp(there, here) - math.log(2)
        return (_kl(there, middle) + _kl(here, middle)) / 2

    return _against(model, reference, pos, attention_mask, "Jensen–Shannon from the reference run", divergence)


def top_k_overlap(
    model: Runs, reference: Any, k: int = 10, *, pos: int | Sequence[int] = -1, attention_mask: Tensor | None = None
) -> Metric:
    """The share of the reference run's k most probable tokens that are among the run's, averaged over positions."""

    def overlap(there: Tensor, here: Tensor) -> Tensor:
        if not 1 <= k <= here.shape[-1]:
            raise ValueError(f"k={k}; allowed: 1 to {here.shape[-1]}, the tokens that the model knows")
        best, others = there.topk(k, -1).indices, here.topk(k, -1).indices
        return (best[..., :, None] == others[..., None, :]).any(-1).to(here.dtype).mean(-1)

    return _against(model, reference, pos, attention_mask, f"overlap of the top {k} with the reference run", overlap)


def _against(
    model: Runs,
    reference: Any,
    pos: int | Sequence[int],
    attention_mask: Tensor | None,
    name: str,
    compare: Callable[[Tensor, Tensor], Tensor],
) -> Metric:
    """A comparison of next-token distributions with those of a run of the same prompts, or of one for all."""
    where = (pos,) if isinstance(pos, int) else tuple(pos)
    with torch.no_grad():
        logits, rows = _run(model, reference, attention_mask)
        exact = logits.float() if logits.dtype.itemsize == 2 else logits
        there = _chosen(exact, where, rows.attention_mask).log_softmax(-1)

    def read(logits: Logits, rows: Rows) -> Values:
        return compare(rows.each(there, "prompts of the reference run"), logits.log_softmax(-1)).mean(1)

    return Metric(name, read, where)


def _run(model: Runs, tokens: Any, attention_mask: Tensor | None) -> tuple[Logits, Rows]:
    if not isinstance(tokens, Tensor):
        tokens, attention_mask = model.read_input(tokens, None, attention_mask)
    logits = model(torch.atleast_2d(tokens), attention_mask=attention_mask)
    return logits, Rows.of(tokens.to(logits.device), attention_mask)


def _chosen(x: Shaped[Tensor, "row pos ..."], pos: Sequence[int], attention_mask: Tensor | None) -> Tensor:
    found = positions(list(pos), x.shape[1], attention_mask)
    assert found is not None
    return found.of(x, 1)


def _kl(there: Tensor, here: Tensor) -> Tensor:
    return F.kl_div(here, there, reduction="none", log_target=True).sum(-1)


def _at(
    values: Float[Tensor, "row pos d_vocab_out"], answers: Int[Tensor, "prompt answer"], rows: Rows
) -> Float[Tensor, "row pos answer"]:
    return values.gather(2, _known(answers, values, rows)[:, None].expand(-1, values.shape[1], -1))


def _known(answers: Int[Tensor, "prompt answer"], logits: Tensor, rows: Rows) -> Int[Tensor, "row answer"]:
    """Each row's answers; raise if one is no token."""
    check_known(answers, logits.shape[-1])
    return rows.each(answers, "answers")


def check_known(answers: Int[Tensor, "prompt answer"], d_vocab_out: int) -> None:
    """Raise if an answer is no token."""
    low, high = int(answers.min()), int(answers.max())
    if low < 0 or high >= d_vocab_out:
        raise ValueError(f"answers are tokens {low} to {high}; the model knows 0 to {d_vocab_out - 1}")


def answer_ids(model: Runs, answers: Answers) -> Int[Tensor, "prompt answer"]:
    """Token ids: one row for all prompts, or one for each."""
    if isinstance(answers, Tensor):
        answers = answers.tolist()
    each = [answers] if isinstance(answers, str | int) else list(answers)
    listed = [[one] if isinstance(one, str | int) else list(one) for one in each]
    if not listed or len({len(some) for some in listed}) != 1 or not listed[0]:
        raise ValueError(f"answers must be one for all prompts, one for each, or as many for each, not {answers!r}")
    ids = [[model.to_single_token(one) if isinstance(one, str) else one for one in some] for some in listed]
    return torch.tensor(ids)


def _scaled(metric: Metric, model: Runs, clean: Any, corrupted: Any) -> Metric:
    if (clean is None) != (corrupted is None):
        raise ValueError("to scale a metric both runs are needed: clean= and corrupted=")
    return metric if clean is None else metric.between(model, corrupted, clean)
