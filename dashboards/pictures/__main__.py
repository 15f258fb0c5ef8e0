"""Make the README's pictures of the dashboard anew: `make pictures`."""

import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from playwright.sync_api import sync_playwright

HERE = Path(__file__).resolve().parent
_AT_REST = """() => { const app = document.querySelector('[data-testid="stApp"]');
  return app.dataset.testScriptState === 'notRunning' && !document.querySelector('[data-stale="true"]') }"""


def main() -> None:
    """The page on heads, as it opens, in light and dark."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        raise SystemExit("pictures are taken by chromium, which is not on the PATH")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "streamlit", "run", str(HERE.parent / "heads.py"), "--server.port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            _wait_for(f"http://127.0.0.1:{port}/_stcore/health")
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
                for scheme in ("light", "dark"):
                    page = browser.new_page(color_scheme=scheme, viewport={"width": 1400, "height": 1000})
                    page.goto(f"http://127.0.0.1:{port}")
                    page.wait_for_selector(".grid[data-ready='1']", timeout=120_000)
                    page.locator(".st-key-pattern .gtitle").wait_for(timeout=120_000)
                    page.wait_for_function(_AT_REST, timeout=120_000)
                    page.wait_for_timeout(1500)  # what comes in softly is there
                    page.screenshot(path=HERE / f"heads-{scheme}.png")
                browser.close()
        finally:
            server.terminate()


def _wait_for(url: str) -> None:
    for _ in range(300):
        try:
            with urllib.request.urlopen(url):
                return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.2)
    raise SystemExit("the dashboard did not answer within a minute")


if __name__ == "__main__":
    main()
