"""Every page opens."""

import pytest

from tests.dashboard.app import ENTRY, healthy, opened, shown

PAGES = sorted(file.name for file in (ENTRY.parent / "views").glob("[!_]*.py"))


@pytest.mark.parametrize("page", PAGES)
def test_a_page_opens_and_follows_the_prompt(page: str) -> None:
    at = opened(f"views/{page}")
    assert not at.error
    at.text_area(key="prompt").set_value("for i in range(").run()
    assert shown(healthy(at)).prompt == "for i in range("
    assert not at.error
