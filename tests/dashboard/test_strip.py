"""The strip of tokens: its colours are explained, and the position that is read is marked."""

from collections.abc import Callable

import numpy as np
import pytest

from dashboards.parts.strip import colours
from interp.plots.theme import palette
from tests.dashboard.browser import Watched


def test_the_ends_of_the_key_are_the_ends_of_the_colours() -> None:
    theme = palette("light")

    def shades(values: list[float], colour: str) -> list[str]:
        return colours(np.array(values), colour, False)[0]

    def rgb(shade: str) -> str:
        return "rgb({},{},{})".format(*(int(shade[i : i + 2], 16) for i in (1, 3, 5)))

    assert shades([0.0, 1.0], "sequential") == [rgb(theme.sequential[0]), rgb(theme.sequential[-1])]
    assert shades([-2.0, 2.0], "diverging") == [rgb(theme.diverging[0]), rgb(theme.diverging[-1])]
    assert shades([0.0, 0.0], "diverging")[0] == rgb(theme.diverging[len(theme.diverging) // 2])
    assert shades([np.nan, 3.0], "sequential") == [rgb(theme.missing), rgb(theme.sequential[-1])]


@pytest.mark.browser
def test_strips_say_what_their_colours_are(dashboard: str, new_page: Callable[..., Watched]) -> None:
    watched = new_page()
    page = watched.open(f"{dashboard}/generate?seed=1")
    assert page.locator(".st-key-sample_0 .key").inner_text().split("\n") == [
        "0",
        "1",
        "own probability, by square root",
    ]
    assert page.locator(".st-key-prompt_strip .key").is_hidden()
    page = watched.open(f"{dashboard}/attribution?q=5")
    low, high, of, read = page.locator(".st-key-source_strip .key").inner_text().split("\n")
    assert (float(low), of, read) == (-float(high), "adds", "the position read")
    told = page.locator(".st-key-source_strip button[data-place]").evaluate_all(
        "all => all.map((each) => each.ariaLabel)"
    )
    largest = max(abs(float(each.split("  adds ")[1].split(" ")[0])) for each in told)
    assert float(high) == pytest.approx(largest, rel=5e-3)
    assert page.locator(".st-key-source_strip button.read").get_attribute("data-place") == "5"
    assert ["the position read" in each for each in told].index(True) == 5
