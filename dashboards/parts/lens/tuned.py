"""The tuned lens that a session has: from a file, or trained here; it is forgotten with its model.

The session's `_tuned` is the lens, with the fingerprint that it belongs to; `_tuned_job` is the one that was trained.
"""

import hashlib
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter

import streamlit as st
import torch

from dashboards.parts import jobs
from dashboards.parts.models import Trouble, told
from dashboards.parts.state import Chosen, kept
from dashboards.parts.words import plain, report
from interp import HookedGPT
from interp.lens import TunedLens, tuned_lens
from interp.lens.layers import log_probs
from interp.passages import rows_like
from interp.training.data import Rows

LARGEST = 480  # MB of a file
FILE = "tuned_lens.safetensors"
STEPS, BATCH, WIDTH = 40, 8, 64  # steps of so many rows of so many tokens
RATE = 2e-3
MOST_WORK = 1e13  # multiplications and additions that a training here may take: about a minute
LENSES = {"plain": "plain", "tuned": "tuned", "difference": "tuned less plain"}


@dataclass(frozen=True, eq=False)
class Tuned:
    """A lens, by what its numbers are known."""

    lens: TunedLens
    digest: str

    @classmethod
    def of(cls, lens: TunedLens) -> "Tuned":
        digest = hashlib.sha256()
        for each in (lens.weight, lens.bias):
            digest.update(each.detach().float().cpu().contiguous().numpy().tobytes())
        return cls(lens, digest.hexdigest()[:16])

    @property
    def trained_on(self) -> str:
        """In words, safe on a page."""
        return f"trained on {plain(self.lens.trained_on, 120) or 'what its file does not say'}"


def tuned_of(now: Chosen) -> Tuned | None:
    """The lens of this session and this model; that of another model is let go."""
    state = st.session_state
    if "_tuned" in state and state["_tuned"].lens.model != now.fingerprint:
        for name in ("_tuned", "_tuned_job"):
            state.pop(name, None)
    return state.get("_tuned")


def offer(now: Chosen) -> Tuned | None:
    """Where a lens is given, or trained; what there is then."""
    tuned_of(now)
    key = f"_lens_file_{now.fingerprint[:8]}"
    with st.popover("Tuned lens", icon=":material/tune:", key="lens_tuned"):
        st.caption(
            "A map for each layer, trained so that its reading says what the model says in the end; "
            "`lens.tuned_lens` trains one, its `save` writes the file."
        )
        st.file_uploader(
            "File of a tuned lens",
            "safetensors",
            key=key,
            on_change=_take_file,
            args=(now.model, key),
            max_upload_size=LARGEST,
        )
        trouble = st.session_state.get("_tuned_trouble")
        if trouble is not None and trouble[0] == key:
            report(trouble[1], "tuned")
        _offer_training(now)
        if (found := tuned_of(now)) is not None:
            st.caption(f"There is one: {found.trained_on}.")
            st.download_button(
                "Download it", lambda: _file_of(found.lens), FILE, on_click="ignore", key="_lens_tuned_file"
            )
    return found


def work_of(model: HookedGPT) -> float:
    """How many multiplications and additions a training takes, about."""
    weights = sum(each.numel() for each in model.parameters()) - model.W_E.numel() - model.W_U.numel()
    each = 2 * weights + 2 * model.cfg.d_model * model.cfg.d_vocab_out * (1 + 3 * model.cfg.n_layers)
    return float(each) * STEPS * BATCH * _width(model)


def trained(model: HookedGPT, tell: jobs.Tell) -> TunedLens:
    """A job: the lens of a model, from files of Python's standard library."""
    like = torch.zeros(1, _width(model) + 1, dtype=torch.long)
    bos = model.bos_tokens()
    like[0, : len(bos)] = torch.tensor(bos, dtype=torch.long)
    rows = rows_like(model, like, STEPS * BATCH)
    words = f"{STEPS * BATCH * _width(model):,} tokens of Python's standard library"
    lens, _ = tuned_lens(
        model, Rows(list(rows)), steps=STEPS, batch_size=BATCH, lr=RATE, trained_on=words, progress=tell
    )
    return lens


def seconds_of_training(model: HookedGPT) -> float:
    """For `kept`: how long it takes, twice what its readings would, by the time of those of one row."""
    stream, times = torch.ones(_width(model), model.cfg.d_model, device=model.device), list[float]()
    for _ in range(3):
        start = perf_counter()
        log_probs(model, stream)
        times.append(perf_counter() - start)
    return 2 * min(times) * work_of(model) / (2 * stream.numel() * model.cfg.d_vocab_out)


def _width(model: HookedGPT) -> int:
    return min(WIDTH, model.cfg.n_ctx)


def _offer_training(now: Chosen) -> None:
    if now.model.tokenizer is None:
        st.caption("This model reads no text, so that none is trained here.")
        return
    if work_of(now.model) > MOST_WORK:
        st.caption("This model is too large for one to be trained here in about a minute.")
        return
    seconds = kept(now.fingerprint, torch.zeros(0), seconds_of_training, (now.model,), ())
    found = jobs.offer(
        trained,
        name="Tuned lens",
        seconds=seconds,
        draw=lambda _: None,
        of=f"{STEPS} steps on Python's standard library",
        start="Train one",
        of_prompt=False,
    )
    if found is not None and st.session_state.get("_tuned_job") is not found:
        st.session_state["_tuned_job"] = found
        _take(found)


def _take(lens: TunedLens) -> None:
    st.session_state["_tuned"] = Tuned.of(lens)
    st.session_state["lens_which"] = "tuned"
    st.session_state.pop("_tuned_trouble", None)


def _take_file(model: HookedGPT, key: str) -> None:
    """What was uploaded, read under a name of our own."""
    file = st.session_state[key]
    st.session_state.pop("_tuned_trouble", None)
    if file is None:
        return
    with tempfile.TemporaryDirectory(prefix="interp-lens-") as folder:
        path = Path(folder) / "lens"
        try:
            path.write_bytes(file.getvalue())
            lens = TunedLens.load(path, model)
        except Exception as error:  # a file can be wrong in every way there is
            st.session_state["_tuned_trouble"] = key, _told(error, path)
            return
    _take(lens)


def _told(error: Exception, path: Path) -> Trouble:
    found = told(error, {str(path): "The file"})
    return replace(found, cure="Give a file that TunedLens.save wrote for the model on show.")


def _file_of(lens: TunedLens) -> bytes:
    with tempfile.TemporaryDirectory(prefix="interp-lens-") as folder:
        lens.save(path := Path(folder) / FILE)
        return path.read_bytes()
