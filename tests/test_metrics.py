"""Metrics: formulas, positions and prompts they read, scaling between runs, refusals."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from interp import HookedGPT, metrics
from interp.metrics import Metric, Rows, at_positions, measured, values_of
from interp.tokenization import Tokenizer
from tests.variants import config, quick_of, some_tokens, variant

TOKENS = some_tokens()
OTHER = (TOKENS * 5 + 4) % 13
RIGHT = torch.tensor([[1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1, 0]])
LEFT = RIGHT.flip(1)
MASKS = {"none": None, "right": RIGHT, "left": LEFT}
LAST = {"none": [6, 6, 6], "right": [6, 3, 5], "left": [6, 6, 6]}
CORRECT, WRONG = [[4, 17], [0, 9], [12, 18]], [3, 8, 1]
TEXTS = ["hello", "hi", "a longer one"]

each_dtype = pytest.mark.parametrize("dtype", quick_of([torch.float32, torch.float64, torch.bfloat16], torch.bfloat16))
each_padding = pytest.mark.parametrize("padding", list(MASKS))


@pytest.fixture
def model() -> HookedGPT:
    return variant("sinusoidal", torch.float64)


@pytest.fixture
def reader() -> HookedGPT:
    tokenizer = Tokenizer.bytes()
    return HookedGPT(config("gpt2", d_vocab=tokenizer.d_vocab, n_ctx=32), tokenizer).eval()


def of_each_kind(model: HookedGPT) -> list[Metric]:
    one_by_one = [of(model, CORRECT) for of in (metrics.logit, metrics.prob, metrics.log_prob, metrics.log_odds)]
    counted = [metrics.rank(model, CORRECT), metrics.accuracy(model, CORRECT), metrics.loss(), metrics.loss_at(-2, -3)]
    compared = [of(model, OTHER, pos=[-1, -3]) for of in (metrics.kl, metrics.js)]
    overlap = metrics.top_k_overlap(model, OTHER, 4)
    return [metrics.logit_diff(model, CORRECT, WRONG), *one_by_one, *counted, *compared, overlap]


def assert_is(values: Tensor, expected: Sequence[float], dtype: torch.dtype) -> None:
    """Half precision is computed with as single."""
    assert values.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    rtol, atol = (1e-10, 1e-12) if dtype == torch.float64 else (1e-4, 1e-6)
    torch.testing.assert_close(values.double(), torch.tensor(expected, dtype=torch.float64), rtol=rtol, atol=atol)


def log_probs(logits: Tensor) -> list[float]:
    total = math.log(math.fsum(math.exp(x) for x in logits.tolist()))
    return [x - total for x in logits.tolist()]


def kl_by_hand(there: list[float], here: list[float]) -> float:
    return math.fsum(math.exp(p) * (p - q) for p, q in zip(there, here, strict=True))


def js_by_hand(there: list[float], here: list[float]) -> float:
    middle = [math.log((math.exp(p) + math.exp(q)) / 2) for p, q in zip(there, here, strict=True)]
    return (kl_by_hand(there, middle) + kl_by_hand(here, middle)) / 2


def overlap_by_hand(there: list[float], here: list[float]) -> float:
    best, others = (set(sorted(range(len(p)), key=lambda i: -p[i])[:4]) for p in (there, here))
    return len(best & others) / 4


@each_dtype
@each_padding
@pytest.mark.parametrize("pos", [-1, -3, 3])
@torch.no_grad()
def test_metrics_of_answers_are_their_formulas(dtype: torch.dtype, padding: str, pos: int) -> None:
    model = variant("sinusoidal", dtype)
    logits = model(TOKENS, attention_mask=MASKS[padding])
    expected: dict[str, list[float]] = {"logit_diff": [], "logit": [], "prob": [], "log_prob": [], "rank": []}
    expected["log_odds"] = []
    for row, last in enumerate(LAST[padding]):
        at = logits[row, pos if pos >= 0 else last + 1 + pos]
        of, p = [at[i].item() for i in CORRECT[row]], math.fsum(math.exp(log_probs(at)[i]) for i in CORRECT[row])
        expected["logit_diff"].append(sum(of) / 2 - at[WRONG[row]].item())
        expected["logit"].append(sum(of) / 2)
        expected["prob"].append(p)
        expected["log_prob"].append(math.log(p))
        expected["log_odds"].append(math.log(p / (1 - p)))
        expected["rank"].append(sum(x > max(of) for x in at.tolist()))
    for name, values in expected.items():
        answers = (CORRECT, WRONG) if name == "logit_diff" else (CORRECT,)
        metric = getattr(metrics, name)(model, *answers, pos=pos)
        assert_is(measured(model, TOKENS, metric, MASKS[padding]), values, dtype)


@each_dtype
def test_rank_and_accuracy_of_logits_written_by_hand(model: HookedGPT, dtype: torch.dtype) -> None:
    logits = torch.tensor([[0, 3, 1, 5, 4], [9, 7, 8, 6, 2]], dtype=dtype)[:, None]
    rows = Rows.of(torch.zeros(2, 1, dtype=torch.long))
    known = [(3, [0, 3], [1, 0]), ([3, 2], [0, 1], [1, 0]), ([[0, 1], [4, 0]], [2, 0], [0, 1])]
    for answers, rank, accuracy in known:
        assert_is(values_of(metrics.rank(model, answers), logits, rows), rank, dtype)
        assert_is(values_of(metrics.accuracy(model, answers), logits, rows), accuracy, dtype)
    assert values_of(metrics.rank(model, 2), torch.full((2, 1, 5), 2.0), rows).tolist() == [0, 0]


@each_dtype
@pytest.mark.parametrize("kind", ["kl", "js", "top_k_overlap"])
@torch.no_grad()
def test_comparisons_are_their_formulas_each_run_from_its_own_last_token(kind: str, dtype: torch.dtype) -> None:
    model = variant("sinusoidal", dtype)
    by_hand = {"kl": kl_by_hand, "js": js_by_hand, "top_k_overlap": overlap_by_hand}[kind]
    more = {"k": 4} if kind == "top_k_overlap" else {}
    there, here = (model(tokens, attention_mask=mask) for tokens, mask in ((TOKENS, RIGHT), (OTHER, LEFT)))
    for pos in (-2, 3, [-1, 3, -4]):
        expected = []
        for row, (last, run_last) in enumerate(zip(LAST["right"], LAST["left"], strict=True)):
            each = [pos] if isinstance(pos, int) else pos
            at = [(p, p) if p >= 0 else (last + 1 + p, run_last + 1 + p) for p in each]
            found = [by_hand(log_probs(there[row, one]), log_probs(here[row, other])) for one, other in at]
            expected.append(math.fsum(found) / len(found))
        metric = getattr(metrics, kind)(model, TOKENS, pos=pos, attention_mask=RIGHT, **more)
        assert_is(measured(model, OTHER, metric, LEFT), expected, dtype)


@each_dtype
def test_divergences_from_itself_are_nothing_and_js_is_symmetric_and_at_most_log_2(dtype: torch.dtype) -> None:
    model = variant("sinusoidal", dtype)
    for of, same in ((metrics.kl, 0), (metrics.js, 0), (metrics.top_k_overlap, 1)):
        assert_is(measured(model, TOKENS, of(model, TOKENS, pos=[-1, 2])), [same] * 3, dtype)
    there, back = (measured(model, b, metrics.js(model, a)) for a, b in ((TOKENS, OTHER), (OTHER, TOKENS)))
    assert_is(there, back.tolist(), dtype)
    assert (there > 1e-3).all()
    with torch.no_grad():
        model.W_U.mul_(2000)
        sure = metrics.js(model, TOKENS)
        model.W_U.neg_()
    assert_is(measured(model, TOKENS, sure), [math.log(2)] * 3, dtype)


@each_dtype
@each_padding
@torch.no_grad()
def test_loss_of_each_row_is_the_models_own(dtype: torch.dtype, padding: str) -> None:
    model, mask = variant("sinusoidal", dtype), MASKS[padding]
    of_row = lambda i: model(TOKENS[i : i + 1], "loss", attention_mask=None if mask is None else mask[i : i + 1])
    assert_is(measured(model, TOKENS, metrics.loss(), mask), [of_row(i).item() for i in range(3)], dtype)
    logits = model(TOKENS, attention_mask=mask)
    per_token = [[-log_probs(logits[i, j])[TOKENS[i, j + 1]] for j in range(6)] for i in range(3)]
    real = [[j for j in range(6) if mask is None or mask[i, j] * mask[i, j + 1]] for i in range(3)]
    by_hand = [math.fsum(per_token[i][j] for j in real[i]) / len(real[i]) for i in range(3)]
    assert_is(measured(model, TOKENS.int(), metrics.loss(), mask), by_hand, dtype)
    assert padding != "none" or math.isclose(sum(by_hand) / 3, model(TOKENS, "loss").item(), rel_tol=1e-5)
    some = TOKENS % 2 == 0
    chosen = [[j for j in real[i] if some[i, j + 1]] for i in range(3)]
    of_some = [math.fsum(per_token[i][j] for j in chosen[i]) / max(1, len(chosen[i])) for i in range(3)]
    assert 0 < sum(map(len, chosen)) < sum(map(len, real))
    assert_is(measured(model, TOKENS, metrics.loss(of=some), mask), of_some, dtype)
    ends = LAST[padding]
    at = [(per_token[i][ends[i] - 1] + per_token[i][2] + per_token[i][ends[i] - 3]) / 3 for i in range(3)]
    assert_is(measured(model, TOKENS, metrics.loss_at(-2, 2, -4), mask), at, dtype)


@pytest.mark.parametrize("mask", [RIGHT, LEFT])
def test_a_padded_row_measures_what_it_does_alone(model: HookedGPT, mask: Tensor) -> None:
    for metric in of_each_kind(model):
        together = measured(model, TOKENS, metric, mask)
        for i in range(3):
            own = TOKENS[i : i + 1, mask[i] == 1]
            rows = Rows(own, torch.tensor([i]), 3)
            with torch.no_grad():
                alone = values_of(metric, at_positions(model(own), metric), rows)
            torch.testing.assert_close(alone, together[i : i + 1], msg=lambda text, m=metric: f"{m.name}: {text}")


def test_answers_are_one_for_all_one_for_each_or_several_for_each(model: HookedGPT) -> None:
    read = lambda answers: measured(model, TOKENS, metrics.logit(model, answers)).tolist()
    with torch.no_grad():
        last = model(TOKENS)[:, -1].tolist()
    for same in (5, [5], [[5]], (5, 5, 5), [[5], [5], [5]], torch.tensor(5), torch.tensor([5]), torch.tensor([[5]])):
        assert read(same) == [row[5] for row in last]
    for each in ([4, 0, 12], [[4], [0], [12]], torch.tensor([4, 0, 12]), torch.tensor([[4], [0], [12]]).int()):
        assert read(each) == [last[0][4], last[1][0], last[2][12]]
    several = [(last[row][i] + last[row][j]) / 2 for row, (i, j) in enumerate(CORRECT)]
    assert read(CORRECT) == read(torch.tensor(CORRECT)) == read([tuple(some) for some in CORRECT]) == several
    assert read([[4, 17]]) == [(row[4] + row[17]) / 2 for row in last]


def test_answers_and_prompts_may_be_text(reader: HookedGPT) -> None:
    for given, ids in (("e", [101] * 3), (["e", "f", "g"], [101, 102, 103])):
        values = measured(reader, TEXTS, metrics.logit(reader, given))
        with torch.no_grad():
            alone = [reader(text)[0, -1, i] for text, i in zip(TEXTS, ids, strict=True)]
        torch.testing.assert_close(values, torch.stack(alone))
    several = [["e", "f"], ["g", "h"], ["i", "j"]]
    for of in (metrics.logit, metrics.prob, metrics.log_prob, metrics.rank, metrics.accuracy):
        ids = [[ord(one) for one in some] for some in several]
        assert torch.equal(*(measured(reader, TEXTS, of(reader, answers)) for answers in (several, ids)))
    tokens, mask = reader.read(TEXTS)
    by_mask = measured(reader, tokens, metrics.kl(reader, TEXTS[::-1]), mask)
    assert torch.equal(measured(reader, TEXTS, metrics.kl(reader, TEXTS[::-1])), by_mask)
    scaled = metrics.logit_diff(reader, "e", ["f", "g", "h"], clean=TEXTS, corrupted=TEXTS[::-1])
    assert measured(reader, TEXTS, scaled).mean().item() == pytest.approx(1, abs=1e-5)


def test_rows_read_the_answers_and_the_reference_of_their_prompt(model: HookedGPT) -> None:
    prompt = torch.tensor([2, 0, 2, 1, 0])
    rows = Rows(TOKENS[prompt], prompt, 3, RIGHT[prompt].bool())
    with torch.no_grad():
        logits = model(TOKENS[prompt], attention_mask=RIGHT[prompt])
    for metric in of_each_kind(model):
        values = values_of(metric, at_positions(logits, metric, rows.attention_mask), rows)
        torch.testing.assert_close(values, measured(model, TOKENS, metric, RIGHT)[prompt])


def test_one_reference_serves_all_prompts(model: HookedGPT) -> None:
    for of in (metrics.kl, metrics.js, metrics.top_k_overlap):
        for one in (TOKENS[1], TOKENS[1:2]):
            repeated = measured(model, TOKENS, of(model, TOKENS[[1, 1, 1]]))
            torch.testing.assert_close(measured(model, TOKENS, of(model, one)), repeated)
    assert measured(model, TOKENS[0], metrics.kl(model, TOKENS[1])).shape == (1,)


def test_gradients_reach_the_logits_at_the_positions_read_and_no_others(model: HookedGPT) -> None:
    logits = model(TOKENS, attention_mask=RIGHT).detach().requires_grad_()
    rows = Rows.of(TOKENS, RIGHT)
    for metric in of_each_kind(model):
        if metric.positions is None or metric.name.startswith(("rank", "accuracy", "overlap")):
            continue
        values = values_of(metric, at_positions(logits, metric, rows.attention_mask), rows)
        (grad,) = torch.autograd.grad(values.sum(), logits)
        read = [[last + 1 + pos for pos in metric.positions] for last in LAST["right"]]
        assert grad.any(-1).tolist() == [[pos in of_row for pos in range(7)] for of_row in read], metric.name


@pytest.mark.parametrize("dtype", quick_of([torch.float32, torch.float64], torch.float32))
@pytest.mark.parametrize("kind", ["logit_diff", "logit", "prob", "log_prob", "log_odds"])
def test_scaled_metrics_are_1_on_clean_and_0_on_corrupted_on_average(kind: str, dtype: torch.dtype) -> None:
    model, of = variant("sinusoidal", dtype), getattr(metrics, kind)
    answers = (CORRECT, WRONG) if kind == "logit_diff" else (CORRECT,)
    scaled = of(model, *answers, pos=-2, clean=TOKENS, corrupted=OTHER)
    clean, corrupted = (measured(model, tokens, scaled) for tokens in (TOKENS, OTHER))
    assert_is(torch.stack((clean.mean(), corrupted.mean())), [1, 0], dtype)
    third = TOKENS.flip(0)
    raw = [measured(model, tokens, of(model, *answers, pos=-2)) for tokens in (TOKENS, OTHER, third)]
    high, low = (sum(values.tolist()) / 3 for values in raw[:2])
    assert_is(measured(model, third, scaled), [(x - low) / (high - low) for x in raw[2].tolist()], dtype)
    both = torch.cat((clean, corrupted))
    assert both.max() > 1.01
    assert both.min() < -0.01


def test_any_metric_can_be_scaled_and_scaled_again(model: HookedGPT) -> None:
    clean, corrupted = TOKENS, OTHER
    for metric in [*of_each_kind(model), metrics.kl(model, clean)]:
        if metric.name == "accuracy":  # 0 on both
            continue
        scaled = metric.between(model, corrupted, clean, attention_mask=LEFT)
        means = [measured(model, tokens, scaled, LEFT).mean().item() for tokens in (clean, corrupted)]
        assert means == pytest.approx([1, 0], abs=1e-9), metric.name
        assert scaled.name == f"{metric.name}, scaled"
    logit = metrics.logit(model, 4)
    twice = logit.between(model, TOKENS.flip(0) // 2, OTHER).between(model, corrupted, clean)
    once = metrics.logit(model, 4, clean=clean, corrupted=corrupted)
    torch.testing.assert_close(measured(model, TOKENS // 3, twice), measured(model, TOKENS // 3, once))


@each_dtype
def test_any_function_of_logits_is_a_metric_and_gets_all_positions(dtype: torch.dtype) -> None:
    model, seen = variant("sinusoidal", dtype), []

    def last_of_four(logits: Tensor) -> Tensor:
        seen.append((logits.shape, logits.dtype))
        return logits[:, -1, 4]

    values = measured(model, TOKENS, last_of_four)
    assert torch.equal(values, measured(model, TOKENS, metrics.logit(model, 4)))
    assert seen == [((3, 7, 19), torch.float64 if dtype == torch.float64 else torch.float32)]
    assert at_positions(torch.zeros(3, 7, 19), last_of_four, RIGHT).shape == (3, 7, 19)
    assert at_positions(torch.zeros(3, 7, 19), metrics.logit(model, 4), RIGHT).shape == (3, 1, 19)


@pytest.mark.parametrize("answers", [[], [[]], [[4, 1], [2], [3]], [[], [], []], torch.zeros(0), torch.zeros(3, 0)])
def test_answers_that_are_empty_or_ragged_are_refused(model: HookedGPT, answers: Any) -> None:
    for of in (metrics.logit, metrics.prob, metrics.log_prob, metrics.rank, metrics.accuracy):
        with pytest.raises(ValueError, match=r"answers must be one for all prompts, one for each, or as many for each"):
            of(model, answers)
    with pytest.raises(ValueError, match=r"answers must be one for all"):
        metrics.logit_diff(model, 4, answers)


def test_what_makes_no_sense_is_refused(model: HookedGPT, reader: HookedGPT) -> None:
    for metric in (metrics.prob(model, [4, 1]), metrics.accuracy(model, [[4], [1]]), metrics.rank(model, [1, 2])):
        with pytest.raises(ValueError, match=r"answers: 2 were given for 3 prompts; give one, or as many"):
            measured(model, TOKENS, metric)
    with pytest.raises(ValueError, match=r"reference run: 2 were given for 3 prompts"):
        measured(model, TOKENS, metrics.js(model, TOKENS[:2]))
    with pytest.raises(ValueError, match=r"'hi' is 2 tokens, not one"):
        metrics.logit_diff(reader, ["a", "b"], ["c", "hi"])
    for pos in ((-1,), (2, -1), ()):
        with pytest.raises(ValueError, match=r"name at least one, and not the last: no token follows it"):
            metrics.loss_at(*pos)
    for pos in (7, -8):
        with pytest.raises(IndexError, match=r"out of range: there are 7 positions"):
            measured(model, TOKENS, metrics.logit(model, 4, pos=pos))
    with pytest.raises(IndexError, match=r"out of range: .*counts its real tokens"):
        measured(model, TOKENS, metrics.logit(model, 4, pos=-5), LEFT)
    for of, given in [
        (lambda logits: logits[:, -1], r"<lambda> gave shape \[3, 19\]"),
        (lambda logits: logits.mean(), r"<lambda> gave shape \[\]"),
        (lambda logits: logits[:2, 0, 0], r"<lambda> gave shape \[2\]"),
        (lambda logits: 0.5, r"<lambda> gave a float"),
    ]:
        with pytest.raises(ValueError, match=rf"{given}; a metric gives one number for each of 3 rows, \[3\]"):
            measured(model, TOKENS, of)
    for clean, corrupted in ((TOKENS, None), (None, TOKENS)):
        with pytest.raises(ValueError, match=r"both runs are needed: clean= and corrupted="):
            metrics.logit(model, 4, clean=clean, corrupted=corrupted)
    with pytest.raises(ValueError, match=r"logit is \S+ on one run and \S+ on the other: nothing to scale by"):
        metrics.logit(model, 4, clean=TOKENS, corrupted=TOKENS)
    with pytest.raises(ValueError, match=r"accuracy is 0 on one run and 0 on the other: nothing to scale by"):
        metrics.accuracy(model, 18).between(model, TOKENS, OTHER)


def test_what_no_model_can_answer_is_refused() -> None:
    rows, logits = Rows.of(torch.zeros(2, 1, dtype=torch.long)), torch.zeros(2, 1, 7)
    for metric in (metrics.logit, metrics.accuracy, metrics.rank):
        with pytest.raises(ValueError, match=r"answers are tokens 3 to 7; the model knows 0 to 6"):
            metric(variant("gpt2"), [3, 7])(logits, rows)
    with pytest.raises(ValueError, match=r"at least 2 tokens; 1 was given"):
        metrics.loss()(logits, rows)
