"""A run as a folder: `config.json`, `log.jsonl`, and checkpoints that are model folders with the optimiser beside."""

import json
import os
import re
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.tensor import DTensor, distribute_tensor

from interp.config import GPTConfig
from interp.loading.files import TensorFiles, open_safetensors, read_json, replacing
from interp.model import HookedGPT
from interp.tokenization import Tokenizer
from interp.training.config import TrainingConfig
from interp.training.parallel import Ranks

_CONFIG, _LOG, _CHECKPOINTS, _STATE = "config.json", "log.jsonl", "checkpoints", "training.safetensors"
_SHARDED, _TOKENIZER = "sharded.json", "tokenizer-and-special.json"  # beside the shards of a model that was in shards


class Run:
    """A finished run, or one that still goes on: its config, its log, the models at its checkpoints."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.path = Path(folder).expanduser()
        if not (self.path / _CONFIG).is_file() or not (self.path / _CHECKPOINTS).is_dir():
            raise FileNotFoundError(f"{self.path} is no run: it lacks {_CONFIG} or {_CHECKPOINTS}/")

    @cached_property
    def config(self) -> dict[str, Any]:
        """What the run was made with: `training`, `model`, `data`, `about`."""
        return read_json(self.path / _CONFIG)

    @property
    def log(self) -> list[dict[str, Any]]:
        """The rows so far: training steps have `loss`, evaluations `held_out_loss`, measurements their own names."""
        return _rows(self.path / _LOG)

    def read_log(self) -> tuple[list[dict[str, Any]], str]:
        """The rows so far, and what is wrong with the line after them; of a last line that is half written, nothing."""
        return _read(self.path / _LOG)

    @property
    def steps(self) -> list[int]:
        """The steps that have a checkpoint."""
        return _steps(self.path)

    def series(self, name: str) -> tuple[list[int], list[Any]]:
        """The steps at which something was logged, and its values."""
        rows = [row for row in self.log if name in row]
        if not rows:
            known = sorted({key for row in self.log for key in row} - {"step"})
            raise KeyError(f"{self.path} has no {name!r} on its log; it has {known}")
        return [row["step"] for row in rows], [row[name] for row in rows]

    def model(self, step: int | None = None, **options: Any) -> HookedGPT:
        """The model at a checkpoint, the last one unless `step` says which."""
        if (step is not None and step not in self.steps) or not self.steps:
            raise KeyError(f"{self.path} has no checkpoint of step {step}; it has {self.steps}")
        folder = _checkpoint(self.path, self.steps[-1] if step is None else step)
        if not (folder / _SHARDED).is_file():
            return HookedGPT.from_pretrained(folder, **options)
        config, tokenizer = read_json(folder / _CONFIG), None
        if (folder / _TOKENIZER).is_file():
            saved = read_json(folder / _TOKENIZER)
            tokenizer = Tokenizer.from_json(saved["json"], **saved["special"])
        model = HookedGPT(GPTConfig.from_dict({k: v for k, v in config.items() if k != "model_type"}), tokenizer)
        _read_shards(folder, {f"model.{name}": tensor for name, tensor in model.state_dict().items()})
        return model.to(**options).eval()


class RunFolder:
    """Where a run that goes on keeps its log and its checkpoints, each whole or not there at all."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.path = Path(folder).expanduser()

    def begin(self, config: Mapping[str, Any], resume: bool, ranks: Ranks) -> None:
        """Make the folder; or check that the run in it is the one to go on with."""
        training: TrainingConfig = config["training"]
        is_run = self.refuse(resume)
        now = {
            "training": asdict(training),
            "model": config["model"].to_dict() | {"device": None},
            "data": config["data"],
            "about": config["about"]
            | {"begun": datetime.now(UTC).isoformat(timespec="seconds"), "torch": torch.__version__},
        }
        now = json.loads(json.dumps(now))
        if is_run:
            self._check_same(read_json(self.path / _CONFIG), now)
        ranks.wait()
        if ranks.is_first:
            (self.path / _CHECKPOINTS).mkdir(parents=True, exist_ok=True)
            for unfinished in (self.path / _CHECKPOINTS).glob(".step-*"):
                shutil.rmtree(unfinished)
            if not is_run:
                with replacing(self.path / _CONFIG) as file:
                    file.write_text(json.dumps(now, indent=1))
        ranks.wait()

    def refuse(self, resume: bool, is_empty: bool = False) -> bool:
        """Whether the folder is a run already; raise if it must not be, or if it must be empty and is not."""
        is_run = (self.path / _CONFIG).exists()
        if is_run and not {"training", "model", "data"} <= set(read_json(self.path / _CONFIG)):
            raise FileExistsError(f"{self.path} has a {_CONFIG} that is no run's: name another folder")
        if is_run and not resume:
            raise FileExistsError(f"{self.path} is already a run: resume it, or name another folder")
        if is_empty and not resume and self.path.exists() and any(self.path.iterdir()):
            raise FileExistsError(f"{self.path} holds other files already: name a new folder")
        return is_run

    def restore(
        self, model: HookedGPT, optimiser: torch.optim.Optimizer, scaler: torch.amp.GradScaler, ranks: Ranks
    ) -> tuple[int, list[dict[str, Any]]]:
        """Give model and optimiser the state of the last checkpoint; its step, and the log up to there."""
        steps = _steps(self.path)
        step = steps[-1] if steps else 0
        if steps:
            folder = _checkpoint(self.path, step)
            state = _state(model, optimiser)
            about = _load_sharded(folder, state) if (folder / _SHARDED).is_file() else _load_whole(folder, state)
            scaler.load_state_dict(about["scaler"])
        rows = [row for row in _rows(self.path / _LOG) if row["step"] < step]
        ranks.wait()
        if ranks.is_first:
            with replacing(self.path / _LOG) as file:
                file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        ranks.wait()
        return step, rows

    def steps(self) -> list[int]:
        """The steps that have a checkpoint."""
        return _steps(self.path)

    def write(self, row: dict[str, Any]) -> None:
        """Append a row to the log."""
        with (self.path / _LOG).open("a") as file:
            file.write(json.dumps(row) + "\n")

    def checkpoint(
        self,
        step: int,
        model: HookedGPT,
        optimiser: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        ranks: Ranks,
        keep: int,
    ) -> None:
        """Keep the state before a step, and as many older ones as `keep` says."""
        done = _checkpoint(self.path, step)
        unfinished = done.with_name(f".{done.name}")
        about = {"step": step, "scaler": scaler.state_dict()}
        state = _state(model, optimiser)
        if any(isinstance(tensor, DTensor) for tensor in state.values()):
            unfinished.mkdir(exist_ok=True)
            ranks.wait()
            state_dict_saver.save(
                state, storage_writer=HuggingFaceStorageWriter(str(unfinished), save_distributed=True)
            )
            if ranks.is_first:
                cfg = {"model_type": "interp", **replace(model.cfg, dtype=model.dtype, device=None).to_dict()}
                (unfinished / _CONFIG).write_text(json.dumps(cfg, indent=1))
                if model.tokenizer is not None:
                    content = {"json": model.tokenizer.to_json(), "special": model.tokenizer.special_tokens()}
                    (unfinished / _TOKENIZER).write_text(json.dumps(content))
                (unfinished / _SHARDED).write_text(json.dumps(about))
        elif ranks.is_first:
            model.save_pretrained(unfinished)
            of_training = {k: tensor.cpu().contiguous() for k, tensor in state.items() if not k.startswith("model.")}
            save_file(of_training, unfinished / _STATE, {"about": json.dumps(about)})
        ranks.wait()
        if ranks.is_first:
            for file in unfinished.iterdir():
                with file.open("rb") as written:
                    os.fsync(written.fileno())
            os.replace(unfinished, done)
            for old in _steps(self.path)[: -keep - 1]:
                given_up = _checkpoint(self.path, old).rename(self.path / _CHECKPOINTS / f".step-{old}")
                shutil.rmtree(given_up)
        ranks.wait()

    def _check_same(self, before: dict[str, Any], now: dict[str, Any]) -> None:
        """Raise if another model, other data or another way to train were given than the run began with."""
        free = {"log_every", "eval_every", "eval_batches", "checkpoint_every", "keep", "measure_every", "measures"}
        free |= {"compile", "activation_checkpointing", "parallel"}
        differences = [
            f"{part}.{name}: it began with {before[part].get(name)!r}, now {value!r}"
            for part in ("training", "model")
            for name, value in now[part].items()
            if before[part].get(name) != value and not (part == "training" and name in free)
        ]
        if before["data"] != now["data"]:
            differences.append(f"the data: it began with {before['data']}, now {now['data']}")
        if differences:
            raise ValueError(
                f"{self.path} cannot be resumed with these choices:\n"
                + "\n".join(f"  - {each}" for each in differences)
            )


