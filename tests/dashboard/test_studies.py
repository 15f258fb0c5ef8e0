"""Ablation studies on the page: its parts go out as a study's file, and folders of studies are drawn."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from streamlit.testing.v1 import AppTest

from analyses.ablate import effects, main, run
from analyses.ablation_study import Opened, Study
from analyses.output import opened as read
from dashboards.parts.ablation import studies
from dashboards.parts.ablation.wanted import Wanted
from dashboards.parts.models import Trouble
from interp import HookedGPT
from tests.dashboard.app import ENTRY, array, figure_of, healthy, opened, shown

PAGE = "views/ablation.py"


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a study in it."""
    top = tmp_path_factory.mktemp("models")
    main(Study(sites=("L0-1H0-1", "L2N3", "L1 mlp"), kinds=("zero",), n_prompts=4, n_ctx=8), out=top / "runs" / "mine")
    return top


@pytest.fixture
def folder(left: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("INTERP_MODELS", str(left))
    return left / "runs" / "mine"


def words(at: Any) -> str:
    return "\n".join(each.value for each in (*at.text, *at.info, *at.warning, *at.caption)).replace("\\", "")


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("how", ["zero", "mean", "uniform"])
def test_what_is_chosen_on_the_page_goes_out_as_a_study_with_the_same_numbers(tmp_path: Path, how: str) -> None:
    at = opened(PAGE, abl="L0H1", abl_how=how, bos="false", prompt='x = "\\t"\ny = x')
    now = shown(at)
    (tmp_path / "study.toml").write_text(studies.study_of(now, Wanted(("L0H1",), how)), encoding="utf-8")  # type: ignore[arg-type]
    study = Study.read(tmp_path / "study.toml")
    found = run(study, {"it": Opened(HookedGPT.from_pretrained(study.models[0]).eval())}, progress=False).isel(model=0)
    one = found.sel(metric="logit_diff")
    assert at.metric[0].value == f"{float(one.base[0]):.3f} → {float(one.single[0, 0, 0]):.3f}"
    one = found.sel(metric="loss")
    assert at.metric[2].value == f"{float(one.base[0]):.3f} → {float(one.single[0, 0, 0]):.3f}"


def test_a_model_without_a_tokenizer_and_what_a_study_cannot_hold_go_out_too(tmp_path: Path) -> None:
    at = opened(PAGE, model="planted/induction", abl="L0H0", abl_how="resample")
    now = shown(at)
    text = studies.study_of(now, Wanted(("L0H0",), "resample"))
    assert text.startswith("# another text of the library stands in")
    (tmp_path / "study.toml").write_text(text)
    study = Study.read(tmp_path / "study.toml")
    assert study.models == ("planted/induction",)
    tokens, _ = study.opened()["planted induction"].prompts(study)
    assert torch.equal(tokens, now.tokens)


def test_a_folder_of_a_study_is_listed_and_drawn_and_its_parts_lead_to_the_page(folder: Path) -> None:
    at = opened(PAGE, study="runs/mine")
    (field,) = [each for each in at.selectbox if each.key == "study"]
    assert field.options == ["runs/mine"]
    found = effects(read(folder)[0], "stdlib-4l", "loss", "zero")
    drawn = figure_of(at, 0)["data"][0]
    np.testing.assert_allclose(array(drawn["z"])[0][:2], found["mean"].sel(site=["L0H0", "L0H1"]))
    bars = figure_of(at, 1)
    names = bars["layout"]["yaxis"]["ticktext"]
    (trace,) = bars["data"]
    for name, x, error in zip(names, array(trace["x"]), array(trace["error_x"]["array"]), strict=True):
        assert x == pytest.approx(float(found["mean"].sel(site=name)))
        assert x + error == pytest.approx(float(found.high.sel(site=name)))
    (pills,) = [each for each in at.get("button_group") if each.key == "_study_part"]
    assert set(pills.options) == set(found.site.values.tolist())
    pills.set_value(names[0]).run()
    assert healthy(at).session_state["abl"] == names[0]
    assert at.metric, "it is taken away"


def test_a_study_of_other_weights_is_drawn_and_said_to_be_so(folder: Path) -> None:
    at = opened(PAGE, study="runs/mine", model="stdlib-attn-2l")
    assert "The study is of other weights than those on show" in words(at)
    assert len(at.get("plotly_chart")) == 2


def test_a_study_that_is_not_there_is_told(folder: Path) -> None:
    assert not opened(PAGE, study="../../etc").get("plotly_chart")
    at = AppTest.from_file(str(ENTRY), default_timeout=120)
    at.session_state["study"] = "runs/gone"  # as a state file says
    at.switch_page(PAGE)
    assert "There is no study runs/gone here." in words(healthy(at.run()))


def refused(found: Any) -> str:
    assert isinstance(found, Trouble)
    assert "/tmp" not in found.cause
    return found.cause


def half(content: bytes) -> bytes:
    return content[: len(content) // 2]


def test_folders_and_uploads_that_are_no_study_are_told_in_a_sentence(folder: Path, tmp_path: Path) -> None:
    kept = {name: (folder / name).read_bytes() for name in ("result.nc", "summary.json")}
    summary = json.loads(kept["summary.json"])
    foreign = json.dumps(summary | {"analysis": "memories"}).encode()
    cases: list[tuple[dict[str, bytes], str]] = [
        ({"result.nc": half(kept["result.nc"])}, "cannot be read"),
        ({"summary.json": half(kept["summary.json"])}, "no valid JSON"),
        ({"summary.json": foreign}, "of the analysis 'memories'"),
        ({"result.nc": b""}, "cannot be read"),
    ]
    assert not isinstance(studies.open_upload(list(kept.items())), Trouble)
    for changed, said in cases:
        assert said in refused(studies.open_upload(list((kept | changed).items())))
        bad = folder.parent / "bad"
        bad.mkdir(exist_ok=True)
        for name, content in (kept | changed).items():
            (bad / name).write_bytes(content)
        assert said in refused(studies.open_folder("runs/bad"))
    assert "two files" in refused(studies.open_upload([("result.nc", b"")]))
    (bad / "result.nc").unlink()
    (bad / "result.nc").symlink_to(tmp_path / "elsewhere.nc")
    (tmp_path / "elsewhere.nc").write_bytes(kept["result.nc"])
    assert "a link that leads out" in refused(studies.open_folder("runs/bad"))
    assert "runs/bad" not in studies.folders()
    assert "no plain name" in refused(studies.open_folder("../elsewhere"))


def test_a_file_of_other_numbers_is_no_study(folder: Path, tmp_path: Path) -> None:
    from xarray import Dataset

    Dataset({"x": ("y", [1.0])}).to_netcdf(tmp_path / "other.nc", engine="h5netcdf")
    files = [
        ("result.nc", (tmp_path / "other.nc").read_bytes()),
        ("summary.json", (folder / "summary.json").read_bytes()),
    ]
    assert "is of no ablation study" in refused(studies.open_upload(files))
