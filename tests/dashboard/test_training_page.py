"""The page on training: curves are what was logged, checkpoints are models, and a run that goes on is followed."""

import json
import os
import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest
from torch.distributed.checkpoint import state_dict_saver
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter

from dashboards.parts import models
from dashboards.parts.models import Trouble
from dashboards.parts.training.measured import Source, read
from interp import GPTConfig, HookedGPT, zoo
from interp.training import Run, Task, TokenFile, TrainingConfig, repeated_tokens, train
from interp.training.measures import head_scores, of_steps, phase_change, repeat_losses, tokens_per_second
from tests.dashboard.app import array, figure_of, healthy, opened, shown
from tests.dashboard.browser import Watched, chromium, served

PAGE = "views/training.py"
IDS = "1 2 3 4 1 2 3"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of a second, with a checkpoint every third step."""
    out = tmp_path_factory.mktemp("trained") / "run"
    sizes: dict[str, Any] = {"n_layers": 2, "d_model": 16, "n_heads": 4, "n_ctx": 20, "d_vocab": 13, "attn_only": True}
    data = Task(repeated_tokens(12, 20, periods=(3, 8), bos=12))
    looked_at = data.batch(10**6, 4).tokens
    train(
        HookedGPT(GPTConfig(normalization_type="RMS", seed=0, **sizes)),
        data,
        TrainingConfig(steps=12, batch_size=4, checkpoint_every=3, keep=9, measures=5, eval_every=4),
        out,
        held_out=TokenFile(looked_at.flatten().numpy(), 19),
        measures={
            "head_scores": lambda model: head_scores(model, looked_at),
            "repeats": lambda model: repeat_losses(model, looked_at),
            "heads": lambda model: {"induction": ["L1H2"] if float(model.W_E.sum()) else []},
            "power": lambda model: model.W_E.norm(dim=1),
        },
        about={"preset": "a test"},
        progress=False,
    )
    return out


@pytest.fixture
def run(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A copy of the run, in the allowed folder."""
    shutil.copytree(trained, tmp_path / "models" / "run")
    monkeypatch.setenv("INTERP_MODELS", str(tmp_path / "models"))
    st.cache_resource.clear()  # checkpoints of this name in another folder
    return Run(tmp_path / "models" / "run")


def texts(at: AppTest) -> str:
    kinds = (at.caption, at.info, at.warning, at.markdown, at.text, at.error, at.code)
    return "\n".join(each.value for kind in kinds for each in kind).replace("\\", "")


def curves(at: AppTest, title: str) -> dict[str, tuple[list[float], np.ndarray]]:
    """The lines of the figure that has this title: steps and values."""
    for i in range(len(at.get("plotly_chart"))):
        found = figure_of(at, i)
        if found["layout"]["title"]["text"] == title:
            return {
                re.sub("<br>.*", "", line["hovertemplate"]): (array(line["customdata"]).tolist(), array(line["y"]))
                for line in found["data"]
            }
    raise AssertionError(title)


def is_curve(found: tuple[list[float], np.ndarray], steps: Any, values: Any) -> None:
    assert found[0] == list(steps)
    np.testing.assert_array_equal(found[1], values)


def source_of(name: str) -> Source:
    found = read(name)
    assert isinstance(found, Source), found
    return found


def test_curves_are_what_the_run_logged(run: Run) -> None:
    at = opened(PAGE, train_run="folder/run")
    losses = curves(at, "Loss")
    for name in ("loss", "held_out_loss"):
        is_curve(losses[name], *run.series(name))
    for name in ("previous", "induction"):
        found, scores = curves(at, f"Score of heads: {name}"), of_steps(run.log, f"head_scores.{name}")
        assert len(found) == 8
        for layer, head in np.ndindex(2, 4):
            wanted = scores.sel(layer=layer, head=head)
            is_curve(found[f"head_scores.{name}.L{layer}H{head}"], wanted["step"].values, wanted.values)
        end = scores.isel(step=-1).to_numpy()
        assert "Strongest at the end: **L{}H{}**".format(*np.unravel_index(end.argmax(), end.shape)) in texts(at)
    is_curve(curves(at, "Learning rate")["lr"], *run.series("lr"))
    is_curve(curves(at, "Norm of the gradient")["grad_norm"], *run.series("grad_norm"))
    is_curve(curves(at, "Tokens per second")["tokens per second"], *tokens_per_second(run.log))
    repeats = of_steps(run.log, "repeats.again")
    is_curve(curves(at, "Losses on tokens that repeat")["repeats.again"], repeats["step"].values, repeats.values)
    said = texts(at)
    assert "All of its 12 steps are done." in said
    table = next(each.value for each in at.dataframe if "loss before" in each.value)
    assert table["step"].tolist() == [3, 6, 9, 12]
    assert table["loss before"].tolist() == [run.series("loss")[1][step - 1] for step in (3, 6, 9, 12)]
    named = next(each.value for each in at.dataframe if "heads.induction" in each.value)
    assert named.to_numpy().tolist() == [[0, "L1H2"]]  # it never changed
    config = next(each.value for each in at.dataframe if "field" in each.value)
    found = dict(zip(config["field"], config["value"], strict=True))
    assert (found["training.batch_size"], found["about.preset"], found["model.n_heads"]) == ("4", "a test", "4")


