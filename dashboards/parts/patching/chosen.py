"""The other prompt, and what is asked of the two: widgets that a link remembers."""

import streamlit as st

from dashboards.parts.models import Trouble
from dashboards.parts.other import draw_parting, example_of, other_prompt, parting
from dashboards.parts.patching.measured import DIRECTIONS, ESTIMATES, METRICS, PLACES, Asked, places
from dashboards.parts.sidebar import LONGEST, labels_of, read
from dashboards.parts.state import Chosen
from dashboards.parts.words import fill_in, plain, token_text
from interp import zoo
from interp.patching.activation import Direction
from interp.patching.attribution import Method


def choose(now: Chosen) -> Asked | Trouble:
    """Draw the other prompt and the choices, and read what they say; or why nothing can be patched."""
    example = example_of(now)
    text = other_prompt(
        now,
        "Corrupted prompt",
        placeholder="As many tokens as the prompt, of which another answer is right",
        help="The prompt on the left is the clean one. Ctrl+Enter takes it over.",
    )
    if not text:
        return Trouble(
            "To patch, a second prompt is needed, of as many tokens.",
            "Write the prompt again with another word, so that another answer is right.",
            (("Begin with the prompt", {"other": now.prompt}),),
        )
    found = read(now.model, text[:LONGEST], now.bos)
    if isinstance(found, Trouble):
        return found
    labels = labels_of(now.model, found.tokens)
    differs = [a != b for a, b in zip(now.tokens[0].tolist(), found.tokens[0].tolist(), strict=False)]
    if len(labels) != len(now.labels):
        return Trouble(
            f"The prompt has {len(now.labels)} tokens, the corrupted one {len(labels)}: {parting(now.labels, labels)}.",
            "Patching puts position for position: change words so that both have as many tokens.",
        )
    if not any(differs):
        return Trouble("Both prompts are the same.", "Change a word, so that another answer is right.")
    _draw_both(now, labels, differs)
    if example is not None:
        _offer_answers(now, example)
    metric, direction = _choices()
    other = tuple(found.tokens[0].tolist())
    return Asked(other, now.q, now.target, now.foil, metric, direction)


def _offer_answers(now: Chosen, example: zoo.Example) -> None:
    """The two answers that an example is about, where others are asked for."""
    texts = {"target": example.target, "foil": example.foil}
    if now.model.tokenizer is None or None in texts.values():
        return
    wanted = {name: str(text) for name, text in texts.items()}
    if (now.target, now.foil) != tuple(map(now.model.to_single_token, wanted.values())):
        words = " less ".join(map(token_text, wanted.values()))
        if st.button(f"Ask for {words}, which this example is about", key="_answers", on_click=fill_in, args=(wanted,)):
            st.rerun()  # they stand beside the page, not in it


def choose_place(now: Chosen) -> tuple[str, int | None, Method]:
    """The kind of place that is patched, the layer, if it is of one alone, and how all patches are estimated."""
    with st.container(horizontal=True, vertical_alignment="bottom"):
        names = places(now.model)
        place = st.segmented_control(
            "Patched", names, default=names[0], key="patch_place", bind="query-params", required=True
        )
        place = place if place in names else names[0]
        layer, n = None, now.model.cfg.n_layers
        if PLACES[place].is_one_layer:
            if (st.session_state.get("patch_layer") or 0) >= n:
                st.session_state["patch_layer"] = n - 1
            layer = int(st.number_input("Layer", 0, n - 1, 0, key="patch_layer", bind="query-params", width=130))
        method = st.selectbox(
            "Estimated by",
            list(ESTIMATES),
            format_func=ESTIMATES.__getitem__,
            key="patch_estimate",
            bind="query-params",
            width=210,
            help="A saturated head's queries and keys have no slope: AtP* computes its softmax anew.",
        )
    return place, layer, method


def _choices() -> tuple[str, Direction]:
    with st.container(horizontal=True, vertical_alignment="bottom"):
        direction = st.segmented_control(
            "Direction",
            list(DIRECTIONS),
            default="denoise",
            format_func=DIRECTIONS.__getitem__,
            key="patch_direction",
            bind="query-params",
            required=True,
            help="Clean into corrupted shows what is enough for the answer; corrupted into clean, what it needs.",
        )
        metric = st.selectbox(
            "Measured",
            list(METRICS),
            format_func=METRICS.__getitem__,
            key="patch_metric",
            bind="query-params",
            width=380,
        )
    return metric, "noise" if direction == "noise" else "denoise"


def _draw_both(now: Chosen, labels: list[str], differs: list[bool]) -> None:
    notes = [f"clean: {label}" for label in now.labels]
    draw_parting(labels, differs, key="other_strip", name="Corrupted prompt", read=now.q, notes=notes, now=now)
    st.caption(f"{sum(differs)} of {len(labels)} tokens differ from the prompt above: they are coloured.")


def said_of(asked: Asked, now: Chosen) -> str:
    """What is measured, in words."""
    name = lambda t: plain(str(t) if now.model.tokenizer is None else now.model.to_single_str_token(t), 30)
    if asked.metric == "kl":
        return f"KL from the clean run at position {asked.q}, nats"
    if asked.metric == "log_prob":
        return f"log-probability of “{name(asked.target)}” at position {asked.q}"
    both = f"logit of “{name(asked.target)}” less that of “{name(asked.foil)}”"
    return f"{both} at position {asked.q}, 0 corrupted to 1 clean"
