"""A compiled model gives the same numbers and never ignores a hook."""

import subprocess
import sys

import pytest


@pytest.mark.long
def test_compiled_models_hold() -> None:
    command = [sys.executable, "-m", "tests.model.compile_script"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-4000:]
    assert "compiled models hold" in run.stdout
