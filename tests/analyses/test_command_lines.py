"""Each analysis is a command that says what it takes."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NAMES = sorted(file.stem for file in (ROOT / "analyses").glob("*.py") if "    start(main" in file.read_text())
_ALL = """
import runpy, sys
for name in sys.argv[1:]:
    sys.argv = [name + ".py", "--help"]
    try:
        runpy.run_module("analyses." + name, run_name="__main__")
    except SystemExit as end:
        assert not end.code, end.code
"""


@pytest.mark.slow
def test_each_says_its_question_and_its_options() -> None:
    run = subprocess.run(
        [sys.executable, "-c", _ALL, *NAMES], capture_output=True, text=True, cwd=ROOT, check=True, timeout=300
    )
    parts = run.stdout.split("usage: python -m analyses.")[1:]
    assert [part.split()[0] for part in parts] == NAMES
    assert len(NAMES) >= 5
    for part in parts:
        assert "?" in part, "the question"
        for option in ("--out", "--seed", "--png"):
            assert option in part
