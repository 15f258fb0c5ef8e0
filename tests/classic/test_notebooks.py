"""Notebooks written for `transformer_lens` run as they are with `interp.classic` in its place, and find the same."""

import re
import runpy
import sys
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from interp import classic
from interp.loading import BUNDLED

NOTEBOOKS = {path.stem: path for path in sorted(Path(__file__).with_name("notebooks").glob("*.py"))}
# These begin with weights that each library draws in its own way: they find the same, in other numbers.
DRAWN = ("direct_path_bigrams", "hook_contexts", "processed_weights", "toy_training", "train_loop")
IS_INSTALLED = find_spec("transformer_lens") is not None


def outcome(name: str) -> dict[str, Any]:
    """The variables at the end of a notebook, all drawing seeded."""
    torch.manual_seed(0)
    with torch.enable_grad():
        found = runpy.run_path(str(NOTEBOOKS[name]))
    return {name: value for name, value in found.items() if not name.startswith("__")}


def take_its_place(patch: pytest.MonkeyPatch, place: str = "transformer_lens") -> None:
    """`interp.classic` and its parts, imported under another name."""
    for known in [name for name in sys.modules if name.partition(".")[0] == place]:
        patch.delitem(sys.modules, known)
    for known, module in list(sys.modules.items()):
        if known == "interp.classic" or known.startswith("interp.classic."):
            patch.setitem(sys.modules, place + known.removeprefix("interp.classic"), module)
    assert import_module(place) is classic


def test_there_are_thirty_and_all_are_classic() -> None:
    assert len(NOTEBOOKS) >= 30
    for name, path in NOTEBOOKS.items():
        text = path.read_text(encoding="utf-8")
        assert re.search(r"^(from|import) transformer_lens\b", text, re.MULTILINE), name
        assert not re.search(r"\binterp\b", text), name
        assert text.count("\nassert ") >= 3, name


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_finds_what_it_looks_for(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    take_its_place(monkeypatch)
    assert outcome(name)


@pytest.mark.skipif(not IS_INSTALLED, reason="transformer_lens is not installed")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_it_finds_the_same_as_with_transformer_lens(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = import_module("transformer_lens")
    monkeypatch.setattr(theirs.HookedTransformer, "from_pretrained", lambda *a, **k: opened(theirs, *a, **k))
    expected = outcome(name)
    with monkeypatch.context() as patch:
        take_its_place(patch)
        found = outcome(name)
    assert expected.keys() == found.keys()
    if name not in DRAWN:
        assert sum(compare(key, expected[key], found[key]) for key in expected) >= 3


def compare(name: str, expected: Any, found: Any) -> bool:
    """Whether these are values that can be compared; and then they are equal."""
    if isinstance(expected, Tensor) and isinstance(found, Tensor):
        assert expected.shape == found.shape, name
        torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-3, equal_nan=True, msg=lambda m: f"{name}: {m}")
    elif isinstance(expected, list | tuple) and len(expected) < 100:
        assert len(expected) == len(found), name
        return sum(compare(name, *pair) for pair in zip(expected, found, strict=True)) > 0
    elif isinstance(expected, dict) and len(expected) < 100:
        assert list(expected) == list(found), name
        return sum(compare(f"{name} {key}", value, found[key]) for key, value in expected.items()) > 0
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, abs=2e-4, rel=1e-3, nan_ok=True), name
    elif isinstance(expected, bool | int | str):
        assert expected == found, name
    else:
        return False
    return True


def opened(theirs: Any, name: str, *_: Any, **choices: bool) -> Any:
    """A bundled model as one of theirs."""
    ours = classic.HookedTransformer.from_pretrained_no_processing(name)
    their = theirs.HookedTransformer(theirs.HookedTransformerConfig(**fields(ours.cfg)), tokenizer_of(name))
    their.load_state_dict(ours.state_dict(), strict=False)
    their.load_and_process_state_dict(dict(their.state_dict()), **choices)
    return their


def fields(cfg: classic.HookedTransformerConfig) -> Mapping[str, Any]:
    """A bundled model's config in the classic names."""
    sizes = "n_layers d_model n_heads d_head d_mlp n_ctx d_vocab d_vocab_out rotary_dim eps"
    choices = "act_fn attn_only normalization_type positional_embedding_type default_prepend_bos"
    found = {name: getattr(cfg, name) for name in f"{sizes} {choices}".split()}
    return found | {"device": "cpu", "rotary_dim": found["rotary_dim"] or None}


def tokenizer_of(name: str) -> Any:
    """A bundled tokenizer as one of `transformers`."""
    if not (file := BUNDLED / name / "tokenizer.json").exists():
        return None
    from transformers import PreTrainedTokenizerFast

    end = "<|endoftext|>"
    special = {"bos_token": end, "eos_token": end, "pad_token": end}
    return PreTrainedTokenizerFast(tokenizer_file=str(file), name_or_path=name, add_bos_token=True, **special)
