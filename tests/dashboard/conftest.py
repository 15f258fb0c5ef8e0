from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.dashboard.browser import Watched, chromium, served

QUICK = ("test_pages.py", "test_grid.py")  # each page is opened; all else about pages is slow


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All tests of the dashboard are slow but those that `QUICK` names; those that take a page drive a browser."""
    for item in items:
        if item.path.parent == Path(__file__).parent and item.path.name not in QUICK and "long" not in item.keywords:
            item.add_marker(pytest.mark.slow)
        if "new_page" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.browser)


@pytest.fixture(autouse=True, scope="session")
def installed() -> Iterator[None]:
    """What is installed stays as it is: each run of a page would read about every package anew, a third of its time."""
    from streamlit.components.v2 import manifest_scanner

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(manifest_scanner, "scan_component_manifests", cache(manifest_scanner.scan_component_manifests))
        yield


@pytest.fixture(autouse=True)
def forgetful() -> None:
    """Pages that are run in this process begin with nothing computed."""
    from dashboards.parts.state import store

    store.clear()


@pytest.fixture(scope="session")
def dashboard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a running dashboard, shared by all tests; it was started from another folder."""
    chromium()
    folder = tmp_path_factory.mktemp("dashboard")
    with served(folder / "log", folder) as address:
        yield address


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium."""
    where = chromium()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=where, args=["--no-sandbox", "--disable-gpu"])
        yield started
        started.close()


@pytest.fixture
def new_page(browser: Any) -> Iterator[Callable[..., Watched]]:
    """Makes pages, of browsers that know nothing of each other; each is checked at the end."""
    made: list[Watched] = []

    def make(scheme: str = "light", width: int = 1400, height: int = 900) -> Watched:
        context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": height})
        made.append(Watched(context.new_page()))
        return made[-1]

    yield make
    for watched in made:
        watched.check()
        watched.page.context.close()


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Where screenshots go."""
    return tmp_path
