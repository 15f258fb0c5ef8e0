"""How the pages look, measured on what chromium paints."""

import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from tests.dashboard.browser import Watched

pytestmark = [pytest.mark.browser, pytest.mark.slow]

GROUND = {"light": (255, 255, 255), "dark": (14, 17, 23)}  # of dashboards/.streamlit/config.toml
CUT = """() => [...document.querySelectorAll(
    '[data-testid="stSidebar"] :is(p, label, span, button, a), :is(h1, h2, h3)')]
  .filter((e) => getComputedStyle(e).overflowX !== 'visible' && e.clientWidth && e.textContent.trim()
    && e.scrollWidth > e.clientWidth + 1)
  .map((e) => e.textContent)"""
WIDER = """() => [document.scrollingElement, document.querySelector('[data-testid="stMain"]')]
  .map((e) => e.scrollWidth - e.clientWidth)"""
MARGIN = 30  # pixels left of what stands on a page


@pytest.mark.parametrize(("scheme", "width"), [("light", 800), ("dark", 1400)])
def test_pages_are_drawn_on_their_ground_and_nothing_is_cut_off(
    dashboard: str, new_page: Callable[..., Watched], scheme: str, width: int
) -> None:
    watched = new_page(scheme, width)
    page = watched.open(dashboard)
    for link in page.get_by_test_id("stSidebarNavLink").all_inner_texts():
        name = link.splitlines()[-1]
        watched.turn_to(name)
        page.wait_for_timeout(1000)  # figures are drawn after the script has ended
        watched.idle()
        assert page.evaluate(CUT) == [], name
        assert page.evaluate(WIDER) == [0, 0], name
        left = round(page.get_by_test_id("stMain").bounding_box()["x"])
        seen = np.asarray(Image.open(io.BytesIO(page.screenshot())).convert("RGB")).astype(float)[80:, left + 2 :]
        far = np.abs(seen - GROUND[scheme]).max(-1)
        assert far[:, :MARGIN].mean() < 2, name
        assert 0.02 < (far[:, MARGIN:] > 30).mean() < 0.9, name
