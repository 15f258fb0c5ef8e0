"""Ablation studies on the page: what is chosen here as a study's file, and the folders that studies left."""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import streamlit as st
from xarray import Dataset

from analyses.ablate import effects, models_of
from analyses.ablation_study import DISTRACTORS as PLANTED_WITH
from analyses.ablation_study import Study
from analyses.output import RESULT, SUMMARY, opened
from dashboards.parts import models
from dashboards.parts.ablation.wanted import HOWS, Wanted
from dashboards.parts.figure import figure
from dashboards.parts.models import DISTRACTORS, FOLDER, HUB, UPLOAD, Trouble, told
from dashboards.parts.state import Chosen
from dashboards.parts.words import plain, report
from interp import plots
from interp.plots.effects import is_mapped

LARGEST = 256  # MB
UPLOADED = "the upload"
OFFERED = 16  # parts that a click takes to the page
Found = tuple[Dataset, dict[str, Any]]

assert PLANTED_WITH == DISTRACTORS  # a planted model is the same one there and here


def study_of(now: Chosen, wanted: Wanted) -> str:
    """A file of `python -m analyses.ablate` that takes the same parts of the same model away on the same prompt."""
    named, notes = now.name.removeprefix(HUB), list[str]()
    if now.name.startswith((FOLDER, UPLOAD)):
        named = named.removeprefix(FOLDER)
        notes.append("models: say where that folder is")
    if wanted.how == "resample":
        notes.append("another text of the library stands in than on the page")
    if wanted.steering or wanted.uploaded:
        notes.append("steering and edits from a file are left out: save them there, and name the file as `edits`")
    study = Study(
        models=(named,),
        sites=wanted.parts,
        kinds=(wanted.how,),
        metrics=("logit_diff", "loss") if now.model.cfg.d_vocab == now.model.cfg.d_vocab_out else ("logit_diff",),
        text=(now.prompt if now.model.tokenizer else " ".join(map(str, now.tokens[0].tolist())),),
        bos=now.bos if now.model.tokenizer else None,
        correct=(now.target,),
        wrong=(now.foil,),
        pos=(now.q,),
        reference="own" if wanted.how in ("zero", "uniform", "first") else "sample",
    )
    return "".join(f"# {note}\n" for note in notes) + study.toml()


def folders() -> list[str]:
    """The folders of studies under the allowed one, up to two levels down."""
    top = models.root()
    found = [*top.glob(f"*/{SUMMARY}"), *top.glob(f"*/*/{SUMMARY}")] if top and top.is_dir() else []
    names = [file.parent.relative_to(top or "").as_posix() for file in found if _is_study(file.parent, top or Path())]
    return sorted(names)[:200]


def open_folder(name: str) -> Found | Trouble:
    """The study in a folder of this name, or why there is none."""
    try:
        folder = models.inside(name)
        return checked(folder)
    except Exception as error:  # a file can be wrong in every way there is
        return Trouble(told(error).cause, "Choose a folder that python -m analyses.ablate has finished.")


def open_upload(files: Sequence[tuple[str, bytes]]) -> Found | Trouble:
    """The study in these files."""
    kept = {name.rsplit(".", 1)[-1]: content for name, content in files}
    if len(files) != 2 or set(kept) != {"nc", "json"}:
        return Trouble(f"A study is two files, {RESULT} and {SUMMARY}.", "Choose these two together.")
    with tempfile.TemporaryDirectory(prefix="interp-study-") as folder:
        Path(folder, RESULT).write_bytes(kept["nc"])
        Path(folder, SUMMARY).write_bytes(kept["json"])
        try:
            return checked(Path(folder))
        except Exception as error:
            return Trouble(told(error, {folder: "the upload"}).cause, "Choose what python -m analyses.ablate wrote.")


def checked(folder: Path) -> Found:
    """The study in a folder; raise for any other analysis', and for what cannot be drawn."""
    if (size := (folder / RESULT).stat().st_size) > LARGEST * 2**20:
        raise ValueError(f"{RESULT} has {size:,} bytes; up to {LARGEST} MB are opened here")
    result, summary = opened(folder)
    if summary["analysis"] != "ablate":
        raise ValueError(f"This is a folder of the analysis {str(summary['analysis'])[:40]!r}, and of no ablation")
    try:
        for model in models_of(result):
            for metric, kind in cases(result):
                if not np.isfinite(effects(result, model, metric, kind)["mean"].to_numpy()).all():
                    raise ValueError("its effects are no numbers")
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{RESULT} is of no ablation study: {type(error).__name__}: {error}") from None
    return result, summary


