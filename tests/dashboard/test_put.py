"""Values that are put into widgets: shown, in the link, and not complained of."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from dashboards.parts import put
from tests.dashboard.browser import Watched, served


def holds(watched: Watched, label: str, value: str) -> None:
    """The field comes to hold this value."""
    found = '([label, value]) => document.querySelector(`[data-testid="stMain"] input[aria-label="${label}"]`)?.value'
    watched.page.wait_for_function(f"{found} === value", arg=[label, value])
    watched.idle()


def test_a_widget_has_no_default_beside_the_value_that_was_put_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(put.st, "session_state", {})
    put.put("prompt", "x")
    assert [put.default("prompt", "example", "") for _ in range(2)] == ["", "example"]
    put.put("bos", False)
    assert put.default("bos", True, False) is True, "else the link would not say that it is off"


@pytest.mark.browser
def test_values_that_are_put_into_widgets_are_shown_and_not_complained_of(
    new_page: Callable[..., Watched], tmp_path: Path
) -> None:
    said = {"temperature": 0.5, "top_p": 0.9, "seed": 3, "bos": True, "prompt": "def f(x):", "row": 0, "step": 2}
    (tmp_path / "state.json").write_text(json.dumps({"fields": said | {"lens_colour": "entropy", "norm": "none"}}))
    with served(tmp_path / "log", tmp_path) as address:
        watched = new_page()
        page = watched.open(f"{address}/generate")
        page.locator('.st-key-sample_0 button[data-place="3"]').click()
        holds(watched, "Step", "3")
        page.get_by_role("button", name="Open a state file").click()
        page.locator('.st-key-_state_upload input[type="file"]').set_input_files(tmp_path / "state.json")
        for label, value in (("Temperature", "0.50"), ("Top p", "0.90"), ("Seed", "3"), ("Step", "2")):
            holds(watched, label, value)
        assert page.get_by_label("Prompt", exact=True).input_value() == "def f(x):"
        page.keyboard.press("Escape")
        page.get_by_label("Temperature", exact=True).fill("2")
        page.keyboard.press("Enter")
        page.wait_for_function("location.search.includes('temperature=2')")
        assert watched.idle().get_by_label("Seed", exact=True).input_value() == "3"
        page.get_by_role("combobox", name="Model").click()
        page.get_by_role("combobox", name="Model").fill("planted/induction")
        page.keyboard.press("Enter")
        page.wait_for_selector("text=Prompt (token ids)")
        watched.idle()
