"""The dashboard's shell: what is always on screen, and what it puts on show."""

from pathlib import Path

from streamlit.testing.v1 import AppTest

ENTRY = Path(__file__).parents[2] / "dashboards" / "heads.py"


def test_it_opens_on_the_bundled_model() -> None:
    at = AppTest.from_file(str(ENTRY), default_timeout=60).run()
    assert not at.exception
    assert at.selectbox(key="model").value == "stdlib-4l"
    assert at.session_state["_chosen"].q == len(at.session_state["_chosen"].labels) - 1
