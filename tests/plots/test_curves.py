import json
from pathlib import Path

import numpy as np
import pytest
from xarray import DataArray, Dataset

from interp import plots, zoo
from interp.training import Run, Task, TrainingConfig, repeated_tokens, train
from tests.variants import variant

ROWS = [{"step": step, "loss": 4.0 - step, "grad_norm": 1.0, "heads": [[step, 0.0]]} for step in range(3)]


def points(figure: object) -> dict[str, list[tuple[float, float]]]:
    return {trace.name: list(zip(trace.x, trace.y, strict=True)) for trace in figure.data}


LOSS = [(0, 4), (1, 3), (2, 2)]


def test_a_run_is_read_from_its_folder(tmp_path: Path) -> None:
    data = Task(repeated_tokens(12, 11, periods=(3, 5)))
    train(variant("gpt2"), data, TrainingConfig(steps=3, batch_size=2), tmp_path / "run", progress=False)
    figure = plots.training_curves(tmp_path / "run", "loss")
    steps, values = Run(tmp_path / "run").series("loss")
    assert points(figure) == {"loss": list(zip(steps, values, strict=True))}
    again = plots.training_curves(str(tmp_path / "run" / "log.jsonl"), "loss")
    assert points(again) == points(figure)


def test_every_kind_of_log_gives_the_same_curve(tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    file.write_text("\n".join(map(json.dumps, ROWS)) + '\n{"step": 3, "lo')
    array = DataArray([4.0, 3.0, 2.0], dims="step", name="loss")
    logs = [
        ROWS,
        file,
        array,
        Dataset({"loss": array}),
        {"loss": ([2, 0, 1], [2.0, 4.0, 3.0])},
        {"loss": {0: 4.0, 1: 3.0, 2: 2.0}},
        {0: {"loss": 4.0}, 1: {"loss": 3.0}, 2: {"loss": 2.0}},
    ]
    for log in logs:
        assert points(plots.training_curves(log)) == {"loss": LOSS}, log
    runs = plots.training_curves({"one": ROWS, "two": file}, "loss")
    assert points(runs) == {"one": LOSS, "two": LOSS}
    assert runs.layout.yaxis.title.text == "loss"


def test_series_are_chosen_by_name_or_pattern() -> None:
    assert list(points(plots.training_curves(ROWS, ["grad_norm", "loss"]))) == ["grad_norm", "loss"]
    assert list(points(plots.training_curves(ROWS, "heads.*"))) == ["L0H0", "L0H1"]
    with pytest.raises(ValueError, match=r"no series 'lost'.*'loss'"):
        plots.training_curves(ROWS, "lost")


def test_heads_of_a_bundled_run_are_named_and_the_still_ones_are_thin() -> None:
    measures = zoo.measures("stdlib-attn-2l")
    figure = plots.training_curves(measures, "*.induction.*", steps="log")
    expected = [row["head_scores"]["induction"][1][4] for row in measures if "head_scores" in row]
    trace = next(trace for trace in figure.data if trace.name == "L1H4")
    assert list(trace.y) == expected
    assert sum(trace.showlegend for trace in figure.data) == 8
    assert len(figure.data) == 16
    assert len({trace.line.color for trace in figure.data if trace.showlegend}) == 8


def test_on_a_log_axis_step_zero_has_its_own_place() -> None:
    figure = plots.training_curves({"loss": ([0, 1, 100, 2000], [4.0, 3.0, 2.0, 1.0])}, steps="log", values="log")
    assert figure.layout.xaxis.type == figure.layout.yaxis.type == "log"
    assert list(figure.data[0].x) == [0.5, 1, 100, 2000]
    assert list(figure.data[0].customdata) == [0, 1, 100, 2000]
    assert figure.layout.xaxis.tickvals == (0.5, 1, 10, 100, 1000)
    assert figure.layout.xaxis.ticktext == ("0", "1", "10", "100", "1,000")
    assert plots.training_curves(ROWS).layout.xaxis.type == "linear"


def test_phases_are_marked_where_they_are() -> None:
    phases: dict = {"warm-up": (0, 10), "break": 100}
    for kind, place in (("linear", 100), ("log", 2)):
        figure = plots.training_curves({"loss": ([1, 1000], [4.0, 3.0])}, steps=kind, phases=phases)
        span, line = figure.layout.shapes
        assert (span.x1, line.x0) == (10, 100)
        note = next(note for note in figure.layout.annotations if note.text == "break")
        assert note.x == pytest.approx(place)


def test_axes_beside_steps_are_curves() -> None:
    array = DataArray(np.arange(12.0).reshape(2, 3, 2), dims=("layer", "step", "head"), coords={"step": [1, 5, 9]})
    found = points(plots.training_curves(array.rename("score")))
    assert found["L1H0"] == [(1, 6), (5, 8), (9, 10)]
    assert len(found) == 4
    assert points(plots.training_curves(array.rename("score").transpose("head", "step", "layer"))) == found


def test_what_is_no_log_is_refused(tmp_path: Path) -> None:
    cases = [
        ([], {}, "empty"),
        (tmp_path, {}, "is no log"),
        (DataArray([1.0], dims="layer"), {}, "axis `step`"),
        (3, {}, "type int"),
        ({"loss": ([1], [np.nan])}, {}, "finite"),
        ({"loss": ([1], [0.0])}, {"values": "log"}, "above 0"),
        ({"loss": ([-1], [1.0])}, {"steps": "log"}, "negative"),
    ]
    for log, options, message in cases:
        with pytest.raises(ValueError, match=message):
            plots.training_curves(log, **options)
    (tmp_path / "log.jsonl").write_text('{"step": 0\n{"step": 1, "loss": 2}\n')
    with pytest.raises(ValueError, match="line 1"):
        plots.training_curves(tmp_path)