def test_lists_are_maps(run: Run) -> None:
    for query, name in (({"train_run": "folder/run"}, "power"), ({"model": "modular-addition"}, "fourier_power")):
        at = opened(PAGE, **query)
        log = run.log if "train_run" in query else zoo.measures("modular-addition")
        wanted = of_steps(log, name).to_numpy().T
        maps = [figure_of(at, i)["data"][0] for i in range(len(at.get("plotly_chart")))]
        found = next(array(each["z"]) for each in maps if each["type"] == "heatmap")
        np.testing.assert_array_equal(found, wanted)


def test_a_bundled_model_shows_its_phase_change() -> None:
    at = opened(PAGE, model="stdlib-attn-2l")
    scores = of_steps(zoo.measures("stdlib-attn-2l"), "head_scores.induction")
    change = phase_change(scores)
    assert change is not None
    assert f"from step {change.step} on (measured before at {change.before})" in texts(at)
    assert f"**{change.head}**, {change.final:.3g}" in texts(at)
    for i in range(len(at.get("plotly_chart"))):
        span = figure_of(at, i)["layout"]["shapes"][0]
        assert (span["x0"], span["x1"]) == (change.before, change.step)
    assert "Two layers of attention alone" in texts(at)
    assert "the last of this run, that of step 5,000" in texts(at)
    assert "No phase change is marked" in texts(opened(PAGE, model="stdlib-4l"))


def test_a_step_is_marked_on_all_curves(run: Run) -> None:
    at = opened(PAGE, train_run="folder/run", train_step="7", train_steps="linear", train_values="log")
    figures = [figure_of(at, i) for i in range(len(at.get("plotly_chart")))]
    lines = [each for each in figures if each["data"][0]["type"] == "scatter"]
    assert all(each["layout"]["shapes"][-1]["x0"] == 7 for each in lines)
    assert all(each["layout"]["xaxis"]["type"] == "linear" for each in lines)
    assert lines[0]["layout"]["yaxis"]["type"] == "log"
    assert lines[1]["layout"]["yaxis"]["type"] == "linear"  # scores are no losses
    losses, held_out = run.series("loss")[1], dict(zip(*run.series("held_out_loss"), strict=True))
    assert f"Step 7: loss {losses[7]:.4g} · held out loss {held_out[4]:.4g} (at 4)" in texts(at)
    at.select_slider(key="train_step").set_value("end")
    assert f"Step 12: loss {losses[11]:.4g} (at 11)" in texts(healthy(at.run()))
    assert "shapes" not in figure_of(at)["layout"]
    at.select_slider(key="train_step").set_value("0")
    assert "Step 0: " in texts(healthy(at.run()))
    at.selectbox(key="train_run").set_value("modular-addition")
    assert "Step 20,000" in texts(healthy(at.run()))  # the step marked was the other run's


