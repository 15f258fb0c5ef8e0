"""The study of induction heads: those that were planted, no others, and a model that needs them."""

import json
from pathlib import Path

import pytest
from xarray import load_dataset

from analyses.induction import _watched, main, study
from interp.training import Run, train
from interp.zoo import planted
from tests.training.runs import tiny_config, tiny_data, tiny_model


@pytest.mark.long
@pytest.mark.slow
def test_of_a_trained_model_heads_are_found_needed_and_told_by_one_that_looks_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(out=tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text())
    found, said = summary["findings"], capsys.readouterr().out
    assert found["induction_heads"] == ["L1H4", "L1H2", "L1H5", "L1H7", "L1H0"]
    assert found["previous_token_heads"] == ["L0H1"]
    kept = found["gain_kept"]
    others = [share for name, share in kept.items() if name.startswith("others for induction")]
    assert others
    assert kept["induction"] < 0.35 < 0.9 < min(others)
    before = [share for name, share in kept.items() if name.startswith("others for previous token")]
    assert kept["previous token"] < 0.5 < 0.75 < min(before)
    assert found["told_most_by"]["keys"] == "L0H1"
    assert found["told_share"]["keys"] > 0.5
    half = found["half_way"]
    assert 700 < half["induction"] < 1_000
    assert abs(half["gain"] / half["induction"] - 1) < 0.25
    assert abs(half["previous"] / half["induction"] - 1) < 0.1
    result = load_dataset(tmp_path / "result.nc", engine="h5netcdf")
    assert result.composition.sender.values[result.composition.to_numpy().argmax(1)].tolist() == ["L0H1"] * 5
    assert float(result.copying[1].min()) > 0.4 > 0 > float(result.copying[0].max())
    assert f"{kept['induction']:.1%}" in said
    assert {each.stem for each in tmp_path.glob("*.html")} == {"heads", "ablation", "composition", "paths", "training"}
    assert set(summary["models"]) == {"stdlib-attn-2l"}


@pytest.mark.parametrize("seed", [0, pytest.param(3, marks=pytest.mark.slow)])
def test_among_distractors_exactly_the_planted_heads_are_found_and_matter(seed: int) -> None:
    of = planted.induction(distractor_heads=3, seed=seed)
    found = study(of.model, progress=False).findings
    assert found["induction_heads"] == [of.roles["induction"]]
    assert found["previous_token_heads"] == [of.roles["previous"]]
    assert found["weak_induction_heads"] == []
    assert found["told_most_by"]["keys"] == of.roles["previous"]
    assert found["told_share"]["keys"] > 0.5 > 0.2 > max(found["told_share"][slot] for slot in ("queries", "values"))
    kept = found["gain_kept"]
    assert kept["induction"] < 0.1
    assert kept["previous token"] < 0.4
    assert min(share for name, share in kept.items() if name.startswith("others for")) > 0.9
    assert found["half_way"] == {}


@pytest.mark.slow
def test_what_a_stopped_study_had_swept_is_taken_up(tmp_path: Path) -> None:
    of = planted.induction(distractor_heads=3)
    first = study(of.model, rows=4, folder=tmp_path, progress=False)
    lines = (tmp_path / "again.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "again.jsonl").write_text("".join(lines[:-1]))
    again = study(of.model, rows=4, folder=tmp_path, progress=False)
    assert again.result.identical(first.result)
    assert (tmp_path / "again.jsonl").read_text().splitlines(keepends=True) == lines
    with pytest.raises(ValueError, match="belongs to another sweep"):
        study(of.model, rows=4, seed=5, folder=tmp_path, progress=False)


def test_where_there_is_no_such_head_it_says_so() -> None:
    with pytest.raises(ValueError, match="no head attends at least 50% to what followed before"):
        study(tiny_model(n_heads=6), rows=6, progress=False)


def test_a_run_without_such_a_log_is_watched_at_its_checkpoints(tmp_path: Path) -> None:
    rows = lambda: _watched(Run(tmp_path), seed=0)
    train(tiny_model(), tiny_data(), tiny_config(steps=6), tmp_path, progress=False)
    watched = rows()
    assert [row["step"] for row in watched] == Run(tmp_path).steps == [3, 6]
    assert {len(row["head_scores"]["induction"]) for row in watched} == {2}
    assert watched[0]["repeats"] != watched[1]["repeats"]
    with (tmp_path / "log.jsonl").open("a") as log:
        log.write(json.dumps({"step": 6, "head_scores": {"induction": [[0.5]]}, "repeats": {"first": 1}}) + "\n")
    assert [row["repeats"] for row in rows()] == [{"first": 1}]
