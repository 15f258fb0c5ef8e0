"""Which edits are wanted: parts to take away, a direction to steer along, and edits from a file."""

import hashlib
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import streamlit as st
from torch import Tensor

from dashboards.parts.grid import grid, scale_of
from dashboards.parts.heads.measured import direct, quoted
from dashboards.parts.models import Trouble, told
from dashboards.parts.state import Chosen, kept
from dashboards.parts.words import plain, report
from interp import HookedGPT, interventions, lens, patching
from interp.interventions import Edit, Site, Steer
from interp.patching.removal import How

HOWS: dict[How, str] = {
    "zero": "zero",
    "mean": "its mean over a sample of text",
    "resample": "its value at the same position of another text",
    "uniform": "what it reads where it attends to all tokens alike",
    "first": "what it reads where it attends to the first token alone",
}
STEER = ("add", "project out")
MEAN_OF = (16, 64)  # rows of a sample, and tokens of each
TEXTS, LATER = 8, 200  # rows for another text's values; how far beyond the prompt they reach
LARGEST = 64  # MB of an upload
MOST = 200  # parts
RIGHT = 440  # pixels; where the window is narrow, what stands on the right goes below


@dataclass(frozen=True)
class Steering:
    """A direction between two prompts, at a layer."""

    toward: str
    away: str
    layer: int
    scale: float
    is_out: bool


@dataclass(frozen=True)
class Uploaded:
    """Edits from a file, known by what is in it."""

    name: str
    digest: str
    edits: tuple[Edit, ...] = field(compare=False)


@dataclass(frozen=True)
class Wanted:
    """Everything that is done to a run."""

    parts: tuple[str, ...] = ()
    how: How = "zero"
    text: int = 0  # which other text's values
    steering: Steering | None = None
    uploaded: Uploaded | None = None

    def __bool__(self) -> bool:
        return bool(self.parts or self.steering or self.uploaded)


def removals_of(model: HookedGPT, tokens: Tensor, wanted: Wanted) -> dict[str, list[Edit]]:
    """What takes each part away."""
    reference = None
    if wanted.how == "mean":
        reference = patching.sample(model, *MEAN_OF)
    if wanted.how == "resample":
        reference = patching.sample(model, TEXTS, tokens.shape[1] + LATER)
    return patching.removals(model, ", ".join(wanted.parts), wanted.how, reference, wanted.text)


def edits_of(model: HookedGPT, tokens: Tensor, wanted: Wanted) -> list[Edit]:
    """All edits, in their order."""
    edits = [edit for some in removals_of(model, tokens, wanted).values() for edit in some]
    if (how := wanted.steering) is not None:
        direction = lens.mean_difference(model, how.toward, how.away, how.layer)
        scale: Any = {"project_out": True} if how.is_out else {"scale": how.scale}
        edits.append(Steer(Site("resid_post", how.layer), direction, **scale))
    return [*edits, *(wanted.uploaded.edits if wanted.uploaded else ())]


def code_of(now: Chosen, wanted: Wanted, parts_only: bool = False) -> tuple[str, tuple[str, ...]]:
    """Python that makes the edits, and what it imports."""
    imports, lines = {"patching"}, list[str]()
    names, how = ", ".join(wanted.parts), wanted.how
    more = ""
    if how == "mean":
        more = f", reference=patching.sample(model, {MEAN_OF[0]}, {MEAN_OF[1]})"
    if how == "resample":
        n = now.tokens.shape[1] + LATER
        more = f", reference=patching.sample(model, {TEXTS}, {n}), row={wanted.text}"
    lines.append(f"removals = patching.removals(model, {names!r}, {how!r}{more})")
    lines.append("edits = [edit for some in removals.values() for edit in some]")
    if wanted.steering is not None and not parts_only:
        imports |= {"interventions", "lens"}
        to = wanted.steering
        scale = "project_out=True" if to.is_out else f"scale={to.scale}"
        lines.append(f"direction = lens.mean_difference(model, {to.toward!r}, {to.away!r}, layer={to.layer})")
        site = f"interventions.Site('resid_post', {to.layer})"
        lines.append(f"edits.append(interventions.Steer({site}, direction, {scale}))")
    if wanted.uploaded is not None and not parts_only:
        imports.add("interventions")
        lines.append(f"edits += interventions.load({wanted.uploaded.name!r})  # with its tensors beside it")
    return "\n".join(lines) + "\n", tuple(sorted(imports))


