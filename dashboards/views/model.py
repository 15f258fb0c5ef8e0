"""What the model is: its card, sizes, weights and hook points, what holds of it; and how to open another."""

import streamlit as st
import torch
from pandas import DataFrame
from torch import Tensor

from dashboards.parts import models
from dashboards.parts.figure import figure, opening
from dashboards.parts.models import Trouble
from dashboards.parts.state import Chosen, Opened, cached, kept, opened, version
from dashboards.parts.words import plain, report
from interp import HookedGPT, zoo
from interp.checks import Check, identities
from interp.plots import circuit_graph
from interp.weights import parameter_counts, stored
from interp.zoo.planted.truth import __doc__ as truths


def checks(model: HookedGPT, tokens: Tensor) -> list[Check]:
    """What must hold of the model, on the prompt."""
    return identities(model, tokens)


def page() -> None:
    """The page."""
    now = opened()
    st.title(now.name)
    sizes(now)
    if now.name in zoo.bundled():
        with st.expander("Card"):
            st.markdown(zoo.card(now.name).split("\n", 1)[1])
    if now.planted is not None:
        truth(now)
    st.subheader("What holds of it, on this prompt")
    what_holds()
    st.subheader("Hook points")
    st.caption("Every quantity that can be read or changed; names with {layer} stand for all layers.")
    columns = ("name", "axes", "computed", "formula")
    st.dataframe(DataFrame(now.model.hook_table(), columns=columns), key="hook_points", hide_index=True)
    weights(now)
    st.subheader("Open another model")
    others()


def sizes(now: Opened) -> None:
    """The model's sizes, and the rest of its config."""
    cfg = now.model.cfg
    shown = {
        "Layers": cfg.n_layers,
        "Heads": cfg.n_heads,
        "d_model": cfg.d_model,
        "d_head": cfg.d_head,
        "d_mlp": cfg.d_mlp,
        "Context": cfg.n_ctx,
        "Tokens": cfg.d_vocab,
        "Weights": sum(parameter_counts(now.model).values()),
    }
    with st.container(horizontal=True):
        for name, value in shown.items():
            st.metric(name, f"{value:,}", width="content")
    tokenizer = "a tokenizer" if now.model.tokenizer else "no tokenizer: prompts are token ids"
    st.caption(
        f"Fingerprint `{now.fingerprint}` · {tokenizer} · {str(now.model.dtype).removeprefix('torch.')} on "
        f"{now.model.device} · interp {version('interp')}, torch {torch.__version__}"
    )
    with st.expander("Config"):
        rows = {name: "" if value is None else str(value) for name, value in cfg.to_dict().items()}
        st.dataframe(DataFrame({"field": rows.keys(), "value": rows.values()}), key="config", hide_index=True)


def truth(now: Opened) -> None:
    """The planted model's mechanism."""
    assert now.planted is not None
    st.subheader("What was planted in it")
    kinds = list(now.planted.truth)
    kind = st.segmented_control("Ablation", kinds, default=kinds[0], key="truth", required=True, help=truths)
    is_dark = st.context.theme.type == "dark"
    drawn = circuit_graph(now.planted, kind or kinds[0], theme="dark" if is_dark else "light")
    of = now.planted.truth[kind or kinds[0]]
    made = f"zoo.planted.{now.planted.name}(distractor_heads={models.DISTRACTORS})"
    roles = ", ".join(f"{name} is {plain(role)}" for role, name in list(now.planted.roles.items())[:12])
    spaces = ", ".join(now.planted.spaces)
    figure(
        drawn,
        key="circuit",
        caption=f"Set by hand, so this is true, not found: {roles}. Spaces of the stream: {spaces}.",
        code=f"from interp import plots, zoo\n\nplanted = {made}\nfig = plots.circuit_graph(planted, {kind!r})\n",
        data=DataFrame([edge.split("->") for edge in sorted(of.edges)], columns=["sender", "receiver"]),
        alt=f"The circuit of {now.planted.name}: " + ", ".join(sorted(of.edges)[:12]),
        height=440,
    )
    accuracy = now.planted.accuracy(now.planted.sample(64, 1))
    st.caption(f"On 64 fresh examples of its task it answers {accuracy:.1%} right.")


