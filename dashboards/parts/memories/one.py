"""One memory: where it fires, what it writes, what happens when it is changed, and what fires it in text."""

import streamlit as st
from pandas import DataFrame, concat
from streamlit.delta_generator import DeltaGenerator
from xarray import Dataset

from dashboards.parts.figure import figure, opening
from dashboards.parts.memories.all import check, named
from dashboards.parts.memories.measured import (
    BEGINNING,
    ROW,
    ask,
    asked,
    card_of,
    changed,
    coefficients_of,
    key_of,
    scan_of,
    seconds_of,
    updates_of,
    value_of,
)
from dashboards.parts.models import told
from dashboards.parts.state import Chosen
from dashboards.parts.strip import strip
from dashboards.parts.words import plain, token_text
from interp import plots
from interp.plots.theme import seen

SCANS = [5_000, 20_000, 100_000]  # tokens


def draw_memory(now: Chosen, layer: int, neuron: int) -> None:
    """Its coefficients on the prompt, its value and its key."""
    name = f"L{layer}N{neuron}"
    best, worst = value_of(now, layer, neuron)
    one = updates_of(now, layer).isel(prompt=0)
    own = one[one.memory.values.tolist().index(name)]
    st.markdown(f"**{name}** promotes {token_text(str(best.token.values[0]))}; {_pull(now, float(own))}")
    coefficients = coefficients_of(now, layer, neuron)
    rank = 1 + int((abs(one) > abs(own)).sum())
    strip(
        now.labels,
        key="memory_strip",
        values=coefficients.cpu().numpy(),
        selected=now.q,
        colour="diverging",
        of="coefficient",
        name=f"Coefficients of {name}, token by token",
        is_dark=now.is_dark,
    )
    said = {
        "Coefficient": (f"{float(coefficients[now.q]):+.3f}", "how much the key fires on the token read"),
        "Adds": (f"{float(own):+.4f}", "to the logit of the target less that of the foil, directly"),
        "In its layer": (f"{rank} of {one.sizes['top']:,}", "its place by the size of what it adds"),
        "Length of value": (f"{float(own.value_norm):.3f}", "as it enters the stream, for a coefficient of 1"),
    }
    with st.container(horizontal=True, key="memory_numbers"):
        for label, (value, what) in said.items():
            st.metric(label, value, help=what, width="content")
    listed = concat([_words(best, "promotes"), _words(worst, "suppresses")], ignore_index=True)
    code = opening(now, "memories", "plots") + (
        f"best = memories.promoted(model, {layer}, {neuron}, {best.sizes['rank']})\n"
        f"worst = memories.suppressed(model, {layer}, {neuron}, {best.sizes['rank']})\n"
        "fig = plots.value_bars(best, worst)\n"
    )
    top = f"{best.token.values[0]!r} {float(best.logit[0]):.2f}"
    figure(
        plots.value_bars(best, worst, theme=now.theme),
        key="value",
        caption="Logits of the value read through the final norm as if it were the whole stream.",
        code=code,
        data=listed,
        alt=f"Tokens that the value of {name} promotes and suppresses. Most promoted: {top}; most suppressed: "
        f"{worst.token.values[0]!r}.",
    )
    fired = key_of(now, layer, neuron)
    words = " · ".join(
        f"{token_text(str(token))} {m:.2f}"
        for token, m in zip(fired.token.values, fired.coefficient.values, strict=True)
    )
    st.markdown(
        f"**Its key** fires most on these tokens by themselves: {words}",
        help="The embedding of each token read as if it were the whole stream before this MLP: positions, attention "
        "and earlier MLPs are left out. Below is what fires it in text.",
    )


def _pull(now: Chosen, adds: float) -> str:
    """Which of the two tokens asked for a memory speaks for."""
    target, foil = token_text(named(now, now.target)), token_text(named(now, now.foil))
    if adds == 0:
        return f"here it pulls neither towards {target} nor towards {foil}"
    towards, away = (target, foil) if adds > 0 else (foil, target)
    return f"here it pulls towards {towards}, away from {away}"


