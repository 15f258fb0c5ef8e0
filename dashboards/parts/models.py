"""The models that can be put on show: those that come along, those in one folder, an upload, a name on the hub.

1. Names of models that come along or lie under the allowed folder are known at once; no other path is ever opened.
2. What is uploaded or downloaded joins the list of the session that asked for it.
3. A checkpoint of a run in that folder is a model, too: `folder/RUN@STEP`.
4. A model's declared size is compared with the memory that is free before anything of that size is made.
5. Whatever goes wrong is told in two sentences, and the model before stays on show.
"""

import inspect
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import streamlit as st
from huggingface_hub.constants import ENDPOINT

from interp import HookedGPT, zoo
from interp.config import GPTConfig
from interp.loading import downloaded, open_checkpoint
from interp.training import Run
from interp.zoo.planted import Planted

DEFAULT = "stdlib-4l"
PLANTED, FOLDER, UPLOAD, HUB = "planted/", "folder/", "upload/", "hub/"
DISTRACTORS = 3  # heads with random weights in each layer of a planted model: something to find it among
HUB_HOST = re.sub(r"^https?://", "", ENDPOINT)

# How uploaded files are named where they are read: never as their sender named them.
_JSON = ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json")


@dataclass(frozen=True)
class Trouble:
    """Why something cannot be shown, in a sentence, what helps, in another, and what can be done about it at once."""

    cause: str
    cure: str
    offers: tuple[
        tuple[str, Mapping[str, str | None]], ...
    ] = ()  # a button's words, and what it writes into which field


@dataclass(frozen=True, eq=False)
class Loaded:
    """A model, its fingerprint, and how it was planted if it was."""

    model: HookedGPT
    fingerprint: str
    planted: Planted | None = None


def names() -> list[str]:
    """All that this session can open without asking anybody: trained models, planted ones, and what was added."""
    trained = sorted(zoo.bundled(), key=lambda name: (name != DEFAULT, name))
    found = [FOLDER + path.relative_to(root() or "").as_posix() for path in folders()]
    of_runs = [checkpoint_name(name, step) for name in runs() for step in steps_of(name)]
    shown = st.session_state.get("model")  # it may have been deleted since
    gone = [shown] if shown is not None and checkpoint(shown) and shown not in of_runs else []
    return [*trained, *found, *of_runs, *gone, *_added(), *(PLANTED + name for name in planted())]


def planted() -> dict[str, Callable[..., Any]]:
    """The makers of models set by hand, by name."""
    makers = {name: getattr(zoo.planted, name) for name in sorted(zoo.planted.__all__)}
    return {name: maker for name, maker in makers.items() if inspect.isfunction(maker) and name != "successor_lists"}


def root() -> Path | None:
    """The one folder whose models may be opened: `-- --models FOLDER` after the command, or INTERP_MODELS."""
    arguments = sys.argv[1:]
    given = arguments[arguments.index("--models") + 1 :][:1] if "--models" in arguments else []
    where = given[0] if given else os.environ.get("INTERP_MODELS", "")
    return Path(where).expanduser().resolve() if where else None


def folders() -> list[Path]:
    """The model folders under the allowed one, up to two levels down."""
    return [folder for folder in _folders() if not _is_run(folder)][:200]


def runs() -> list[str]:
    """The names of the training runs under the allowed folder, up to two levels down."""
    found = [FOLDER + folder.relative_to(root() or "").as_posix() for folder in _folders() if _is_run(folder)]
    return found[:200]


def run(name: str) -> Run:
    """The run of this name, `folder/RUN`; raise for what is none, or leads out of the allowed folder."""
    path = inside(name.removeprefix(FOLDER))
    if not name.startswith(FOLDER) or not _is_run(path):
        raise FileNotFoundError(f"{name!r} is no run inside of the models' folder")
    return Run(path)


def steps_of(name: str) -> list[int]:
    """The steps of a run that have a checkpoint just now."""
    try:
        return run(name).steps
    except (OSError, ValueError):
        return []


def checkpoint_name(name: str, step: int) -> str:
    """What the model at a run's checkpoint is called."""
    return f"{name}@{step}"


