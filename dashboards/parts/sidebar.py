"""The controls that are always on screen: they put a model, a prompt and a position on show."""

from dataclasses import dataclass

import streamlit as st
import torch
from jaxtyping import Float, Int
from torch import Tensor

from dashboards.parts import links, models
from dashboards.parts.history import one_entry_a_run
from dashboards.parts.models import Trouble
from dashboards.parts.state import Chosen, Opened, kept, show
from dashboards.parts.strip import strip
from dashboards.parts.words import plain, report, token_text
from interp import HookedGPT, zoo
from interp.plots.theme import seen

LONGEST = 200_000  # characters of a prompt that are looked at


def sidebar() -> None:
    """Draw the sidebar and the prompt, and put on show what they say."""
    links.read_link()
    with st.sidebar:
        one_entry_a_run()
    if added := st.session_state.pop("_take_model", None):
        st.session_state["model"] = added
        _forget_prompt()
    with st.sidebar:
        name = st.selectbox(
            "Model",
            models.names(),
            key="model",
            bind="query-params",
            on_change=_forget_prompt,
            help="Other models (a folder, an upload, a name on the hub) are opened on the page Model.",
        )
    loaded = models.open_model(name)
    if isinstance(loaded, Trouble):
        report(loaded, "model")
        return show(loaded, loaded)
    opened = Opened(name, loaded.model, loaded.fingerprint, loaded.planted)
    links.pin(name, loaded.fingerprint)
    chosen = _chosen(opened)
    if isinstance(chosen, Trouble):
        report(chosen, "prompt")
    show(opened, chosen)
    with st.sidebar:
        cfg, size = loaded.model.cfg, _short(sum(weight.numel() for weight in loaded.model.parameters()))
        st.caption(f"{cfg.n_layers} × {cfg.n_heads} heads · {size} weights · `{loaded.fingerprint[:8]}`")
        links.share()
    return None


@dataclass(frozen=True)
class Read:
    """A prompt as tokens, and what was left out of it."""

    tokens: Int[Tensor, "1 pos"]
    n_left_out: int = 0


def read(model: HookedGPT, prompt: str, bos: bool, is_alone: bool = False) -> Read | Trouble:
    """The prompt's last tokens, as many as the model can read, or why there are none."""
    if not prompt and not (bos and is_alone):
        offers = (("Look at the first token alone", {"_alone": "yes"}),) if bos else ()
        return Trouble("There is no prompt.", "Type one, or pick an example.", offers)
    ids = _ids(model, prompt) if prompt else []
    if isinstance(ids, Trouble):
        return ids
    start = model.bos_tokens(True) if bos else []
    room = model.cfg.n_ctx - len(start)
    return Read(torch.tensor([[*start, *ids[max(0, len(ids) - room) :]]]), max(0, len(ids) - room))


def log_probs_at(model: HookedGPT, tokens: Tensor, q: int) -> Float[Tensor, " d_vocab_out"]:
    """The log-probability of each token after position `q`."""
    return model(tokens[:, : q + 1], last_only=True)[0, -1].float().log_softmax(-1)


def _chosen(opened: Opened) -> Chosen | Trouble:
    model = opened.model
    prompt, bos = _prompt(opened)
    if prompt:
        st.session_state.pop("_alone", None)
    found = read(model, prompt[:LONGEST], bos, "_alone" in st.session_state)
    if isinstance(found, Trouble):
        with st.sidebar:
            _position(model)
            _token_field("target")
            _token_field("foil")
        return found
    tokens, labels = found.tokens, labels_of(model, found.tokens)
    with st.sidebar:
        left_out = f", the first {found.n_left_out:,} left out" if found.n_left_out else ""
        st.caption(f"{len(labels)} / {model.cfg.n_ctx} tokens{left_out}")
        asked = _position(model)
        q = len(labels) - 1 if asked is None else min(asked, len(labels) - 1)
        log_probs = kept(opened.fingerprint, tokens, log_probs_at, (model, tokens, q), (q,))
        likeliest = log_probs.topk(min(3, len(log_probs))).indices.tolist()
        target = _token("target", model, log_probs, likeliest[0])
        foil = _token("foil", model, log_probs, next((t for t in likeliest if t != target), likeliest[0]))
    with st.container():  # one place for all of it: what comes and goes does not move the page below
        if found.n_left_out:
            st.warning(
                f"The prompt's first {found.n_left_out:,} tokens are left out: the model reads {model.cfg.n_ctx} at "
                "once.",
                icon=":material/content_cut:",
            )
        if asked is not None and asked != q:
            st.info(f"The prompt has no position {asked}: its last token, {q}, is read.", icon=":material/info:")
        strip(labels, key="prompt_strip", selected=q, sets="q", name="Prompt: click the token at which to read")
    for token in (target, foil):
        if isinstance(token, Trouble):
            return token
    assert isinstance(target, int)
    assert isinstance(foil, int)
    is_dark = st.context.theme.type == "dark"
    return Chosen(
        opened.name, model, opened.fingerprint, prompt, tokens, labels, q, target, foil, bos, is_dark, opened.planted
    )


