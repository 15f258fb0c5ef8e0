"""What the dashboard opens, and what it refuses: folders, links out of them, uploads of every wrong kind."""

import io
import json
import os
import pickle
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
import streamlit as st
import torch
from safetensors.torch import save as to_safetensors

from dashboards.parts import models
from dashboards.parts.models import Trouble
from interp import HookedGPT
from interp.tokenization import Tokenizer
from tests.peak_memory import peak_bytes
from tests.variants import variant


@pytest.fixture(autouse=True)
def session(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    state: dict[str, Any] = {}
    monkeypatch.setattr(st, "session_state", state)
    return state


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A folder of models with one in it, and another model outside of it."""
    model = HookedGPT(variant("gpt2", d_vocab=257, n_ctx=40).cfg, Tokenizer.bytes())
    for where in ("models/good", "outside"):
        model.save_pretrained(tmp_path / where)
    return tmp_path / "models"


def refused(found: object) -> str:
    assert isinstance(found, Trouble), found
    assert found.cure
    for said in (found.cause, found.cure):
        assert said.endswith(".")
        assert "\n" not in said
    return found.cause


def files_of(folder: Path) -> list[tuple[str, bytes]]:
    return [(file.name, file.read_bytes()) for file in folder.iterdir()]


def test_models_of_the_allowed_folder_are_listed_and_open(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert models.folders() == []
    assert "No folder of models is open" in refused(models.add_folder("good"))
    monkeypatch.setenv("INTERP_MODELS", str(saved))
    assert "folder/good" in models.names()
    assert models.add_folder("good") == "folder/good"
    found = models.open_model("folder/good")
    assert not isinstance(found, Trouble)
    assert found.fingerprint == HookedGPT.from_pretrained(saved / "good").fingerprint()


@pytest.mark.parametrize("name", ["../outside", "good/../../outside", "..", "/etc", "", "a\0b", "good/../good"])
def test_no_other_folder_opens_by_name(saved: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("INTERP_MODELS", str(saved))
    refused(models.add_folder(name))
    with pytest.raises((ValueError, FileNotFoundError)):
        models.inside(name)
    refused(models.open_model(f"folder/{name}"))


def test_a_link_out_of_the_folder_opens_nothing(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTERP_MODELS", str(saved))
    (saved / "link").symlink_to(saved.parent / "outside")
    (saved / "within").mkdir()
    for file in (saved.parent / "outside").iterdir():
        (saved / "within" / file.name).symlink_to(file)
    for name in ("link", "within"):
        assert "leads out of the models' folder" in refused(models.add_folder(name))
        assert f"folder/{name}" not in [name for name in models.names() if name == "folder/link"]
    (saved / "alias").symlink_to(saved / "good")
    assert models.add_folder("alias") == "folder/alias"


def test_an_upload_is_the_model_and_leaves_no_file(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    name = models.add_upload(files_of(saved / "good"))
    assert isinstance(name, str)
    found = models.open_model(name)
    assert not isinstance(found, Trouble)
    assert found.fingerprint == HookedGPT.from_pretrained(saved / "good").fingerprint()
    assert found.model.tokenizer is not None
    assert models.names().count(name) == 1
    assert list(temporary.iterdir()) == []
    weights = [file for file in files_of(saved / "good") if file[0].endswith(".safetensors")]
    assert models.add_upload([("../../whatever.safetensors", weights[0][1])]) == name  # the one file is enough


class Bomb:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.marker}",)


def test_nothing_in_a_pickle_is_run(saved: Path, tmp_path: Path) -> None:
    marker = tmp_path / "run"
    config = (saved / "good" / "config.json").read_bytes()
    plain = pickle.dumps(Bomb(marker))
    zipped = io.BytesIO()
    torch.save({"x": Bomb(marker)}, zipped)
    for content in (plain, zipped.getvalue()):
        for name in ("model.pt", "pytorch_model.bin", "x.pth"):
            cause = refused(models.add_upload([(name, content), ("config.json", config)]))
            assert "no file of tensors alone" in cause
    pickle.loads(plain)
    assert marker.exists()  # it would have been made
    marker.unlink()
    refused(models.add_upload([("model.safetensors", plain), ("config.json", config)]))
    assert not marker.exists()


def test_damaged_files_are_told_in_two_sentences(saved: Path) -> None:
    whole = dict(files_of(saved / "good"))["model.safetensors"]
    config = {"model_type": "gpt2", "n_layer": 1, "n_embd": 8, "n_head": 2, "n_positions": 8, "vocab_size": 9}
    text = json.dumps(config).encode()
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("data.pkl", b"nothing")
    cases: dict[str, list[tuple[str, bytes]]] = {
        "cut short": [("model.safetensors", whole[: len(whole) // 2])],
        "empty": [("model.safetensors", b"")],
        "text": [("model.safetensors", b"these are no weights"), ("config.json", text)],
        "text as pt": [("model.pt", b"these are no weights"), ("config.json", text)],
        "empty pt": [("model.pt", b""), ("config.json", text)],
        "zip": [("model.pt", zipped.getvalue()), ("config.json", text)],
        "no config": [("model.safetensors", to_safetensors({"x": torch.zeros(2)}))],
        "other tensors": [("model.safetensors", to_safetensors({"x": torch.zeros(2)})), ("config.json", text)],
        "config no json": [("model.safetensors", to_safetensors({"x": torch.zeros(2)})), ("config.json", b"\xff{")],
        "config a list": [("model.safetensors", to_safetensors({"x": torch.zeros(2)})), ("config.json", b"[]")],
        "deep config": [("model.safetensors", to_safetensors({"x": torch.zeros(2)})), ("config.json", b"[" * 99_999)],
        "of a kind unknown": [
            ("model.safetensors", to_safetensors({"x": torch.zeros(2)})),
            ("config.json", b'{"model_type": "bert"}'),
        ],
        "none": [],
        "another file": [("notes.txt", b"hello")],
        "two": [("a.safetensors", whole), ("b.safetensors", whole)],
    }
    for name, files in cases.items():
        cause = refused(models.add_upload(files))
        assert "/tmp" not in cause, name
        assert "interp-upload" not in cause, name
    missing = refused(models.add_upload(cases["other tensors"]))
    assert "missing" in missing
    assert "transformer.h.0" in missing or "h.0" in missing


def test_a_tensor_that_claims_more_than_its_bytes_is_refused(saved: Path) -> None:
    config = {"model_type": "gpt2", "n_layer": 1, "n_embd": 8, "n_head": 2, "n_positions": 8, "vocab_size": 10**9}
    small = io.BytesIO()
    torch.save({"wte.weight": torch.zeros(1).as_strided((10**9, 8), (0, 0))}, small)
    assert len(small.getvalue()) < 3000
    refused(models.add_upload([("model.pt", small.getvalue()), ("config.json", json.dumps(config).encode())]))


def test_a_config_that_asks_for_too_much_is_refused_before_anything_is_made(saved: Path) -> None:
    config = {"model_type": "gpt2", "n_layer": 1, "n_embd": 10**6, "n_head": 1, "n_positions": 8, "vocab_size": 10**6}
    weights = to_safetensors({"wte.weight": torch.zeros(2, 2), "wpe.weight": torch.zeros(2, 2)})
    files = [("model.safetensors", weights), ("config.json", json.dumps(config).encode())]
    found = models.add_upload(files)
    assert "asks for 13,00" in refused(found)
    assert isinstance(found, Trouble)
    assert peak_bytes(lambda: models.add_upload(files)) < 50e6
    assert "smaller model" in found.cure
    config |= {"n_embd": 10**12, "vocab_size": 10**12}
    refused(models.add_upload([("model.safetensors", weights), ("config.json", json.dumps(config).encode())]))


def test_weights_that_are_not_finite_are_refused() -> None:
    model = variant("gpt2")
    with torch.no_grad():
        model.embed.W_E[1, 2] = torch.nan
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        assert "NaN or infinite" in refused(models.add_upload(files_of(Path(folder))))


def test_names_that_are_none_are_no_paths_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    HookedGPT(variant("gpt2").cfg).save_pretrained(tmp_path / "owner" / "name")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name in ("owner/name", "../x", "a/b/c", "x y", ""):
        refused(models.add_from_hub(name))
