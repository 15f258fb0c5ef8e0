"""The dashboard in chromium, against what a viewer waits for gladly: `make bench`."""

import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

from interp import GPTConfig, HookedGPT
from interp.corpus import standard_library
from tests.bench.patching import SHAPE
from tests.dashboard.browser import Watched, resident, served

CLICKS = 8
READY = ".grid[data-ready='1']"
SEEN = {  # what a page shows first that no other does
    "Heads": ".st-key-pattern .gtitle",
    "Lens": ".st-key-lens_grid .grid[data-ready='1']",
    "Attribution": ".st-key-attribution_bars .gtitle",
    "Patching": ".st-key-other textarea",
    "Ablation": ".st-key-abl input",
    "Compare": ".st-key-compare_by button",
    "Memories": ".st-key-memories .gtitle",
    "Generate": "h3:has-text('was chosen')",
    "Walkthrough": ".st-key-walk_stage h3",
    "Training": ".st-key-train_figures .gtitle, .st-key-train_run input",
    "Model": "h3:has-text('Hook points')",
}
WATCHES = """
window.longTasks = [];
new PerformanceObserver((list) => { for (const task of list.getEntries()) window.longTasks.push(task.duration) })
  .observe({type: 'longtask', buffered: true});
"""
HOVER = """(grid) => new Promise((done) => {
  const canvas = grid.querySelector('canvas'), tip = grid.querySelector('.tip');
  let start = 0;
  canvas.addEventListener('mousemove', () => { start ||= performance.now() }, {capture: true});
  new MutationObserver(() => { if (start && !tip.hidden) requestAnimationFrame(() => done(performance.now() - start)) })
    .observe(tip, {attributes: true, childList: true, subtree: true, characterData: true});
  window.isListening = true;
})"""


class Bench:
    """A model on show in a browser, timed."""

    def __init__(self, browser: Any, address: str, query: str, name: str) -> None:
        self.browser, self.address, self.url, self.name = browser, address, f"{address}/?{query}", name
        self.received = 0

    def page(self) -> Watched:
        """A page of a browser that has seen nothing yet."""
        page = self.browser.new_context(viewport={"width": 1400, "height": 900}).new_page()
        page.add_init_script(WATCHES)
        page.on("websocket", lambda socket: socket.on("framereceived", self._frame))
        return Watched(page)

    def run(self) -> None:
        """Every number, each with its target."""
        seconds, _ = self.opened(self.page())
        self.say("opened in a new session, the model unread", seconds)
        watched = self.page()
        grid, text = self.opened(watched)
        self.say("first text, cold browser", text, 1.5)
        self.say("first grid, cold browser", grid, 2.5)
        grid, _ = self.opened(watched)
        self.say("first grid, warm browser", grid, 1.0)
        watched.idle()
        self.say("hover feedback", self.hover(watched.page), 0.05)
        clicks = [self.click(watched, i) for i in range(CLICKS)]
        self.say("click a head: its pattern", median(seconds for seconds, _, _ in clicks), self.click_target)
        self.say("… message", max(size for _, size, _ in clicks) / 1e3, 200, "kB")
        self.say("… main thread blocked", median(blocked for _, _, blocked in clicks), 0.3)
        links = watched.page.get_by_test_id("stSidebarNavLink")
        names = [link.splitlines()[-1] for link in links.all_inner_texts()]
        for again in (False, True):
            turns = {name: self.turn(watched, name) for name in [*names[1:], names[0]]}
            listed = ", ".join(f"{name} {seconds:.2f}" for name, seconds in turns.items())
            what = "turn to a page, once seen" if again else "turn to a page for the first time"
            self.say(f"{what} ({listed}), median", median(turns.values()), 0.5 if again else None)
        watched.check()
        self.say("server memory of 20 more prompts", self.memory(watched), 300, "MB")

    @property
    def click_target(self) -> float:
        return 0.4 if self.name.startswith("stdlib") else 0.7

    def opened(self, watched: Watched) -> tuple[float, float]:
        """Seconds to the grid, and to the first text."""
        start = time.perf_counter()
        watched.page.goto(self.url)
        watched.page.wait_for_selector(READY, timeout=120_000)
        seconds = time.perf_counter() - start
        paint = "performance.getEntriesByName('first-contentful-paint')[0].startTime"
        text = watched.page.evaluate(paint) / 1e3
        watched.page.locator(".st-key-pattern .gtitle").wait_for(timeout=60_000)
        watched.idle()
        return seconds, text

    def hover(self, page: Any) -> float:
        found = []
        for column in range(3):
            x, y = self.place(page, 1, column)
            page.mouse.move(5, 5)
            page.evaluate("window.isListening = false")
            page.locator(READY).evaluate(f"(grid) => {{ window.hovered = ({HOVER})(grid) }}")
            page.mouse.move(x, y)
            found.append(page.evaluate("window.hovered") / 1e3)
        return median(found)

    def click(self, watched: Watched, i: int) -> tuple[float, int, float]:
        """Seconds to the pattern of another head, bytes sent for it, seconds in which the page could not answer."""
        page = watched.page
        layer, head = 1 + i % 3, 1 + i // 2
        x, y = self.place(page, layer, head)
        page.evaluate("window.longTasks.length = 0")
        self.received = 0
        start = time.perf_counter()
        page.mouse.click(x, y)
        page.locator(".st-key-pattern .gtitle", has_text=f"L{layer}H{head}").wait_for(timeout=60_000)
        seconds = time.perf_counter() - start
        watched.idle()
        page.wait_for_timeout(500)
        return seconds, self.received, page.evaluate("window.longTasks.reduce((a, b) => a + b, 0)") / 1e3

    def turn(self, watched: Watched, name: str) -> float:
        """Seconds until another page is there."""
        page = watched.page
        start = time.perf_counter()
        page.get_by_test_id("stSidebarNavLink").filter(has_text=name).click()
        page.locator(SEEN[name]).first.wait_for(timeout=120_000)
        seconds = time.perf_counter() - start
        page.wait_for_timeout(1000)
        watched.idle()
        return seconds

    def memory(self, watched: Watched) -> float:
        """Megabytes by which the server grows over 20 more prompts."""
        page, before = watched.page, resident(self.address)
        for _ in range(20):
            text = page.locator('[data-testid="stSidebar"] textarea')
            text.fill(text.input_value() + " 7")
            page.keyboard.press("Control+Enter")
            page.wait_for_timeout(300)
            watched.idle()
        return (resident(self.address) - before) / 1e6

    def place(self, page: Any, row: int, column: int) -> tuple[float, float]:
        """Where a head is on the screen."""
        grid = page.locator(READY)
        grid.scroll_into_view_if_needed()
        box = page.locator(".grid canvas").bounding_box()
        side, left, top = (float(grid.get_attribute(f"data-{name}")) for name in ("side", "left", "top"))
        return box["x"] + left + (column + 0.5) * side, box["y"] + top + (row + 0.5) * side

    def say(self, what: str, value: float, target: float | None = None, unit: str = "s") -> None:
        verdict = "" if target is None else f" (≤ {target:g} {unit}) {'ok' if value <= 2 * target else 'MISSED'}"
        beyond = "" if target is None or value <= target else f", {value / target:.1f} ×"
        print(f"{self.name}: {what}: {value:.3g} {unit}{verdict}{beyond}", flush=True)

    def _frame(self, payload: Any) -> None:
        self.received += len(payload)


