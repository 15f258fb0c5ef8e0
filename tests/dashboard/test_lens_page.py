"""The page on the lens: what it says is in the streams, read by hand, and its widgets may be moved anywhere."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pandas import DataFrame
from streamlit.testing.v1 import AppTest
from torch import Tensor

from dashboards.parts.jobs import QUEUE
from dashboards.parts.lens import chosen, map, measured, tuned
from dashboards.parts.state import store
from interp import HookedGPT, lens
from tests.dashboard.app import array, figure_of, healthy, opened, shown
from tests.dashboard.browser import Watched

PAGE = "views/lens.py"
PROMPT = "def area(width, height):\n    return width *"
HOSTILE = "<img src=x onerror=alert(1)> $x^2$ :red[a] **b** \u202e\U0001f600 \t\n"


@pytest.fixture(scope="module")
def model() -> HookedGPT:
    return HookedGPT.from_pretrained("stdlib-4l").eval()


def frame(at: AppTest, column: str = "") -> DataFrame:
    """The table with this column; the first one if none is named."""
    return next(each.value for each in at.dataframe if not column or column in each.value.columns)


def texts(at: AppTest) -> str:
    return "\n".join(each.value for each in (*at.text, *at.caption, *at.warning, *at.markdown))


@torch.no_grad()
def by_hand(model: HookedGPT, stream: Tensor) -> Tensor:
    """Logits of one stream, written out."""
    x = stream.double()
    x = x - x.mean(-1, keepdim=True) if model.cfg.normalization_type.startswith("LN") else x  # type: ignore[union-attr]
    x = x / (x.square().mean(-1, keepdim=True) + model.cfg.eps).sqrt()
    x = x if model.ln_final.w is None else x * model.ln_final.w.double()  # type: ignore[union-attr]
    x = x if model.ln_final.b is None else x + model.ln_final.b.double()  # type: ignore[union-attr]
    logits = x @ model.W_U.double()
    return logits if model.b_U is None else logits + model.b_U.double()


@torch.no_grad()
def run(model: HookedGPT, tokens: Tensor) -> tuple[Tensor, Any]:
    return model.run_with_cache(tokens)


def pick(at: AppTest, row: int | None, pos: int | None) -> AppTest:
    at.selectbox(key="lens_row").set_value(row)
    at.number_input(key="lens_pos").set_value(pos)
    return healthy(at.run())


@pytest.mark.parametrize(("row", "pos"), [(0, 4), (2, 12), (3, 7), (None, None)])
def test_a_cell_is_the_stream_read_by_hand(model: HookedGPT, row: int | None, pos: int | None) -> None:
    at = pick(opened(PAGE), row, pos)
    now = shown(at)
    logits, cache = run(model, model.to_tokens(PROMPT))
    row, pos = 4 if row is None else row, 12 if pos is None else pos
    streams = [cache["resid_pre", layer][0] for layer in range(4)] + [cache["resid_post", 3][0]]
    own = by_hand(model, streams[row])[pos]
    p = own.softmax(-1)
    best = p.topk(10)
    table = frame(at, "rank")
    assert table["probability"].tolist() == pytest.approx(best.values.tolist(), abs=1e-5)
    assert [name.replace("·", " ").replace("⏎", "\n") for name in table["token"]] == model.to_str_tokens(best.indices)
    if row:
        before = by_hand(model, streams[row - 1])[pos]
        came = [int((before > before[token]).sum()) - rank for rank, token in enumerate(best.indices.tolist())]
        assert table["rank"].tolist() == [f"↑{x:,}" if x > 0 else f"↓{-x:,}" if x else "=" for x in came]
    else:
        assert table["rank"].tolist() == [""] * 10
    end = logits[0, pos].double().log_softmax(-1)
    said = at.text[-1].value
    assert f"Target: probability {float(p[now.target]):.4g}" in said
    assert f"Target: rank {int((p > p[now.target]).sum()):,}" in said
    assert f"Target less foil: logits {float(own[now.target] - own[now.foil]):+.4g}" in said
    assert f"Entropy {float(-(p * p.log()).sum()):.4g} nats" in said
    kl = float(said.split("KL to the end ")[1].split()[0])
    assert kl == pytest.approx(float((end.exp() * (end - p.log())).sum()), rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("colour", chosen.COLOURS)
@pytest.mark.parametrize(("of", "halves"), [("target", False), ("next", True)])
def test_the_map_is_the_librarys(model: HookedGPT, colour: str, of: str, halves: bool) -> None:
    at = opened(PAGE)
    at.segmented_control(key="lens_colour").set_value(colour)
    at.segmented_control(key="lens_of").set_value(of)
    at.toggle(key="lens_halves").set_value(halves)
    at.toggle(key="lens_map_table").set_value(True)
    at.segmented_control(key="lens_figure").set_value("The map as a figure")
    healthy(at.run())
    now = shown(at)
    _, cache = run(model, model.to_tokens(PROMPT))
    wanted = lens.logit_lens(model, cache, "next" if of == "next" else now.target, now.foil, halves=halves)
    values = wanted[colour].isel(prompt=0).to_numpy()
    np.testing.assert_allclose(frame(at).to_numpy(), values, rtol=1e-5, atol=1e-5)
    made: dict[str, Any] = {}
    exec(at.code[0].value, made)
    for mine, theirs in zip(figure_of(at)["data"], made["fig"].to_plotly_json()["data"], strict=True):
        np.testing.assert_allclose(
            array(mine["z"]).astype(float), array(theirs["z"]).astype(float), rtol=1e-5, atol=1e-5
        )


def test_what_is_told_of_a_cell_and_marked_in_it(model: HookedGPT) -> None:
    at = opened(PAGE)
    now = shown(at)
    tokens = model.to_tokens(PROMPT)
    _, cache = run(model, tokens)
    found = lens.logit_lens(model, cache, now.target, now.foil, k=10).isel(prompt=0)
    cell = chosen.Cell(found.isel(pos=slice(3, 13)), 2, 7, 3, 13, "target_rank", is_next=False, halves=False)
    own = by_hand(model, cache["resid_pre", 2][0])[7]
    p, said = own.softmax(-1), map._said(now, cell)[2][4]
    best = int(p.argmax())
    assert said.startswith(f"before layer 2, 7 {now.labels[7]}\n{float(p[best]):.3f} ")
    assert f"target {float(p[now.target]):.3g}, rank {int((p > p[now.target]).sum())}" in said
    assert f"logit difference {float(own[now.target] - own[now.foil]):+.3g}" in said
    for row, marks in enumerate(map._right(now, cell)):
        right = [int(found.token_id[row, pos, 0]) == int(tokens[0, pos + 1]) for pos in range(3, 12)]
        assert [mark == "✓" for mark in marks] == [*right, False]
    assert any("✓" in marks for marks in map._right(now, cell))
    z, look = map._look(now, cell.found.target_rank.to_numpy(), "target_rank", cell.is_next)
    assert z[2, 4] == pytest.approx(-np.log10(1 + int((p > p[now.target]).sum())))
    assert look["scale"].high == 0


def test_the_last_row_is_held_against_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    at = opened(PAGE)
    assert "The last row equals the model's output" in texts(at)
    assert "✗" not in texts(at)
    right = measured.logit_lens

    def wrong(*args: Any, **options: Any) -> Any:
        found = right(*args, **options)
        return found.assign(probability=found.probability * 1.01)

    monkeypatch.setattr(measured, "logit_lens", wrong)
    store.clear()
    assert "off the model's output ✗" in texts(opened(PAGE))


def test_early_rows_are_doubted_where_the_final_norms_scale_is_far_off(model: HookedGPT) -> None:
    _, cache = run(model, model.to_tokens(PROMPT))
    scales = []
    for stream in [cache["resid_pre", layer][0, 1:] for layer in range(4)] + [cache["resid_post", 3][0, 1:]]:
        x = stream - stream.mean(-1, keepdim=True) if model.cfg.normalization_type == "LN" else stream
        scales.append(float(np.median((x.square().mean(-1) + model.cfg.eps).sqrt().numpy())))
    times = scales[-1] / scales[0]
    assert times > 3
    far = [i for i, x in enumerate(scales) if not 1 / 3 <= x / scales[-1] <= 3]
    said = opened(PAGE).warning[0].value
    assert f"{times:.1f} × apart" in said
    assert (f"row {far[0]} may" if len(far) == 1 else f"rows {far[0]} to {far[-1]} may") in said
    healthy(at := opened(PAGE, model="planted/induction"))
    assert "This model has no final norm" in texts(at)


def test_every_widget_may_be_moved() -> None:
    at = pick(opened(PAGE), 2, 5)
    assert "Before layer 2" in texts(at)
    at.toggle(key="lens_halves").set_value(True)
    healthy(at.run())
    assert "Before layer 2" in texts(at)
    pick(at, 5, 5)
    assert "After attention of layer 2" in texts(at)
    at.toggle(key="lens_halves").set_value(False)
    healthy(at.run())
    assert "Before layer 2" in texts(at)
    for which in ("How large the stream is", "The map as a figure", None):
        at.segmented_control(key="lens_figure").set_value(which)
        healthy(at.run())
    at.number_input(key="q").set_value(3)
    healthy(at.run())
    assert at.number_input(key="lens_pos").value is None
    assert "position 3" in texts(at)
    at.text_area(key="prompt").set_value("a")
    healthy(at.run())


def test_it_may_be_opened_by_a_link() -> None:
    at = opened(PAGE, lens_row="before layer 2", lens_pos="3", lens_colour="entropy", q="7")
    assert at.selectbox(key="lens_row").value == 2
    assert at.segmented_control(key="lens_colour").value == "entropy"
    assert "position 3" in texts(at)
    at = opened(PAGE, lens_row="before layer 99", lens_pos="400", lens_colour="red", lens_width="7")
    assert "At the end: the model" in texts(at)


@pytest.mark.parametrize("bos", ["true", "false"])
def test_one_token_is_enough(bos: str) -> None:
    at = opened(PAGE, prompt="def", bos=bos)
    assert len(shown(at).labels) == 1 + (bos == "true")
    assert ("begins with the token that begins every text" in texts(at)) == (bos == "true")
    at.segmented_control(key="lens_of").set_value("next")
    healthy(at.run())
    assert "No token follows here." in texts(at)


def test_a_long_prompt_is_seen_through_a_window() -> None:
    at = opened(PAGE, prompt="def f(x): return x + 1\n" * 40)
    n = len(shown(at).labels)
    assert n == 256
    at.toggle(key="lens_map_table").set_value(True)
    for width in chosen.WIDTHS:
        at.segmented_control(key="lens_width").set_value(width)
        healthy(at.run())
        table = frame(at)
        assert table.shape[1] == width
        assert table.columns[-1].startswith("255 ")
    at.button(key="lens_Earlier").click()
    healthy(at.run())
    assert frame(at).columns[-1].startswith("207 ")
    assert "position 207" in texts(at)
    at.button(key="lens_Later").click()
    healthy(at.run())
    pick(at, 1, 0)
    assert frame(at).columns[0].startswith("0 ")
    assert at.button(key="lens_Earlier").disabled


@pytest.mark.parametrize(
    ("colour", "of"), [("target_probability", "target"), ("target_rank", "next"), ("kl", "target")]
)
def test_the_minimap_has_all_positions_by_what_the_model_says_in_the_end(
    model: HookedGPT, colour: str, of: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[dict[str, Any]] = []
    monkeypatch.setattr(map, "minimap", lambda colours, window, **more: drawn.append({"n": len(colours), **more}))
    at = opened(PAGE, prompt="x = 1\n" * 30)
    at.segmented_control(key="lens_colour").set_value(colour)
    at.segmented_control(key="lens_of").set_value(of)
    now = shown(healthy(at.run()))
    _, cache = run(model, now.tokens)
    found = lens.logit_lens(model, cache, "next" if of == "next" else now.target, now.foil)
    values = found[colour].isel(prompt=0, layer=-1).to_numpy()
    assert drawn[-1]["n"] == len(now.labels)
    said = [float(each.split("\n")[1]) for each in drawn[-1]["said"]]
    np.testing.assert_allclose(said, values, rtol=1e-2, atol=1e-6)


@pytest.mark.parametrize("name", ["induction", "memory_facts", "skip_trigram"])
def test_models_set_by_hand_have_their_lens(name: str) -> None:
    from dashboards.parts.models import planted

    if name not in planted():
        name = next(iter(planted()))
    at = opened(PAGE, model=f"planted/{name}")
    assert "✗" not in texts(at)
    assert frame(at, "rank")["probability"].sum() <= 1 + 1e-6


def test_tokens_are_no_markup() -> None:
    at = opened(PAGE, prompt=HOSTILE)
    for pos in range(len(shown(at).labels)):
        at.number_input(key="lens_pos").set_value(pos)
        healthy(at.run())
        said = next(each.value for each in at.markdown if "position" in each.value)
        assert not any(bad in said for bad in ("<img", "$x", ":red[", "\u202e"))


def lens_of(model: HookedGPT, seed: int = 0) -> lens.TunedLens:
    """Maps drawn at random: numbers that no other lens has."""
    draw, cfg = torch.Generator().manual_seed(seed), model.cfg
    weight = torch.randn(cfg.n_layers, cfg.d_model, cfg.d_model, generator=draw) / 40
    bias = torch.randn(cfg.n_layers, cfg.d_model, generator=draw) / 10
    return lens.TunedLens(weight, bias, model.fingerprint(), "a `draw` of <b>dice</b>")


def bytes_of(translator: lens.TunedLens, folder: Path) -> bytes:
    translator.save(folder / tuned.FILE)
    return (folder / tuned.FILE).read_bytes()


def given(at: AppTest, content: bytes, name: str = "../../etc/<img>.safetensors") -> AppTest:
    key = f"_lens_file_{shown(at).fingerprint[:8]}"
    next(each for each in at.get("file_uploader") if each.key == key).upload(name, content, "application/octet-stream")
    return healthy(at.run())


@pytest.mark.parametrize("colour", chosen.COLOURS)
def test_the_tuned_lens_and_its_difference_are_the_librarys(
    model: HookedGPT, colour: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    translator = lens_of(model)
    at = given(opened(PAGE, lens_halves="true"), bytes_of(translator, tmp_path))
    monkeypatch.chdir(tmp_path)
    at.segmented_control(key="lens_colour").set_value(colour)
    at.toggle(key="lens_map_table").set_value(True)
    at.segmented_control(key="lens_figure").set_value("The map as a figure")
    healthy(at.run())
    now = shown(at)
    _, cache = run(model, model.to_tokens(PROMPT))
    mine, theirs = (
        lens.logit_lens(model, cache, now.target, now.foil, translate=each, progress=False)[colour]
        .isel(prompt=0)
        .values
        for each in (translator, None)
    )
    assert np.abs(mine - theirs)[:-1].max() > 1e-3
    for which, wanted in (("tuned", mine), ("difference", mine - theirs), ("plain", theirs)):
        at.segmented_control(key="lens_which").set_value(which)
        healthy(at.run())
        np.testing.assert_allclose(frame(at).to_numpy(), wanted, rtol=1e-4, atol=1e-4)
        made: dict[str, Any] = {}
        exec(at.code[0].value, made)
        for sent, own in zip(figure_of(at)["data"], made["fig"].to_plotly_json()["data"], strict=True):
            z = [array(each["z"]).astype(float) for each in (sent, own)]
            np.testing.assert_allclose(*z, rtol=1e-4, atol=1e-4)
        halves = at.toggle(key="lens_halves")
        assert (halves.disabled, halves.value) == (which != "plain", False)
        assert ("No map was trained" in halves.help) if which != "plain" else not halves.help
        assert (r"a \`draw\` of \<b\>dice\</b\>" in texts(at).split("Row l")[1]) == (which != "plain")
        assert ("less the plain one" in texts(at)) == (which == "difference")
    fig = made["fig"]
    assert fig.data[0]["zmin"] is not None


def test_colours_of_a_difference_have_0_in_their_middle(model: HookedGPT) -> None:
    now = shown(opened(PAGE))
    _, cache = run(model, model.to_tokens(PROMPT))
    found, less = (
        lens.logit_lens(model, cache, now.target, now.foil, translate=each, progress=False).isel(prompt=0)
        for each in (lens_of(model), None)
    )
    for colour in chosen.COLOURS:
        own = tuned.Tuned.of(lens_of(model))
        cell = chosen.Cell(found, 1, 5, 0, 13, colour, False, False, own, less)
        z, look = map._look_of_difference(cell)
        assert look["scale"].low == -look["scale"].high == -np.abs(z).max()
        change = found[colour].values - less[colour].values
        np.testing.assert_array_equal(np.sign(z), np.sign(change) * (-1 if colour == "target_rank" else 1))
        assert f"tuned − plain: {chosen.COLOURS[colour]} {change[1, 5]:+.3g}" in map._said(now, cell)[1][5]


def test_a_bad_file_is_told_in_a_sentence_and_the_page_goes_on(model: HookedGPT, tmp_path: Path) -> None:
    good = bytes_of(lens_of(model), tmp_path)
    other = bytes_of(replace(lens_of(model), model="0" * 16), tmp_path)
    nan = lens_of(model)
    nan.weight[2, 3, 4] = torch.nan
    for content, said in (
        (good[:-9], "is no complete safetensors file"),
        (b"", "is no complete safetensors file"),
        (b"PK not that", "is no complete safetensors file"),
        (other, "is the lens of another model"),
        (bytes_of(nan, tmp_path), "NaN or infinite"),
    ):
        at = given(opened(PAGE), content)
        warned = "\n".join(each.value for each in at.warning).replace("\\", "")
        assert f"The file {said}" in warned or said in warned
        assert "Give a file that TunedLens.save wrote" in warned
        assert not any(bad in warned for bad in ("/tmp", "etc", "Traceback"))
        assert "Row l reads the stream" in texts(at)
        with pytest.raises(KeyError):
            at.segmented_control(key="lens_which")


def test_a_lens_stays_for_other_prompts_and_goes_with_its_model(model: HookedGPT, tmp_path: Path) -> None:
    at = given(opened(PAGE), bytes_of(lens_of(model), tmp_path))
    assert at.segmented_control(key="lens_which").value == "tuned"
    at.text_area(key="prompt").set_value("import os")
    healthy(at.run())
    assert at.segmented_control(key="lens_which").value == "tuned"
    healthy(at.switch_page("views/attribution.py").run())
    healthy(at.switch_page(PAGE).run())
    assert at.segmented_control(key="lens_which").value == "tuned"
    at.selectbox(key="model").set_value("stdlib-attn-2l")
    healthy(at.run())
    with pytest.raises(KeyError):
        at.segmented_control(key="lens_which")
    assert "_tuned" not in at.session_state
    assert "Row l reads the stream" in texts(at)


def test_one_is_trained_here_and_read_at_once(model: HookedGPT, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuned, "STEPS", 3)
    monkeypatch.setattr(tuned, "WIDTH", 16)
    at = opened(PAGE)
    assert any("3 steps on Python" in each.value for each in at.info)
    at.button(key="job_tuned_lens_start").click()
    healthy(at.run())
    end = time.monotonic() + 300
    while len(QUEUE):
        assert time.monotonic() < end
        time.sleep(0.05)
    healthy(at.run())
    assert at.segmented_control(key="lens_which").value == "tuned"
    assert "trained on 384 tokens of Python" in texts(at).replace("\\", "")
    kl = lens.logit_lens(model, run(model, model.to_tokens(PROMPT))[1], translate=at.session_state["_tuned"].lens).kl
    plain = lens.logit_lens(model, run(model, model.to_tokens(PROMPT))[1]).kl
    assert float(kl.mean()) != float(plain.mean())


def test_where_none_is_trained_it_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "This model reads no text" in texts(opened(PAGE, model="planted/induction"))
    monkeypatch.setattr(tuned, "MOST_WORK", 1.0)
    assert "too large for one to be trained here" in texts(opened(PAGE))


@pytest.mark.browser
@pytest.mark.slow
def test_a_click_on_a_cell_is_told_beside_it(
    model: HookedGPT, dashboard: str, new_page: Callable[..., Watched], pictures: Path
) -> None:
    watched = new_page()
    page = watched.open(f"{dashboard}/lens")
    grid = page.locator(".st-key-lens_grid_box .grid[data-ready='1']")
    grid.wait_for()
    _, cache = run(model, model.to_tokens(PROMPT))
    for row, pos in ((2, 7), (1, 12)):
        click(page, row, pos)
        page.get_by_text(f"Before layer {row}, position {pos}").wait_for()
        watched.idle()
        p = by_hand(model, cache["resid_pre", row][0])[pos].softmax(-1)
        page.get_by_text(f"Entropy {float(-(p * p.log()).sum()):.4g} nats").wait_for()
        assert grid.get_attribute("data-selected") == f"{row},{pos}"
        assert f"lens_pos={pos}" in page.url
    assert page.locator('input[aria-label="Position"]').input_value() == "12"
    page.reload()
    page.get_by_text("Before layer 1, position 12").wait_for()
    watched.idle()
    page.screenshot(path=pictures / "lens.png")
    grid.focus()
    for key in ("ArrowUp", "ArrowLeft", "Enter"):
        page.keyboard.press(key)
    page.get_by_text("Before layer 0 (embeddings), position 11").wait_for()
    watched.idle()


@pytest.mark.browser
@pytest.mark.slow
def test_a_narrow_window_shows_fewer_positions_with_their_words_and_the_minimap_moves_it(
    dashboard: str, new_page: Callable[..., Watched]
) -> None:
    watched = new_page("light", 800)
    page = watched.open(f"{dashboard}/lens")
    strip = page.locator(".st-key-lens_minimap_box .minimap[data-ready]")
    strip.wait_for()
    page.get_by_role("button", name="Earlier").wait_for()
    grid = page.locator(".st-key-lens_grid_box .grid[data-selected^='4,']")
    grid.wait_for()
    watched.idle()
    assert float(grid.get_attribute("data-side") or 0) >= 34
    first, last = [int(each) for each in (strip.get_attribute("data-ready") or "").split(",")]
    assert (last, 4 <= last - first < 13) == (13, True)
    assert grid.get_attribute("data-selected") == f"4,{12 - first}"
    box = strip.locator("canvas").bounding_box()
    page.mouse.click(box["x"] + 0.5 * box["width"] / 13, box["y"] + 12)
    page.locator(f".st-key-lens_minimap_box .minimap[data-ready='0,{last - first}']").wait_for()
    page.get_by_text("At the end: the model, position 0").wait_for()
    watched.idle()
    assert page.get_by_label("Position", exact=True).input_value() == "0"
    strip.focus()
    page.keyboard.press("End")
    page.get_by_text("At the end: the model, position 12").wait_for()
    watched.idle()
    page.set_viewport_size({"width": 1400, "height": 900})
    strip.wait_for(state="detached")
    watched.idle()


def click(page: Any, row: int, column: int) -> None:
    grid = page.locator(".st-key-lens_grid_box .grid")
    side, left, top = (float(grid.get_attribute(f"data-{name}")) for name in ("side", "left", "top"))
    at = {"x": left + (column + 0.5) * side, "y": top + (row + 0.5) * side}
    grid.locator("canvas").click(position=at)
