"""The house: imports point one way, the face is what it says, importing is light."""

import ast
import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import interp

ROOT = Path(__file__).parent.parent
LAYERS = [
    {"config", "corpus"},
    {"hooks", "recording", "cache", "metrics", "tokenization"},
    {"interventions", "generation", "loading"},
    {"beams"},
    {"model"},
    {"results", "passages", "cards", "checks"},
    {"weights", "training"},
    {"patching", "lens", "heads", "memories", "zoo"},
    {"walk"},
    {"plots"},
    {"classic"},
]


@cache
def tree_of(file: Path) -> ast.Module:
    return ast.parse(file.read_text())


@cache
def imports_of(file: Path) -> set[str]:
    """The parts of `interp` that a file imports."""
    found = set()
    for node in ast.walk(tree_of(file)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("interp.")}
    return found


def part_of(file: Path) -> str:
    return file.relative_to(ROOT / "interp").with_suffix("").parts[0]


def test_imports_point_one_way() -> None:
    rank = {part: i for i, parts in enumerate(LAYERS) for part in parts}
    for file in (ROOT / "interp").rglob("*.py"):
        part = part_of(file)
        if part == "__init__":
            continue
        assert part in rank, f"{file.name}: say in LAYERS where it belongs"
        for other in imports_of(file) - {part}:
            assert rank[other] <= rank[part], f"{file}: {part} may not import {other}"


def test_parts_of_one_layer_do_not_go_round_in_a_circle() -> None:
    arrows = {(part_of(f), other) for f in (ROOT / "interp").rglob("*.py") for other in imports_of(f)}
    arrows = {(a, b) for a, b in arrows if a not in (b, "__init__")}
    assert not {(a, b) for a, b in arrows if (b, a) in arrows}


def test_imports_stand_at_the_top() -> None:
    for file in (ROOT / "interp").rglob("*.py"):
        tree = tree_of(file)
        inside = [n for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) for n in ast.walk(f)]
        late = [
            n
            for n in inside
            if isinstance(n, ast.Import) or (isinstance(n, ast.ImportFrom) and n.module not in ("xarray", "pandas"))
        ]
        assert not late, f"{file}: imports inside a function, line {[n.lineno for n in late]}"


def test_the_public_face_is_what_it_says() -> None:
    assert sorted(interp.__all__) == interp.__all__
    for name in interp.__all__:
        assert getattr(interp, name).__module__.startswith("interp")
    public = {name for name, value in vars(interp).items() if not name.startswith("_") and isinstance(value, type)}
    assert public == set(interp.__all__)


@pytest.mark.slow
def test_importing_loads_nothing_heavy() -> None:
    code = (
        "import torch, sys, json; before = set(sys.modules); import interp; "
        "print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    loaded = {name.split(".")[0] for name in json.loads(run.stdout)}
    assert not loaded & {"transformers", "pandas", "xarray", "plotly", "streamlit", "tyro", "scipy", "sklearn"}
    assert "torch._dynamo" not in json.loads(run.stdout)


@pytest.mark.long
def test_the_reference_is_built_without_a_warning(tmp_path: Path) -> None:
    done = subprocess.run(["make", "docs", f"DOCS={tmp_path}"], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "activation_patching" in (tmp_path / "interp" / "patching.html").read_text()