def of_length(model: HookedGPT, n_tokens: int) -> str:
    """A prompt of so many tokens."""
    if model.tokenizer is None:
        draw = torch.Generator().manual_seed(0)
        return " ".join(map(str, torch.randint(0, model.cfg.d_vocab, (n_tokens,), generator=draw).tolist()))
    text = next(text for text in standard_library() if len(text) > 10 * n_tokens)
    return next(text[:n] for n in range(n_tokens, len(text)) if model.to_tokens(text[:n]).shape[1] == n_tokens)


def main() -> None:
    """Time both models; targets are a laptop's, and twice as long will do on a busy machine."""
    from urllib.parse import quote

    from playwright.sync_api import sync_playwright

    where = shutil.which("chromium")
    if where is None:
        print("dashboard: there is no chromium here")
        return
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        large = HookedGPT(GPTConfig(seed=0, tie_word_embeddings=True, **SHAPE)).eval()  # type: ignore[arg-type]
        large.save_pretrained(Path(folder) / "models" / "random-gpt2-small")
        queries: dict[str, Callable[[], str]] = {
            "stdlib-4l, 64 tokens": lambda: quote(of_length(HookedGPT.from_pretrained("stdlib-4l"), 64)),
            "GPT-2 small's shape, 256 tokens": lambda: (
                quote(of_length(large, 256)) + f"&model={quote('folder/random-gpt2-small', safe='')}"
            ),
        }
        browser = playwright.chromium.launch(executable_path=where, args=["--no-sandbox", "--disable-gpu"])
        for name, query in queries.items():
            log = Path(folder) / "log"
            with served(log, Path(folder), "--", "--models", str(Path(folder) / "models")) as address:
                Bench(browser, address, f"prompt={query()}", name).run()
        browser.close()


if __name__ == "__main__":
    main()
