"""What is told of measurements over steps."""

import json
from pathlib import Path

import numpy as np
import pytest
from xarray import DataArray

from interp import zoo
from interp.training import Run
from interp.training.measures import half_way, of_steps, phase_change, tokens_per_second


def scores(strongest: list[float], steps: list[int]) -> DataArray:
    """Scores of two heads, the second the strongest."""
    of_heads = [[[0.01, score]] for score in strongest]
    return DataArray(of_heads, coords={"step": steps, "layer": [0], "head": [0, 1]})


def test_a_measure_at_all_its_steps_has_the_axes_of_what_it_is() -> None:
    log = [
        {"step": 4, "x": 1.0, "of": {"heads": [[1, 2, 3], [4, 5, 6]], "named": ["L0H1"]}, "list": [7, 8]},
        {"step": 0, "x": 2, "list": [5, 6], "of": {"heads": "none"}},
        {"step": 2, "loss": 3.0, "list": [1], "x": True},
        {"step": 6, "x": None, "list": [1, [2]]},
    ]
    x, lists, heads = of_steps(log, "x"), of_steps(log, "list", "frequency", 1), of_steps(log, "of.heads")
    assert (x.dims, x["step"].values.tolist(), x.values.tolist()) == (("step",), [0, 4], [2, 1])
    assert (lists.dims, lists["frequency"].values.tolist()) == (("step", "frequency"), [1, 2])
    assert lists.sel(step=4).values.tolist() == [7, 8]
    assert heads.dims == ("step", "layer", "head")
    assert heads.sel(step=4, layer=1, head=2) == 6
    with pytest.raises(KeyError, match=r"no 'of.named'.*'list'"):
        of_steps(log, "of.named")
    with pytest.raises(ValueError, match="two axes at most"):
        of_steps([{"step": 0, "cube": [[[1]]]}], "cube")


@pytest.mark.parametrize(
    ("strongest", "expected"),
    [
        ([0.0, 0.1, 0.45, 0.8, 0.9], (1, 10)),  # half of 0.9 is 0.45
        ([0.0, 0.1, 0.44, 0.8, 0.9], (10, 100)),
        ([0.0, 0.6, 0.1, 0.7, 0.9], (10, 100)),  # it fell below again
        ([0.5, 0.6, 0.7, 0.8, 0.9], None),  # above half from the start
        ([0.9, 0.2, 0.9, 0.9, 0.9], None),  # it rose by nothing
        ([0.01, 0.02, 0.02, 0.05, 0.1], None),  # rose by less than 0.1
        ([0.0, np.nan, 0.1, 0.8, 0.9], (10, 100)),  # what is not finite is passed over
    ],
)
def test_the_phase_change_is_where_the_strongest_score_stays_above_half(
    strongest: list[float], expected: tuple[int, int] | None
) -> None:
    found = phase_change(scores(strongest, [0, 1, 10, 100, 1000]))
    assert (found and (found.before, found.step)) == expected
    assert found is None or (found.head, found.final) == ("L0H1", 0.9)
    assert phase_change(scores(strongest[:1], [0])) is None


def test_the_bundled_run_changes_its_phase_where_repeats_become_easy() -> None:
    log = zoo.measures("stdlib-attn-2l")
    found = phase_change(of_steps(log, "head_scores.induction"))
    assert found is not None
    again = of_steps(log, "repeats.again")
    assert float(again.sel(step=found.before)) > 8 > float(again.sel(step=found.step))


def test_tokens_per_second_are_targets_by_time() -> None:
    row = {"loss": 1.0, "targets": 100}
    log = [
        row | {"step": 0, "seconds": 1.0},
        {"step": 1, "held_out_loss": 1.0},
        row | {"step": 1, "seconds": 3.0},
        row | {"step": 11, "seconds": 5.0},
        row | {"step": 12, "seconds": 5.0},
    ]
    assert tokens_per_second(log) == ([1, 11], [50.0, 500.0])
    assert tokens_per_second(log[:2]) == ([], [])


@pytest.mark.parametrize(
    ("end", "said"),
    [
        (b"", ""),
        (b'{"step": 2, "lo', ""),  # half written
        (b'{"step": 2, "lo\n{"step": 3}\n', "line 3 of 5"),
        (b"[1]\n", "line 3 of 4"),
        (b'{"loss": 1}\n', "line 3 of 4"),
        (b'{"step": "2"}\n', "line 3 of 4"),
        (b"\xff\xfe\n", "line 3 of 4"),
        (b"[" * 100_000 + b"\n", "line 3 of 4"),
    ],
)
def test_a_log_is_read_down_to_what_is_no_row(tmp_path: Path, end: bytes, said: str) -> None:
    (tmp_path / "checkpoints" / "step-00000003").mkdir(parents=True)
    (tmp_path / "checkpoints" / "step-x").mkdir()
    (tmp_path / "checkpoints" / "step-00000004").write_text("no folder")
    (tmp_path / "config.json").write_text("{}")
    rows = [{"step": 0, "loss": 2.0}, {"step": 1, "loss": 1.0}]
    (tmp_path / "log.jsonl").write_bytes("".join(json.dumps(row) + "\n" for row in rows).encode() + end)
    run = Run(tmp_path)
    found, fault = run.read_log()
    assert run.log == found == rows
    assert fault.startswith(said)
    assert bool(fault) == bool(said)
    assert run.steps == [3]


def test_half_way_is_where_a_curve_crosses_half_for_good() -> None:
    assert half_way([0, 10, 20, 40], [0.0, 0.0, 1.0, 1.0]) == 15
    assert half_way([0, 10, 20, 40], [4.0, 4.0, 3.0, 0.0]) == pytest.approx(20 + 20 / 3)
    assert half_way([0, 10, 20, 30], [0.0, 0.9, 0.1, 1.0]) == pytest.approx(20 + 10 * 0.4 / 0.9), "not the first time"
    with pytest.raises(ValueError, match="there is no way between them"):
        half_way([0, 1], [2.0, 2.0])
