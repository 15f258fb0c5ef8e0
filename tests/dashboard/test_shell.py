"""The dashboard's shell: what is always on screen, and what it puts on show."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dashboards.parts import state
from interp import HookedGPT, zoo
from interp.tokenization import Tokenizer
from tests.dashboard.app import figure_of, healthy, opened, shown
from tests.dashboard.browser import ROOT, Watched
from tests.variants import variant

PROMPT = "def area(width, height):\n    return width *"


def warnings(at: Any) -> str:
    return " ".join(each.value for each in at.warning).replace("\\", "")


def test_it_opens_on_the_bundled_model_and_the_likeliest_tokens() -> None:
    at = opened()
    now = shown(at)
    assert (now.name, now.prompt, now.bos) == ("stdlib-4l", PROMPT, True)
    model = HookedGPT.from_pretrained("stdlib-4l")
    assert now.fingerprint == model.fingerprint()
    assert torch.equal(now.tokens, model.to_tokens(PROMPT))
    top = model(PROMPT)[0, -1].topk(2).indices.tolist()
    assert (now.q, [now.target, now.foil]) == (12, top)
    assert now.labels[1:5] == ["def", "·are", "a", "("]
    assert at.query_params["fp"] == now.fingerprint[:8]


def test_a_link_puts_its_state_on_show() -> None:
    now = shown(opened(prompt="x = y", bos="false", q="1", target=" height", foil=" width"))
    model = now.model
    assert now.tokens.tolist() == [model.tokenizer.encode("x = y")]
    assert (now.q, now.bos) == (1, False)
    assert [now.target, now.foil] == [model.to_single_token(" height"), model.to_single_token(" width")]


def test_a_link_to_other_weights_is_warned_of_and_one_to_these_is_not() -> None:
    fingerprint = shown(opened()).fingerprint[:8]
    assert "made with other weights" in warnings(opened(fp="00000000"))
    assert not opened(fp=fingerprint).warning
    at = opened(fp="00000000")
    at.selectbox(key="model").set_value("planted/induction").run()
    assert not healthy(at).warning


def test_a_link_to_a_model_that_is_not_here_says_so() -> None:
    for name in ("gpt2", "folder/../../etc", "/etc/passwd", "<script>alert(1)</script>"):
        at = opened(model=name)
        assert shown(at).name == "stdlib-4l"
        assert "names a model that is not here" in at.toast[0].value
        assert "<script>" not in at.toast[0].value


@pytest.mark.parametrize(
    "name", ["planted/induction", "planted/modular_addition", "modular-addition", "planted/sink_head"]
)
def test_models_without_a_tokenizer_read_token_ids(name: str) -> None:
    at = opened(model=name)
    now = shown(at)
    assert now.prompt.split() == [str(token) for token in now.tokens[0].tolist()] == now.labels
    at.text_area(key="prompt").set_value("1 x 99999 -3").run()
    assert "token ids; what is not: x, 99999, -3" in warnings(healthy(at))
    at.text_area(key="prompt").set_value("1, 0").run()
    assert shown(healthy(at)).tokens.tolist() == [[1, 0]]


def test_every_model_that_comes_along_opens() -> None:
    at = opened()
    for name in at.selectbox(key="model").options:
        at.selectbox(key="model").set_value(name).run()
        assert shown(healthy(at)).name == name


def test_an_empty_prompt_is_said_and_the_first_token_alone_is_offered() -> None:
    at = opened()
    at.text_area(key="prompt").set_value("").run()
    assert "There is no prompt. Type one, or pick an example." in warnings(healthy(at))
    (offer,) = [button for button in at.button if "first token alone" in button.label]
    offer.click().run()
    assert shown(healthy(at)).tokens.shape == (1, 1)
    at.text_area(key="prompt").set_value("x").run()
    at.text_area(key="prompt").set_value("").run()
    assert at.warning
    at.toggle(key="bos").set_value(False).run()
    assert not [button for button in healthy(at).button if "first token alone" in button.label]


@pytest.mark.parametrize(
    "prompt",
    [
        "<script>alert(1)</script><img src=x onerror=alert(1)>",
        "\u202eright to left\u200b",
        "🧠👩\u200d💻 é ü 漢字",
        "a\x00b\x07",
        ":red[hi] $x^2$ **bold** [link](javascript:alert(1)) :material/bolt:",
        " " * 40,
        "\n\n\t\r",
    ],
)
def test_hostile_prompts_are_read_as_text(prompt: str) -> None:
    at = opened(model="stdlib-4l", target="", prompt="x")
    at.text_area(key="prompt").set_value(prompt).run()
    now = shown(healthy(at))
    assert now.tokens.tolist() == [[now.model.tokenizer.bos_token_id, *now.model.tokenizer.encode(prompt)]]
    assert len(now.labels) == now.tokens.shape[1]
    assert all(char.isprintable() for label in now.labels for char in label)


def test_parts_of_characters_are_labelled_by_their_bytes() -> None:
    at = opened(prompt="م 🙂", bos="false")
    labels = [r"\xd9", r"\x85", "·", r"\xf0", r"\x9f", r"\x99", r"\x82"]
    assert shown(at).labels == labels
    assert list(figure_of(at)["layout"]["xaxis"]["ticktext"]) == [f"{i} {label}" for i, label in enumerate(labels)]


def test_a_prompt_beyond_the_context_loses_its_first_tokens_and_says_so() -> None:
    at = opened()
    long = "spam and eggs " * 7200
    at.text_area(key="prompt").set_value(long).run()
    now = shown(healthy(at))
    ids = now.model.tokenizer.encode(long)
    assert len(long) > 100_000
    assert now.tokens.tolist() == [[now.model.tokenizer.bos_token_id, *ids[-255:]]]
    assert f"first {len(ids) - 255:,} tokens are left out" in warnings(at)
    assert "prompt" not in at.query_params
    at.text_area(key="prompt").set_value("short").run()
    assert not healthy(at).warning


def test_a_target_of_several_tokens_shows_its_pieces_and_takes_one() -> None:
    at = opened()
    at.text_input(key="target").set_value(" heights").run()
    assert "Target token" in warnings(healthy(at))
    assert "is 2 tokens: ·height, s. Name one of them" in warnings(at)
    next(button for button in at.button if "Take ·height" in button.label).click().run()
    assert shown(healthy(at)).target == shown(at).model.to_single_token(" height")


def test_a_position_past_the_prompt_reads_its_last_token() -> None:
    at = opened(q="200")
    assert shown(at).q == 12
    assert "no position 200" in at.info[0].value
    at.number_input(key="q").set_value(3).run()
    assert shown(healthy(at)).q == 3
    assert not at.info


def test_examples_fill_in_the_prompt_and_what_is_asked() -> None:
    at = opened(q="3")
    example = zoo.examples("stdlib-4l", shown(at).model)[1]
    at.button(key="_example_1").click().run()
    now = shown(healthy(at))
    assert now.prompt == example.prompt
    assert now.q == len(now.labels) - 1
    assert now.target == now.model.to_single_token(example.target)


@pytest.mark.parametrize("name", zoo.bundled())
def test_examples_can_be_read_and_their_answers_are_tokens(name: str) -> None:
    model = HookedGPT.from_pretrained(name)
    for example in zoo.examples(name, model):
        for answer in filter(None, (example.target, example.foil)):
            assert int(answer) if model.tokenizer is None else model.to_single_token(answer)
        if model.tokenizer is not None:
            assert model.to_tokens(example.prompt).shape[1] <= model.cfg.n_ctx


def test_characters_that_a_vocabulary_lacks_are_listed_and_can_be_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = Tokenizer.characters("abc def")
    model = HookedGPT(variant("gpt2", d_vocab=tokenizer.d_vocab).cfg, tokenizer)
    model.save_pretrained(tmp_path / "letters")
    monkeypatch.setenv("INTERP_MODELS", str(tmp_path))
    at = opened(model="folder/letters", prompt="abéde")
    assert "'é' at 2" in warnings(at)
    next(button for button in at.button if button.label == "Drop them").click().run()
    assert shown(healthy(at)).prompt == "abde"


def test_a_state_file_holds_what_a_link_says_and_sets_it_again() -> None:
    from dashboards.parts.links import checked

    at = opened(q="3", target=" height")
    file = json.loads(json.dumps({"fields": {"model": "stdlib-4l", "q": 3, "target": " height", "prompt": "x" * 5000}}))
    assert checked(file)["q"] == 3
    for wrong in (
        {},
        {"fields": {"_opened": "x"}},
        {"fields": {"q": "3"}},
        {"fields": {"bos": 1}},
        {"fields": {"q": -1}},
    ):
        with pytest.raises(ValueError, match="state file"):
            checked(wrong)
    with pytest.raises(ValueError, match="not here: folder/x"):
        checked({"fields": {"model": "folder/x"}})
    assert shown(at).q == 3


def test_results_are_kept_by_weights_tokens_and_choices_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "store", state.Store())
    tokens, calls = torch.zeros(1, 600_000, dtype=torch.long), []
    other = tokens.clone()
    other[0, 300_000] = 1

    def asked(of: torch.Tensor, *key: int) -> torch.Tensor:
        return state.kept("f", of, _doubled, (of, calls), key)

    assert torch.equal(asked(tokens), 2 * tokens)
    assert torch.equal(asked(other), 2 * other)
    assert torch.equal(asked(tokens), 2 * tokens)
    assert len(calls) == 2
    asked(tokens, 1)
    assert len(calls) == 3
    monkeypatch.setattr(state, "LARGEST", 12_000_000)
    asked(tokens, 2)
    assert len(state.store) == 2
    monkeypatch.setattr(state, "get_script_run_ctx", lambda **_: SimpleNamespace(session_id="another"))
    asked(tokens, 3)
    asked(tokens, 4)
    assert len(state.store) == 4  # each session has room of its own, and reads what others had made
    asked(tokens, 2)
    assert len(calls) == 6
    monkeypatch.setattr(state, "IN_ALL", 16_000_000)
    asked(tokens, 5)
    assert len(state.store) == 3
    asked(tokens, 2)
    assert len(calls) == 7
    with pytest.raises(ValueError, match="no name of its own"):
        state.kept("f", tokens, lambda: 0, (), ())


def test_a_run_is_made_once_for_pages_that_read_different_parts_of_it() -> None:
    at = opened(prompt="def f(x):")
    now, made = shown(at), list[int]()
    state.store.clear()
    with now.model.hooks([("blocks.0.hook_resid_mid", lambda x, hook: made.append(1))]):
        cache = state.run(now, "blocks.*.attn.hook_z", "ln_final.hook_scale")
        state.run(now, "*.hook_mlp_out")
    _, own = now.model.run_with_cache(now.tokens)
    assert len(made) == 1
    assert set(cache) == {name for name in own if name.endswith((".attn.hook_z", "ln_final.hook_scale"))}
    for name in cache:
        torch.testing.assert_close(cache[name], own[name])
    torch.testing.assert_close(state.logits_at(now, 1, 4), now.model(now.tokens)[0, 1:4])


def _doubled(tokens: torch.Tensor, calls: list[int]) -> torch.Tensor:
    calls.append(1)
    return 2 * tokens


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1400, 800])
def test_every_page_opens_without_errors_or_foreign_requests(
    dashboard: str, new_page: Callable[..., Watched], scheme: str, width: int, pictures: Path
) -> None:
    watched = new_page(scheme, width)
    page = watched.open(dashboard)
    names = [link.splitlines()[-1] for link in page.locator('[data-testid="stSidebarNavLink"]').all_inner_texts()]
    listed = "Heads Lens Attribution Patching Ablation Compare Memories Generate Walkthrough Training Model"
    assert names == listed.split()
    for name in [*names[1:], names[0]]:
        watched.turn_to(name)
        page.wait_for_timeout(500)  # figures are drawn after the script has ended
        watched.idle()
        page.screenshot(path=pictures / f"{name}-{scheme}-{width}.png", full_page=True)
        assert page.locator('[data-testid="stMainBlockContainer"] [data-testid="stAlertContentError"]').count() == 0


@pytest.mark.slow
@pytest.mark.browser
def test_a_click_in_the_strip_a_key_a_link_and_going_back_agree(
    dashboard: str, new_page: Callable[..., Watched]
) -> None:
    watched = new_page()
    page = watched.open(dashboard)

    def reads(q: int) -> None:
        page.wait_for_selector(f'.st-key-prompt_strip button[data-place="{q}"][aria-pressed="true"]')
        watched.idle()
        assert page.get_by_label("Read position").input_value() == str(q)
        assert f"q={q}" in page.url

    page.locator('.st-key-prompt_strip button[data-place="5"]').click()
    reads(5)
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    reads(6)
    page.go_back()
    reads(5)
    page.go_forward()
    reads(6)
    page.get_by_label("Read position").fill("2")
    page.keyboard.press("Enter")
    reads(2)
    page.go_back()
    reads(5)  # what is typed takes the place of what it was typed over
    page.reload()
    reads(5)
    watched = new_page()
    page = watched.open(page.url)
    reads(5)


@pytest.mark.slow
@pytest.mark.browser
def test_hostile_tokens_are_shown_as_text(dashboard: str, new_page: Callable[..., Watched]) -> None:
    watched = new_page()
    page = watched.open(dashboard)
    prompt = "<img src=x onerror=alert(1)> $x$ :red[x] \u202e " + "é" * 60 + " x x"
    page.get_by_label("Prompt", exact=True).fill(prompt)
    page.keyboard.press("Control+Enter")
    n_tokens = HookedGPT.from_pretrained("stdlib-4l").to_tokens(prompt).shape[1]
    page.wait_for_selector(f'.st-key-prompt_strip button[data-place="{n_tokens - 1}"]')
    watched.idle()
    assert page.locator(".st-key-prompt_strip .strip button").count() == n_tokens
    assert page.locator(".st-key-prompt_strip img").count() == 0


@pytest.mark.slow
@pytest.mark.browser
def test_long_prompts_are_paged(dashboard: str, new_page: Callable[..., Watched]) -> None:
    watched = new_page()
    page = watched.open(dashboard)
    page.get_by_label("Prompt", exact=True).fill("spam and eggs " * 400)
    page.keyboard.press("Control+Enter")
    page.wait_for_selector('[data-testid="stAlert"]:has-text("left out")')
    watched.idle()
    assert page.locator(".st-key-prompt_strip .strip button").count() == 256
    assert "prompt=" not in page.url
    strip = page.locator(".st-key-prompt_strip .strip")
    above, below = strip.bounding_box(), strip.locator("[aria-pressed=true]").bounding_box()
    assert above["height"] <= 210
    assert above["y"] <= below["y"] <= above["y"] + above["height"] - below["height"]


@pytest.mark.slow
@pytest.mark.browser
def test_another_model_brings_its_own_prompt_and_the_field_shows_it(
    dashboard: str, new_page: Callable[..., Watched]
) -> None:
    watched = new_page()
    page = watched.open(f"{dashboard}/?target=+height")
    page.get_by_role("combobox", name="Model").fill("planted/induction")
    page.keyboard.press("Enter")
    page.wait_for_selector("text=Prompt (token ids)")
    watched.idle()
    now = shown(opened(model="planted/induction"))
    prompt = zoo.examples(now.planted or now.name, now.model)[0].prompt
    assert page.get_by_label("Prompt (token ids)", exact=True).input_value() == prompt
    assert page.get_by_label("Target token", exact=True).input_value() == ""
    assert "target=" not in page.url


@pytest.mark.slow
@pytest.mark.browser
def test_a_state_file_leaves_and_comes_back(dashboard: str, new_page: Callable[..., Watched], tmp_path: Path) -> None:
    page = new_page().open(f"{dashboard}/?q=4&target= height")
    page.get_by_label("Prompt", exact=True).fill("def f(spam):\n" + "    spam += 1\n" * 500)
    page.keyboard.press("Control+Enter")
    page.wait_for_selector('[data-testid="stAlert"]:has-text("left out")')
    with page.expect_download() as found:
        page.get_by_role("button", name="Download state").click()
    found.value.save_as(tmp_path / "state.json")
    said = json.loads((tmp_path / "state.json").read_text())
    assert (said["fields"]["q"], said["fields"]["target"]) == (4, " height")
    assert said["fields"]["prompt"].count("spam += 1") == 500
    other = new_page().open(dashboard)
    other.get_by_role("button", name="Open a state file").click()
    other.locator('.st-key-_state_upload input[type="file"]').set_input_files(tmp_path / "state.json")
    other.wait_for_selector('[data-testid="stAlert"]:has-text("left out")')
    other.wait_for_function("location.search.includes('q=4')")
    assert other.get_by_label("Target token", exact=True).input_value() == " height"
    (tmp_path / "bad.json").write_text('{"fields": {"_opened": "<b>"}}')
    last = new_page().open(dashboard)
    last.get_by_role("button", name="Open a state file").click()
    last.locator('.st-key-_state_upload input[type="file"]').set_input_files(tmp_path / "bad.json")
    last.wait_for_selector('[data-testid="stAlert"]:has-text("not known here")')


@pytest.mark.slow
@pytest.mark.browser
def test_the_link_is_copied_with_the_weights_that_it_is_pinned_to(
    dashboard: str, new_page: Callable[..., Watched]
) -> None:
    page = new_page().open(f"{dashboard}/?q=4")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Copy link").click()
    page.get_by_role("button", name="Copied").wait_for()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied == page.url
    assert "q=4" in copied
    assert "fp=" in copied


@pytest.mark.slow
def test_it_starts_from_a_clone_without_install(tmp_path: Path) -> None:
    for part in ("interp", "dashboards"):
        shutil.copytree(ROOT / part, tmp_path / "clone" / part)
    script = tmp_path / "clone" / "dashboards" / "heads.py"
    code = f"""