def in_words(wanted: Wanted) -> str:
    """What is done, in a line; not escaped."""
    said = []
    if wanted.parts:
        to = HOWS[wanted.how] + (f" ({wanted.text})" if wanted.how == "resample" else "")
        said.append(f"{', '.join(wanted.parts)} → {to}")
    if (how := wanted.steering) is not None:
        what = "taken out" if how.is_out else f"× {how.scale:g} added"
        said.append(f"“{how.toward}” less “{how.away}” {what} after layer {how.layer}")
    if wanted.uploaded is not None:
        said.append(f"{len(wanted.uploaded.edits)} edits of {wanted.uploaded.name}")
    return "; ".join(said) or "nothing is changed"


def controls(now: Chosen) -> Wanted | Trouble:
    """Draw what can be chosen; what is, or why that cannot be done."""
    if name := st.session_state.pop("_abl_turn", None):
        _turn(name)
    with st.container(horizontal=True, gap="medium"):
        left, right = st.container(width="stretch"), st.container(width=RIGHT)
    with left:
        parts = _parts()
        with st.expander("Steer along a direction", expanded=bool(st.session_state.get("steer_to"))):
            steering = _steering(now)
        with st.expander("Edits from a file, or to one", expanded="_abl_file" in st.session_state):
            _upload()
            found = _checked(now, parts, steering, st.session_state.get("_abl_file"))
            if isinstance(found, Wanted) and found:
                _downloads(now, found)
    with right:
        _pick(now, parts[0])
    return found


def fields(now: Chosen) -> Wanted | Trouble:
    """The same without the grid and files, for another page."""
    parts = _parts()
    return _checked(now, parts, _steering(now), st.session_state.get("_abl_file"))


def is_any() -> bool:
    """Whether there is something to switch on, on other pages."""
    said = {name: st.session_state.get(name) or st.query_params.get(name) for name in ("abl", "steer_to", "steer_from")}
    return bool(said["abl"] or (said["steer_to"] and said["steer_from"]) or st.session_state.get("_abl_file"))


def made(now: Chosen, wanted: Wanted) -> list[Edit]:
    """The edits, which are kept."""
    return kept(now.fingerprint, now.tokens, edits_of, (now.model, now.tokens, wanted), (wanted,))


def _parts() -> tuple[str, How, int]:
    url: Any = {"bind": "query-params", "persist_state": "session"}
    names = st.text_input(
        "Parts to take away",
        key="abl",
        placeholder="L5H1, L2N14, L7, L7 attn, L7 mlp",
        help="Heads, neurons, layers or half layers, with commas between (L0-2H*, L3N0-63), or any hook "
        "(resid_pre layer 2 pos 5); or click heads in the grid.",
        **url,
    )
    if st.session_state.get("abl_how", "zero") not in HOWS:
        del st.session_state["abl_how"]
    how: Any = st.segmented_control(
        "What stands in for each", list(HOWS), default="zero", key="abl_how", required=True, **url
    )
    st.caption(f"Each part is given {HOWS[how]}." if how != "zero" else "Each part is set to 0.")
    text = 0
    if how == "resample":
        text = st.number_input("Which other text", 0, TEXTS - 1, 0, key="abl_text", **url)
    return names or "", how, int(text)