def checkpoint(name: str) -> tuple[str, int] | None:
    """The run, and the step, of which this is the name of a checkpoint, whether it is still there or not."""
    found = re.fullmatch(rf"({FOLDER}.+)@(\d{{1,18}})", name)
    return (found[1], int(found[2])) if found and found[1] in runs() else None


def inside(name: str) -> Path:
    """The folder of this name under the allowed one; raise for any other."""
    top = root()
    if top is None:
        raise ValueError("No folder of models is open: start with `-- --models FOLDER`, or set INTERP_MODELS")
    if not name or "\0" in name or Path(name).is_absolute() or ".." in Path(name).parts:
        raise ValueError(f"{name!r} is no plain name of a folder inside of the models' folder")
    path = top / name
    if not path.is_dir():
        raise FileNotFoundError(f"There is no folder {name!r} inside of the models' folder")
    for each in (path, *path.iterdir()):
        if not each.resolve().is_relative_to(top):
            raise ValueError(f"{name!r} is, or holds, a link that leads out of the models' folder")
    return path


def open_model(name: str) -> Loaded | Trouble:
    """The model of this name, or why there is none."""
    try:
        if of_run := checkpoint(name):
            return _gone(*of_run) if of_run[1] not in steps_of(of_run[0]) else _at_step(*of_run, _written(*of_run))
        return _added()[name] if name in _added() else _opened(name)
    except Exception as error:  # a file can be wrong in every way there is
        return told(error)


def add_folder(name: str) -> str | Trouble:
    """The name by which a folder inside of the allowed one is known from now on."""
    try:
        path = inside(name.strip().strip("/"))
        _check(path)
        return FOLDER + path.relative_to(root() or "").as_posix()
    except Exception as error:
        return told(error)


def add_upload(files: Iterable[tuple[str, bytes]]) -> str | Trouble:
    """The name by which the model in these files is known from now on, in this session."""
    with tempfile.TemporaryDirectory(prefix="interp-upload-") as folder:
        try:
            for kept_as, content in _renamed(list(files)).items():
                (Path(folder) / kept_as).write_bytes(content)
            loaded = _loaded(Path(folder))
        except Exception as error:
            return told(error, {folder: "the upload"})
    return _add(f"{UPLOAD}{loaded.fingerprint[:8]}", loaded)


def add_from_hub(name: str) -> str | Trouble:
    """The name by which a model of the hub is known from now on, in this session. This contacts the hub."""
    try:
        return _add(HUB + name, _loaded(downloaded(name.strip(), None, None)))
    except Exception as error:
        return told(error)


def told(error: Exception, names: Mapping[str, str] | None = None) -> Trouble:
    """An error in a sentence, without this machine's folders, and what helps against its kind."""
    text = " ".join(str(error).split()) or type(error).__name__
    for folder, name in {**(names or {}), str(root()): "the models' folder", str(Path.home()): "~"}.items():
        text = text.replace(f"{folder}{os.sep}", "").replace(folder, name)
    cure = next((cure for kinds, cure in _CURES if isinstance(error, kinds)), "Try another file; this one is damaged.")
    return Trouble(f"{text[:600].rstrip('.')}.", cure)


