"""The page Walkthrough: at every stage of every model its numbers are the model's, and its code makes them again."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pandas import DataFrame
from streamlit.testing.v1 import AppTest
from torch import Tensor

from dashboards.parts import models
from dashboards.parts.walkthrough.texts import STAGES, TITLES, Facts
from interp import HookedGPT
from interp.generation import Sampling, keep_top_k, keep_top_p
from tests.dashboard.app import array, figure_of, healthy, opened, shown
from tests.dashboard.browser import Watched
from tests.families import saved_model
from tests.variants import SOLU, variant

PAGE = "views/walkthrough.py"
THREE = ["stdlib-4l", "planted/induction", "folder/llama"]
NOT_NUMBERS = ("quantity", "shape", "is", "axes", "hook point")


@pytest.fixture
def llama(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The allowed folder, with a random Llama in it: RMS norms, rotary, grouped queries, a gated MLP."""
    saved_model("Llama 2 and 3.x", tmp_path / "llama")
    monkeypatch.setenv("INTERP_MODELS", str(tmp_path))
    return tmp_path


def of_head(at: AppTest, layer: int, head: int) -> AppTest:
    at.number_input(key="layer").set_value(layer)
    at.number_input(key="head").set_value(head).run()
    return healthy(at)


def at_stage(at: AppTest, title: str) -> AppTest:
    at.radio(key="stage").set_value(title).run()
    return healthy(at)


def table(at: AppTest, column: str) -> DataFrame:
    """The one table with such a column."""
    (found,) = [each.value for each in at.dataframe if column in each.value]
    return found


def rows(at: AppTest) -> list[dict[str, Any]]:
    return [row for each in at.dataframe if "quantity" in each.value for row in each.value.to_dict("records")]


def told(row: dict[str, Any]) -> dict[str, float]:
    """The numbers of a row, by the places that they are of."""
    return {label: value for label, value in row.items() if label not in NOT_NUMBERS}


def place_of(label: str) -> int:
    found = re.match(r"\[?N?(\d+)", label)
    assert found is not None, label
    return int(found[1])


def said(at: AppTest) -> str:
    return " ".join(each.value for each in (*at.caption, *at.info, *at.markdown, *at.warning))


