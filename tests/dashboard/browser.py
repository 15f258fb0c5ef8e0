"""Chromium on the dashboard: a server of its own, and a page on which any foreign request or console error fails."""

import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
ENTRY = ROOT / "dashboards" / "heads.py"
OURS = ("http://127.0.0.1:", "http://localhost:", "ws://127.0.0.1:", "ws://localhost:", "data:", "blob:", "file:")
IDLE = """() => { const a = document.querySelector('[data-testid="stApp"]');
  return a && a.dataset.testScriptState === 'notRunning' && a.dataset.testConnectionState === 'CONNECTED'
    && !document.querySelector('[data-stale="true"]') }"""


def chromium() -> str:
    """Where chromium is; without it, or without playwright, the test is skipped."""
    pytest.importorskip("playwright", reason="playwright is not installed")
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("there is no chromium here")
    return found


@contextmanager
def served(
    log: Path, cwd: Path = ROOT, *arguments: str, env: dict[str, str] | None = None, entry: Path = ENTRY
) -> Iterator[str]:
    """The address of a dashboard that runs until the end of the block; its log holds no complaint then."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "streamlit",
        "run",
        str(entry),
        "--server.port",
        str(port),
    ]
    with log.open("w") as file:
        server = subprocess.Popen([*command, *arguments], cwd=cwd, stdout=file, stderr=subprocess.STDOUT, env=env)
        try:
            _wait_for(f"http://127.0.0.1:{port}/_stcore/health", server)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()
            server.wait(20)
    said = log.read_text()
    for bad in ("Traceback", "Stack (", "Deprecat", "deprecat", "also had its value set"):
        assert bad not in said, said[-3000:]


class Watched:
    """A page whose requests, dialogs and console are watched; `check` fails if anything was wrong.

    `received` counts the bytes that the server sent over the websocket.
    """

    def __init__(self, page: Any) -> None:
        self.page, self.foreign, self.errors, self.received = page, list[str](), list[str](), 0
        page.on("request", self._request)
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("websocket", self._socket)
        page.on("dialog", self._dialog)

    def open(self, url: str) -> Any:
        """The page, once it is drawn and at rest."""
        self.page.goto(url)
        self.page.wait_for_selector('[data-testid="stSidebar"] textarea', timeout=60_000)
        return self.idle()

    def turn_to(self, name: str) -> Any:
        """Another page of the dashboard, by its name in the list on the left."""
        link = self.page.locator('[data-testid="stSidebarNavLink"]', has_text=name)
        path = link.evaluate("link => new URL(link.href).pathname")
        link.click()
        self.page.wait_for_function("path => location.pathname === path", arg=path)
        return self.idle()

    def idle(self, seconds: int = 60) -> Any:
        """The page, at rest: to be asked for after a consequence of what was done has been seen."""
        self.page.wait_for_function(IDLE, timeout=1000 * seconds)
        return self.page

    def check(self) -> None:
        assert not self.foreign, self.foreign
        assert not self.errors, self.errors
        assert self.page.locator('[data-testid="stException"]').count() == 0

    def _request(self, request: Any) -> None:
        self._address(request.url)

    def _address(self, url: str) -> None:
        if not url.startswith(OURS):
            self.foreign.append(url)

    def _socket(self, socket: Any) -> None:
        self._address(socket.url)
        socket.on("framereceived", self._frame)

    def _frame(self, frame: Any) -> None:
        self.received += len(frame)

    def _dialog(self, dialog: Any) -> None:
        self.errors.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def _console(self, message: Any) -> None:
        # Opened at the address of a page, streamlit's client looks for its server below that address first.
        is_search = "/_stcore/" in (message.location or {}).get("url", "")
        if message.type in ("error", "warning") and not is_search:
            self.errors.append(f"{message.type}: {message.text}")


def resident(address: str) -> int:
    """The bytes that the server at this address holds in memory."""
    port = address.rsplit(":", 1)[1].encode()
    for process in Path("/proc").glob("[0-9]*"):
        words = (process / "cmdline").read_bytes().split(b"\0")
        if b"--server.port" in words and port in words:
            status = (process / "status").read_text()
            return 1024 * int(status.split("VmRSS:")[1].split()[0])
    raise LookupError(f"no server at {address}")


def _wait_for(url: str, server: subprocess.Popen[Any]) -> None:
    for _ in range(300):
        assert server.poll() is None, "the server ended"
        try:
            with urllib.request.urlopen(url) as answer:
                assert answer.status == 200
                return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.1)
    raise AssertionError("the server did not answer within 30 s")
