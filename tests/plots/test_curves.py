import json
from pathlib import Path

import numpy as np
import pytest
from xarray import DataArray, Dataset

from interp import plots, zoo
from interp.training import Run, Task, TrainingConfig, repeated_tokens, train
from interp.training.measures import of_steps
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


def test_names_and_what_has_no_shape_are_no_curves() -> None:
    log = [{"step": 0, "heads": {"induction": ["L1H0"], "none": []}, "ragged": [1, [2]], "huge": 10**400, "x": 1.0}]
    assert points(plots.training_curves(log)) == {"x": [(0, 1)]}


def test_a_long_curve_keeps_its_ends_its_peaks_and_its_gaps() -> None:
    values = np.sin(np.arange(9_000) / 900)
    values[2_345], values[3_456], values[4_567] = 9.0, -9.0, np.nan
    (trace,) = plots.training_curves({"loss": (list(range(9_000)), values.tolist())}).data
    assert len(trace.x) < 2_010
    assert (trace.x[0], trace.x[-1]) == (0, 8_999)
    at = dict(zip(trace.x, trace.y, strict=True))
    assert (at[2_345], at[3_456]) == (9, -9)
    assert np.isnan(at[4_567])
    np.testing.assert_array_equal([at[x] for x in trace.x], values[trace.x.astype(int)])


def test_a_constant_stands_in_the_middle_of_its_axis() -> None:
    for level, ends in ((0.003, (0, 0.006)), (-2.0, (-4, 0))):
        figure = plots.training_curves({"lr": ([0, 1], [level, level])})
        assert figure.layout.yaxis.range == pytest.approx(ends)


def test_a_list_at_each_step_is_a_map() -> None:
    log = zoo.measures("modular-addition")
    power = of_steps(log, "fourier_power", "frequency", 1)
    figure = plots.training_map(power, phases={"end": 20_000, "early": (0, 2)})
    np.testing.assert_array_equal(figure.data[0].z, power.to_numpy().T)
    assert figure.layout.yaxis.title.text == "frequency"
    assert figure.layout.yaxis.ticktext[0] == "1"
    line, span = figure.layout.shapes
    assert line.x0 == power.sizes["step"] - 1
    assert (span.x0, span.x1) == (0, power["step"].values.tolist().index(2))
    long = DataArray(np.zeros((3000, 2)), dims=("step", "place"))
    assert figure.data[0].z.shape[1] == power.sizes["step"]
    assert plots.training_map(long).data[0].z.shape == (2, 400)
    with pytest.raises(ValueError, match="axis `step` and another"):
        plots.training_map(power.isel(step=0))


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
