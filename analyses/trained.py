"""What studies of training share: models that they train themselves and keep, and a text as characters.

A model's run is a folder (`interp.training.Run`) in the study's own: it goes on where it was stopped, and a second look
at what is finished trains nothing.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np

from interp import HookedGPT
from interp.corpus import standard_library, texts_of
from interp.tokenization import Tokenizer
from interp.training import Data, TokenFile, TrainingConfig, split, train
from interp.training.data import Held

Log = list[dict[str, Any]]


def trained(
    model: HookedGPT,
    data: Data,
    cfg: TrainingConfig,
    folder: Path | None,
    *,
    held_out: Held | None = None,
    measures: Mapping[str, Callable[[HookedGPT], Any]] | None = None,
) -> Log:
    """Train a model where it stands, and return its log; what the folder has of it is not trained again.

    Without a folder nothing is kept.
    """
    options: dict[str, Any] = {"held_out": held_out, "measures": measures, "progress": False}
    return train(model, data, cfg, folder, resume=folder is not None and (folder / "config.json").is_file(), **options)


@dataclass(frozen=True)
class Characters:
    """A text, a token a character: what is trained on, and the tenth that is held out."""

    tokenizer: Tokenizer
    train: np.ndarray
    held_out: np.ndarray

    def read(self, n_ctx: int, seed: int = 0) -> TokenFile:
        """Chunks to train on, in an order drawn from `seed`."""
        return TokenFile(self.train, n_ctx, seed=seed)

    def asked(self, n_ctx: int, n_tokens: int | None = None) -> TokenFile:
        """What is held out, or its first so many tokens."""
        return TokenFile(self.held_out[:n_tokens], n_ctx)


def characters(text: Path | None, most: int) -> Characters:
    """The first `most` characters of a text file; without one, of the standard library's modules of plain ASCII."""
    if text is None:
        whole, left = list[str](), most
        for module in filter(str.isascii, standard_library()):
            whole.append(module[:left])
            left -= len(whole[-1])
            if not left:
                break
        read = "".join(whole)
    else:
        read = next(iter(texts_of([text])))[:most]
    tokenizer = Tokenizer.characters(read)
    parts = (np.array(tokenizer.encode(part[0]), dtype=np.int64) for part in split([read]))
    return Characters(tokenizer, *parts)


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """The mean over seeds, and its standard error."""
    return mean(values), stdev(values) / sqrt(len(values)) if len(values) > 1 else float("nan")
