import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.multiprocessing.spawn import spawn

from interp import GPTConfig, HookedGPT, metrics
from interp.interventions import Ablate, Patch, Site, Steer
from interp.patching import sweep as sweeps
from interp.patching.engine import Base, Packed, Row
from interp.patching.memory import Chunks, Job, Peak, is_out_of_memory
from interp.patching.sweep import Sweep, label
from tests.patching.swept import MEMORY, first_logit, one_of_several, rows_of, small_sweep
from tests.peak_memory import peak_bytes
from tests.variants import quick_of, some_tokens, variant

ROOT = Path(__file__).parents[2]


def spoiled(at: int, value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    """The first logit, but for one row: the one whose run gives what it is `at`."""
    good = small_sweep().values(rows_of(variant("gpt2")))

    def spoiled_logit(logits: torch.Tensor) -> torch.Tensor:
        values = first_logit(logits)
        return torch.where((values - good[at]).abs() < 1e-6, value, values)

    return spoiled_logit


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_value_that_is_no_number_is_refused_with_its_site(value: float) -> None:
    model = variant("gpt2")
    rows = rows_of(model)
    at = next(i for i, row in enumerate(rows) if label(row) == "prompt 1: Patch z layer 1 head 2")
    sweep = Sweep(Base(model, some_tokens()), spoiled(at, value), progress=False)
    with pytest.raises(ValueError, match=f"spoiled_logit is {value} for prompt 1: Patch z layer 1 head 2; in the base"):
        sweep.values(rows)
    with pytest.raises(ValueError, match="prompt 1: Patch z layer 1 head 2; in the base"):
        sweep.values(rows[at : at + 1])


def test_a_base_run_that_gives_no_number_is_named_as_such() -> None:
    model = variant("gpt2")
    base = Base(model, some_tokens())
    bad = first_logit(model(some_tokens()))[2]
    metric = lambda logits: torch.where((logits[:, -1, 0] - bad).abs() < 1e-6, torch.nan, logits[:, -1, 0])
    rows = rows_of(model)
    with pytest.raises(ValueError, match=r"is nan in the base run itself, where nothing is changed: prompts \[2\]"):
        Sweep(base, metric, progress=False).values(rows)
    others = [row for row in rows if row.prompt != 2]
    assert Sweep(base, metric, progress=False).values(others).isfinite().all()


def test_a_metric_of_another_shape_is_named_with_the_site_that_its_chunk_begins_with() -> None:
    model = variant("gpt2")
    rows = rows_of(model)[:1]
    n_calls = iter(range(9))
    metric = lambda logits: logits[:, -1, 0] if next(n_calls) < 1 else logits[:, -1]  # the base run's call is good
    with pytest.raises(ValueError, match=r"gave shape \[1, 13\]; a metric gives one number") as caught:
        Sweep(Base(model, some_tokens()), metric, progress=False).values(rows)
    assert caught.value.__notes__ == ["in a chunk of 1 rows that begins with prompt 0: Patch resid_pre layer 0 pos 0"]
    with pytest.raises(ValueError, match="gave shape") as caught:
        Sweep(Base(model, some_tokens()), lambda logits: logits, progress=False).values(rows)
    assert caught.value.__notes__ == ["in the base run, where nothing is changed"]


def test_rows_that_no_run_can_have_are_refused() -> None:
    base, good = Base(variant("gpt2"), some_tokens()), Site("z", 1)
    rows = {
        r"pos \[7\] is out of range: there are 7": Row(0, (Ablate(Site("z", 1, pos=7)), Ablate(good))),
        "not hook_embed, but resid_pre": Row(0, (Ablate(Site("embed")),)),
        "prompt 3 is out of range: there are 3": Row(3, (Ablate(good),)),
        "prompt -1 is out of range: there are 3": Row(-1, (Ablate(good),)),
    }
    for message, row in rows.items():
        with pytest.raises((IndexError, ValueError), match=message):
            Sweep(base, first_logit, progress=False).values([row])


def test_labels_name_all_that_a_row_changes() -> None:
    mask = torch.ones(7, dtype=torch.bool)
    edits = (Ablate(Site("z", 1, head=[0, 2], pos=-1)), Steer(Site("post", 0, pos=mask, neuron=3), torch.ones(1)))
    assert (
        label(Row(2, edits)) == "prompt 2: Ablate z layer 1 head [0, 2] pos -1 + Steer post layer 0 pos mask neuron 3"
    )
    assert label(Row(0, ())) == "prompt 0: no edit"


# Memory


def long_model(n_ctx: int) -> HookedGPT:
    cfg = GPTConfig(n_layers=3, d_model=32, n_heads=4, d_head=8, d_mlp=64, n_ctx=n_ctx, d_vocab=50, seed=0)
    return HookedGPT(cfg).eval()


def long_rows(model: HookedGPT, tokens: torch.Tensor, names: tuple[str, ...]) -> list[Row]:
    """Rows of all lengths, in all layers: what starts late has few tokens, but keys and logits as the others."""
    n_pos = tokens.shape[1]
    places = [0, 1, n_pos // 3, n_pos // 2, n_pos - 2, *range(n_pos - 7, n_pos)]
    _, cache = model.run_with_cache(tokens.flip(0))
    return [
        Row(prompt, (Patch(Site(name, layer, pos=pos), cache[name, layer]),))
        for name in names
        for layer in range(3)
        for pos in places
        for prompt in range(2)
    ]


def test_what_is_measured_is_what_the_allocator_says() -> None:
    model, tokens = long_model(128), some_tokens(2, 128, 50)
    base = Base(model, tokens)
    rows = [base.prepared(row) for row in long_rows(model, tokens, ("z",))][10:14]
    packed = lambda: Packed(base, rows, torch.arange(128).expand(2, -1)).logits()
    with Peak() as peak:
        packed()
    assert peak.bytes == pytest.approx(peak_bytes(packed), rel=0.1)


@pytest.mark.long
@pytest.mark.parametrize(("n_pos", "names"), [(16, ("resid_pre",)), (128, ("mlp_out", "pattern")), (1024, ("z",))])
def test_a_sweep_keeps_within_its_budget_whatever_its_rows_lengths(n_pos: int, names: tuple[str, ...]) -> None:
    model, tokens = long_model(n_pos), some_tokens(2, n_pos, 50)
    rows = long_rows(model, tokens, names)
    base = Base(model, tokens)
    metric = lambda logits: logits[:, -1, 0]
    free = Sweep(base, metric, 2**40, progress=False)
    expected = free.values(rows)
    one = 1.1 * max(
        need.first for need in free.chunks.plan.needs.values()
    )  # a row from the first token on needs a bit more
    n_chunks = []
    for budget in (int(one) + 1, int(2.5 * one), 10 * int(one)):
        sweep = Sweep(base, metric, budget, progress=False)
        assert base.allowed
        with Peak() as peak:
            values = sweep.values(rows)
        assert peak.bytes <= budget + 16 * len(rows), "beside the values themselves"
        torch.testing.assert_close(values, expected, rtol=1e-5, atol=1e-5)
        n_chunks.append(sweep.work["chunks"])
    assert n_chunks[0] > n_chunks[1] > n_chunks[2], "more memory, larger chunks"


@pytest.mark.slow
def test_a_budget_too_small_for_one_row_is_refused_with_both_numbers() -> None:
    model, tokens = long_model(64), some_tokens(2, 64, 50)
    base, rows = Base(model, tokens), long_rows(model, tokens, ("pattern",))
    sweep = Sweep(base, lambda logits: logits[:, -1, 0], 30_000, progress=False)
    with pytest.raises(ValueError, match=r"memory=30,000 bytes is too little: one row alone needs [\d,]+$") as refused:
        sweep.values(rows)
    assert sweep.work["chunks"] <= 1
    needed = int(str(refused.value).rpartition(" ")[2].replace(",", ""))
    assert Sweep(base, lambda logits: logits[:, -1, 0], 2 * needed, progress=False).values(rows).isfinite().all()


def test_a_chunk_that_runs_out_of_memory_is_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    model = variant("gpt2")
    base, rows = Base(model, some_tokens()), rows_of(model)
    expected = Sweep(base, first_logit, progress=False).values(rows)
    sizes = []

    class Small(Packed):
        most = 5

        def logits(self, tokens: torch.Tensor | None = None) -> torch.Tensor:
            sizes.append(len(self.prompts))
            if len(self.prompts) > self.most:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().logits(tokens)

    monkeypatch.setattr(sweeps, "Packed", Small)
    found = Sweep(base, first_logit, 2**40, progress=False).values(rows)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert max(sizes) > 5, "it was tried"
    assert sum(size > 5 for size in sizes) < 8, "and remembered"
    Small.most = 0
    with pytest.raises(torch.OutOfMemoryError):
        Sweep(base, first_logit, progress=False).values(rows)


def test_out_of_memory_is_known_on_a_cpu_too() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**58)
    assert is_out_of_memory(raised.value)
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def test_chunks_grow_as_it_is_learned_how_little_one_more_job_needs() -> None:
    def once(indices: list[int]) -> torch.Tensor:
        return torch.empty(1000 + 10 * len(indices), dtype=torch.uint8)[: len(indices)]

    jobs = [Job(i, "alike", 1) for i in range(71)]
    sizes = [len(indices) for indices, _ in Chunks(torch.device("cpu"), 4000).run(jobs, once)]
    assert sizes == [1, 3, 8, 19, 40]


# Files


def lines_of(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True)


def saved_rows(path: Path) -> list[int]:
    return [row for line in lines_of(path)[1:] for row in json.loads(line)["rows"]]


def test_a_file_changes_no_number_and_a_second_run_computes_nothing(tmp_path: Path) -> None:
    plain, kept, again = small_sweep(), small_sweep(file=tmp_path / "sweep"), small_sweep(file=tmp_path / "sweep")
    rows = rows_of(plain.base.model)
    expected = plain.values(rows)
    assert torch.equal(kept.values(rows), expected)
    assert len(lines_of(tmp_path / "sweep")) == kept.work["chunks"] + 2 > 5
    assert torch.equal(again.values(rows), expected)
    assert again.work["rows"] == 0


def test_a_function_is_told_how_far_a_sweep_is_and_one_that_raises_stops_it_with_all_that_is_done(
    tmp_path: Path,
) -> None:
    told = list[tuple[int, int]]()

    def tell(done: int, total: int) -> None:
        told.append((done, total))
        if len(told) == 4:
            raise KeyboardInterrupt

    first = small_sweep(file=tmp_path / "sweep")
    rows = rows_of(first.base.model)
    first.progress = tell
    with pytest.raises(KeyboardInterrupt):
        first.values(rows)
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert told[0][0] == 0
    assert told[3][0] == first.work["rows"] == len(saved_rows(tmp_path / "sweep")) < told[3][1]
    again = small_sweep(file=tmp_path / "sweep")
    again.progress = lambda done, total: told.append((done, total))
    assert torch.equal(again.values(rows), small_sweep().values(rows))
    assert told[4] == told[3]
    assert told[-1][0] == told[-1][1] == told[0][1]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_sweep_killed_in_the_middle_goes_on_as_it_was_planned(tmp_path: Path, dtype: str) -> None:
    path, choices = tmp_path / "sweep", {"dtype": getattr(torch, dtype), "memory": MEMORY}
    unbroken = small_sweep(**choices, file=tmp_path / "unbroken")
    rows = rows_of(unbroken.base.model)
    expected = unbroken.values(rows)
    command = [sys.executable, "-m", "tests.patching.swept", str(path), "4", dtype]
    assert subprocess.run(command, cwd=ROOT, capture_output=True).returncode == -9
    n_saved = len(saved_rows(path))
    assert 0 < n_saved < len(rows)
    resumed = small_sweep(**choices, file=path)
    assert torch.equal(resumed.values(rows), expected)
    assert resumed.work["rows"] == unbroken.work["rows"] - n_saved
    assert path.read_bytes() == (tmp_path / "unbroken").read_bytes(), "the same chunks, each once"


@pytest.mark.slow
def test_wherever_a_sweep_is_cut_off_its_chunks_stay_as_they_were_planned(tmp_path: Path) -> None:
    path, choices = tmp_path / "sweep", {"dtype": torch.bfloat16, "memory": MEMORY}
    first = small_sweep(**choices, file=path)
    rows = rows_of(first.base.model)
    expected, whole = first.values(rows), lines_of(path)
    assert sum(b"plan" in line for line in whole) > 2, "it is learned on the way how much rows need"
    for n_left in range(2, len(whole)):
        path.write_bytes(b"".join(whole[:n_left]))
        again = small_sweep(**choices, file=path)
        again.chunks.plan.largest = 100  # not as the file has it
        assert torch.equal(again.values(rows), expected)
        assert lines_of(path) == whole


@pytest.mark.slow
def test_a_budget_holds_although_the_file_was_begun_with_a_larger_one(tmp_path: Path) -> None:
    path, first = tmp_path / "sweep", small_sweep(file=tmp_path / "sweep", memory=10 * MEMORY)
    rows = rows_of(first.base.model)
    expected, whole = first.values(rows), lines_of(path)
    path.write_bytes(b"".join(whole[:6]))
    again = small_sweep(file=path, memory=MEMORY)
    assert again.base.allowed
    with Peak() as peak:
        torch.testing.assert_close(again.values(rows), expected, rtol=1e-5, atol=1e-5)
    assert peak.bytes <= MEMORY + 16 * len(rows)


@pytest.mark.parametrize("n_left", quick_of([1, 3, 7], 3))
def test_a_last_line_that_was_cut_off_is_dropped(tmp_path: Path, n_left: int) -> None:
    path, first = tmp_path / "sweep", small_sweep(file=tmp_path / "sweep")
    rows = rows_of(first.base.model)
    expected = first.values(rows)
    whole = lines_of(path)
    for cut in (1, len(whole[n_left - 1]) // 2, len(whole[n_left - 1]) - 1):
        path.write_bytes(b"".join(whole[: n_left - 1]) + whole[n_left - 1][:cut])
        assert torch.equal(small_sweep(file=path).values(rows), expected)
        assert sorted(saved_rows(path)) == sorted(set(saved_rows(path)))
        assert len(saved_rows(path)) == first.work["rows"]


def test_the_file_of_another_sweep_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    path, first = tmp_path / "sweep", small_sweep(file=tmp_path / "sweep")
    model, tokens, rows = first.base.model, some_tokens(), rows_of(first.base.model)
    first.values(rows)
    before = path.read_bytes()

    def last_logit(logits: torch.Tensor) -> torch.Tensor:
        return logits[:, -1, 0]

    def changed(logits: torch.Tensor) -> torch.Tensor:
        return logits[:, -1, 1]

    changed.__qualname__ = "first_logit"
    fewer = torch.ones(3, 7, dtype=torch.bool)
    fewer[0, :2] = False
    other_edit = [
        Row(
            row.prompt,
            tuple(Patch(Site(e.site.name, e.site.layer), e.source) for e in row.edits if isinstance(e, Patch)),
        )
        for row in rows
    ]
    cases = [
        ("model", Base(variant("gpt2", seed=5), tokens), first_logit, rows),
        ("prompts", Base(model, tokens.flip(0)), first_logit, rows),
        ("prompts", Base(model, tokens, fewer), first_logit, rows),
        ("sites", Base(model, tokens), first_logit, rows[:-1]),
        ("sites", Base(model, tokens), first_logit, rows[::-1]),
        ("sites", Base(model, tokens), first_logit, other_edit),
        ("sites", Base(model, tokens), first_logit, rows_of(model, shift=2)),
        ("sites", Base(model, tokens), first_logit, [Row(row.prompt, row.edits, 1) for row in rows]),
        ("metric", Base(model, tokens), last_logit, rows),
        ("metric", Base(model, tokens), changed, rows),
        ("sites, metric", Base(model, tokens), last_logit, rows[1:]),
    ]
    for what, base, metric, others in cases:
        sweep = Sweep(base, metric, progress=False, file=path)
        with pytest.raises(ValueError, match=rf"belongs to another sweep: not the same {what};"):
            sweep.values(others)
        assert sweep.work["rows"] == 0
        assert path.read_bytes() == before


def test_metrics_that_are_called_alike_are_told_apart_by_their_answers_and_positions(tmp_path: Path) -> None:
    model = variant("gpt2")
    base, rows = Base(model, some_tokens()), rows_of(model)
    tokens = model(some_tokens())[:, -2:].sum(1).argsort(-1)[0].tolist()
    one, *others = (  # 0 on the base run, all of them
        metrics.accuracy(model, token, pos=pos) for token, pos in ((tokens[0], -1), (tokens[1], -1), (tokens[0], -2))
    )
    Sweep(base, one, progress=False, file=tmp_path / "sweep").values(rows)
    for other in others:
        sweep = Sweep(base, other, progress=False, file=tmp_path / "sweep")
        assert not sweep.base_values().any()
        with pytest.raises(ValueError, match="not the same metric"):
            sweep.values(rows)


def test_scaled_logits_of_other_answers_are_told_apart_and_rounding_is_not(tmp_path: Path) -> None:
    model, tokens = variant("gpt2"), some_tokens()
    base, rows = Base(model, tokens[1:2]), [Row(0, (Ablate(Site("z", 1, head=head)),)) for head in range(3)]

    def scaled(correct: int, wrong: int) -> metrics.Metric:  # all are 0 on the base run
        return metrics.logit_diff(model, correct, wrong, clean=tokens[:1], corrupted=tokens[1:2])

    Sweep(base, scaled(1, 0), progress=False, file=tmp_path / "sweep").values(rows)
    for other in (scaled(3, 1), scaled(1, 3)):
        with pytest.raises(ValueError, match="not the same metric"):
            Sweep(base, other, progress=False, file=tmp_path / "sweep").values(rows)
    near = metrics.kl(model, tokens[1:2])
    kept = Sweep(base, near, progress=False, file=tmp_path / "near").values(rows)
    again = Sweep(base, near, 10**6, progress=False, file=tmp_path / "near")
    again.unchanged = again.base_values() + 1e-7
    torch.testing.assert_close(again.values(rows), kept)


@pytest.mark.parametrize(
    "content",
    [
        b"my notes",
        b"my notes\n",
        b"{}\n",
        b'{"format": "interp edits"}\n',
        b"\xff\n[1]\n",
        b'{"format": "interp sweep", "version": 2}\n',
    ],
)
def test_a_file_that_holds_something_else_is_left_as_it_is(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "sweep"
    path.write_bytes(content)
    sweep = small_sweep(file=path)
    with pytest.raises(ValueError, match=r"holds no sweep|is damaged"):
        sweep.values(rows_of(sweep.base.model))
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    "line",
    quick_of(
        [
            '{"rows": [0]}',
            '{"rows": [0], "values": [NaN]}',
            '{"rows": [99], "values": [1.0]}',
            '{"rows": [0], "values": [1.0], "plan": {"largest": 1}}',
            "[0]",
            "{",
        ],
        "{",
        "[0]",
    ),
)
def test_a_damaged_line_is_named(tmp_path: Path, line: str) -> None:
    path, sweep = tmp_path / "sweep", small_sweep(file=tmp_path / "sweep")
    rows = rows_of(sweep.base.model)
    sweep.values(rows)
    whole = lines_of(path)
    path.write_bytes(whole[0] + whole[1] + f"{line}\n".encode() + b"".join(whole[2:]))
    with pytest.raises(ValueError, match="line 3, is damaged"):
        small_sweep(file=path).values(rows)


def test_a_file_that_cannot_be_written_is_refused_before_a_row_is_run(tmp_path: Path) -> None:
    begun = small_sweep(file=tmp_path / "sweep")
    rows = rows_of(begun.base.model)
    second = small_sweep(file=tmp_path / "sweep")
    with begun._saved(rows, begun.base_values()), pytest.raises(BlockingIOError, match="is in use: another sweep"):
        second.values(rows)
    nowhere = small_sweep(file=tmp_path / "none" / "sweep")
    with pytest.raises(FileNotFoundError, match="none/sweep"):
        nowhere.values(rows)
    assert second.work["rows"] == nowhere.work["rows"] == 0


# Several processes


@pytest.mark.slow
@pytest.mark.parametrize("failing", [-1, 1])
def test_processes_divide_the_rows_and_all_get_all_values(tmp_path: Path, failing: int) -> None:
    meeting = str(tmp_path / "meeting")
    spawn(one_of_several, (2, meeting, failing), nprocs=2)
    plain = small_sweep()
    expected = plain.values(rows_of(plain.base.model))
    found = [torch.load(f"{meeting}.{rank}", weights_only=True) for rank in range(2)]
    if failing == 1:
        assert found[0][2] == "the sweep failed in another process, which says why"
        assert found[1][2] == "a fault of one"
        return
    for values, n_rows, said, kept in found:
        assert not said
        torch.testing.assert_close(values, expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(kept, values, rtol=1e-5, atol=1e-5)
        assert abs(n_rows - plain.work["rows"] / 2) < 1
    alone = small_sweep(file=f"{meeting}.sweep")
    assert torch.equal(alone.values(rows_of(alone.base.model)), found[0][3]), "one goes on with what two have kept"
    assert alone.work["rows"] == 0


def test_what_another_process_kept_is_taken_over_if_it_is_of_the_same_sweep(tmp_path: Path) -> None:
    path, beside = tmp_path / "sweep", tmp_path / "sweep.1-of-2"
    first = small_sweep(file=path)
    rows = rows_of(first.base.model)
    values = first.values(rows)
    half = lines_of(path)[: len(lines_of(path)) // 2]
    beside.write_bytes(b"".join(half) + b'{"rows": [0')  # it is being written to
    path.unlink()
    again = small_sweep(file=path)
    torch.testing.assert_close(again.values(rows), values, rtol=1e-5, atol=1e-5)
    assert 0 < again.work["rows"] < first.work["rows"]
    assert beside.read_bytes() == b"".join(half) + b'{"rows": [0', "it is left as it is"
    (tmp_path / "sweep.0-of-2").write_bytes(b"")  # it is being begun
    other = rows_of(first.base.model, shift=2)
    path.unlink()
    with pytest.raises(ValueError, match="1-of-2 belongs to another sweep: not the same sites"):
        small_sweep(file=path).values(other)
    beside.unlink()
    small_sweep(file=path).values(other)
