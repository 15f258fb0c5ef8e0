"""What all analyses share: how they are called, and the folder that each of them leaves.

`result.nc` (numbers with their axes), figures as HTML, and last `summary.json`: what was asked, of which weights, with
which versions, and what was found. A folder that has it is whole.
"""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import tyro
from xarray import DataArray, Dataset, open_dataset

from interp import HookedGPT
from interp.loading.files import read_json, replacing
from interp.training.parallel import Ranks

if TYPE_CHECKING:
    import plotly.graph_objects as go

RESULT, SUMMARY = "result.nc", "summary.json"
_NUMBER = re.compile(r"[-+−]?[\d,.]+(e[-+]?\d+)?%?|nan")


@dataclass(frozen=True)
class Found:
    """What an analysis found: its numbers, its figures by name, what it says in a table, and the findings by name."""

    result: DataArray | Dataset
    figures: Mapping[str, "go.Figure"]
    table: str
    findings: Mapping[str, Any]


def start(main: Callable[..., None], doc: str | None) -> None:
    """Call `main` with what the command line says; wrong input gets one line, Ctrl-C another."""
    try:
        tyro.cli(main, prog=f"python -m analyses.{Path(sys.argv[0]).stem}", description=doc)
    except (ValueError, KeyError, OSError) as error:
        said = error.args[0] if isinstance(error, KeyError) else error
        raise SystemExit(f"{type(error).__name__}: {said}") from None
    except KeyboardInterrupt:
        raise SystemExit("Stopped. What is finished is kept: the same command goes on from there.") from None


def save(
    found: Found,
    out: Path,
    analysis: str,
    *,
    config: Mapping[str, Any],
    models: Mapping[str, HookedGPT],
    png: bool = False,
) -> None:
    """Write the folder `out`, and print the table; `config` is all that was asked, the seed too.

    Of the processes that `torchrun` started, the first does that.
    """
    if not Ranks().is_first:
        return
    out.mkdir(parents=True, exist_ok=True)
    (out / SUMMARY).unlink(missing_ok=True)  # no longer whole
    with replacing(out / RESULT) as file:
        _as_file(found.result).to_netcdf(file, engine="h5netcdf")
    for name, figure in found.figures.items():
        figure.write_html(out / f"{name}.html", include_plotlyjs="directory")
        if png:
            picture(figure, out / f"{name}.png")
    summary = {
        "analysis": analysis,
        "command": ["python", "-m", f"analyses.{analysis}", *sys.argv[1:]],
        "config": _plain(config),
        "models": {name: model.fingerprint() for name, model in models.items()},
        "findings": _plain(found.findings),
        "versions": versions(),
    }
    with replacing(out / SUMMARY) as file:
        file.write_text(json.dumps(summary, indent=1, allow_nan=False) + "\n")
    print(found.table, f"\nIn {out}: {', '.join([RESULT, *(f'{name}.html' for name in found.figures), SUMMARY])}")


def opened(folder: Path) -> tuple[Dataset, dict[str, Any]]:
    """The numbers and the summary of a folder that `save` wrote; raise if it holds something else, or half of it."""
    if missing := [name for name in (RESULT, SUMMARY) if not (folder / name).is_file()]:
        raise FileNotFoundError(f"{folder} is no whole folder of an analysis: it lacks {' and '.join(missing)}")
    summary = read_json(folder / SUMMARY)
    kinds = {"analysis": str, "config": dict, "models": dict, "findings": dict}
    if wrong := [name for name, kind in kinds.items() if not isinstance(summary.get(name), kind)]:
        raise ValueError(f"{folder / SUMMARY} is of no analysis: it has no {', '.join(wrong)}")
    try:
        with open_dataset(folder / RESULT, engine="h5netcdf") as file:
            return file.load(), summary
    except Exception as error:  # a damaged file fails in whatever part is read first
        raise ValueError(f"{folder / RESULT} cannot be read: {type(error).__name__}: {error}") from None


def versions() -> dict[str, str]:
    """Of everything that the numbers rest on."""
    found = {"python": platform.python_version(), "interp": "run from its files", "torch": torch.__version__}
    with suppress(PackageNotFoundError):
        found["interp"] = version("interp")
    return found | {"numpy": np.__version__}


def table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Columns as wide as they need to be; numbers on the right."""
    cells = [[str(cell) for cell in row] for row in [heads, *rows]]
    wide = [max(map(len, column)) for column in zip(*cells, strict=True)]
    is_number = [all(map(_NUMBER.fullmatch, column[1:])) for column in zip(*cells, strict=True)]
    lined = [
        "  ".join(
            cell.rjust(n) if right else cell.ljust(n) for cell, n, right in zip(row, wide, is_number, strict=True)
        )
        for row in cells
    ]
    return "\n".join(line.rstrip() for line in [lined[0], "  ".join("─" * n for n in wide), *lined[1:]])


def picture(figure: "go.Figure", png: Path, finer: int = 2) -> None:
    """A figure's PNG, so much finer than on screen; drawn by chromium, which must be there."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        raise FileNotFoundError("a PNG is drawn by chromium, which is not on the PATH: install it, or leave out --png")
    width, height = figure.layout["width"] or 900, figure.layout["height"] or 560
    options = ["--headless", "--hide-scrollbars", f"--force-device-scale-factor={finer}", "--virtual-time-budget=5000"]
    options += ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    with TemporaryDirectory() as folder:
        drawn = figure.to_html(
            config={"displayModeBar": False}, default_width=f"{width}px", default_height=f"{height}px"
        )
        page = Path(folder, "figure.html")
        page.write_text(drawn.replace("<body>", "<body style='margin: 0'>", 1))
        where = [f"--window-size={width},{height}", f"--screenshot={png.resolve()}", page.as_uri()]
        subprocess.run([chromium, *options, *where], check=True, capture_output=True, timeout=120)


def _as_file(result: DataArray | Dataset) -> DataArray | Dataset:
    """As netCDF can hold it, which knows no truth values beside numbers."""
    kept = result.copy()
    values = () if isinstance(kept, DataArray) else kept.data_vars.values()
    for each in (kept, *kept.coords.values(), *values):
        each.attrs = {key: int(value) if isinstance(value, bool) else value for key, value in each.attrs.items()}
    return kept


def _plain(value: Any) -> Any:
    """As JSON knows it; a number that is not finite is null."""
    if hasattr(value, "__dataclass_fields__"):
        return _plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else None
    return value if isinstance(value, (str, int, bool)) or value is None else str(value)
