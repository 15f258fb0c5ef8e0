"""`python -m interp.training PRESET --out FOLDER`, alone or under `torchrun`; `PRESET --help` lists the options."""

import shlex
import sys
from dataclasses import dataclass
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Annotated, Any

import tyro

from interp.training.config import TrainingConfig
from interp.training.loop import train
from interp.training.parallel import Ranks
from interp.training.presets import PRESETS, Given
from interp.training.run import RunFolder


@dataclass
class Command:
    """A training run."""

    preset: tyro.conf.Suppress[str]
    out: Path  # the run's folder
    training: Annotated[TrainingConfig, tyro.conf.arg(name="")]
    data: tuple[Path, ...] = ()  # text files, .jsonl files, or one .npy file of tokens
    tokenizer: Path | None = None  # a tokenizer.json, or a folder that holds one
    resume: bool = False  # go on with the run in the folder, if there is one


def _of_preset(name: str) -> Any:
    preset = PRESETS[name]
    default = Command(name, tyro.MISSING, preset.training)
    return Annotated[Command, tyro.conf.subcommand(name, default=default, description=preset.about)]


def main() -> None:
    """Train as the command line says."""
    presets: Any = reduce(or_, (_of_preset(name) for name in PRESETS))
    try:
        command: Command = tyro.cli(presets, prog="python -m interp.training", description=__doc__)
    except ValueError as error:
        raise SystemExit(str(error)) from None
    said = shlex.join(["python", "-m", "interp.training", *sys.argv[1:]])
    preset, out = PRESETS[command.preset], command.out.expanduser()
    given = Given(out / "data", command.data, command.tokenizer, command.training.seed)
    make = preset.job
    ranks, job = Ranks(), None
    try:
        if not preset.reads and (command.data or command.tokenizer):
            raise ValueError(f"{command.preset} reads no text of yours: leave out --data and --tokenizer")
        RunFolder(out).refuse(command.resume, is_empty=True)
        with ranks.joined():
            if ranks.is_first:
                job = make(given)  # it writes tokens, which the others read
            ranks.wait()
            job = job or make(given)
            train(
                job.model.to(ranks.device),
                job.data,
                command.training,
                out,
                held_out=job.held_out,
                measures=job.measures,
                resume=command.resume,
                about={"preset": command.preset, "command": said},
            )
    except KeyboardInterrupt as stopped:
        raise SystemExit(f"{stopped}\ngo on with: {said}{'' if command.resume else ' --resume'}") from None
    except (ValueError, OSError, FloatingPointError) as error:
        raise SystemExit(f"{type(error).__name__}: {error}") from None


if __name__ == "__main__":
    main()
