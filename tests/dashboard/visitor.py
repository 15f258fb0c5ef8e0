"""A session without a browser: it speaks to the server as streamlit's client does, and costs next to nothing."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg
from websockets.sync.client import connect
from websockets.typing import Origin, Subprotocol

VALUES = {bool: "bool_value", int: "int_value", float: "double_value", str: "string_value"}


@contextmanager
def visitor(address: str) -> Iterator["Visitor"]:
    """A new session at this address."""
    name = address.replace("http", "ws") + "/_stcore/stream"
    with connect(name, origin=Origin(address), subprotocols=[Subprotocol("streamlit")], max_size=None) as socket:
        yield Visitor(socket)


class Visitor:
    """A session: `run(page, prompt="…")` moves widgets by their keys, and returns what was drawn."""

    def __init__(self, socket: Any) -> None:
        self.socket = socket
        self.pages: dict[str, str] = {}  # a page's path -> its hash
        self.widgets: dict[str, str] = {}  # a widget's key -> its id
        self.moved: dict[str, Any] = {}
        self._seen: dict[str, ForwardMsg] = {}

    def run(self, page: str = "", timeout: float = 60, **moved: Any) -> list[Any]:
        """The elements of a page after these widgets were moved, in the order in which they were drawn."""
        self.moved |= moved
        known = {key for key in self.moved if key in self.widgets}
        drawn = self._run(page, timeout)
        return self._run(page, timeout) if any(key in self.widgets for key in {*self.moved} - known) else drawn

    def _run(self, page: str, timeout: float) -> list[Any]:
        message = BackMsg()
        state = message.rerun_script
        state.page_script_hash = self.pages.get(page, "")
        if page and page not in self.pages:
            state.page_name = page
        for key, value in self.moved.items():
            if key in self.widgets:
                widget = state.widget_states.widgets.add()
                widget.id = self.widgets[key]
                setattr(widget, VALUES[type(value)], value)
        state.cached_message_hashes.extend(self._seen)
        self.socket.send(message.SerializeToString())
        return self._drawn(timeout)

    def _drawn(self, timeout: float) -> list[Any]:
        found, self.widgets = [], {}
        while True:
            message = ForwardMsg()
            answer = self.socket.recv(timeout)
            assert isinstance(answer, bytes)
            message.ParseFromString(answer)
            kind = message.WhichOneof("type")
            if kind == "ref_hash":
                message, kind = self._seen[message.ref_hash], "delta"
            elif message.metadata.cacheable:
                self._seen[message.hash] = message
            if kind == "navigation":
                self.pages = {page.url_pathname: page.page_script_hash for page in message.navigation.app_pages}
            elif kind == "delta" and message.delta.WhichOneof("type") == "new_element":
                element = message.delta.new_element
                name = element.WhichOneof("type") or ""
                drawn = getattr(element, name, None)
                assert name != "exception", drawn
                found.append(drawn)
                if (of := getattr(drawn, "id", "")).startswith("$$ID-"):
                    self.widgets[of.split("-", 2)[2]] = of
            elif kind == "script_finished":
                return found
