"""The page Model: its numbers are the library's; what was planted is drawn; others are opened after a button."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dashboards.parts import models
from interp import HookedGPT, zoo
from interp.checks import identities
from interp.tokenization import Tokenizer
from tests.dashboard.app import figure_of, healthy, opened, shown
from tests.dashboard.browser import ROOT, Watched
from tests.variants import quick_of, variant

PAGE = "views/model.py"


def test_sizes_weights_and_checks_are_the_librarys() -> None:
    at = opened(PAGE)
    now = shown(at)
    metrics = {metric.label: metric.value for metric in at.metric}
    cfg, n_weights = now.model.cfg, sum(weight.numel() for weight in now.model.parameters())
    assert (metrics["Layers"], metrics["Heads"]) == (str(cfg.n_layers), str(cfg.n_heads))
    assert metrics["Weights"] == f"{n_weights:,}"
    _, checks, points, weights = [frame.value for frame in at.dataframe]
    assert list(checks["identity"]) == [check.name for check in identities(now.model, now.tokens)]
    assert set(checks[""]) == {"✓"}
    assert list(points["name"]) == [row[0] for row in now.model.hook_table()]
    assert weights["count"].sum() == n_weights
    assert any(f"= {n_weights:,} ✓" in caption.value for caption in at.caption)


@pytest.mark.parametrize(
    "name", quick_of(["planted/induction", "planted/indirect_object", "planted/both"], "planted/both")
)
def test_what_was_planted_is_drawn_and_its_code_draws_it_again(name: str) -> None:
    at = opened(PAGE, model=name)
    planted = getattr(zoo.planted, name.removeprefix("planted/"))(distractor_heads=models.DISTRACTORS)
    names = {trace["name"] for trace in figure_of(at)["data"] if "->" in trace["name"]}
    assert len(names) == len({edge.split(".")[0] for edge in planted.truth["zero"].edges})
    at.get("button_group")[0].set_value(["resample"]).run() if at.get("button_group") else None
    (code,) = [block.value for block in healthy(at).code if "circuit_graph" in block.value]
    script = code + "\nprint(sorted(trace.name for trace in fig.data if '->' in trace.name))"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0, run.stderr
    drawn = {trace["name"] for trace in figure_of(at)["data"] if "->" in trace["name"]}
    assert eval(run.stdout) == sorted(drawn)


def test_the_code_of_the_checks_runs() -> None:
    at = opened(PAGE, model="planted/induction")
    (code,) = [block.value for block in at.code if "checks.identities" in block.value]
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0, run.stderr
    assert "Rows sum to 1" in run.stdout


def test_without_a_prompt_the_model_is_shown_all_the_same() -> None:
    at = opened(PAGE)
    at.text_area(key="prompt").set_value("").run()
    assert healthy(at).metric
    assert any("With a prompt" in caption.value for caption in at.caption)


def test_the_hub_is_not_asked_without_the_button(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def download(name: str, *_: object) -> Path:
        asked.append(name)
        raise ConnectionError("the hub could not be reached")

    monkeypatch.setattr(models, "downloaded", download)
    at = opened(PAGE)
    at.text_input(key="_hub").set_value("owner/name").run()
    assert not asked
    next(button for button in at.button if models.HUB_HOST in button.label).click().run()
    assert asked == ["owner/name"]
    assert "could not be reached" in healthy(at).warning[0].value
    assert shown(at).name == "stdlib-4l"


def test_a_folder_is_opened_by_name_and_one_outside_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = HookedGPT(variant("gpt2", d_vocab=257, n_ctx=40).cfg, Tokenizer.bytes())
    model.save_pretrained(tmp_path / "models" / "mine")
    model.save_pretrained(tmp_path / "outside")
    monkeypatch.setenv("INTERP_MODELS", str(tmp_path / "models"))
    at = opened(PAGE)
    at.text_input(key="_folder").set_value("../outside").run()
    next(button for button in at.button if button.label == "Open the folder").click().run()
    assert "is no plain name of a folder" in healthy(at).warning[0].value
    at.text_input(key="_folder").set_value("mine").run()
    next(button for button in at.button if button.label == "Open the folder").click().run()
    assert shown(healthy(at)).name == "folder/mine"
    assert shown(at).fingerprint == model.fingerprint()


@pytest.mark.slow
@pytest.mark.browser
def test_a_bad_upload_is_told_and_a_good_one_is_shown(
    dashboard: str, new_page: Callable[..., Watched], tmp_path: Path
) -> None:
    model = HookedGPT(variant("gpt2", d_vocab=257, n_ctx=40).cfg, Tokenizer.bytes())
    model.save_pretrained(tmp_path)
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(b"<img src=x onerror=alert(1)>")
    watched = new_page()
    page = watched.open(f"{dashboard}/model")
    page.get_by_role("tab", name="Upload").click()
    page.locator('.st-key-_upload input[type="file"]').set_input_files(bad)
    page.get_by_role("button", name="Open the upload").click()
    page.wait_for_selector('[data-testid="stAlert"]:has-text("no complete safetensors file")')
    watched.idle()
    page.reload()
    page.get_by_role("tab", name="Upload").click()
    page.locator('.st-key-_upload input[type="file"]').set_input_files(tmp_path / "model.safetensors")
    page.get_by_role("button", name="Open the upload").click()
    page.wait_for_selector(f'h1:has-text("upload/{model.fingerprint()[:8]}")')
    watched.idle()


@pytest.mark.slow
@pytest.mark.browser
def test_downloads_are_whole_and_need_no_network(
    dashboard: str, new_page: Callable[..., Watched], tmp_path: Path
) -> None:
    watched = new_page()
    page = watched.open(f"{dashboard}/model?model=planted/induction")
    page.wait_for_selector(".st-key-circuit .main-svg")
    page.locator(".st-key-circuit_tools").get_by_role("button", name="Download").click()
    for kind in ("CSV", "HTML", "JSON", "PY"):
        with page.expect_download() as found:
            page.get_by_role("button", name=kind, exact=True).click()
        found.value.save_as(tmp_path / f"circuit.{kind.lower()}")
    about, header, *rows = (tmp_path / "circuit.csv").read_text().splitlines()
    assert about.startswith('# {"model": "planted/induction", "fingerprint": ')
    assert header == "sender,receiver"
    planted = zoo.planted.induction(distractor_heads=models.DISTRACTORS)
    assert rows == [edge.replace("->", ",") for edge in sorted(planted.truth["zero"].edges)]
    alone = new_page()
    alone.page.context.set_offline(True)
    alone.page.goto(f"file://{tmp_path}/circuit.html")
    alone.page.wait_for_selector(".main-svg")
    with page.expect_download() as found:
        page.keyboard.press("Escape")
        page.locator(".st-key-circuit .js-plotly-plot").hover()
        page.locator('.st-key-circuit [data-title*="ownload plot"]').click()
    found.value.save_as(tmp_path / "circuit.svg")
    assert (tmp_path / "circuit.svg").read_text().startswith("<svg")
