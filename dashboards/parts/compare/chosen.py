"""What is compared: widgets that a link remembers, and what does not fit, told."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import streamlit as st

from dashboards.parts import models
from dashboards.parts.compare.measured import SHOWN
from dashboards.parts.models import Trouble
from dashboards.parts.other import aligned, draw_parting, other_prompt
from dashboards.parts.sidebar import LONGEST, labels_of, read
from dashboards.parts.state import Chosen, kept
from dashboards.parts.words import plain
from interp import HookedGPT

BY = ["Prompt", "Model", "Training step"]


@dataclass(frozen=True, eq=False)
class Both:
    """What is on show, and what stands beside it; or two steps of the run that it belongs to."""

    a: Chosen
    b: Chosen
    what: str  # of `SHOWN`
    by: str  # of `BY`

    @property
    def is_other_model(self) -> bool:
        return self.a.name != self.b.name


def choose(now: Chosen) -> Both | Trouble:
    """Draw the choices, and read what they say; or why there is nothing to compare."""
    with st.container(horizontal=True, vertical_alignment="bottom"):
        _forget_unless("compare_by", BY)
        by = st.segmented_control(
            "B is another",
            BY,
            default=BY[0],
            key="compare_by",
            bind="query-params",
            required=True,
        )
        other = _other_model(now) if by == "Model" else None
        _forget_unless("compare_what", SHOWN)
        what = st.selectbox("Shown", SHOWN, key="compare_what", bind="query-params", width=240)
    if by == "Training step":
        pair = _steps(now)
        return pair if isinstance(pair, Trouble) else Both(*pair, what, by)
    found = _other_prompt(now) if other is None else other
    return found if isinstance(found, Trouble) else Both(now, found, what, by or BY[0])


def _forget_unless(key: str, options: Sequence[object]) -> None:
    """What a link or a state file says there, where it is none of these."""
    if st.session_state.get(key) is not None and st.session_state[key] not in options:
        del st.session_state[key]


def _other_prompt(now: Chosen) -> Chosen | Trouble:
    text = other_prompt(
        now, "Prompt B", placeholder="Another prompt, of any length", help="Prompt A is that on the left. Ctrl+Enter."
    )
    if not text:
        return Trouble(
            "To compare, a second prompt is needed.",
            "Write the prompt again with other words.",
            (("Begin with the prompt", {"other": now.prompt}),),
        )
    found = read(now.model, text[:LONGEST], now.bos)
    if isinstance(found, Trouble):
        return found
    labels = labels_of(now.model, found.tokens)
    left = len(now.labels) - 1 - now.q
    if left >= len(labels):
        return Trouble(
            f"Prompt B has {len(labels)} tokens: none stands {left} before its end, where prompt A is read.",
            "Read prompt A nearer to its end, or lengthen prompt B.",
        )
    if found.n_left_out:
        st.caption(f"The first {found.n_left_out:,} tokens of prompt B are left out.")
    return replace(now, prompt=text, tokens=found.tokens, labels=labels, q=len(labels) - 1 - left)


def _other_model(now: Chosen) -> Chosen | Trouble:
    names = [name for name in models.names() if name != now.name]
    _forget_unless("compare_model", names)
    name = st.selectbox(
        "Model B",
        names,
        None,
        key="compare_model",
        bind="query-params",
        placeholder="Choose a model",
        width=300,
        help="Checkpoints of a run are models, too, where its folder lies in the one whose models may be opened.",
    )
    if name is None:
        return Trouble("To compare, a second model is needed.", "Choose one as large, with the same vocabulary.")
    return _as(now, name)


def _steps(now: Chosen) -> tuple[Chosen, Chosen] | Trouble:
    """Two checkpoints of the run to which the model on show belongs."""
    of_run = models.checkpoint(now.name)
    if of_run is None:
        ends = [(run, models.steps_of(run)) for run in models.runs()]
        offers = [(f"Show {run}@{steps[-1]}", {"_take_model": f"{run}@{steps[-1]}"}) for run, steps in ends if steps]
        return Trouble(
            f"{now.name} is no checkpoint of a run.",
            "Put one on show first: runs lie in the folder of models, and the page Training makes them known."
            if not offers
            else "Put one on show first.",
            tuple(offers[:6]),
        )
    run, _ = of_run
    steps = models.steps_of(run)
    if len(steps) < 2:
        return Trouble(
            f"The run {run} has {'one checkpoint' if steps else 'no checkpoint'}: there is nothing between two.",
            "While it goes on there will be more; `checkpoint_every` and `keep` say how many.",
        )
    picked = []
    with st.container(horizontal=True):
        for key, name, first in (("compare_step_a", "A", steps[0]), ("compare_step_b", "B", steps[-1])):
            _forget_unless(key, steps)
            value = None if key in st.session_state else first
            slid = st.select_slider(f"Step of {name}", steps, value, key=key, bind="query-params", width=360)
            picked.append(_as(now, models.checkpoint_name(run, slid)))
    a, b = picked
    if isinstance(a, Trouble) or isinstance(b, Trouble):
        return a if isinstance(a, Trouble) else b
    return a, b


def _as(now: Chosen, name: str) -> Chosen | Trouble:
    """The same prompt on the model of this name, or why not."""
    loaded = models.open_model(name)
    if isinstance(loaded, Trouble):
        return loaded
    given = (now.model, loaded.model)
    faults = kept(now.fingerprint, now.tokens, misfits_of, (*given, len(now.labels)), (now.name, name, *given))
    if faults:
        return Trouble(
            f"{name} does not fit beside {now.name}: {'; '.join(faults)}.",
            "Choose a model of as many layers and heads, with the same vocabulary.",
        )
    return replace(now, name=name, model=loaded.model, fingerprint=loaded.fingerprint, planted=loaded.planted)


def misfits_of(a: HookedGPT, b: HookedGPT, n_tokens: int) -> list[str]:
    """For `kept`: why numbers of the two models do not belong beside each other, on a prompt of so many tokens."""
    sizes: dict[str, tuple[Hashable, Hashable]] = {
        "layers": (b.cfg.n_layers, a.cfg.n_layers),
        "heads in a layer": (b.cfg.n_heads, a.cfg.n_heads),
        "tokens in its vocabulary": (b.cfg.d_vocab, a.cfg.d_vocab),
        "tokens to answer with": (b.cfg.d_vocab_out, a.cfg.d_vocab_out),
    }
    faults = [f"{own} {name} against {other}" for name, (own, other) in sizes.items() if own != other]
    texts = [None if each.tokenizer is None else each.tokenizer.to_json() for each in (a, b)]
    if texts[0] != texts[1]:
        faults.append("another tokenizer" if None not in texts else "one of them has no tokenizer")
    if n_tokens > b.cfg.n_ctx:
        faults.append(f"it reads {b.cfg.n_ctx} tokens at once, and the prompt has {n_tokens}")
    return faults


def draw_both(both: Both) -> None:
    """What the two are; two prompts token by token, with what either has alone."""
    a, b = both.a, both.b
    if both.by != "Prompt":
        same = " They have the same weights." if a.fingerprint == b.fingerprint else ""
        st.caption(f"A is {plain(a.name)}, B is {plain(b.name)}, both on the prompt above.{same}")
        return
    there, back = kept(a.fingerprint, a.tokens, aligned, tuple(_ids(each) for each in (a, b)), (_ids(b),))
    for name, one, other, places in (("A", a, b, there), ("B", b, a, back)):
        away = "B" if name == "A" else "A"
        notes = [f"only in {name}" if at is None else f"in {away} at {at}: {other.labels[at]}" for at in places]
        differs = [at is None for at in places]
        with st.container(horizontal=True, gap="small", key=f"compare_side_{name}"):
            st.markdown(f"**{name}**", width="content")
            with st.container(width="stretch"):
                draw_parting(
                    one.labels,
                    differs,
                    key=f"compare_strip_{name}",
                    name=f"Prompt {name}",
                    read=one.q,
                    notes=notes,
                    now=a,
                )
    alone = [sum(at is None for at in places) for places in (there, back)]
    if not any(alone):
        st.caption("Both prompts are the same.")
        return
    st.caption(
        f"Coloured: {alone[0]} of {len(there)} tokens that only A has, and {alone[1]} of {len(back)} that only B has; "
        f"the others stand in both. A is read at {a.q}, B at {b.q}, as far from its end."
    )


def _ids(of: Chosen) -> tuple[int, ...]:
    return tuple(of.tokens[0].tolist())
