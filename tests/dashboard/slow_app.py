"""An app with two pages and a job that is as slow as it is told, for the tests of jobs: `streamlit run slow_app.py`."""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import streamlit as st
import torch
from torch import Tensor

from dashboards.parts import jobs
from dashboards.parts.state import Chosen, Opened, show
from interp import GPTConfig, HookedGPT

SIZES = {"n_layers": 1, "n_heads": 1, "d_model": 8, "n_ctx": 8, "d_vocab": 9, "act_fn": "gelu"}


@st.cache_resource
def model_of() -> HookedGPT:
    return HookedGPT(GPTConfig(**SIZES, seed=0))


def counted(model: HookedGPT, tokens: Tensor, n: int, step: float, fails_at: int, tell: jobs.Tell) -> list[float]:
    """The sum of the tokens' logits, n times, each time a bit more, with a rest before each."""
    found = list(tell.before or [])
    while len(found) < n:
        until = time.monotonic() + step
        while time.monotonic() < until:
            torch.zeros(1).add(1)
            time.sleep(0.01)
        if len(found) == fails_at:
            raise ValueError(f"no number at {fails_at}")
        found.append(len(found) + float(model(tokens).sum()))
        tell(len(found), n, list(found))
    return found


def first() -> None:
    step = float(asked.get("step", "0.05"))
    for name in asked.get("names", "Counting").split(","):
        found = jobs.offer(
            counted, int(asked.get("n", "40")), step, int(asked.get("fails_at", "-1")),
            name=name, seconds=40 * step, of="40 sums", draw=lambda part: st.text(f"{len(part)} numbers so far"),
        )  # fmt: skip
        if found is not None:
            st.text(f"All {len(found)} numbers, the last {found[-1]:.4f}")
    moved = st.slider("Other", 0, 10, 3)
    st.text(f"The other widget says {moved}")


def second() -> None:
    st.text("Another page")


asked = st.session_state.setdefault("_asked", {})
asked |= st.query_params.to_dict()  # another page has another link
model = model_of()
opened = Opened("small", model, model.fingerprint())
tokens = torch.tensor([[int(asked.get("token", "1")), 2, 3]])
show(opened, Chosen("small", model, opened.fingerprint, "", tokens, ["1", "2", "3"], 2, 0, 1, False, False))
st.navigation([st.Page(first, title="First"), st.Page(second, title="Second")]).run()