import sys
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in repr(finder)]
from streamlit.testing.v1 import AppTest
at = AppTest.from_file({str(script)!r}, default_timeout=60).run()
import interp
print([each.value for each in at.exception], interp.__file__)
"""
    env = {"PATH": "", "PYTHONSAFEPATH": "1", "HOME": str(tmp_path)}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=env)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split()[-2:] == ["[]", str(tmp_path / "clone" / "interp" / "__init__.py")]


@pytest.mark.slow
@pytest.mark.browser
def test_two_sessions_do_not_mix(dashboard: str, new_page: Callable[..., Watched]) -> None:
    first, second = new_page(), new_page()
    first.open(f"{dashboard}/?model=planted/induction")
    second.open(dashboard)
    first.page.locator('.st-key-prompt_strip button[data-place="4"]').click()
    first.page.wait_for_selector('.st-key-prompt_strip button[data-place="4"][aria-pressed="true"]')
    second.page.wait_for_selector('.st-key-prompt_strip button[data-place="12"][aria-pressed="true"]')
    assert second.page.locator('.st-key-prompt_strip button[data-place="1"]').inner_text() == "def"


def test_the_config_is_read_from_anywhere() -> None:
    text = (ROOT / "dashboards" / ".streamlit" / "config.toml").read_text()
    for line in ('address = "localhost"', "gatherUsageStats = false", "allowedHosts"):
        assert line in text
