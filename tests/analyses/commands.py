"""An analysis as a command: a process of its own, without the checks of types, which cost small models the most."""

import os
import subprocess
import sys
from pathlib import Path


def command(name: str, *options: str) -> str:
    """What it prints."""
    run = subprocess.run(
        [sys.executable, "-m", f"analyses.{name}", *options],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return run.stdout