@torch.no_grad()
def of_hook(model: HookedGPT, tokens: Tensor, hook: str, q: int, head: int) -> Tensor:
    """What one whole pass has at a hook point."""
    x = model.run_with_cache(tokens, names_filter=[hook])[1][hook][0]
    axes = model.hook_dict[hook].axes.split()[1:]
    group = model.cfg.n_heads // model.cfg.n_key_value_heads
    places = {"pos": q, "query_pos": q, "head": head, "kv_head": head // group}
    return x[tuple(places.get(axis, slice(None)) for axis in axes)]


@pytest.mark.parametrize("name", models.names())
def test_every_stage_of_every_model_is_drawn_or_its_lack_is_told(name: str) -> None:
    at = opened(PAGE, model=name)
    cfg = shown(at).model.cfg
    for stage in STAGES:
        at_stage(at, stage.title)
        assert not at.error
        assert not at.warning
        assert stage.asks in [each.value for each in at.subheader]
        has_numbers = bool(at.dataframe)
        assert has_numbers != bool(at.info), stage.title
        assert "✗" not in said(at), stage.title
        if cfg.attn_only and stage.title in ("Expand", "Activation", "Contract", "MLP added"):
            assert "attention alone" in at.info[0].value


@pytest.mark.parametrize("name", THREE)
def test_the_numbers_on_screen_are_those_of_a_pass_with_a_cache(name: str, llama: Path) -> None:
    at = of_head(opened(PAGE, model=name), 1, 1)
    now, n_checked = shown(at), 0
    for stage in STAGES:
        at_stage(at, stage.title)
        for row in rows(at):
            if not row.get("hook point") or row["quantity"].startswith("k of"):
                continue
            wanted = of_hook(now.model, now.tokens, row["hook point"], now.q, 1)
            for label, value in told(row).items():
                assert value == pytest.approx(float(wanted[place_of(label)]), abs=1e-4, rel=1e-4), (stage.title, row)
                n_checked += 1
    assert n_checked > 60


@pytest.mark.parametrize("name", THREE)
def test_the_code_of_every_stage_makes_its_numbers_and_its_figure_again(name: str, llama: Path) -> None:
    at = opened(PAGE, model=name)
    for stage in STAGES:
        at_stage(at, stage.title)
        if not at.dataframe:
            continue
        (code,) = [block.value for block in at.code if "numbers = " in block.value]
        scope: dict[str, Any] = {}
        exec(code.replace("'folder/llama'", repr(str(llama / "llama"))), scope)
        made = scope["numbers"]
        for row in rows(at):
            for label, value in told(row).items():
                own = np.asarray(torch.as_tensor(made[row["quantity"]]).detach())[place_of(label)]
                assert value == pytest.approx(float(own), abs=1e-4, rel=1e-4), (stage.title, row)
        if any("probability" in each.value for each in at.dataframe):
            np.testing.assert_allclose(
                made["probability"], table(at, "probability")["probability"][: len(made["own"])], atol=1e-5
            )
        if "fig" in scope:
            drawn, again = figure_of(at)["data"], scope["fig"].data
            assert len(drawn) == len(again)
            for one, other in zip(drawn, again, strict=True):
                values = "z" if "z" in one else "x"
                np.testing.assert_allclose(
                    array(one[values]).astype(float), np.asarray(other[values], dtype=float), atol=1e-4, rtol=1e-4
                )
        else:
            assert stage.title in ("Text", "Tokens")


def test_the_merges_are_those_of_the_word_that_is_read() -> None:
    at = opened(PAGE, stage="Tokens", q="5")
    model = shown(at).model
    assert model.tokenizer is not None
    merges = model.tokenizer.merges("width")
    found = table(at, "rank")
    assert found["rank"].tolist() == [merge.rank for merge in merges]
    assert [text.split(" | ") for text in found["pieces after it"]] == [merge.pieces for merge in merges]
    assert "They end in width ✓" in said(at)
    at.number_input(key="q").set_value(0).run()
    assert "was put before the text" in healthy(at).info[0].value
    at.text_area(key="prompt").set_value("x" * 500).run()
    at.number_input(key="q").set_value(2).run()
    assert "This word has 500 bytes" in healthy(at).info[0].value
    at.text_area(key="prompt").set_value("é").run()
    assert "There is nothing to join here" in said(healthy(at))


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"temperature": "0.5"},
        {"temperature": "2", "top_k": "7"},
        {"top_p": "0.6"},
        {"temperature": "0.8", "top_k": "50", "top_p": "0.9"},
        {"temperature": "0"},
        {"top_k": "3", "seed": "5"},
    ],
)
def test_the_token_is_drawn_from_the_whole_vocabulary_by_the_filters_of_generation(how: dict[str, str]) -> None:
    at = opened(PAGE, stage="Sampled token", **how)
    now = shown(at)
    with torch.no_grad():
        logits = now.model(now.tokens)[:, now.q]
    t, k, p = float(how.get("temperature", 1)), int(how.get("top_k", 0)) or None, float(how.get("top_p", 1))
    left = logits / t if t else torch.full_like(logits, -torch.inf).scatter(1, logits.argmax(-1, keepdim=True), 0.0)
    left = left if k is None else keep_top_k(left, k)
    probs = (keep_top_p(left, p) if p < 1 else left).softmax(-1)[0]
    found = table(at, "probability")
    names = now.model.tokenizer.token_strings(range(len(probs)))  # type: ignore[union-attr]
    order = probs.argsort(descending=True)[: min(20, int((probs > 0).sum()))].tolist()
    np.testing.assert_allclose(found["probability"][: len(order)], probs[order], atol=1e-5)
    assert found["token"][0].replace("·", " ") == names[order[0]]
    assert found["token"].iloc[-1] == f"rest ({len(probs) - 20:,})"
    assert found["probability"].sum() == pytest.approx(1, abs=1e-4)
    assert f"{int((probs > 0).sum()):,} of {len(probs):,} outputs are left" in said(at)
    written = now.model.generate(
        now.tokens,
        1,
        temperature=t,
        top_k=k,
        top_p=p if p < 1 else None,
        seed=int(how.get("seed", 0)),
        return_type="tokens",
    )
    drawn = [each.value for each in at.markdown if "likeliest is taken" in each.value or "number thrown" in each.value]
    assert names[int(written[0, -1])].strip() in drawn[0].replace("\\", "")