@pytest.mark.parametrize("query", [{"train_run": "folder/run", "train_step": "5"}, {"model": "stdlib-attn-2l"}])
def test_the_code_makes_the_figures_again(run: Run, monkeypatch: pytest.MonkeyPatch, query: dict[str, str]) -> None:
    at = opened(PAGE, **query)
    monkeypatch.chdir(run.path.parent)
    Path("folder").symlink_to(".")
    figures = [figure_of(at, i) for i in range(len(at.get("plotly_chart")))]
    codes = [each.value for each in at.code if "fig = " in each.value]
    assert len(codes) == len(figures) >= 7
    for code, figure in zip(codes, figures, strict=True):
        names: dict[str, Any] = {}
        exec(code, names)
        made = json.loads(names["fig"].to_json())
        assert len(made["data"]) == len(figure["data"])
        key = "z" if figure["data"][0]["type"] == "heatmap" else "y"
        for one, other in zip(made["data"], figure["data"], strict=True):
            np.testing.assert_array_equal(array(one[key]), array(other[key]))
        assert made["layout"]["xaxis"].get("type") == figure["layout"]["xaxis"].get("type")
        assert made["layout"].get("shapes", []) == figure["layout"].get("shapes", [])


def test_a_model_without_a_run_says_how_one_is_made(run: Run) -> None:
    at = opened(PAGE, model="planted/induction")
    assert "No log tells how planted/induction came about: it was set by hand" in texts(at)
    assert "python -m interp.training induction-toy --out FOLDER/induction" in texts(at)
    assert not at.get("plotly_chart")
    at.selectbox(key="train_run").set_value("folder/run")
    assert len(healthy(at.run()).get("plotly_chart")) > 8


def test_a_checkpoint_is_a_model_of_all_pages(run: Run) -> None:
    wanted = run.model(6)
    at = opened(model="folder/run@6", prompt=IDS)
    now = shown(at)
    assert (now.name, now.fingerprint) == ("folder/run@6", wanted.fingerprint())
    assert at.query_params["fp"] == wanted.fingerprint()[:8]
    at.switch_page(PAGE)
    assert len(healthy(at.run()).get("plotly_chart")) > 8  # its run's
    at.selectbox(key="_train_checkpoint").set_value(9)
    healthy(at.run())
    at.button(key="train_show").click()
    assert shown(healthy(at.run())).fingerprint == run.model(9).fingerprint()
    assert shown(at).prompt == IDS  # of one run all read the same
    at.selectbox(key="model").set_value("folder/run@3")
    assert shown(healthy(at.run())).prompt == IDS
    at.selectbox(key="model").set_value("planted/induction")
    assert shown(healthy(at.run())).prompt != IDS
    code = next(each.value for each in opened("views/model.py", model="folder/run@6", prompt=IDS).code)
    assert "from interp.training import Run" in code
    assert "model = Run('folder/run').model(6)" in code
    assert wanted.fingerprint() in code


def test_runs_are_no_models_and_their_checkpoints_are(run: Run) -> None:
    HookedGPT.save_pretrained(run.model(3), run.path.parent / "good")
    assert models.runs() == ["folder/run"]
    assert [each for each in models.names() if each.startswith("folder/")] == [
        "folder/good", "folder/run@3", "folder/run@6", "folder/run@9", "folder/run@12",
    ]  # fmt: skip
    assert models.checkpoint("folder/good@3") is None
    assert models.checkpoint("folder/run@") is None
    assert models.checkpoint("folder/../models/run@3") is None
    assert isinstance(models.open_model("folder/run@3/../../good"), Trouble)


def test_a_checkpoint_in_shards_is_a_model(run: Run) -> None:
    wanted, folder = run.model(6), run.path / "checkpoints" / "step-00000006"
    for file in folder.iterdir():
        file.unlink() if file.name != "config.json" else None
    state = {f"model.{name}": tensor for name, tensor in wanted.state_dict().items()}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # one process writes
        state_dict_saver.save(state, storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True))
    (folder / "sharded.json").write_text("{}")
    assert shown(opened(model="folder/run@6", prompt=IDS)).fingerprint == wanted.fingerprint()


def append(run: Run, text: str) -> None:
    with (run.path / "log.jsonl").open("a") as file:
        file.write(text)


def unfinished(run: Run, n_lines: int) -> list[str]:
    """The run as it was before its end: all lines of its log, of which it has the first ones."""
    lines = (run.path / "log.jsonl").read_text().splitlines(keepends=True)
    (run.path / "log.jsonl").write_text("".join(lines[:n_lines]))
    for step in (9, 12):
        shutil.rmtree(run.path / "checkpoints" / f"step-{step:08}")
    return lines


