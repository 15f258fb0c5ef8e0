"""The controls that are always on screen: they put a model, a prompt and a position on show."""

import streamlit as st
import torch
from torch import Tensor

from dashboards.parts import models
from dashboards.parts.state import Chosen, Opened, Trouble, kept, show
from dashboards.parts.strip import strip
from interp import HookedGPT
from interp.plots.theme import seen


def sidebar() -> None:
    """Draw the sidebar and the prompt, and put on show what they say."""
    with st.sidebar:
        name = st.selectbox("Model", models.names(), key="model", bind="query-params", on_change=_forget_prompt)
    loaded = models.load(name)
    opened = Opened(name, loaded.model, loaded.model.fingerprint())
    has_bos = loaded.model.tokenizer is not None and loaded.model.tokenizer.bos_token_id is not None
    with st.sidebar:
        st.text_area("Prompt", models.default_prompt(loaded), key="prompt", bind="query-params")
        bos = has_bos and st.toggle(
            "Begin with the end-of-text token", loaded.model.cfg.default_prepend_bos, key="bos", bind="query-params"
        )
    found = _read(loaded.model, st.session_state["prompt"], bos)
    if isinstance(found, Trouble):
        return show(opened, found)
    labels = _labels(loaded.model, found)
    with st.sidebar:
        q = st.number_input(
            "Read position", 0, loaded.model.cfg.n_ctx - 1, None, key="q", bind="query-params", placeholder="last token"
        )
        q = len(labels) - 1 if q is None else min(q, len(labels) - 1)
        likeliest = kept(opened.fingerprint, found, likeliest_at, (loaded.model, found, q), (q,))
        target = _token("target", "Target token", loaded.model, likeliest[0])
        foil = _token("foil", "Foil token", loaded.model, next(token for token in likeliest if token != target))
    strip(labels, key="prompt_strip", selected=q, sets="q", name="Prompt: click the token to read at")
    if isinstance(target, Trouble):
        return show(opened, target)
    if isinstance(foil, Trouble):
        return show(opened, foil)
    dark = st.context.theme.type == "dark"
    chosen = Chosen(
        name, loaded.model, opened.fingerprint, st.session_state["prompt"], found, labels, q, target, foil, bos, dark
    )
    return show(opened, chosen)


def likeliest_at(model: HookedGPT, tokens: Tensor, q: int) -> list[int]:
    """The three likeliest tokens after position `q`."""
    return model(tokens[:, : q + 1], last_only=True)[0, -1].topk(3).indices.tolist()


def _forget_prompt() -> None:
    for key in ("prompt", "q", "target", "foil"):
        st.session_state.pop(key, None)


def _read(model: HookedGPT, prompt: str, bos: bool) -> Tensor | Trouble:
    if not prompt:
        return Trouble("There is no prompt.", "Type one, or pick an example.")
    if model.tokenizer is None:
        try:
            tokens = torch.tensor([[int(word) for word in prompt.replace(",", " ").split()]])
        except ValueError:
            return Trouble("This model has no tokenizer.", "Its prompt is token ids, such as 3 1 4.")
        return tokens
    tokens = model.to_tokens(prompt, prepend_bos=bos)
    if tokens.shape[1] > model.cfg.n_ctx:
        return Trouble(f"The prompt has {tokens.shape[1]} tokens.", f"This model reads {model.cfg.n_ctx}: shorten it.")
    return tokens


def _labels(model: HookedGPT, tokens: Tensor) -> list[str]:
    if model.tokenizer is None:
        return [str(token) for token in tokens[0].tolist()]
    return list(map(seen, model.to_str_tokens(tokens[0])))


def _token(key: str, label: str, model: HookedGPT, likeliest: int) -> int | Trouble:
    said = str(likeliest) if model.tokenizer is None else model.to_single_str_token(likeliest)
    text = st.text_input(label, key=key, bind="query-params", placeholder=said)
    if not text:
        return likeliest
    try:
        return int(text) if model.tokenizer is None else model.to_single_token(text)
    except ValueError as error:
        return Trouble(str(error), "Name one token.")