def free_memory() -> int | None:
    """The bytes that are free on this machine, if it says so."""
    try:
        facts = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        return int(facts["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None


def check_size(cfg: GPTConfig) -> None:
    """Raise if a model of this config does not fit into the memory that is free."""
    empty = HookedGPT(replace(cfg, device="meta"))
    n_weights = sum(weight.numel() for weight in empty.parameters())
    needed, free = n_weights * cfg.dtype.itemsize, free_memory()
    if free is not None and needed > free:
        raise MemoryError(
            f"The config asks for {n_weights:,} weights, {needed / 2**30:,.1f} GiB; {free / 2**30:,.1f} GiB are free"
        )


_CURES: tuple[tuple[Any, str], ...] = (
    (MemoryError, "Take a smaller model, or a machine with more memory."),
    (ConnectionError, "Check the name and the network; models that come along need neither."),
    (FileNotFoundError, "A model is a folder with config.json, model.safetensors and, for text, tokenizer.json."),
    ((OSError, RuntimeError, EOFError), "Copy the file again; it may have been cut short."),
)


@st.cache_resource(max_entries=4, show_spinner="Opening the model")
def _opened(name: str) -> Loaded:
    if name.startswith(PLANTED):
        make = planted()[name.removeprefix(PLANTED)]
        made = make(distractor_heads=DISTRACTORS)
        model = made.model if isinstance(made, Planted) else made
        return Loaded(model, model.fingerprint(), made if isinstance(made, Planted) else None)
    if name.startswith(FOLDER):
        return _loaded(inside(name.removeprefix(FOLDER)))
    if name not in zoo.bundled():
        raise FileNotFoundError(f"There is no model {name!r} here")
    model = HookedGPT.from_pretrained(name)
    return Loaded(model, model.fingerprint())


@st.cache_resource(max_entries=4, show_spinner="Opening the checkpoint")
def _at_step(name: str, step: int, written: int) -> Loaded:  # noqa: ARG001
    """The model at a checkpoint; one `written` at another time is another."""
    of = run(name)
    check_size(GPTConfig.from_dict(of.config["model"]))
    model = of.model(step).check()
    return Loaded(model, model.fingerprint())


def _written(name: str, step: int) -> int:
    return inside(f"{name.removeprefix(FOLDER)}/checkpoints/step-{step:08}").stat().st_mtime_ns


def _gone(name: str, step: int) -> Trouble:
    left = steps_of(name)
    there = f"it has {', '.join(map(str, left[-8:]))}" if left else "it has none"
    offers = ((f"Show step {left[-1]}", {"_take_model": checkpoint_name(name, left[-1])}),) if left else ()
    return Trouble(
        f"The run {name} has no checkpoint of step {step}; {there}.",
        "A run that goes on deletes all but its last ones.",
        offers,
    )


def _folders() -> list[Path]:
    """What has a config under the allowed folder."""
    top = root()
    found = [*top.glob("*/config.json"), *top.glob("*/*/config.json")] if top and top.is_dir() else []
    return sorted(file.parent for file in found if file.parent.resolve().is_relative_to(top or ""))


def _is_run(folder: Path) -> bool:
    weights = ("*.safetensors", "*.bin", "*.pt", "*.pth")
    return (folder / "checkpoints").is_dir() and not any(file for kind in weights for file in folder.glob(kind))


def _loaded(folder: Path) -> Loaded:
    _check(folder)
    model = HookedGPT.from_pretrained(folder).check()
    return Loaded(model, model.fingerprint())


def _check(folder: Path) -> None:
    """Raise unless the folder holds a model that fits its own config and this machine's memory."""
    checkpoint = open_checkpoint(folder)
    check_size(checkpoint.cfg)


def _renamed(files: list[tuple[str, bytes]]) -> dict[str, bytes]:
    """The files under the names by which a model folder's parts are known."""
    renamed: dict[str, bytes] = {}
    for given, content in files:
        last = given.replace("\\", "/").rsplit("/", 1)[-1]
        kind = last.rsplit(".", 1)[-1].lower()
        kept_as = {"safetensors": "model.safetensors", "pt": "pytorch_model.bin", "pth": "pytorch_model.bin"}.get(
            kind, "pytorch_model.bin" if kind == "bin" else last
        )
        if kept_as not in (*_JSON, "merges.txt", "model.safetensors", "pytorch_model.bin"):
            raise ValueError(
                f"{last!r} is no part of a model: it is one of {', '.join(_JSON)}, a weights file, merges.txt"
            )
        if kept_as in renamed:
            raise ValueError(f"There are two files for {kept_as}; a model has its weights in one file here")
        renamed[kept_as] = content
    if not renamed:
        raise ValueError("No file was given")
    return renamed


def _added() -> dict[str, Loaded]:
    return st.session_state.setdefault("_added", {})


def _add(name: str, loaded: Loaded) -> str:
    """One at a time: a session keeps the model that was added last."""
    st.session_state["_added"] = {name: loaded}
    return name
