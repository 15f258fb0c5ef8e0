"""The page Generate: its numbers are the library's, and what it draws is what `model.generate` draws."""

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from pandas import DataFrame
from streamlit.elements.lib import policies
from streamlit.testing.v1 import AppTest

from interp.generation import Sampling
from tests.dashboard.app import healthy, opened, shown
from tests.dashboard.browser import ROOT, Watched

PAGE = "views/generate.py"


def table(at: AppTest) -> DataFrame:
    return at.dataframe[0].value


def test_the_text_is_that_of_generate_and_the_table_shows_how_it_was_drawn() -> None:
    at = opened(PAGE, temperature="0.8", top_k="50", top_p="0.9", seed="7", new="12")
    now = shown(at)
    found = now.model.generate(
        now.tokens, 12, temperature=0.8, top_k=50, top_p=0.9, seed=7, return_type="full", on_overflow="slide"
    )
    at.number_input(key="step").set_value(5).run()
    shown_rows = table(healthy(at))
    text = found.tokens[0, : now.tokens.shape[1] + 5]
    with torch.no_grad():
        logits = now.model(text[None])[0, -1]
    probs = Sampling(temperature=0.8, top_k=50, top_p=0.9).distribution(logits[None], text[None])[0]
    drawn = shown_rows[shown_rows["drawn"] == "●"].iloc[0]
    token = int(found.tokens[0, len(text)])
    assert drawn["token"].replace("·", " ").replace("⏎", "\n") == now.model.to_single_str_token(token)
    assert drawn["logit"] == pytest.approx(float(logits[token]), abs=1e-4)
    assert drawn["probability"] == pytest.approx(float(probs[token]), abs=1e-4)
    below = float(probs[:token].double().sum())
    assert drawn["from"] == pytest.approx(below, abs=1e-4)
    assert below - 1e-4 <= float(found.random[0, 5]) <= below + float(probs[token]) + 1e-4
    assert shown_rows["probability"].sum() == pytest.approx(1, abs=1e-5)
    rest = shown_rows.iloc[-1]
    assert rest["token"] == f"rest ({len(probs) - len(shown_rows) + 1:,} tokens)"
    assert [*shown_rows.columns] == [
        "token", "logit", "− largest, ÷ temperature", "top k", "top p", "probability", "from", "to", "drawn"
    ]  # fmt: skip
    (caption,) = [each.value for each in at.caption if "number thrown" in each.value]
    assert f"{float(found.random[0, 5]):.6f}" in caption
    assert caption.count("✓") == 2


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ({"temperature": "0"}, "without chance"),
        ({"temperature": "0", "top_k": "5"}, "Top k change nothing"),
        ({"top_k": "1"}, "leaves one token"),
        ({"top_k": "5", "top_p": "0.5"}, "Top k acts first"),
        ({"top_p": "0"}, "would leave nothing"),
        ({"top_k": "1", "samples": "3"}, "All samples are the same"),
        ({"new": "9", "prompt": "spam and eggs " * 90}, "longer than the context"),
    ],
)
def test_choices_that_leave_others_idle_are_told(query: dict[str, str], said: str) -> None:
    at = opened(PAGE, **query)
    assert said in at.info[0].value


def test_without_chance_the_table_has_no_number_and_the_likeliest_is_taken() -> None:
    at = opened(PAGE, temperature="0")
    rows = table(at)
    assert "from" not in rows
    assert rows.iloc[0]["drawn"] == "●"
    assert rows.iloc[0]["probability"] == 1
    largest = shown(at).model(shown(at).tokens)[0, -1].detach().max()
    assert rows.iloc[0]["logit"] == pytest.approx(float(largest), abs=1e-4)


def test_every_control_can_be_moved_to_its_ends() -> None:
    at = opened(PAGE)
    for key in ("temperature", "top_k", "top_p", "penalty", "samples", "seed", "step"):
        control = at.number_input(key=key)
        for end in (control.min, control.max):
            if end is not None:
                healthy(at.number_input(key=key).set_value(end).run())
    at.text_input(key="stop").set_value("\n").run()
    assert "ended" in " ".join(each.value for each in healthy(at).caption)


@pytest.mark.parametrize("name", ["planted/copy", "planted/duplicate_token", "modular-addition", "planted/sink_head"])
def test_models_without_text_go_on_in_ids_or_say_why_not(name: str) -> None:
    at = opened(PAGE, model=name, new="3")
    cfg = shown(at).model.cfg
    if cfg.d_vocab == cfg.d_vocab_out:
        assert len(table(at))
    else:
        assert "writes no text" in at.warning[0].value


def test_the_code_makes_the_same_choice_again() -> None:
    at = opened(PAGE, temperature="0.7", top_k="9", seed="3", new="6", step="4", samples="2", prompt='a "quoted"\n\\n')
    (code,) = [block.value for block in at.code if "generation.explained" in block.value]
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0, run.stderr
    rows = table(at)
    drawn = rows[rows["drawn"] == "●"].iloc[0]
    token, random, stages = run.stdout.split(maxsplit=2)
    assert shown(at).model.to_single_str_token(int(token)) == drawn["token"].replace("·", " ").replace("⏎", "\n")
    assert drawn["from"] <= float(random) < drawn["to"]
    assert eval(stages)["logit"] == pytest.approx(drawn["logit"], abs=1e-4)


@pytest.mark.slow
@pytest.mark.browser
def test_a_click_on_a_token_shows_how_it_was_chosen(dashboard: str, new_page: Callable[..., Watched]) -> None:
    watched = new_page()
    page = watched.open(dashboard)
    watched.turn_to("Generate")
    page.get_by_label("Samples", exact=True).fill("2")
    page.keyboard.press("Enter")
    page.wait_for_selector('.st-key-sample_1 button[data-place="3"]')
    watched.idle()
    page.locator('.st-key-sample_1 button[data-place="3"]').hover()
    assert "others, after temperature and filters: " in page.locator(".st-key-sample_1 .foot").inner_text()
    page.locator('.st-key-sample_1 button[data-place="3"]').click()
    page.wait_for_selector('h3:has-text("How token 3 was chosen, in sample 1")')
    watched.idle()
    assert page.get_by_label("Step", exact=True).input_value() == "3"
    assert "row=1" in page.url
    assert "step=3" in page.url


def test_samples_differ_and_a_seed_gives_them_again() -> None:
    texts = []
    for seed in ("1", "1", "2"):
        at = opened(PAGE, samples="2", seed=seed)
        texts.append([block.value for block in at.code if not block.value.startswith("from interp")])
        assert texts[-1][0] != texts[-1][1]
    assert texts[0] == texts[1] != texts[2]


def test_numbers_beyond_their_limits_are_brought_back() -> None:
    at = opened(PAGE)
    for key, value in {"temperature": 1e9, "top_k": 10**9, "samples": 999, "row": 7, "step": 10**6}.items():
        at.session_state[key] = value
        healthy(at.run())
    for key in ("temperature", "top_k", "samples"):
        assert at.number_input(key=key).min <= at.number_input(key=key).value <= at.number_input(key=key).max
    at.selectbox(key="model").set_value("planted/copy").run()
    assert healthy(at).number_input(key="top_k").value <= shown(at).model.cfg.d_vocab_out


def test_what_the_controls_say_is_not_written_again(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(policies, "_shown_default_value_warning", False)
    monkeypatch.setattr(policies._LOGGER, "warning", lambda text, *_, **__: said.append(text))
    at = opened(PAGE)
    for temperature in (0.5, 2.0):
        at.number_input(key="temperature").set_value(temperature).run()
    healthy(at.run())
    assert not said
