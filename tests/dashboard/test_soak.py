"""Random actions over all pages: nothing breaks, and neither the server nor the browser grows."""

import os
import random
import re
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from interp.corpus import standard_library
from tests.dashboard.browser import ROOT, Watched, chromium, resident, served

ACTIONS = int(os.environ.get("INTERP_SOAK_ACTIONS", "0"))
pytestmark = [
    pytest.mark.browser,
    pytest.mark.long,
    pytest.mark.skipif(not ACTIONS, reason="INTERP_SOAK_ACTIONS says how many; `make bench` has 200"),
]
EVERY = 5  # memory is read after each fifth action, on the same page with the same prompt
MODELS = ("stdlib-4l", "planted/induction")
WORDS = ("", " height", " None", "3", "x y", "<b>")
SLACK = {"server": 30e6, "JSHeapUsedSize": 5e6, "Nodes": 500, "JSEventListeners": 500}  # beside 15 %
SLOW = re.compile(r"about (\d\d+ s|\d+ min)")  # what says of itself that it takes long

# What can be done, how often, and where: files and other hosts are left alone, by whatever name a page has them.
KINDS = {
    "turn": (5, '[data-testid="stSidebarNavLink"]'),
    "prompt": (10, '[data-testid="stTextArea"] textarea'),
    "model": (1, '[data-testid="stSelectbox"] input[aria-label="Model"]'),
    "back": (2, "body"),
    "button": (3, '[data-testid="stButton"] button:enabled:not(:has-text("Download from"))'),
    "choice": (3, '[data-testid="stButtonGroup"] button:enabled, [data-testid="stRadio"] label'),
    "toggle": (1, '[data-testid="stCheckbox"] label:not(:has(input:disabled))'),
    "select": (1, '[data-testid="stSelectbox"] input:enabled:not([aria-label="Model"])'),
    "number": (1, '[data-testid="stNumberInput"] input:enabled'),
    "text": (1, '[data-testid="stTextInput"] input:enabled:not([aria-label="Name on the hub"])'),
    "slide": (1, '[role="slider"]'),
    "tab": (1, '[data-testid="stTab"]:not([aria-selected="true"])'),
    "unfold": (1, '[data-testid="stExpander"] summary'),
    "popover": (1, '[data-testid="stPopoverButton"]:enabled:not(:has-text("state file"))'),
    "cell": (4, ".grid[data-ready='1'] canvas"),
    "token": (3, '.strip[data-ready="true"] button'),
    "row": (1, '[data-testid="stDataFrame"]:has(.dvn-scroller)'),
}


