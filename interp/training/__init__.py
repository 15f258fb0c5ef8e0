"""Training: data, one readable loop, runs as folders, and presets."""

from interp.corpus import texts_of
from interp.training.config import TrainingConfig
from interp.training.data import IGNORED, Batch, Data, FullBatch, Mixture, Rows, Shorter, Stages, Task, TokenFile
from interp.training.loop import evaluate, train
from interp.training.presets import PRESETS, Given, Job, Preset
from interp.training.run import Run
from interp.training.tasks import modular_addition, repeated_tokens
from interp.training.texts import split, write_tokens

__all__ = [
    "IGNORED",
    "PRESETS",
    "Batch",
    "Data",
    "FullBatch",
    "Given",
    "Job",
    "Mixture",
    "Preset",
    "Rows",
    "Run",
    "Shorter",
    "Stages",
    "Task",
    "TokenFile",
    "TrainingConfig",
    "evaluate",
    "modular_addition",
    "repeated_tokens",
    "split",
    "texts_of",
    "train",
    "write_tokens",
]