def test_a_run_that_goes_on_is_followed(run: Run) -> None:
    whole = run.series("loss")
    lines = unfinished(run, 10)
    at = opened(PAGE, train_run="folder/run")
    n = len(run.series("loss")[0])
    assert source_of("folder/run").is_live
    is_curve(curves(at, "Loss")["loss"], whole[0][:n], whole[1][:n])
    append(run, lines[10] + lines[11][:9])  # half a line
    (run.path / "log.jsonl").write_text("".join(lines[:13]) + lines[13][:9])
    more = len(run.series("loss")[0])
    assert more > n
    is_curve(curves(healthy(at.run()), "Loss")["loss"], whole[0][:more], whole[1][:more])
    assert "damaged" not in texts(at)
    (run.path / "log.jsonl").write_text("".join(lines[:8]))
    said = texts(healthy(at.run()))
    assert "the run went on from an earlier checkpoint, or was begun anew" in said
    (run.path / "log.jsonl").write_text("".join(lines))
    said = texts(healthy(at.run()))
    assert "went on from" not in said
    assert "All of its 12 steps are done" in said
    assert source_of("folder/run").is_live  # its last line was written just now
    os.utime(run.path / "log.jsonl", (0, 0))
    assert not source_of("folder/run").is_live


def test_a_run_that_was_stopped_is_told(run: Run) -> None:
    unfinished(run, 10)
    os.utime(run.path / "log.jsonl", (0, 0))
    at = opened(PAGE, train_run="folder/run")
    (bar,) = at.get("progress")
    assert re.search(r"Step \d of 12; nothing was written for \d+ days, so it may have been stopped", bar.proto.text)


def test_checkpoints_that_go_are_told(run: Run) -> None:
    at = opened(PAGE, model="folder/run@3", prompt=IDS)
    shutil.rmtree(run.path / "checkpoints" / "step-00000003")
    said = texts(healthy(at.run()))
    assert "The run folder/run has no checkpoint of step 3; it has 6, 9, 12." in said
    at.button(key="_model_offer_0").click()
    assert shown(healthy(at.run())).name == "folder/run@12"
    for step in run.steps:
        shutil.rmtree(run.path / "checkpoints" / f"step-{step:08}")
    said = texts(healthy(at.run()))
    assert "The run folder/run has no checkpoint of step 12; it has none." in said
    at.selectbox(key="model").set_value("modular-addition")
    healthy(at.run())
    at.selectbox(key="train_run").set_value("folder/run")
    assert "There is none yet" in texts(healthy(at.run()))
    shutil.rmtree(run.path)
    assert "the last of this run, that of step 20,000" in texts(healthy(at.run()))


WRONG: dict[str, tuple[str, bytes, str]] = {
    "no rows": ("log.jsonl", b"", "Nothing is on the log yet"),
    "half a row": ("log.jsonl", b'{"step": 0, "lo', "Nothing is on the log yet"),
    "no log": ("log.jsonl", b"\0", "Nothing is on the log yet"),
    "a damaged line": ("log.jsonl", b'{"step": 0, "loss": 1}\n<b>\n{"step": 1}\n', "The log is damaged: line 2 of 4"),
    "NaN": (
        "log.jsonl",
        b'{"step": 0, "loss": 1.0}\n{"step": 1, "loss": NaN}\n{"step": 2, "loss": -Infinity}\n',
        "2 of loss are not finite, first at step 1",
    ),
    "only NaN": ("log.jsonl", b'{"step": 0, "loss": NaN}\n', "no logged number is finite"),
    "below 0": ("log.jsonl", b'{"step": 0, "loss": -1}\n{"step": 1, "loss": 1}\n', "so its axis is linear"),
    "other kinds": (
        "log.jsonl",
        b'{"step": 0, "loss": "<b>x</b>", "a": {"b": {"c": [[1, 2], [3]]}}, "d": [[[1]]], "e": true}\n'
        b'{"step": 1, "loss": [1, 2], "<b>[*]": 1, "f": [], "head_scores": {"induction": [1]}, "g.h": 3}\n'
        b'{"step": 1000000, "loss": {"x": [[1]]}, "held_out_loss": 1e999}\n',
        "All of its 12 steps are done",
    ),
    "no object": ("config.json", b"[]", "cannot"),
    "no JSON": ("config.json", b"{", "config.json"),
    "no steps": ("config.json", b'{"training": {}}', "steps"),
    "steps of another kind": ("config.json", b'{"training": {"steps": "<b>"}}', "steps='<b>'"),
    "10**30 steps": ("config.json", b'{"training": {"steps": 1' + b"0" * 30 + b"}}", "config.json says steps="),
}