def cases(result: Dataset) -> list[tuple[str, str]]:
    """The metrics and kinds of a study."""
    return [(str(metric), str(kind)) for metric in result["metric"].values for kind in result["kind"].values]


def draw_studies(now: Chosen) -> None:
    """The field for a study, and what it found."""
    asked = st.session_state.get("study") or st.query_params.get("study") or "_study_file" in st.session_state
    with st.expander("A study", expanded=bool(asked)):
        names = folders()
        if st.session_state.get("study") not in (None, *names):
            st.warning(f"There is no study {plain(str(st.session_state['study']), 60)} here.", icon=":material/info:")
            del st.session_state["study"]
        url: Any = {"bind": "query-params", "persist_state": "session"}
        name = st.selectbox(
            "Study", names, index=None, key="study", format_func=lambda each: each, placeholder="A folder", **url,
            help="Folders that `python -m analyses.ablate` left inside of the models' folder.",
        )  # fmt: skip
        st.file_uploader(
            f"Or its {RESULT} and {SUMMARY}", ["nc", "json"], key="_study_upload", accept_multiple_files=True,
            on_change=_upload, max_upload_size=LARGEST,
        )  # fmt: skip
        found: Found | Trouble | None = open_folder(name) if name else st.session_state.get("_study_file")
        if isinstance(found, Trouble):
            report(found, "study")
        elif found is not None:
            result, summary = found
            draw_study(now, name or UPLOADED, result, summary)


def draw_study(now: Chosen, name: str, result: Dataset, summary: dict[str, Any]) -> None:
    """Its map and bars; a click on a part takes it to the page."""
    of = models_of(result)
    with st.container(horizontal=True):
        model = st.selectbox("Model of the study", of, key="study_model") if len(of) > 1 else of[0]
        case = cases(result)
        metric, kind = st.selectbox(
            "Metric and kind", case, key="study_case", format_func=lambda each: f"{each[0]}, {each[1]}"
        )
    alone = effects(result, model, metric, kind)
    order = np.argsort(-np.abs(alone["mean"].to_numpy()), kind="stable")[:OFFERED].tolist()
    parts = [str(alone["site"].values[i]) for i in order]
    said = "; ".join(f"{part} {float(alone['mean'][i]):+.3g}" for part, i in zip(parts[:3], order[:3], strict=True))
    title, caption = f"{model} without each part", plain(f"{len(alone['site'])} parts. Largest: {said}.")
    code = (
        "from pathlib import Path\n\nfrom analyses.ablate import effects\nfrom analyses.output import opened\n"
        f"from interp import plots\n\nresult, summary = opened(Path({name!r}))  # where that folder is\n"
        f"found = effects(result, {model!r}, {metric!r}, {kind!r})\n"
    )
    if is_mapped(alone["site"].values.tolist()):
        drawn = plots.effect_map(alone, title=title, theme=now.theme)
        figure(drawn, key="study_map", code=f"{code}fig = plots.effect_map(found)\n", alt=f"A map. Largest: {said}.",
               data=alone["mean"].rename("change"), height=420)  # fmt: skip
    drawn = plots.effect_bars(alone, title=title, theme=now.theme)
    figure(drawn, key="study_bars", code=f"{code}fig = plots.effect_bars(found)\n", caption=caption,
           alt=f"Bars with intervals. Largest: {said}.", data=alone.to_dataframe().reset_index())  # fmt: skip
    fingerprint = str(summary["models"].get(model, ""))
    if fingerprint != now.fingerprint:
        st.caption(f"The study is of other weights than those on show: {plain(model)} is {plain(fingerprint[:8])}.")
        return
    st.pills("Take away on this page", parts, key="_study_part", on_change=_take, args=(kind,))


def _take(kind: str) -> None:
    """Before anything is drawn: the part that was clicked is what is taken away here."""
    if part := st.session_state.pop("_study_part", None):
        st.session_state["abl"] = part
        if kind in HOWS:
            st.session_state["abl_how"] = kind


def _upload() -> None:
    files = st.session_state["_study_upload"] or []
    st.session_state.pop("_study_file", None)
    if files:
        st.session_state["_study_file"] = open_upload([(file.name, file.getvalue()) for file in files])


def _is_study(folder: Path, top: Path) -> bool:
    files = [folder / name for name in (RESULT, SUMMARY)]
    if not all(file.is_file() and file.resolve().is_relative_to(top) for file in files):
        return False
    try:
        with files[1].open(encoding="utf-8") as file:
            return json.loads(file.read(2**20)).get("analysis") == "ablate"
    except (OSError, ValueError, AttributeError, RecursionError):
        return False
