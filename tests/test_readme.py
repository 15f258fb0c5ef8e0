"""The README: what it shows runs, and what it says of the project's files and commands is so."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch

from interp import HookedGPT
from interp.loading.families import FAMILIES, mistral

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text()


def blocks(kind: str) -> list[str]:
    return [content for name, content in re.findall(r"^```(.*)\n((?:.*\n)*?)```$", TEXT, re.MULTILINE) if name == kind]


def commands() -> list[list[str]]:
    return [shlex.split(line, comments=True) for block in blocks("") for line in block.splitlines() if line]


def ran(*command: str, cwd: Path) -> str:
    env = os.environ | {"PYTHONPATH": str(ROOT), "PLOTLY_RENDERER": "json"}
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_it_is_read_in_one_sitting() -> None:
    assert len(TEXT.splitlines()) < 250


@pytest.mark.long
def test_its_examples_run_and_its_recipes_work(tmp_path: Path) -> None:
    checks = """
cache = mine.run_with_cache(prompt)[1]
normalised = cache["blocks.1.ln2.hook_normalized"] * mine.blocks[1].ln2.w
assert torch.allclose(cache["blocks.1.mlp.hook_read"], normalised, atol=1e-5)
where = found.argmax(("layer", "head"))
assert (int(where["layer"]), int(where["head"])) == (0, 2), found  # it looks two back: detect says so too
assert found.sel(layer=0, head=2) > found.threshold
"""
    ran(sys.executable, "-c", "\n".join(blocks("python")) + checks, cwd=tmp_path)


def test_a_family_is_a_module_and_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import MistralConfig, MistralForCausalLM

    sizes = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 3}
    theirs = MistralForCausalLM(MistralConfig(vocab_size=37, num_key_value_heads=1, **sizes)).eval()
    theirs.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "my_mistral"}))
    monkeypatch.setitem(FAMILIES, "my_mistral", mistral)
    tokens = torch.arange(10).view(2, 5)
    with torch.no_grad():
        torch.testing.assert_close(
            HookedGPT.from_pretrained(tmp_path)(tokens), theirs(tokens).logits, atol=1e-4, rtol=1e-4
        )


@pytest.mark.slow
def test_a_page_is_a_file_and_a_line(tmp_path: Path) -> None:
    from tests.dashboard.app import AppTest, figure_of, healthy

    (recipe,) = blocks("python page")
    shutil.copytree(ROOT / "dashboards", tmp_path / "dashboards")
    (tmp_path / "dashboards" / "views" / "norms.py").write_text(recipe)
    entry = tmp_path / "dashboards" / "heads.py"
    last = '    "model": ('
    assert last in entry.read_text()
    entry.write_text(entry.read_text().replace(last, f'    "norms": ("Norms", ":material/straighten:"),\n{last}'))
    at = AppTest.from_file(str(entry), default_timeout=120)
    at.switch_page("views/norms.py")
    healthy(at.run())
    assert figure_of(at)["data"]


@pytest.mark.slow
def test_its_commands_run(tmp_path: Path) -> None:
    (study,) = blocks("toml")
    (tmp_path / "study.toml").write_text(study)
    assert tomllib.loads(study)
    seen = 0
    for command in commands():
        if command[0] == "make":
            assert f"\n{command[1]}:" in (ROOT / "Makefile").read_text(), command
        elif command[0] == "torchrun":  # eight processes and a preset for GPUs: its options are there
            said = ran(sys.executable, "-m", *command[4:6], "--help", cwd=tmp_path)
            assert all(option in said for option in command[6:] if option.startswith("--"))
        elif command[2] == "analyses.ablate":
            ran(sys.executable, *command[1:], cwd=tmp_path)
            assert (tmp_path / command[-1] / "summary.json").is_file()
        elif command[2] == "interp.training":
            ran(sys.executable, *command[1:], "--steps", "2", cwd=tmp_path)
            assert (tmp_path / command[-1] / "log.jsonl").is_file()
        else:  # each is run, and its finding held, in tests/analyses
            name = command[2].removeprefix("analyses.")
            assert (ROOT / "tests" / "analyses" / f"test_{name}.py").is_file(), name
        seen += 1
    assert seen >= 9


def test_its_paths_exist() -> None:
    paths = re.findall(r"`((?:interp|tests|analyses|dashboards|\.ci)/[\w./-]*)`", TEXT)
    assert paths
    for path in paths:
        assert (ROOT / path).exists(), path
    for target in re.findall(r"`make (\w+)`", TEXT):
        assert f"\n{target}:" in (ROOT / "Makefile").read_text(), target
    for module in re.findall(r"`python -m ([\w.]+)`", TEXT):
        assert (ROOT / module.replace(".", "/")).with_suffix(".py").is_file(), module