def draw_switch(now: Chosen, layer: int, neuron: int) -> None:
    """The memory off, or scaled, and what follows then."""
    name = f"L{layer}N{neuron}"
    st.markdown(f"**What follows without {name}, or with more of it**")
    with st.container(horizontal=True, vertical_alignment="bottom"):
        switch = st.segmented_control(
            "Coefficient", ["On", "Off", "Scaled"], default="Off", key="switch", required=True
        )
        scale = st.number_input(
            "Times", -100.0, 100.0, 2.0, step=0.5, key="factor", width=150, disabled=switch != "Scaled"
        )
        is_everywhere = st.toggle("On every token, not just the one read", key="everywhere")
    factor = {"On": 1.0, "Off": 0.0}.get(switch, float(scale))
    found = changed(now, name, factor, is_everywhere)
    before, after = found.attrs["metric"]
    one = updates_of(now, layer).isel(prompt=0)
    direct = (factor - 1) * float(one[one.memory.values.tolist().index(name)])
    where = None if is_everywhere else -1
    code = opening(now, "memories", "plots") + (
        f"found = memories.next_tokens(\n    model, [{name!r}], tokens[:, : {now.q + 1}], {factor}, "
        f"{found.sizes['rank']}, pos={where}\n)\n"
        "fig = plots.next_token_bars(found)\n"
    )
    sums = [
        float(found[column].sum()) + rest for column, rest in zip(("before", "after"), found.attrs["rest"], strict=True)
    ]
    target, foil = token_text(named(now, now.target)), token_text(named(now, now.foil))
    tokens = list(map(seen, map(str, found.token.values)))
    rest = "{:.1%}, then {:.1%}".format(*found.attrs["rest"])
    figure(
        plots.next_token_bars(found, theme=now.theme),
        key="switched",
        caption=f"Logit of {target} less that of {foil}: {before:+.4f}, then {after:+.4f}, a change of "
        f"{after - before:+.4f}; by what the memory itself writes on the token read, {direct:+.4f}. All other tokens: "
        f"{rest}. {check('Probabilities sum to 1', max(abs(each - 1) for each in sums), 1e-4)}",
        code=code,
        data=DataFrame({"token": tokens, "before": found.before.values, "after": found.after.values}),
        alt=f"Next tokens with {name} as it is and × {factor:g}. {tokens[0]!r} goes from {float(found.before[0]):.3f} "
        f"to {float(found.after[0]):.3f}.",
    )


def draw_triggers(now: Chosen, layer: int, neuron: int) -> None:
    """The memory's card, from a scan of text that is asked for."""
    name, has_text = f"L{layer}N{neuron}", now.model.tokenizer is not None
    read = "Python's standard library" if has_text else "tokens drawn at random (this model has no tokenizer)"
    st.markdown(f"**What fires {name}** in {read}")
    with st.container(horizontal=True, vertical_alignment="bottom"):
        n_tokens = st.selectbox("Tokens", SCANS, 1, key="scan_tokens", format_func=lambda n: f"{n:,}", width=160)
        seconds = seconds_of(now, layer, n_tokens)
        about = f"{max(1, round(seconds))} s" if seconds < 90 else f"{seconds / 60:.0f} min"
        what = ("triggers", now.fingerprint, layer, n_tokens)
        st.button(
            f"Scan with layer {layer}: about {about}",
            key="scan",
            on_click=ask,
            args=what,
            icon=":material/play_arrow:",
            disabled=asked(*what),
            help="From a pass that was timed. All neurons of the layer are read at once, and kept.",
        )
    if not asked(*what):
        return
    bar = st.progress(0.0, "Reading")
    try:
        found = scan_of(now, layer, n_tokens, lambda share: _tell(bar, share))
        if not found.value[found.place_of(layer, neuron)].any():
            st.info(f"In {found.about['tokens']:,} tokens {name} is never above 0.", icon=":material/info:")
            return
        card = card_of(now, layer, neuron, n_tokens, found)
    except ValueError as error:
        trouble = told(error)
        st.warning(f"{plain(trouble.cause)} {plain(trouble.cure)}", icon=":material/info:")
        return
    finally:
        bar.empty()
    fired, columns = card["triggers"], ["value", "before", "token", "next_token", "document", "pos"]
    text = f"{fired.before.values[0]}[{fired.token.values[0]}]"
    figure(
        plots.neuron_card(card, theme=now.theme),
        key="card",
        code=opening(now, "corpus", "memories", "plots")
        + scanning(now, layer, n_tokens)
        + (
            f"card = memories.neuron_card(model, {layer}, {neuron}, found, {card['promoted'].sizes['rank']}, "
            "progress=False)\n"
            "fig = plots.neuron_card(card)\n"
        ),
        caption=f"Of {found.about['tokens']:,} tokens in {found.about['documents']:,} texts. "
        "A text counts once, by its largest coefficient.",
        data=DataFrame({column: fired[column].values for column in columns}),
        alt=f"Card of {name}. Its strongest trigger, {float(fired.value[0]):.3f}: {seen(text[-60:])}.",
    )


def _tell(bar: DeltaGenerator, share: float) -> None:
    bar.progress(share, "Reading")


def scanning(now: Chosen, layer: int, n_tokens: int) -> str:
    """The lines that scan as the page does."""
    width = min(ROW, now.model.cfg.n_ctx)
    if now.model.tokenizer is None:
        size = f"({max(1, n_tokens // width)}, {width})"
        return (
            "draw = torch.Generator().manual_seed(0)\n"
            f"rows = torch.randint(0, {now.model.cfg.d_vocab}, {size}, generator=draw)\n"
            f"found = memories.triggers(model, rows, {layer}, n_ctx={width}, progress=False)\n"
        )
    return (
        f"texts = (text[:{BEGINNING}] for text in corpus.standard_library())\n"
        f"found = memories.triggers(model, texts, {layer}, n_ctx={width}, max_tokens={n_tokens}, progress=False)\n"
    )


def _words(of: Dataset, kind: str) -> DataFrame:
    tokens = list(map(seen, map(str, of.token.values)))
    return DataFrame({"of": kind, "token": tokens, "logit": of.logit.values, "probability": of.probability.values})