def what_holds() -> None:
    """The identities, each with its error."""
    if not isinstance(st.session_state["_chosen"], Chosen):
        st.caption("With a prompt, identities are checked here.")
        return
    found = cached(checks)
    table = DataFrame(
        {
            "": ["✓" if check.holds else "✗" for check in found],
            "identity": [check.name for check in found],
            "compared": [check.said for check in found],
            "largest error": [f"{check.error:.1e}" for check in found],
            "allowed": [f"{check.allowed:.0e}" for check in found],
        }
    )
    st.dataframe(table, key="checks", hide_index=True)
    if broken := [check.name for check in found if not check.holds]:
        st.error(f"This does not hold: {', '.join(broken)}. Numbers on the pages may be wrong.")
    with st.popover("As code", type="tertiary"):
        code = opening(st.session_state["_chosen"], "checks")
        st.code(code + "\nfor check in checks.identities(model, tokens):\n    print(check)\n", language="python")


def weights(now: Opened) -> None:
    """The weights, by part and one by one."""
    st.subheader("Weights")
    counts = parameter_counts(now.model)
    total = sum(weight.numel() for weight in now.model.parameters())
    mark = "✓" if sum(counts.values()) == total else "✗"
    st.caption(" + ".join(f"{part} {count:,}" for part, count in counts.items()) + f" = {total:,} {mark}")
    with st.expander("Each weight"):
        found = kept(now.fingerprint, torch.empty(0), stored, (now.model,), ())
        rows = [(each.name, " × ".join(map(str, each.shape)), each.count, each.norm) for each in found]
        st.dataframe(DataFrame(rows, columns=["name", "shape", "count", "norm"]), key="weights", hide_index=True)


def others() -> None:
    """A folder under the allowed one, an upload, a name on the hub: each after a button."""
    folder, upload, hub = st.tabs(["Folder", "Upload", "Hub"])
    with folder:
        root = models.root()
        if root is None:
            st.caption(
                "No folder of models is open. Start with `streamlit run dashboards/heads.py -- --models FOLDER`."
            )
        else:
            st.caption(
                f"{len(models.folders())} models lie in {plain(root.name)}; they are in the list on the left too."
            )
        name = st.text_input("Name of a folder in it", key="_folder", disabled=root is None)
        if st.button("Open the folder", disabled=root is None or not name):
            _take(models.add_folder(name))
    with upload:
        st.caption(
            "A model's files: model.safetensors as `save_pretrained` wrote it, or weights with config.json and "
            "tokenizer.json. Old .pt and .bin files are read as tensors alone; nothing in them is run."
        )
        kinds = ["safetensors", "json", "txt", "pt", "pth", "bin"]
        files = st.file_uploader("Files", kinds, accept_multiple_files=True, key="_upload")
        if st.button("Open the upload", disabled=not files):
            _take(models.add_upload((file.name, file.getvalue()) for file in files))
    with hub:
        name = st.text_input("Name on the hub", key="_hub", placeholder="owner/name")
        st.caption(f"Nothing is sent until you press the button; it then contacts {models.HUB_HOST}.")
        if st.button(f"Download from {models.HUB_HOST}", disabled=not name):
            with st.spinner(f"Downloading from {models.HUB_HOST}"):
                found = models.add_from_hub(name)
            _take(found)


def _take(found: str | Trouble) -> None:
    """Show what was opened, from the next run on, or say why it was not."""
    if isinstance(found, Trouble):
        report(found, "opening")
        return
    st.session_state["_take_model"] = found
    st.rerun()


page()
