"""The folder that an analysis leaves: whole or not at all, and read back as it was written."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest
import tyro
from xarray import DataArray, Dataset

from analyses import output
from analyses.output import Found, opened, save, start, table
from interp import HookedGPT
from tests.variants import variant


def found(**choices: Any) -> Found:
    effect = DataArray([[1.0, np.nan], [0.5, -2.0]], [("site", ["L0H1", "L1 mlp"]), ("prompt", [0, 1])], name="effect")
    result = Dataset({"effect": effect.assign_attrs(exact=True, method="by hand")}, attrs={"is_paired": False})
    figures = {"bars": go.Figure(go.Bar(x=[1, 2]))}
    return Found(**{"result": result, "figures": figures, "table": "a table", "findings": {"best": "L0H1"}} | choices)


def model() -> HookedGPT:
    return variant("gpt2")


def saved(folder: Path, of: Found | None = None, **config: Any) -> Path:
    save(of or found(), folder, "trial", config=config, models={"mine": model()})
    return folder


def test_a_folder_reads_back_as_it_was_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = {"seed": 3, "out": Path("x"), "share": float("nan"), "layers": (0, 1), "nested": {"a": None, "b": True}}
    folder = saved(tmp_path / "deep" / "er", **config)
    result, summary = opened(folder)
    assert result.effect.drop_attrs().equals(found().result["effect"].drop_attrs())
    assert result.effect.attrs == {"exact": 1, "method": "by hand"}
    assert summary["config"] == {
        "seed": 3,
        "out": "x",
        "share": None,
        "layers": [0, 1],
        "nested": {"a": None, "b": True},
    }
    assert summary["models"] == {"mine": model().fingerprint()}
    assert summary["findings"] == {"best": "L0H1"}
    assert summary["command"] == ["python", "-m", "analyses.trial", *sys.argv[1:]]
    assert {"python", "interp", "torch", "numpy"} <= set(summary["versions"])
    said = capsys.readouterr().out
    assert said.startswith("a table")
    assert "result.nc, bars.html, summary.json" in said
    names = {file.name for file in folder.iterdir()}
    assert {"result.nc", "bars.html", "summary.json"} <= names
    assert not [name for name in names if "unfinished" in name]


def test_one_array_is_kept_too(tmp_path: Path) -> None:
    result, _ = opened(saved(tmp_path, found(result=found().result["effect"])))
    assert float(result.effect.sel(site="L1 mlp", prompt=1)) == -2


def test_a_folder_that_is_written_again_is_not_whole_in_between(tmp_path: Path) -> None:
    class Halting(dict[str, Any]):
        def items(self) -> Any:
            raise KeyboardInterrupt

    saved(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        saved(tmp_path, found(figures=Halting()))
    with pytest.raises(FileNotFoundError, match=r"it lacks summary.json"):
        opened(tmp_path)


def test_only_the_first_of_several_processes_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    saved(tmp_path / "it")
    assert not (tmp_path / "it").exists()
    monkeypatch.setenv("RANK", "0")
    opened(saved(tmp_path / "it"))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("summary.json", b"{", "is no valid JSON"),
        ("summary.json", b"[]", "must hold an object"),
        ("summary.json", b'{"analysis": "x"}', "is of no analysis: it has no config, models, findings"),
        ("result.nc", b"", "result.nc cannot be read"),
        ("result.nc", b"CDF\x01 not so", "result.nc cannot be read"),
        ("result.nc", None, "result.nc cannot be read"),
    ],
)
def test_what_is_no_such_folder_is_refused_in_a_sentence(
    tmp_path: Path, name: str, content: bytes | None, said: str
) -> None:
    file = saved(tmp_path) / name
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2] if content is None else content)
    with pytest.raises(ValueError, match=said):
        opened(tmp_path)
    file.unlink()
    with pytest.raises(FileNotFoundError, match=f"it lacks {name}"):
        opened(tmp_path)


def test_a_table_has_columns_as_wide_as_they_need_to_be_and_numbers_on_the_right() -> None:
    said = table(["part", "change", "share", "note"], [["L0H1", "+1.25", "5%", "a"], ["L10 mlp", "-0.5", "12%", "-"]])
    assert said.splitlines() == [
        "part     change  share  note",
        "───────  ──────  ─────  ────",
        "L0H1      +1.25     5%  a",
        "L10 mlp    -0.5    12%  -",
    ]
    assert table(["a"], []) == "a\n─"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("n=0; it starts from 1"), "ValueError: n=0; it starts from 1"),
        (KeyError("no such model"), "KeyError: no such model"),
        (FileNotFoundError("no file x"), "FileNotFoundError: no file x"),
        (KeyboardInterrupt(), "Stopped. What is finished is kept: the same command goes on from there."),
    ],
)
def test_wrong_input_gets_one_line(monkeypatch: pytest.MonkeyPatch, error: BaseException, said: str) -> None:
    def main(n: int = 1) -> None:
        raise error

    monkeypatch.setattr(sys, "argv", ["trial.py", "--n", "0"])
    with pytest.raises(SystemExit) as stopped:
        start(main, "A trial.")
    assert stopped.value.code == said


def test_other_errors_are_seen_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tyro, "cli", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        start(lambda: None, None)


def test_without_a_browser_a_picture_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output.shutil, "which", lambda _: None)
    with pytest.raises(FileNotFoundError, match="chromium, which is not on the PATH"):
        output.picture(go.Figure(), tmp_path / "it.png")


def test_a_summary_is_json_that_others_read(tmp_path: Path) -> None:
    text = (saved(tmp_path, found(findings={"x": float("inf"), "y": [1.5, float("nan")]})) / "summary.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail)["findings"] == {"x": None, "y": [1.5, None]}
