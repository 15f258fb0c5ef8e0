"""Links and state files: what is on show, for somebody else, pinned to the weights that it was seen on."""

import json
import re
from collections.abc import Mapping
from typing import Any

import streamlit as st
from streamlit.components.v2 import component

from dashboards.parts import models
from dashboards.parts.state import version
from dashboards.parts.words import plain

LONGEST_PROMPT = 4000  # characters; a longer one is in the state file alone

# What a state file may set, and of which kind; pages add the fields that a link carries for them.
FIELDS: dict[str, type] = {
    "model": str,
    "prompt": str,
    "bos": bool,
    "q": int,
    "k": int,
    "target": str,
    "foil": str,
    "layer": int,
    "head": int,
    "mlp_layer": int,
    "neuron": int,
    "lens_row": int,
    "lens_pos": int,
    "lens_colour": str,
    "lens_of": str,
    "norm": str,
    "other": str,
    "patch_direction": str,
    "patch_metric": str,
    "patch_place": str,
    "patch_layer": int,
    "patch_estimate": str,
    "patch_fit": bool,
    "path_from": str,
    "path_to": str,
    "trace_site": str,
    "trace_subject": str,
    "compare_by": str,
    "compare_model": str,
    "compare_what": str,
    "compare_step_a": int,
    "compare_step_b": int,
    "temperature": float,
    "top_k": int,
    "top_p": float,
    "penalty": float,
    "new": int,
    "samples": int,
    "seed": int,
    "stop": str,
    "row": int,
    "step": int,
    "stage": str,
    "train_run": str,
    "train_steps": str,
    "train_values": str,
    "train_step": str,
    "abl": str,
    "abl_how": str,
    "abl_text": int,
    "abl_on": bool,
    "study": str,
    "steer_to": str,
    "steer_from": str,
    "steer_layer": int,
    "steer_scale": float,
    "steer_how": str,
}

_copy = component(
    "interp_copy_link",
    html="""
<button type="button">Copy link</button>
""",
    css="""
button { font: 14px var(--st-font); color: var(--st-text-color); background: transparent; width: 100%;
  border: 1px solid var(--st-border-color); border-radius: var(--st-button-radius, 8px); min-height: 40px;
  cursor: pointer; }
button:hover, button:focus-visible { border-color: var(--st-primary-color); color: var(--st-primary-color); }
""",
    js="""
export default function ({ parentElement }) {
  const button = parentElement.querySelector('button');
  button.onclick = async () => {
    await navigator.clipboard.writeText(window.location.href);
    button.textContent = 'Copied';
    setTimeout(() => { button.textContent = 'Copy link'; }, 1500);
  };
}
""",
)


def read_link() -> None:
    """Once a session, before anything is drawn: what the link that opened it asks for, and what of it is not here."""
    if "_asked" in st.session_state:
        return
    numbers = [name for name, kind in FIELDS.items() if kind is int and _is_number(st.query_params.get(name, ""))]
    if wrong := [name for name in numbers if not re.fullmatch(r"-?\d{1,9}", st.query_params[name])]:
        for name in wrong:
            del st.query_params[name]
        st.rerun()  # what streamlit takes for a field from the link is settled before a run; it fails on 1e999
    asked = st.query_params.to_dict()
    st.session_state["_of_link"] = asked
    st.session_state["_asked"] = asked.get("model", models.DEFAULT), asked.get("fp")
    if "model" in asked and asked["model"] not in models.names():
        st.session_state["_asked"] = models.DEFAULT, None
        st.toast(f"The link names a model that is not here: {plain(asked['model'], 60)}", icon=":material/info:")
        del st.query_params["model"]


def keep_fields() -> None:
    """Once a session, after the page is drawn: fields of the link that it has no widget for wait for their pages."""
    for name, text in st.session_state.pop("_of_link", {}).items():
        if name in FIELDS and name not in st.session_state and (value := _value(name, text)) is not None:
            st.session_state[name] = value


def _value(name: str, text: str) -> Any:
    """What a link says, as its widget has it; None where that is no such value."""
    kind = FIELDS[name]
    if kind is str:
        return text
    if kind is bool:
        return {"true": True, "false": False}.get(text.lower())
    if not _is_number(text):
        return text if name == "lens_row" else None  # in words: the page Lens knows which it is
    return kind(text) if 0 <= float(text) < 2**31 else None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def pin(name: str, fingerprint: str) -> None:
    """Write the weights' fingerprint into the link; warn where the link that was opened had another."""
    asked, fp = st.session_state["_asked"]
    if fp and asked == name and not fingerprint.startswith(fp):
        st.warning(
            f"This link was made with other weights: {plain(name)} was {plain(fp, 16)}, and is {fingerprint[:8]} now.",
            icon=":material/warning:",
        )
    if st.query_params.get("fp") != fingerprint[:8]:
        st.query_params["fp"] = fingerprint[:8]


def share() -> None:
    """The link, and the file that holds what a link cannot."""
    _copy(key="copy_link")
    st.download_button(
        "Download state",
        _state_file(),
        "interp-state.json",
        "application/json",
        on_click="ignore",
        key="_download_state",
        width="stretch",
    )
    with st.popover("Open a state file", width="stretch"):
        st.file_uploader("State file", "json", key="_state_upload", on_change=_open_state, max_upload_size=5)
    if found := st.session_state.pop("_state_trouble", None):
        st.warning(plain(found))


def state() -> dict[str, Any]:
    """What a link says, and what it cannot."""
    fields = {name: st.session_state[name] for name in FIELDS if st.session_state.get(name) is not None}
    return {
        "interp": version("interp"),
        "torch": version("torch"),
        "fingerprint": st.session_state["_opened"].fingerprint,
        "fields": fields,
    }


def checked(content: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a state file; raise for one that is none."""
    fields = content.get("fields")
    if not isinstance(fields, dict):
        raise ValueError("This is no state file: it has no fields")
    wrong = [name for name, value in fields.items() if name not in FIELDS or type(value) is not FIELDS[name]]
    wrong += [name for name, value in fields.items() if isinstance(value, int | float) and not 0 <= value < 2**31]
    if wrong:
        raise ValueError(f"This state file has fields that are not known here, or of another kind: {wrong[:8]}")
    if fields.get("model") not in (None, *models.names()):
        raise ValueError(f"The state file's model is not here: {fields['model']}; open it first, on the page Model")
    return fields


def _state_file() -> str:
    return json.dumps(state(), indent=1, ensure_ascii=False)


def _open_state() -> None:
    file = st.session_state["_state_upload"]
    if file is None:
        return
    try:
        content = json.loads(file.getvalue().decode("utf-8"))
        if not isinstance(content, dict):
            raise ValueError("This is no state file: it holds no object")
        fields = checked(content)
    except (ValueError, RecursionError) as error:
        st.session_state["_state_trouble"] = str(error)
        return
    for name, value in fields.items():
        st.session_state[name] = value
    st.session_state["_asked"] = fields.get("model", models.DEFAULT), str(content.get("fingerprint") or "")
