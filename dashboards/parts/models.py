"""The models that can be put on show, by name."""

import inspect
from dataclasses import dataclass

import streamlit as st

from interp import HookedGPT, zoo
from interp.zoo.planted import Planted

PLANTED = "planted/"
DEFAULT = "stdlib-4l"
DEFAULT_PROMPT = "def area(width, height):\n    return width *"  # the design's


def names() -> list[str]:
    """All that can be opened without asking anybody: trained models, then those set by hand."""
    trained = sorted(zoo.bundled(), key=lambda name: (name != DEFAULT, name))
    return trained + [
        PLANTED + name for name in sorted(zoo.planted.__all__) if inspect.isfunction(getattr(zoo.planted, name))
    ]


@dataclass(frozen=True, eq=False)
class Loaded:
    """A model, and how it was planted if it was."""

    model: HookedGPT
    planted: Planted | None = None


@st.cache_resource(max_entries=2, show_spinner="Opening the model")
def load(name: str) -> Loaded:
    """The model of this name."""
    if name.startswith(PLANTED):
        made = getattr(zoo.planted, name.removeprefix(PLANTED))()
        return Loaded(made.model, made) if isinstance(made, Planted) else Loaded(made)
    return Loaded(HookedGPT.from_pretrained(name))


def default_prompt(loaded: Loaded) -> str:
    """What a model is shown with first."""
    if loaded.planted is not None:
        return " ".join(map(str, loaded.planted.sample(1).tokens[0].tolist()))
    if loaded.model.tokenizer is None:
        return " ".join(str(i % loaded.model.cfg.d_vocab) for i in range(min(8, loaded.model.cfg.n_ctx)))
    return DEFAULT_PROMPT
