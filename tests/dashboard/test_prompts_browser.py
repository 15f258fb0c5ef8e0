"""Prompts that are hostile, and prompts that are long, on the pages that draw every token, in chromium."""

from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import pytest

from tests.dashboard.browser import Watched
from tests.dashboard.test_lens_page import HOSTILE, click

pytestmark = [pytest.mark.browser, pytest.mark.slow]

READY = {  # what a page shows once it is drawn
    "": ".grid[data-ready='1']",
    "lens": ".st-key-lens_grid_box .grid[data-ready='1']",
    "attribution": ".strip[aria-label^='From where']",
    "memories": ".st-key-memories .gtitle",
}


def opened(watched: Watched, address: str, path: str, query: str) -> Any:
    """A page, drawn and at rest."""
    page = watched.open(f"{address}/{path}?{query}")
    page.locator(READY[path]).first.wait_for(timeout=60_000)
    return watched.idle()


def figures(watched: Watched) -> None:
    for which in ("The map as a figure", "How large the stream is"):
        role = watched.page.get_by_role("radio", name=which).or_(watched.page.get_by_role("button", name=which))
        role.first.click()
        watched.page.locator(".js-plotly-plot .gtitle").wait_for()
        watched.idle()


def source(watched: Watched) -> None:
    watched.page.locator(READY["attribution"]).locator("button").nth(2).click()
    watched.page.get_by_text("From position 2").wait_for()
    watched.idle()


@pytest.mark.parametrize(
    ("path", "query", "then"),
    [
        ("", "", None),
        ("lens", "lens_halves=true&lens_pos=5", figures),
        ("attribution", "", source),
        ("memories", "", None),
    ],
)
def test_hostile_tokens_are_words_and_nothing_else(
    dashboard: str, new_page: Callable[..., Watched], path: str, query: str, then: Callable[[Watched], None] | None
) -> None:
    watched = new_page("dark", 800)
    page = opened(watched, dashboard, path, f"{query}&prompt={quote(HOSTILE)}")
    if then is not None:
        then(watched)
    assert page.locator("img[src='x']").count() == 0


@pytest.mark.parametrize(
    ("path", "query", "most"), [("lens", "lens_width=48&lens_halves=true", 600_000), ("attribution", "", 400_000)]
)
def test_a_long_prompt_stays_within_the_budget(
    dashboard: str, new_page: Callable[..., Watched], path: str, query: str, most: int
) -> None:
    watched = new_page()
    page = opened(watched, dashboard, path, f"{query}&prompt={quote('def f(x): return x + 1' + chr(10)) * 40}")
    assert watched.received < most
    if path == "lens":
        watched.received = 0
        click(page, 3, 10)
        page.get_by_text("After attention of layer 1, position 218").wait_for()
        watched.idle()
        assert watched.received < 200_000