def _prompt(opened: Opened) -> tuple[str, bool]:
    model, examples = opened.model, zoo.examples(opened.planted or opened.name, opened.model)
    if st.session_state.pop("_forgotten", None):
        _take({"prompt": examples[0].prompt, "target": None, "foil": None, "q": None})
    is_short = len(st.session_state.get("prompt") or "") <= links.LONGEST_PROMPT
    with st.sidebar:
        prompt = st.text_area(
            "Prompt" if model.tokenizer else "Prompt (token ids)",
            examples[0].prompt,
            key="prompt",
            height=120,
            bind="query-params" if is_short else None,
            help="Ctrl+Enter takes it over.",
        )
        if not is_short:
            st.query_params.pop("prompt", None)
            st.caption(f"Above {links.LONGEST_PROMPT:,} characters a prompt is in the state file, not in the link.")
        with st.popover("Examples", width="stretch"):
            for i, example in enumerate(examples):
                fields = {"prompt": example.prompt, "target": example.target, "foil": example.foil, "q": None}
                st.button(plain(example.name), key=f"_example_{i}", on_click=_take, args=(fields,), width="stretch")
                st.caption(plain(example.look_for))
        if model.tokenizer is None or model.tokenizer.bos_token_id is None:
            return prompt or "", False
        bos = st.toggle(
            f"Begin with {token_text(str(model.tokenizer.bos_token))}",
            model.cfg.default_prepend_bos,
            key="bos",
            bind="query-params",
        )
        st.caption("It begins every text; with it or without, every number is another.")
    return prompt or "", bos


def _take(fields: dict[str, str | None]) -> None:
    for name, value in fields.items():
        st.session_state[name] = value if value is not None or name == "q" else ""


def _position(model: HookedGPT) -> int | None:
    return st.number_input(
        "Read position", 0, model.cfg.n_ctx - 1, None, key="q", bind="query-params", placeholder="last token"
    )


def _forget_prompt() -> None:
    """Another model reads other prompts: its fields are written anew, which the browser sees, once it is open.

    Checkpoints of one run read the same.
    """
    before = st.session_state.get("_opened")
    of = models.checkpoint(before.name) if isinstance(before, Opened) else None
    now = models.checkpoint(st.session_state["model"])
    if of is None or now is None or of[0] != now[0]:
        st.session_state["_forgotten"] = True


def _ids(model: HookedGPT, prompt: str) -> list[int] | Trouble:
    if model.tokenizer is None:
        return _numbers(model, prompt)
    try:
        return model.tokenizer.encode(prompt)
    except ValueError as error:
        unknown = {char for char in set(prompt) if not model.tokenizer.knows(char)}
        if not unknown or not model.tokenizer.cuts_at_lines:
            return models.told(error)
        places = [f"{char!r} at {i}" for i, char in enumerate(prompt) if char in unknown]
        dropped = "".join(char for char in prompt if char not in unknown)
        more = f" and {len(places) - 8} more" if len(places) > 8 else ""
        return Trouble(
            f"This model's tokenizer has no token for {', '.join(places[:8])}{more}.",
            "Drop them, or type others.",
            (("Drop them", {"prompt": dropped}),),
        )


def _numbers(model: HookedGPT, prompt: str) -> list[int] | Trouble:
    words = prompt.replace(",", " ").split()
    wrong = [word for word in words if not (word.isascii() and word.isdigit() and int(word[:12]) < model.cfg.d_vocab)]
    if wrong or not words:
        said = f"what is not: {', '.join(word[:12] for word in wrong[:8])}" if wrong else "there is none"
        return Trouble(
            f"This model has no tokenizer, so its prompt is token ids; {said}.",
            f"Type numbers from 0 to {model.cfg.d_vocab - 1}, with spaces between them.",
        )
    return list(map(int, words))


def labels_of(model: HookedGPT, tokens: Tensor) -> list[str]:
    """A visible text for each token; its number, without a tokenizer."""
    if model.tokenizer is None:
        return [str(token) for token in tokens[0].tolist()]
    return list(map(seen, model.to_str_tokens(tokens[0])))


_FIELDS = {"target": ("Target token", "the likeliest"), "foil": ("Foil token", "the second likeliest")}


def _token_field(key: str, default: str = "") -> str:
    label, which = _FIELDS[key]
    return st.text_input(
        label,
        key=key,
        bind="query-params",
        placeholder=f"{seen(default)}  ({which})" if default else which,
        help="Its text, with its leading space, if any. Empty: " + which + ".",
    )


def _token(key: str, model: HookedGPT, log_probs: Tensor, likeliest: int) -> int | Trouble:
    def name(token: int) -> str:
        return str(token) if model.tokenizer is None else model.to_single_str_token(token)

    text = _token_field(key, name(likeliest))
    found = likeliest if not text else _single(key, model, text, len(log_probs))
    if isinstance(found, int):
        st.caption(f"{token_text(name(found))} · probability {log_probs[found].exp():.3g}")
    return found


def _single(key: str, model: HookedGPT, text: str, n: int) -> int | Trouble:
    if model.tokenizer is None:
        if text.strip().isascii() and text.strip().isdigit() and int(text.strip()[:12]) < n:
            return int(text)
        return Trouble(f"{text[:40]!r} is no token id of this model.", f"Type a number from 0 to {n - 1}.")
    ids = _ids(model, text)
    if isinstance(ids, Trouble):
        return ids
    if len(ids) == 1:
        return ids[0]
    pieces = model.tokenizer.token_strings(ids[:8])
    offers = tuple(
        (f"Take {seen(piece)}", {key: piece}) for piece in pieces if model.tokenizer.encode(piece) in [[i] for i in ids]
    )
    return Trouble(
        f"{_FIELDS[key][0]} {text[:60]!r} is {len(ids)} tokens: {', '.join(map(seen, pieces))}.",
        "Name one of them, or another word.",
        offers,
    )


def _short(n: int) -> str:
    return next((f"{n / size:.3g} {unit}" for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")) if n >= size), str(n))
