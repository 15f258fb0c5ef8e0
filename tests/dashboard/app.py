"""The dashboard, run without a browser: `opened("views/lens.py", prompt="…")`."""

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
from streamlit.testing.v1 import AppTest

from dashboards.parts.state import Chosen

ENTRY = Path(__file__).parents[2] / "dashboards" / "heads.py"


def opened(page: str | None = None, **query: str) -> AppTest:
    """The app after its first run, on a page (`views/model.py`, or Heads), opened by a link with these parameters."""
    at = AppTest.from_file(str(ENTRY), default_timeout=120)
    for name, value in query.items():
        at.query_params[name] = value
    if page is not None:
        at.switch_page(page)
    return healthy(at.run())


def healthy(at: AppTest) -> AppTest:
    """The same app; it shows no exception."""
    assert not at.exception, at.exception
    return at


def shown(at: AppTest) -> Chosen:
    """What the pages of this session show."""
    found = at.session_state["_chosen"]
    assert isinstance(found, Chosen), found
    return found


def figure_of(at: AppTest, i: int = 0) -> dict[str, Any]:
    """The data and layout of the i-th plotly figure on the page."""
    return json.loads(at.get("plotly_chart")[i].proto.spec)


def array(of: Any) -> np.ndarray:
    """Numbers of a figure as it was sent."""
    if not isinstance(of, dict):
        return np.asarray(of)
    values = np.frombuffer(base64.b64decode(of["bdata"]), of["dtype"])
    return values.reshape([int(n) for n in str(of["shape"]).split(",")]) if "shape" in of else values
