"""The page on heads in chromium: everything that shows the selection agrees, whatever changed it."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import parse_qs, quote, urlparse

import pytest
import torch

from interp import GPTConfig, HookedGPT, heads, metrics, patching
from interp.tokenization import Tokenizer
from tests.dashboard.browser import Watched, chromium, served

pytestmark = [pytest.mark.browser, pytest.mark.slow]

PROMPT = "def area(width, height):\n    return width *"
HOSTILE = "<img src=x onerror=alert(1)> $x$ :red[x] \n**b** " + "q" * 60 + " 🙂 \u05d0\u05d1 the the the"
READY = ".grid[data-ready='1']"
FOCUSED = """(() => { let at = document.activeElement;
  while (at?.shadowRoot?.activeElement) at = at.shadowRoot.activeElement;
  return at?.className ?? '' })()"""
DRAWN = "document.querySelector('.st-key-pattern .js-plotly-plot')._fullData[0].z"


class Heads:
    """The page on heads, as somebody uses it."""

    def __init__(self, watched: Watched, url: str) -> None:
        self.watched, self.page = watched, watched.page
        self.watched.open(url)
        self.page.wait_for_selector(READY)

    def place(self, row: int, column: int) -> tuple[float, float]:
        grid, box = self.page.locator(READY), self.page.locator(".grid canvas").bounding_box()
        side, left, top = (float(grid.get_attribute(f"data-{name}")) for name in ("side", "left", "top"))
        return box["x"] + left + (column + 0.5) * side, box["y"] + top + (row + 0.5) * side

    def click(self, row: int, column: int) -> None:
        self.page.mouse.click(*self.place(row, column))

    def told(self, row: int, column: int) -> str:
        """What hovering over a cell says."""
        self.page.mouse.move(*self.place(row, column))
        self.page.wait_for_selector(".grid .tip:not([hidden])")
        return self.page.locator(".grid .tip").inner_text()

    def value(self, label: str) -> str:
        return self.page.get_by_label(label, exact=True).input_value()

    def agree(self, layer: int, head: int) -> None:
        """Inputs, link, pattern and grid show this head."""
        self.page.locator(".st-key-pattern .gtitle", has_text=f"L{layer}H{head}").wait_for(timeout=20_000)
        self.watched.idle()
        self.page.wait_for_selector(f".grid[data-selected='{layer},{head}'][data-ready='1']")
        assert (self.value("Layer"), self.value("Head")) == (str(layer), str(head))
        link = parse_qs(urlparse(self.page.url).query)
        assert (link["layer"], link["head"]) == ([str(layer)], [str(head)])
        assert self.page.locator(".st-key-pattern .gtitle").text_content().startswith(f"L{layer}H{head}")


def test_a_click_arrows_typing_back_and_a_reload_leave_all_that_shows_the_head_in_step(
    dashboard: str, new_page: Callable[..., Watched]
) -> None:
    on = Heads(new_page(), f"{dashboard}/?layer=1&head=2")
    on.agree(1, 2)
    on.click(0, 0)
    on.agree(0, 0)
    on.click(2, 5)
    on.agree(2, 5)
    on.page.locator(".grid").focus()
    for key in ("ArrowDown", "ArrowRight", "Enter"):
        on.page.keyboard.press(key)
    on.agree(3, 6)
    field = on.page.get_by_label("Layer", exact=True)
    field.fill("1")
    field.press("Enter")
    on.agree(1, 6)
    url = on.page.url
    on.page.reload()
    on.page.wait_for_selector(READY)
    on.agree(1, 6)
    other = Heads(new_page(), url)
    other.agree(1, 6)


def test_after_going_back_all_that_shows_the_head_agrees_with_the_link(
    dashboard: str, new_page: Callable[..., Watched]
) -> None:
    on = Heads(new_page(), f"{dashboard}/?layer=1&head=2")
    on.click(2, 5)
    on.agree(2, 5)
    on.click(3, 6)
    on.agree(3, 6)
    for at in ((2, 5), (1, 2)):
        on.page.go_back()
        on.agree(*at)


def test_hovering_says_the_librarys_numbers(dashboard: str, new_page: Callable[..., Watched]) -> None:
    model = HookedGPT.from_pretrained("stdlib-4l").eval()
    tokens = model.to_tokens(PROMPT)
    with torch.no_grad():
        target, foil = model(tokens)[0, -1].topk(2).indices.tolist()
    focus = 1 - heads.corpus_statistics(model, tokens, progress=False).relative_entropy
    _, cache = model.run_with_cache(tokens)
    direct = heads.direct_effects(model, cache, target, foil)[..., 0]
    of = metrics.logit_diff(model, target, foil)
    zeroed = patching.ablation(model, tokens, "z", of, progress=False)
    zeroed = (zeroed - zeroed.base)[..., 0]
    for query, wanted in (
        ("show=Score&score=focus+here", focus),
        ("show=Effect&effect=direct+effect", direct),
        ("show=Effect&effect=zeroed", zeroed),
    ):
        on = Heads(new_page(), f"{dashboard}/?{query}")
        if (button := on.page.locator(".st-key-ablate_grid_zero button")).count():
            button.click()
            on.page.wait_for_selector(READY)
        for layer, head in ((0, 0), (1, 7), (3, 4)):
            said, number = on.told(layer, head).split(" ")
            assert said == f"L{layer}H{head}"
            assert float(number) == pytest.approx(float(wanted[layer, head]), rel=2e-3, abs=2e-4)


def test_tokens_that_look_like_markup_are_text(dashboard: str, new_page: Callable[..., Watched]) -> None:
    on = Heads(new_page(), f"{dashboard}/?prompt={quote(HOSTILE)}")
    on.told(1, 3)
    on.page.wait_for_timeout(500)
    assert on.page.locator("img[src='x']").count() == 0
    tips = on.told(0, 0)
    assert tips.startswith("L0H0\nmost at ")
    n_tokens = on.page.locator(".st-key-prompt_strip .strip button").count()
    assert n_tokens > 20
    assert on.page.evaluate(f"[{DRAWN}.length, {DRAWN}[0].length]") == [n_tokens, n_tokens]
    ticks = on.page.locator(".st-key-pattern .xtick text")
    every = -(-n_tokens // 20)
    assert ticks.count() == -(-n_tokens // every)


def test_all_of_it_can_be_done_with_the_keyboard(dashboard: str, new_page: Callable[..., Watched]) -> None:
    on = Heads(new_page(), f"{dashboard}/?layer=1&head=2")
    for _ in range(80):
        on.page.keyboard.press("Tab")
        if on.page.evaluate(FOCUSED) == "grid":
            break
    assert on.page.evaluate(FOCUSED) == "grid"
    on.page.keyboard.press("ArrowLeft")
    live = on.page.locator(".grid .live")
    assert live.inner_text().startswith("L1H1")
    on.page.keyboard.press(" ")
    on.agree(1, 1)
    assert on.page.locator(".grid").get_attribute("aria-label")
    assert on.page.locator(".grid").get_attribute("role") == "application"


def test_each_grid_listens_once_however_often_it_was_drawn(dashboard: str, new_page: Callable[..., Watched]) -> None:
    on = Heads(new_page(), dashboard)
    devtools = on.page.context.new_cdp_session(on.page)
    for prompt in ("a b", "a b c", "a b c d"):
        on.page.get_by_label("Prompt", exact=True).fill(prompt)
        on.page.keyboard.press("Control+Enter")
        last = len(prompt.split())
        on.page.wait_for_selector(f'.st-key-prompt_strip button[data-place="{last}"][aria-pressed="true"]')
        on.watched.idle()
        on.page.wait_for_selector(READY)
    window = devtools.send("Runtime.evaluate", {"expression": "window"})["result"]["objectId"]
    heard = devtools.send("DOMDebugger.getEventListeners", {"objectId": window})["listeners"]
    assert [each["type"] for each in heard].count("interp-mark") == 1


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A dashboard with a model of 32 × 32 heads."""
    chromium()
    folder: Path = tmp_path_factory.mktemp("models")
    cfg = GPTConfig(n_layers=32, n_heads=32, d_head=4, d_model=128, n_ctx=256, d_vocab=257, seed=0, attn_only=True)
    model = HookedGPT(cfg)
    model.tokenizer = Tokenizer.bytes()
    model.save_pretrained(folder / "large")
    environment = os.environ | {"INTERP_MODELS": str(folder), "OMP_NUM_THREADS": "1"}
    with served(folder / "log", folder, env=environment) as address:
        yield address


def test_1024_heads_and_256_tokens_stay_within_bounds(large: str, new_page: Callable[..., Watched]) -> None:
    watched = new_page()
    on = Heads(watched, f"{large}/?model=folder/large&prompt={quote('a long text, ' * 19)}&layer=3&head=4")
    on.agree(3, 4)
    assert "score=" not in on.page.url
    watched.received = 0
    on.click(20, 30)
    on.agree(20, 30)
    assert watched.received < 3 * 200_000
    on.page.locator(".st-key-show").get_by_text("Pattern").click()
    on.page.locator(".grid .legend b", has_text="by square root").wait_for(timeout=60_000)
    watched.idle()
    on.page.wait_for_selector(READY)
    assert watched.received < 3 * 2_800_000