@pytest.mark.parametrize("what", list(WRONG))
def test_what_is_wrong_with_a_run_is_told(run: Run, what: str) -> None:
    name, content, said = WRONG[what]
    (run.path / name).write_bytes(content) if content != b"\0" else (run.path / name).unlink()
    at = opened(PAGE, train_run="folder/run", train_values="log")
    if what != "no object":
        assert said in texts(at)
    assert str(run.path.parent) not in texts(at)
    for each in (*at.markdown, *at.caption, *at.warning, *at.info):
        assert "<b>" not in each.value.replace("\\<b", "")


def test_links_that_lead_out_are_refused(run: Run, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    shutil.copytree(run.path, outside)
    (run.path.parent / "link").symlink_to(outside)
    assert models.runs() == ["folder/run"]
    (run.path / "log.jsonl").unlink()
    (run.path / "log.jsonl").symlink_to(outside / "log.jsonl")
    at = opened(PAGE, train_run="folder/run")
    assert "a link that leads out of the models' folder" in texts(at)
    assert not at.get("plotly_chart")
    (run.path / "log.jsonl").unlink()
    weights = run.path / "checkpoints" / "step-00000006" / "model.safetensors"
    weights.unlink()
    weights.symlink_to(outside / "checkpoints" / "step-00000006" / "model.safetensors")
    assert isinstance(found := models.open_model("folder/run@6"), Trouble)
    assert "leads out" in found.cause
    for name in ("folder/../outside", "folder/link", str(outside), "folder/run/../../outside", "../outside", "\0"):
        assert isinstance(read(name), Trouble)
    assert "All of its 20,000" in texts(opened(PAGE, model="modular-addition", train_run="folder/link"))


def test_every_widget_may_be_moved(run: Run) -> None:
    at = opened(PAGE, model="modular-addition")
    for name, axis, share in (("folder/run", "linear", 0), ("stdlib-4l", "log", 1), ("modular-addition", "log", 2)):
        at.selectbox(key="train_run").set_value(name)
        healthy(at.run())
        at.segmented_control(key="train_steps").set_value(axis)
        at.segmented_control(key="train_values").set_value(axis)
        steps = at.select_slider(key="train_step").options
        at.select_slider(key="train_step").set_value(steps[(len(steps) - 1) * share // 2])
        healthy(at.run())
    at.toggle(key="train_loss_table").set_value(True)
    n = len(at.dataframe)
    assert len(healthy(at.run()).dataframe) == n + 1


@pytest.mark.browser
@pytest.mark.parametrize(("scheme", "width"), [("dark", 800)])
def test_curves_grow_while_the_page_is_open(
    run: Run, tmp_path: Path, new_page: Callable[..., Watched], scheme: str, width: int
) -> None:
    chromium()
    lines = unfinished(run, 9)
    env = os.environ | {"INTERP_MODELS": str(run.path.parent), "OMP_NUM_THREADS": "1"}
    with served(tmp_path / "log", tmp_path, env=env) as address:
        watched = new_page(scheme, width)
        page = watched.open(f"{address}/training?train_run=folder/run&train_steps=linear")
        page.get_by_text("of 12").wait_for()
        page.wait_for_function("document.querySelector('.js-plotly-plot .scatterlayer .trace') != null")
        length = "document.querySelector('.js-plotly-plot')._fullData.find((line) => line.name == 'loss').x.length"
        before = page.evaluate(length)
        assert before == len(run.series("loss")[0]) < 12
        text = "".join(lines[9:])
        append(run, text[: len(text) // 2])
        page.wait_for_function(f"{length} > {before}", timeout=60_000)
        append(run, text[len(text) // 2 :])
        page.wait_for_function(f"{length} == 12", timeout=60_000)
        page.get_by_text("All of its 12 steps are done").wait_for()
        assert page.evaluate("document.querySelector('[data-testid=stMain]').scrollWidth") <= width
        os.utime(run.path / "log.jsonl", (0, 0))  # long ago: nobody looks again
        sent = [-1, 0]
        while len(sent) < 12 and sent[-1] != sent[-2]:
            page.wait_for_timeout(5_000)
            sent.append(watched.received)
        assert sent[-1] == sent[-2], sent
        page.get_by_text("Put it on show").wait_for(state="attached")
        watched.check()