def test_filters_and_temperature_are_told_step_by_step() -> None:
    at = opened(PAGE, stage="Temperature", temperature="0.5")
    assert "top k" not in table(at, "probability")
    at_stage(at, "Top k, top p")
    at.number_input(key="top_k").set_value(4).run()
    at.number_input(key="top_p").set_value(0.9).run()
    found, now = table(healthy(at), "probability"), shown(at)
    assert [*found.columns] == [
        "token", "logit", "− largest, ÷ temperature", "top k", "top p", "probability", "softmax of the logit"
    ]  # fmt: skip
    with torch.no_grad():
        stages = Sampling(temperature=0.5, top_k=4, top_p=0.9).stages(now.model(now.tokens)[:, now.q], now.tokens)
    ids = stages["probability"][0].argsort(descending=True)[:2]
    for name, column in (("top k", "top k"), ("top p", "top p"), ("temperature", "− largest, ÷ temperature")):
        np.testing.assert_allclose(found[column][:2], stages[name][0, ids], atol=1e-4)


@pytest.mark.parametrize("name", THREE)
def test_the_next_token_has_one_query_and_the_numbers_of_a_full_run(name: str, llama: Path) -> None:
    at = of_head(opened(PAGE, model=name, stage="Next token", temperature="0", q="4"), 1, 1)
    now, n = shown(at), 5
    shapes = {row["quantity"]: row["shape"] for row in rows(at)}
    d_head = now.model.cfg.d_head
    assert shapes == {
        "q": f"1 × {d_head}", "k": f"{n + 1} × {d_head}", "v": f"{n + 1} × {d_head}", "z": f"1 × {d_head}",
        "scores": f"1 × {n + 1}", "weights": f"1 × {n + 1}",
    }  # fmt: skip
    assert re.search(r"Equal to one pass over the whole text.*✓", said(at))
    with torch.no_grad():
        token = now.model(now.tokens)[0, 4].argmax()
    longer = torch.cat((now.tokens[:, :n], token[None, None]), 1)
    hooks = {"z": "blocks.1.attn.hook_z", "weights": "blocks.1.attn.hook_pattern", "v": "blocks.1.attn.hook_v"}
    for row in rows(at):
        if row["quantity"] in hooks:
            wanted = of_hook(now.model, longer, hooks[row["quantity"]], n, 1)
            for label, value in told(row).items():
                if not np.isnan(value):
                    assert value == pytest.approx(float(wanted[place_of(label)]), abs=1e-4)


def test_half_precision_is_held_to_what_it_can_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = variant("gemma2", torch.bfloat16, n_ctx=40)
    model.save_pretrained(tmp_path / "half")
    monkeypatch.setenv("INTERP_MODELS", str(tmp_path))
    at = opened(PAGE, model="folder/half", prompt="1 2 3 4 5 6 7 8 9")
    assert shown(at).model.dtype == torch.bfloat16
    for title in TITLES:
        assert "✗" not in said(at_stage(at, title)), title


def test_what_a_model_lacks_is_told_in_its_place() -> None:
    lacks = {
        "stdlib-4l": {"Positions": "rotary"},
        "modular-addition": {
            "Text": "token ids",
            "Tokens": "token ids",
            "Turn": "as they are",
            "Next token": "answers",
        },
        "planted/copy": {"Text": "token ids", "Norm before attention": "no norms", "Final norm": "no final norm"},
    }
    for name, stages in lacks.items():
        at = opened(PAGE, model=name)
        for title, words in stages.items():
            assert words in at_stage(at, title).info[0].value


def test_positions_beside_the_stream_and_neurons_that_share_a_softmax_are_told() -> None:
    facts = Facts(variant("gpt2", **SOLU).cfg, layer=0, has_tokenizer=True)
    stage = {each.title: each for each in STAGES}
    assert "read the position beside it" in (stage["Positions"].missing(facts) or "")
    assert "have come in before" in (stage["Turn"].missing(facts) or "")
    assert "one softmax" in stage["Activation"].answer(facts)
    assert "What is left is normed" in stage["Activation"].answer(facts)


def test_a_prompt_as_long_as_the_context_is_walked_along_in_windows() -> None:
    at = opened(PAGE, stage="Softmax", prompt="spam and eggs " * 120)
    now = shown(at)
    n = now.model.cfg.n_ctx
    assert len(now.labels) == n
    for title in ("Scores", "Scaling", "Mask", "Softmax"):
        at_stage(at, title)
        assert {array(trace["z"]).shape for trace in figure_of(at)["data"]} == {(32, 32)}
        assert f"The whole is {n} × {n}; drawn are tokens {n - 32} to {n - 1}" in said(at)
    at.slider(key="_walk_first").set_value(10).run()
    assert "drawn are tokens 10 to 41" in said(healthy(at))
    own = figure_of(at)["data"]
    weights = next(trace for trace in own if trace["name"] == "weights")
    with torch.no_grad():
        layer, head = (int(at.number_input(key=key).placeholder) for key in ("layer", "head"))
        pattern = now.model.run_with_cache(now.tokens, names_filter=f"blocks.{layer}.attn.hook_pattern")[1][
            "pattern", layer
        ]
    np.testing.assert_allclose(array(weights["z"]), pattern[0, head, 10:42, 10:42], atol=1e-5)
    assert "context is full" in at_stage(at, "Next token").info[0].value
    at.number_input(key="q").set_value(3).run()
    assert not healthy(at).info