class Hand:
    """Somebody who does at random what can be done."""

    def __init__(self, watched: Watched, seed: int) -> None:
        self.watched, self.page, self.draw = watched, watched.page, random.Random(seed)
        # In one line: a field's undo history, the browser's own, keeps three nodes a line.
        self.texts = [" ".join(text.split()) for text in islice(standard_library(), 200)]
        self.done, self.seen, self.shown = list[str](), set[str](), MODELS[0]

    def act(self) -> None:
        """Do something, and wait for what it leads to."""
        from playwright.sync_api import TimeoutError as Gone

        before = len(self.done)
        while len(self.done) == before:
            kind = self.draw.choices(list(KINDS), [often for often, _ in KINDS.values()])[0]
            if self.shown != MODELS[0] and self.draw.random() < 0.3:
                kind = "model"  # the small model is looked at now and then, the large one is to fill memory
            there = self.page.locator(KINDS[kind][1]).filter(visible=True, has_not_text=SLOW)
            if not (n := there.count()):
                continue
            at = there.nth(self.draw.randrange(n))
            try:
                said = getattr(self, kind, self.click)(at)
            except Gone:  # what was there has gone with the run before
                said = "missed"
            if said is not None:
                self.done.append(f"{kind} {said}")
        self.page.wait_for_timeout(100)
        self.watched.idle(240)  # a button may measure every head
        self.is_well()

    def rest(self) -> None:
        """A page that shows the same each time: what is there then is what was left behind."""
        self.watched.turn_to("Model")
        self.type(self.page.locator(KINDS["model"][1]), MODELS[0])
        self.watched.idle(240)
        field = self.page.locator('[data-testid="stSidebar"] textarea')
        field.fill("def area(width, height):")
        self.page.keyboard.press("Control+Enter")
        self.page.wait_for_timeout(500)
        self.watched.idle(240)
        self.shown = MODELS[0]

    def is_well(self) -> None:
        assert not self.watched.errors, (self.watched.errors, self.done[-5:])
        broken = self.page.locator('[data-testid="stException"]')
        assert broken.count() == 0, (broken.all_inner_texts(), self.page.url, self.done[-5:])

    def click(self, at: Any) -> str:
        box = at.bounding_box(timeout=2000)
        if box is None:
            return "missed"
        place = {"x": box["width"] * self.draw.random(), "y": box["height"] * self.draw.random()}
        at.click(position=place, timeout=2000)
        return f"{at.inner_text(timeout=2000)[:30]!r}"

    button = choice = toggle = tab = unfold = token = cell = click

    def turn(self, at: Any) -> str:
        names = [name.splitlines()[-1] for name in self.page.locator(KINDS["turn"][1]).all_inner_texts()]
        name = self.draw.choice([name for name in names if name not in self.seen] or names)
        self.seen = {name} if self.seen >= set(names) else self.seen | {name}
        self.watched.turn_to(name)
        return name

    def back(self, _: Any) -> str | None:
        if not self.page.evaluate("navigation.canGoBack"):
            return None
        self.page.evaluate("history.back()")
        return ""

    def prompt(self, at: Any) -> str:
        is_text = "ids" not in (at.get_attribute("aria-label") or "")
        n = self.draw.choice((0, 20, *[1000] * 8))
        some = self.draw.choice(self.texts)
        start = self.draw.randrange(max(1, len(some) - n))
        text = some[start : start + n] if is_text else " ".join(str(self.draw.randrange(12)) for _ in range(n // 20))
        at.fill(text, timeout=2000)
        self.page.keyboard.press("Control+Enter")
        return f"{text[:20]!r}"

    def model(self, at: Any) -> str:
        self.shown = next(name for name in MODELS if name != self.shown)
        return self.type(at, self.shown)

    def number(self, at: Any) -> str:
        least, most = (float(at.get_attribute(name, timeout=2000) or 0) for name in ("min", "max"))
        return self.type(at, str(int(least + min(most - least, 12) * self.draw.random())))

    def text(self, at: Any) -> str:
        return self.type(at, self.draw.choice(WORDS))

    def type(self, at: Any, text: str) -> str:
        at.fill(text, timeout=2000)
        at.press("Enter", timeout=2000)
        return repr(text)

    def select(self, at: Any) -> str:
        at.click(timeout=2000)
        options = self.page.get_by_role("option")
        options.first.wait_for(timeout=2000)
        one = options.nth(self.draw.randrange(options.count()))
        said = one.inner_text(timeout=2000)
        one.click(timeout=2000)
        return said

    def slide(self, at: Any) -> str:
        key = self.draw.choice(("ArrowLeft", "ArrowRight"))
        at.press(key, timeout=2000)
        return key

    def popover(self, at: Any) -> str:
        at.click(timeout=2000)
        inside = self.page.locator('[data-testid="stPopoverBody"]').locator(KINDS["button"][1])
        self.page.locator('[data-testid="stPopoverBody"]').first.wait_for(timeout=2000)
        n = inside.count()
        said = self.click(inside.nth(self.draw.randrange(n))) if n else "looked at"
        self.page.keyboard.press("Escape")
        return said

    def row(self, at: Any) -> str:
        y = 35 + 17 + 35 * self.draw.randrange(2)
        at.click(position={"x": 15, "y": y}, timeout=2000)
        return str(y)


LIMITED = "from dashboards.parts import state\nassert state.LARGEST\nstate.LARGEST = 2**25\n"


def test_random_actions_break_nothing_and_leave_nothing_behind(
    tmp_path: Path, new_page: Callable[..., Watched]
) -> None:
    chromium()
    (tmp_path / "sitecustomize.py").write_text(LIMITED)  # results fill what they may fill in the first third
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    # Every run is a thread, and each of malloc's arenas keeps what the largest of its runs took: one arena, less noise.
    env = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
    with served(tmp_path / "log", tmp_path, env=env) as address:
        watched = new_page()
        page = watched.open(address)
        hand, devtools = Hand(watched, seed=0), page.context.new_cdp_session(page)
        devtools.send("Performance.enable")
        sizes: dict[str, list[float]] = {name: [] for name in SLACK}
        for i in range(ACTIONS):
            hand.act()
            if i % EVERY == EVERY - 1:
                hand.rest()
                devtools.send("HeapProfiler.collectGarbage")
                found = {each["name"]: each["value"] for each in devtools.send("Performance.getMetrics")["metrics"]}
                found["server"] = resident(address)
                for name, each in sizes.items():
                    each.append(found[name])
    assert sum("missed" in did for did in hand.done) < ACTIONS / 5, hand.done
    third = ACTIONS // EVERY // 3
    for name, each in sizes.items():
        before, after = median(each[third : 2 * third]), median(each[-third:])
        print(f"{name}: {before:.4g}, then {after:.4g}")
        assert after < 1.15 * before + SLACK[name], " ".join([name, *(f"{x:.3g}" for x in each)])