def _rows(file: Path) -> list[dict[str, Any]]:
    return _read(file)[0]


def _read(file: Path) -> tuple[list[dict[str, Any]], str]:
    """The rows of a log down to the first line that is none, and what is wrong with that one."""
    lines, rows = file.read_bytes().split(b"\n") if file.is_file() else [], []
    for i, line in enumerate(lines):
        try:
            row = json.loads(line)
            if not isinstance(row, dict) or type(row.get("step")) is not int or row["step"] < 0:
                raise ValueError("a row is an object with a step")
        except (ValueError, RecursionError):
            is_last = i == len(lines) - 1  # of a run that writes just now, or was killed while it wrote
            wrong = f"line {i + 1} of {len(lines)} is no row of a log: {line[:60].decode(errors='replace')!r}"
            return rows, "" if is_last else wrong
        rows.append(row)
    return rows, ""


def _steps(run: Path) -> list[int]:
    names = [each.name for each in (run / _CHECKPOINTS).glob("step-*") if each.is_dir()]
    return sorted(int(found[1]) for name in names if (found := re.fullmatch(r"step-(\d{8,18})", name)))


def _checkpoint(run: Path, step: int) -> Path:
    return run / _CHECKPOINTS / f"step-{step:08}"


def _state(model: HookedGPT, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Every tensor that a run goes on from, by name. AdamW's are made where it has not made them yet."""
    state = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        of_this = optimiser.state[parameter]
        if not of_this:
            of_this["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
            of_this["exp_avg"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
            of_this["exp_avg_sq"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        state |= {f"{kind}.{name}": tensor for kind, tensor in of_this.items()}
    return state


def _load_sharded(folder: Path, state: dict[str, Tensor]) -> dict[str, Any]:
    _read_shards(folder, state)
    return read_json(folder / _SHARDED)


def _read_shards(folder: Path, state: dict[str, Tensor]) -> None:
    reader = HuggingFaceStorageReader(str(folder))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # one process reads the shards of many
        state_dict_loader.load(state, storage_reader=reader)


@torch.no_grad()
def _load_whole(folder: Path, state: dict[str, Tensor]) -> dict[str, Any]:
    weights = TensorFiles(folder)
    of_training = open_safetensors(folder / _STATE)
    for name, tensor in state.items():
        kind, _, rest = name.partition(".")
        saved = weights[rest] if kind == "model" else of_training.get_tensor(name)
        if isinstance(tensor, DTensor):
            saved = distribute_tensor(saved.to(tensor.device), tensor.device_mesh, tensor.placements)
        tensor.copy_(saved)
    return json.loads(of_training.metadata()["about"])