def _steering(now: Chosen) -> Steering | None:
    if now.model.tokenizer is None:
        st.caption("Directions are taken between two texts; this model reads token ids.")
        return None
    url: Any = {"bind": "query-params", "persist_state": "session"}
    n = now.model.cfg.n_layers
    if (st.session_state.get("steer_layer") or 0) >= n:
        st.session_state["steer_layer"] = n - 1
    if not 0 <= (st.session_state.get("steer_scale") or 0) <= 100:
        st.session_state["steer_scale"] = 1.0
    if st.session_state.get("steer_how", "add") not in STEER:
        del st.session_state["steer_how"]
    first, second = st.columns(2)
    toward = first.text_input("Toward the text", key="steer_to", **url)
    away = second.text_input("Away from the text", key="steer_from", **url)
    first, second, third = st.columns(3, vertical_alignment="bottom")
    layer = first.number_input("After layer", 0, n - 1, n // 2, key="steer_layer", **url)
    scale = second.number_input("Times", 0.0, 100.0, 1.0, 0.5, key="steer_scale", **url)
    how = third.segmented_control("How", list(STEER), default="add", key="steer_how", required=True, **url)
    st.caption(
        "The mean of the stream after that layer on the first text, less that on the second, is added at every token; "
        "or all that lies along it is taken out."
    )
    if not toward or not away:
        return None
    is_out = how == "project out"
    return Steering(toward, away, int(layer), 1.0 if is_out or scale is None else float(scale), is_out)


def _checked(
    now: Chosen, parts: tuple[str, How, int], steering: Steering | None, uploaded: Uploaded | None
) -> Wanted | Trouble:
    """What is wanted, once it has been seen to work on a first token."""
    names, how, text = parts
    try:
        named = tuple(patching.parts_named(now.model, names, now.tokens.shape[1]))
        if len(named) > MOST:
            raise ValueError(f"{len(named):,} parts are named; up to {MOST} are taken away here, more in a study")
        wanted = Wanted(named, how, text, steering, uploaded)
        with now.model.edit(made(now, wanted)):
            kept(now.fingerprint, now.tokens, tried, (now.model, now.tokens), (wanted,))
    except (ValueError, KeyError, IndexError, TypeError, RuntimeError) as error:
        text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
        return Trouble(f"{text[:600].rstrip('.')}.", "Change the parts, the direction or the file.")
    return wanted


def tried(model: HookedGPT, tokens: Tensor) -> bool:
    """For `kept`: whether a pass works with the edits that are in force."""
    model(tokens, return_type=None)
    return True


def _pick(now: Chosen, names: str) -> None:
    """The grid of heads; a click puts a head into the set, or takes it out."""
    effects = direct(now).to_numpy()
    n_layers, n_heads = effects.shape
    chosen = _heads_in(now, names)
    clicked = grid(
        effects,
        key="abl_grid",
        row_labels=[f"L{i}" for i in range(n_layers)],
        column_labels=[f"H{j}" for j in range(n_heads)],
        text=[[f"{x:+.2f}" for x in row] for row in effects.tolist()] if effects.size <= 800 else None,
        said=[[f"L{i}H{j} {effects[i, j]:+.4g}" for j in range(n_heads)] for i in range(n_layers)],
        letters=[["×" if (i, j) in chosen else "" for j in range(n_heads)] for i in range(n_layers)],
        colour="diverging",
        scale=scale_of(effects, "diverging", f"adds to logit {quoted(now, now.target)} − {quoted(now, now.foil)}"),
        theme=now.theme,
        alt=f"What each head adds directly. In the set: {', '.join(f'L{i}H{j}' for i, j in sorted(chosen)) or 'none'}.",
    )
    st.caption("What each head adds directly. A click takes the head away (×), another one gives it back.")
    if clicked is not None:
        st.session_state["_abl_turn"] = f"L{clicked[0]}H{clicked[1]}"
        st.rerun(scope="fragment")  # the field with the names has been drawn


def _heads_in(now: Chosen, names: str) -> set[tuple[int, int]]:
    """The heads that are in the set by their own name."""
    try:
        named = patching.parts_named(now.model, names, now.tokens.shape[1])
    except ValueError:
        return set()
    sites = [sites[0] for name, sites in named.items() if "H" in name]
    return {(int(site.layer or 0), int(site.head)) for site in sites if isinstance(site.head, int)}


def _turn(name: str) -> None:
    """Put a part into the set, or take it out, before the field with its names is drawn."""
    names = [each.strip() for each in str(st.session_state.get("abl") or "").split(",") if each.strip()]
    same = [each for each in names if each.upper() in (name, name[1:].replace("H", "."))]
    st.session_state["abl"] = ", ".join([each for each in names if each not in same] + ([] if same else [name]))


def _upload() -> None:
    st.file_uploader(
        "Edits that a script saved: the .json, and the .safetensors beside it if there is one",
        ["json", "safetensors"],
        key="_abl_upload",
        accept_multiple_files=True,
        on_change=_open,
        max_upload_size=LARGEST,
    )
    if (found := st.session_state.get("_abl_trouble")) is not None:
        report(found, "abl_file")
    if (file := st.session_state.get("_abl_file")) is not None:
        with st.container(horizontal=True, vertical_alignment="center"):
            st.caption(f"{len(file.edits)} edits of {plain(file.name)} are in force.")
            st.button("Leave them out", key="abl_forget", on_click=_forget, type="tertiary")


def _open() -> None:
    """Take the uploaded files for edits; a half of them waits for the other."""
    files = st.session_state["_abl_upload"] or []
    st.session_state.pop("_abl_trouble", None)
    if not files:
        return
    found = opened([(file.name, file.getvalue()) for file in files])
    if isinstance(found, Trouble):
        st.session_state["_abl_trouble"] = found
    else:
        st.session_state["_abl_file"] = found


def opened(files: Sequence[tuple[str, bytes]]) -> Uploaded | Trouble:
    """The edits in these files."""
    kinds = {
        "json": [f for f in files if f[0].endswith(".json")],
        "safetensors": [f for f in files if not f[0].endswith(".json")],
    }
    if len(kinds["json"]) != 1 or len(kinds["safetensors"]) > 1:
        return Trouble(
            "Edits are one .json file, and at most one .safetensors beside it.", "Choose these two together."
        )
    with tempfile.TemporaryDirectory(prefix="interp-edits-") as folder:
        digest = hashlib.sha256()
        for kind, some in kinds.items():
            for _, content in some:
                (Path(folder) / f"edits.{kind}").write_bytes(content)
                digest.update(content)
        try:
            edits = interventions.load(Path(folder) / "edits.json")
        except Exception as error:  # a file can be wrong in every way there is
            wrong = told(error, {folder: "the upload"})
            return Trouble(wrong.cause, "Choose the .json that interventions.save wrote, and its .safetensors.")
    return Uploaded(kinds["json"][0][0][:80], digest.hexdigest()[:16], tuple(edits))


def _forget() -> None:
    st.session_state.pop("_abl_file", None)


def _downloads(now: Chosen, wanted: Wanted) -> None:
    edits = made(now, wanted)
    tensors = any(isinstance(value, Tensor) for edit in edits for value in vars(edit).values())
    with st.container(horizontal=True):
        for kind, mime in (("json", "application/json"), ("safetensors", "application/octet-stream")):
            if kind == "json" or tensors:
                name, made_now = f"edits.{kind}", partial(made_file, edits, kind)
                st.download_button(name, made_now, name, mime, key=f"abl_{kind}", on_click="ignore")
    if tensors:
        st.caption("Their tensors are in the second file: keep both in one folder, under one name.")


def made_file(edits: Sequence[Edit], kind: str) -> bytes:
    """One of the two files in which `interventions.save` keeps edits."""
    with tempfile.TemporaryDirectory(prefix="interp-edits-") as folder:
        interventions.save(edits, Path(folder) / "edits.json")
        return (Path(folder) / f"edits.{kind}").read_bytes()