def test_a_link_holds_stage_layer_and_head_and_buttons_lead_on() -> None:
    at = of_head(opened(PAGE, stage="Mask"), 2, 3)
    assert at.radio(key="stage").value == "Mask"
    assert "Attention of layer 2, head 3" in said(at)
    at.button(key="walk_Next").click().run()
    assert healthy(at).radio(key="stage").value == "Softmax"
    at.button(key="walk_Back").click().run()
    assert healthy(at).radio(key="stage").value == "Mask"
    at.selectbox(key="model").set_value("planted/copy").run()  # a smaller model: what was picked gives way
    assert "Attention of layer" in said(healthy(at))
    assert opened(PAGE, stage="nonsense").radio(key="stage").value == TITLES[0]


def test_the_token_that_was_drawn_joins_the_prompt() -> None:
    at = opened(PAGE, stage="Next token", temperature="0")
    before = shown(at)
    with torch.no_grad():
        token = int(before.model(before.tokens)[0, -1].argmax())
    at.button(key="walk_on").click().run()
    now = shown(healthy(at))
    assert now.tokens.tolist() == [[*before.tokens[0].tolist(), token]]
    assert now.q == len(before.labels)


@pytest.mark.browser
def test_stages_are_jumped_to_and_the_filters_redraw(dashboard: str, new_page: Callable[..., Watched]) -> None:
    watched = new_page()
    page = watched.open(f"{dashboard}/walkthrough?stage=Temperature&layer=2&head=3")
    page.wait_for_selector(".st-key-temperature input")
    watched.idle()
    page.locator(".st-key-temperature input").fill("0")
    page.keyboard.press("Enter")
    page.wait_for_function("() => location.search.includes('temperature=0')")
    page.wait_for_selector(".st-key-walk_stage :text('1 of 4,096 outputs are left')")
    page.locator(".st-key-stage").get_by_text("Softmax", exact=True).click()
    page.wait_for_selector("h3:has-text('How do scores become weights?')")
    watched.idle()
    assert {"stage=Softmax", "layer=2", "head=3"} <= {*page.url.split("?")[1].split("&")}
    page.wait_for_selector(".st-key-walk_stage :text('Attention of layer 2, head 3')")
    page.locator(".st-key-stage input[type=radio]:checked").press("ArrowDown")
    page.wait_for_selector("h3:has-text('What does the head take from there?')")
    watched.idle()
    page.locator(".st-key-walk_Back button").click()
    page.wait_for_selector("h3:has-text('How do scores become weights?')")
    page.locator('.st-key-prompt_strip button[data-place="3"]').click()
    page.wait_for_selector(".st-key-walk_stage :text('that of the query at 3')")
    watched.idle()
    page.get_by_text("In full: the page Heads").click()
    page.wait_for_selector(".st-key-explorer")
    watched.idle()
    assert "q=3" in page.url or page.locator('.st-key-prompt_strip button[data-place="3"][aria-pressed="true"]').count()


@pytest.mark.browser
@pytest.mark.parametrize(("scheme", "width"), [("light", 1400), ("dark", 800)])
def test_the_walk_fits_its_window(
    dashboard: str, new_page: Callable[..., Watched], pictures: Path, scheme: str, width: int
) -> None:
    watched = new_page(scheme, width)
    page = watched.open(f"{dashboard}/walkthrough?stage=Mask")
    page.wait_for_selector(".st-key-walk_figure .gtitle, .st-key-walk_figure text")
    watched.idle()
    boxes = {name: page.locator(f".st-key-{name}").bounding_box() for name in ("walk_stages", "walk_stage")}
    assert all(box and box["x"] + box["width"] <= width for box in boxes.values())
    assert boxes["walk_stage"]["width"] >= 400
    is_beside = boxes["walk_stage"]["x"] > boxes["walk_stages"]["x"] + boxes["walk_stages"]["width"] - 1
    assert is_beside == (width > 1100)
    page.screenshot(path=pictures / f"walk-{scheme}-{width}.png", full_page=True)
    assert (pictures / f"walk-{scheme}-{width}.png").stat().st_size > 10_000
