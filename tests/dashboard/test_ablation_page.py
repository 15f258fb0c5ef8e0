"""The page Ablation: what it says of a run with edits is what the library says, and the edits are a script's."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pandas import DataFrame
from streamlit.testing.v1 import AppTest

from dashboards.parts.ablation import wanted
from dashboards.parts.jobs import QUEUE
from dashboards.parts.models import Trouble
from interp import HookedGPT, heads, interventions, lens, patching
from interp.interventions import Ablate, Edit, Site, Steer
from tests.dashboard.app import array, figure_of, healthy, opened, shown
from tests.dashboard.browser import ROOT, Watched
from tests.dashboard.test_jobs import until

PAGE = "views/ablation.py"
PROMPT = "def area(width, height):\n    return width *"
PARTS = "L0H1, L2H3, L3N5"
NO_EDIT = b'{"format": "interp edits", "edits": [{%s, "site": {"name": "z"}}]}'


@pytest.fixture(scope="module")
def model() -> HookedGPT:
    return HookedGPT.from_pretrained("stdlib-4l").eval()


def edits_of(model: HookedGPT, how: Any = "zero", parts: str = PARTS, n: int = 213) -> list[Edit]:
    reference = {"mean": patching.sample(model, 16, 64), "resample": patching.sample(model, 8, n)}.get(how)
    return [edit for some in patching.removals(model, parts, how, reference).values() for edit in some]


def texts(at: AppTest) -> str:
    return "\n".join(each.value for each in (*at.text, *at.info, *at.warning, *at.caption)).replace("\\", "")


def frame(at: AppTest) -> DataFrame:
    return next(each.value for each in at.dataframe if "rank before" in each.value.columns)


def figures(at: AppTest) -> dict[str, dict[str, Any]]:
    """By the beginning of their titles."""
    found = [figure_of(at, i) for i in range(len(at.get("plotly_chart")))]
    return {re.sub("<.*?>", " ", each["layout"]["title"]["text"]).split()[0]: each for each in found}


def finished(at: AppTest) -> AppTest:
    until(lambda: len(QUEUE) == 0)
    return healthy(at.run())


def settled(how: str) -> AppTest:
    return finished(opened(PAGE, abl=PARTS if how not in ("uniform", "first") else "L0H1, L2H3, L3 attn", abl_how=how))


@pytest.mark.parametrize("how", ["zero", "mean", "resample", "uniform", "first"])
@torch.no_grad()
def test_before_and_after_are_the_runs_of_the_library(model: HookedGPT, how: str) -> None:
    at = settled(how)
    now = shown(at)
    tokens = model.to_tokens(PROMPT)
    edits = edits_of(model, how, PARTS if how not in ("uniform", "first") else "L0H1, L2H3, L3 attn")
    logits = [model(tokens)[0]]
    with model.edit(edits):
        logits.append(model(tokens)[0])
    loss = [torch.nn.functional.cross_entropy(x[:-1], tokens[0, 1:], reduction="none") for x in logits]
    drawn = figures(at)["Loss"]["data"]
    for trace, own in zip(drawn, loss, strict=True):
        np.testing.assert_allclose(array(trace["y"]), own.numpy(), rtol=1e-4, atol=1e-4)
    rows = frame(at).set_index("token")
    probs = [x[-1].softmax(-1) for x in logits]
    for name, token in (("height", " height"), ("width", "width")):
        if name in rows.index and model.to_single_token(token) in [int(p.topk(10).indices[0]) for p in probs]:
            assert rows.loc[name, "before"] == pytest.approx(float(probs[0][model.to_single_token(token)]), abs=1e-4)
    assert rows["after"].max() == pytest.approx(float(probs[1].max()), abs=1e-4)
    assert rows["before"].max() == pytest.approx(float(probs[0].max()), abs=1e-4)
    old, new = (float(x[-1, now.target] - x[-1, now.foil]) for x in logits)
    assert at.metric[0].value == f"{old:.3f} → {new:.3f}"
    assert at.metric[2].value == f"{float(loss[0].mean()):.3f} → {float(loss[1].mean()):.3f}"
    assert "✗" not in texts(at)
    assert texts(at).count("✓") == 4


@torch.no_grad()
def test_self_repair_is_told_and_its_parts_sum_to_the_change(model: HookedGPT) -> None:
    at = finished(opened(PAGE, abl="L0H1", target="=", foil="width"))
    now, tokens = shown(at), model.to_tokens(PROMPT)
    found = heads.self_repair(model, tokens, edits_of(model, parts="L0H1"), now.target, now.foil).isel(prompt=0)
    spec = figures(at)["Direct"]
    names = spec["layout"]["yaxis"]["ticktext"]
    bars = {names[int(y)]: x for t in spec["data"] for x, y in zip(array(t["x"]), array(t["y"]), strict=True)}
    for name in ("L0H1", "L1H5", "L2 mlp"):
        if name in bars:
            assert bars[name] == pytest.approx(float(found.sel(component=name)), abs=1e-4)
    assert "L0H1" in bars
    assert sum(bars.values()) == pytest.approx(float(found.total), abs=1e-3)
    assert f"in all the logit difference changes by {float(found.total):+.3f}" in texts(at)


def told(direct: float, changes: dict[str, float]) -> str:
    from xarray import DataArray

    from dashboards.parts.ablation.drawn import repaired

    names = ["L0H1", *changes, "L3 mlp", "final norm"]
    kinds = ["edited", *["head"] * len(changes), "mlp", "norm"]
    values = [direct, *changes.values(), 0.0, 0.0]
    found = DataArray(values, [("component", names)]).assign_coords(kind=("component", kinds), total=sum(values))
    return repaired(found, wanted.Wanted(("L0H1",)))


def test_self_repair_in_words() -> None:
    said = told(-1.0, {"L1H0": 0.4, "L2H2": 0.22, "L3H3": 0.01, "L3H4": -0.2})
    assert "2 later heads repair 62% of that (most L1H0 +0.400, L2H2 +0.220). 1 adds 20% to it." in said
    assert "1 later head repairs 40%" in told(-1.0, {"L1H0": 0.4})
    assert "No later head makes up for it." in told(-1.0, {"L1H0": 0.0})
    assert "little beside what later heads do otherwise: most L1H0 +0.900" in told(-0.1, {"L1H0": 0.9})
    assert "nothing to repair" in told(0.0, {"L1H0": 0.9})


@torch.no_grad()
def test_curves_are_the_metric_without_some_of_the_parts(model: HookedGPT) -> None:
    at = settled("zero")
    now, tokens = shown(at), model.to_tokens(PROMPT)
    each = patching.removals(model, PARTS)
    names = list(each)
    away = [[[n] for n in names], [[m for m in names if m != n] for n in names], [names[: i + 1] for i in range(3)]]
    for trace, sets in zip(figures(at)["Logit"]["data"], away, strict=True):
        for y, some in zip(array(trace["y"]), sets, strict=True):
            with model.edit([edit for name in some for edit in each[name]]):
                logits = model(tokens)[0, -1]
            assert y == pytest.approx(float(logits[now.target] - logits[now.foil]), abs=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("how", ["add", "project out"])
def test_steering_adds_the_difference_of_two_texts_or_takes_it_out(model: HookedGPT, how: str) -> None:
    at = opened(PAGE, steer_to="def ", steer_from="class ", steer_layer="1", steer_scale="2.5", steer_how=how)
    direction = lens.mean_difference(model, "def ", "class ", 1)
    choice: Any = {"scale": 2.5} if how == "add" else {"project_out": True}
    tokens, now = model.to_tokens(PROMPT), shown(at)
    with model.edit([Steer(Site("resid_post", 1), direction, **choice)]):
        logits = model(tokens)[0, -1]
    new = float(logits[now.target] - logits[now.foil])
    assert at.metric[0].value.endswith(f"→ {new:.3f}")
    assert ("× 2.5 added after layer 1" in texts(at)) == (how == "add")
    assert "Self-repair" not in [each.value for each in at.subheader]


@torch.no_grad()
def test_texts_are_drawn_with_one_seed_with_the_edits_and_without(model: HookedGPT) -> None:
    at = finished(opened(PAGE, abl="L1, L2 mlp", new="12", seed="3", temperature="0.9"))
    tokens = model.to_tokens(PROMPT)
    choices: Any = {"temperature": 0.9, "seed": 3, "return_type": "tokens"}
    own = [model.generate(tokens, 12, **choices)]
    with model.edit(edits_of(model, parts="L1, L2 mlp")):
        own.append(model.generate(tokens, 12, **choices))
    assert model.tokenizer is not None
    said = [block.value for block in at.code]
    for each in own:
        assert model.tokenizer.decode(each[0, 13:].tolist()) in said
    first = next(i for i, (a, b) in enumerate(zip(*(x[0, 13:].tolist() for x in own), strict=True)) if a != b)
    assert f"They part at new token {first}." in texts(at)


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ("L9", "L9: there are 4 layers"),
        ("L0H8", "there are 8 heads"),
        ("L0N99999", "neurons in a layer"),
        ("<img src=x onerror=alert(1)>", "is no part: they are named L5H1"),
        ("L0H1; drop", "is no part"),
        ("L" * 10_000, "is no part"),
    ],
)
def test_what_is_no_part_is_told_in_a_sentence(parts: str, said: str) -> None:
    at = opened(PAGE)
    at.text_input(key="abl").set_value(parts).run()
    assert said in texts(healthy(at))
    at.text_input(key="abl").set_value("L0H1").run()
    assert at.metric, "it goes on"
    healthy(at)


def test_attention_cannot_be_set_for_neurons_which_is_told() -> None:
    at = opened(PAGE, abl="L0H1, L3N5", abl_how="uniform")
    assert "attention can be set for heads, and not for L3N5" in texts(at)
    assert not at.metric


@pytest.mark.parametrize("name", ["planted/duplicate_token", "modular-addition", "planted/copy"])
def test_other_models_show_what_they_have(name: str) -> None:
    at = finished(opened(PAGE, model=name, abl="L0H0, L0 attn"))
    assert at.metric
    assert "✗" not in texts(at)


def test_one_token_has_no_loss_by_position() -> None:
    at = finished(opened(PAGE, prompt="x", bos="false", abl="L0H1"))
    assert "no loss by position" in texts(at)
    assert at.metric


def test_every_control_can_be_moved() -> None:
    at = opened(PAGE, abl="L0H1", new="2")
    at.text_input(key="steer_to").set_value("a").run()
    at.text_input(key="steer_from").set_value("b").run()
    for key in ("steer_layer", "steer_scale", "temperature", "seed"):
        for end in (at.number_input(key=key).min, at.number_input(key=key).max):
            healthy(at.number_input(key=key).set_value(end).run())


# Files


def saved(edits: list[Edit], folder: Path) -> list[tuple[str, bytes]]:
    interventions.save(edits, folder / "mine.json")
    return [(file.name, file.read_bytes()) for file in sorted(folder.iterdir())]


@torch.no_grad()
def test_a_scripts_edits_are_in_force_and_go_out_as_they_came_in(model: HookedGPT, tmp_path: Path) -> None:
    edits: list[Edit] = [
        Ablate(Site("z", 1, head=[0, 3])),
        Steer(Site("resid_post", 2, pos=[4, 5]), torch.linspace(-1, 1, model.cfg.d_model), 3.0),
    ]
    files = saved(edits, tmp_path)
    at = opened(PAGE)
    at.session_state["_abl_file"] = wanted.opened(files)
    now = shown(healthy(at.run()))
    with model.edit(edits):
        logits = model(model.to_tokens(PROMPT))[0, -1]
    assert at.metric[0].value.endswith(f"→ {float(logits[now.target] - logits[now.foil]):.3f}")
    assert "2 edits of mine.json" in texts(at)
    found = wanted.opened(files)
    assert isinstance(found, wanted.Uploaded)
    made = [wanted.made_file(found.edits, kind) for kind in ("json", "safetensors")]
    assert json.loads(made[0]) == json.loads(files[0][1])
    assert made[1] == files[1][1]
    at.button(key="abl_forget").click().run()
    assert "Nothing is changed yet" in texts(healthy(at))


@pytest.mark.parametrize(
    "files",
    [
        [],
        [("a.json", b"not json")],
        [("a.json", b"[]")],
        [("a.json", b'{"format": "other"}')],
        [("a.json", NO_EDIT % b'"edit": "Boom"')],
        [("a.json", NO_EDIT % b'"edit": "Steer", "direction": {"tensor": "x"}')],
        [("a.json", b"{" * 100_000)],
        [("a.json", b"\x00\xff"), ("a.safetensors", b"\x00" * 20)],
        [("a.json", b"{}"), ("b.json", b"{}")],
        [("a.safetensors", b"")],
    ],
)  # fmt: skip
def test_files_that_are_no_edits_are_told(files: list[tuple[str, bytes]]) -> None:
    found = wanted.opened(files)
    assert isinstance(found, Trouble)
    assert "/tmp" not in found.cause


def test_edits_of_another_model_are_told_and_the_page_goes_on(tmp_path: Path) -> None:
    at = opened(PAGE)
    for edits in ([Ablate(Site("z", 17))], [Steer(Site("resid_post", 1), torch.ones(3))], [Ablate(Site("nowhere"))]):
        for file in tmp_path.iterdir():
            file.unlink()
        at.session_state["_abl_file"] = wanted.opened(saved(list(edits), tmp_path))
        healthy(at.run())
        assert at.warning
        assert not at.metric
    at.button(key="abl_forget").click().run()
    assert "Nothing is changed yet" in texts(healthy(at))


# Code


def test_the_code_makes_each_figure_again(tmp_path: Path) -> None:
    at = finished(opened(PAGE, abl=PARTS, abl_how="mean", steer_to="def ", steer_from='class "x"', steer_scale="0.5"))
    specs = figures(at)
    blocks = [block.value for block in at.code if block.value.startswith(("from interp", "import torch"))]
    assert len(blocks) == 4
    said = {True: "print('FIG', fig.to_json())", False: "print('TABLE', [(b, a) for _, b, a in table])"}
    whole = "\n".join(f"{code}\n{said['fig =' in code]}" for code in blocks)
    run = subprocess.run([sys.executable, "-c", whole], capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0, run.stderr
    lines = run.stdout.splitlines()
    made = [json.loads(line[4:]) for line in lines if line.startswith("FIG ")]
    assert len(made) == 3
    for spec, again in zip((specs["Loss"], specs["Direct"], specs["Logit"]), made, strict=True):
        for one, other in zip(spec["data"], again["data"], strict=True):
            axis = "x" if one.get("orientation") == "h" else "y"
            np.testing.assert_allclose(array(one[axis]), array(other[axis]), rtol=1e-3, atol=2e-4)
    (table,) = [line for line in lines if line.startswith("TABLE ")]
    rows = frame(at)
    for (before, after), (_, row) in zip(eval(table[6:]), rows.iterrows(), strict=True):
        assert (before, after) == (pytest.approx(row["before"], abs=1e-4), pytest.approx(row["after"], abs=1e-4))


# With the page Generate


@torch.no_grad()
def test_edits_can_be_switched_on_while_text_is_generated(model: HookedGPT) -> None:
    at = opened("views/generate.py", new="10", seed="3")
    assert not [each for each in at.toggle if each.key == "abl_on"], "there are none"
    at = opened("views/generate.py", new="10", seed="3", abl="L1, L2 mlp", step="4")
    plain = at.dataframe[0].value
    at.toggle(key="abl_on").set_value(True).run()
    assert "L1, L2 mlp → zero" in texts(healthy(at))
    edited = at.dataframe[0].value
    tokens = model.to_tokens(PROMPT)
    with model.edit(edits_of(model, parts="L1, L2 mlp")):
        found = model.generate(tokens, 10, seed=3, return_type="full")
        logits = model(found.tokens[:, :17])[0, -1]
    token = int(found.tokens[0, 17])
    drawn = edited[edited["drawn"] == "●"].iloc[0]
    assert drawn["logit"] == pytest.approx(float(logits[token]), abs=1e-4)
    assert drawn["from"] <= float(found.random[0, 4]) <= drawn["to"]
    assert not plain.equals(edited)
    code = next(block.value for block in at.code if "generation.explained" in block.value)
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout.split()[0]) == token


# In a browser


@pytest.mark.browser
def test_in_a_browser_a_click_takes_a_head_away_and_the_link_brings_it_back(
    dashboard: str, new_page: Callable[..., Watched]
) -> None:
    watched = new_page()
    page = watched.open(f"{dashboard}/ablation?abl=L0H1")
    page.wait_for_selector("text=Self-repair")
    parts = page.get_by_label("Parts to take away", exact=True)

    def click(layer: int, head: int, then: str) -> None:
        grid = page.locator(".st-key-abl_grid_box .grid[data-ready='1']")
        grid.wait_for()
        side, left, top = (float(str(grid.get_attribute(f"data-{name}"))) for name in ("side", "left", "top"))
        grid.locator("canvas").click(position={"x": left + (head + 0.5) * side, "y": top + (layer + 0.5) * side})
        page.wait_for_function(f"document.querySelector('input[aria-label=\"Parts to take away\"]').value === '{then}'")
        watched.idle()

    click(1, 2, "L0H1, L1H2")
    click(3, 7, "L0H1, L1H2, L3H7")
    click(3, 7, "L0H1, L1H2")
    assert parts.input_value() == "L0H1, L1H2"
    page.wait_for_selector("text=Part by part")
    assert "abl=L0H1%2C+L1H2" in page.url.replace("%20", "+")
    page.wait_for_selector(".st-key-abl_curves .js-plotly-plot", timeout=60_000)
    link = page.url
    other = new_page("dark", 800)
    second = other.open(link)
    second.wait_for_selector("text=Part by part")
    value = "document.querySelector('input[aria-label=\"Parts to take away\"]').value"
    second.wait_for_function(f"{value} === 'L0H1, L1H2'")
    other.turn_to("Generate")
    second.get_by_text("With the edits of the page Ablation").click()
    second.wait_for_selector("text=L0H1, L1H2 → zero")
    other.idle()


@pytest.mark.browser
def test_in_a_browser_files_go_in_and_out(dashboard: str, new_page: Callable[..., Watched], tmp_path: Path) -> None:
    watched = new_page()
    page = watched.open(f"{dashboard}/ablation?abl=L0H1&abl_how=mean")
    page.wait_for_selector("text=Self-repair")
    watched.idle()
    page.get_by_text("Edits from a file, or to one").click()
    files = []
    for kind in ("json", "safetensors"):
        with page.expect_download() as caught:
            page.get_by_role("button", name=f"edits.{kind}").click()
        files.append(tmp_path / f"edits.{kind}")
        caught.value.save_as(files[-1])
    (edit,) = interventions.load(files[0])
    assert isinstance(edit, Ablate)
    assert (edit.kind, edit.site.name, edit.site.layer, edit.site.head) == ("mean", "z", 0, 1)
    before = page.locator('[data-testid="stMetricValue"]').first.inner_text()
    page.get_by_label("Parts to take away", exact=True).fill("")
    page.keyboard.press("Enter")
    page.wait_for_selector("text=Nothing is changed yet")
    watched.idle()
    page.locator(".st-key-_abl_upload input[type=file]").set_input_files([str(file) for file in files])
    page.wait_for_selector("text=1 edits of edits.json")
    watched.idle()
    assert page.locator('[data-testid="stMetricValue"]').first.inner_text() == before
