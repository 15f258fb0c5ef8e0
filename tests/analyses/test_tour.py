"""The notebook: it runs from top to bottom, and says what it said when its text was written."""

import re
from functools import cache
from typing import Any

import nbformat
import numpy as np
import pytest

from analyses.tour import NOTEBOOK, cells, run

pytestmark = pytest.mark.slow

NUMBER = re.compile(r"[-+]?\d+\.\d+(?:e[-+]\d+)?")


@cache
def ran() -> Any:
    return run()


def text_of(cell: Any) -> str:
    return "".join(each.text for each in cell.outputs if each.output_type == "stream")


def numbers_of(cell: Any) -> np.ndarray:
    return np.array([float(number) for number in NUMBER.findall(text_of(cell))])


def test_it_runs_and_says_what_it_said_when_it_was_written() -> None:
    before = cells(nbformat.read(NOTEBOOK, as_version=4))
    for cell, now in zip(before, cells(ran()), strict=True):
        assert NUMBER.sub("…", text_of(cell)) == NUMBER.sub("…", text_of(now))
        np.testing.assert_allclose(numbers_of(now), numbers_of(cell), atol=0.02)
        assert len(cell.outputs) == len(now.outputs) > 0, cell.source
    assert sum("image/png" in each.get("data", {}) for cell in before for each in cell.outputs) == 10


def test_its_story_holds_with_a_margin() -> None:
    lost = next(cell for cell in cells(ran()) if "nats on new tokens" in cell.source)
    whole, induction, others, best, previous = numbers_of(lost).reshape(-1, 2)[:, 1]
    assert whole < 0.5 < 5 < previous < induction
    assert abs(others - whole) < 0.2
    assert best < 1


def test_it_is_small() -> None:
    assert NOTEBOOK.stat().st_size < 600_000
