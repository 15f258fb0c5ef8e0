"""The memories of a prediction, and those that promote a token."""

import numpy as np
import streamlit as st
from pandas import DataFrame
from xarray import DataArray

from dashboards.parts.figure import figure, opening
from dashboards.parts.memories.measured import mlps_of, promoters_of, says_of, updates_of
from dashboards.parts.models import told
from dashboards.parts.state import Chosen
from dashboards.parts.words import plain, token_text
from interp import plots
from interp.plots.theme import seen

LISTED = 40


def draw_list(now: Chosen, layer: int, neuron: int) -> None:
    """Which memories make the prediction: the figure with its check, and the rows to choose from."""
    options = ["All layers", "This layer"]
    of = st.segmented_control("Memories of", options, default=options[0], key="memories_of", required=True)
    which = None if of == "All layers" else layer
    found = updates_of(now, which)
    listed = table(now, found)
    rows(listed, f"memories_list_{layer}_{neuron}", (layer, neuron))
    whole, biases = mlps_of(now, which)
    summed = float(found.isel(prompt=0).astype(float).sum())
    said = f"{found.sizes['top']:,} memories add {summed:+.4f}"
    said += f", MLP biases {biases:+.4f}: " if biases else ": "
    said += f"what the MLP{'s' if which is None else ''} added, {whole:+.4f}"
    best = listed.iloc[0]
    code = opening(now, "memories", "plots") + (
        "_, cache = model.run_with_cache(tokens)\n"
        f"found = memories.sub_updates(\n    model, cache, {now.target}, {now.foil}, layer={which}, pos={now.q}, "
        f"top={found.sizes['top']}\n)\n"
        "fig = plots.memory_bars(found)\n"
    )
    figure(
        plots.memory_bars(
            found, theme=now.theme, title=f"Memories add to {named(now, now.target)} less {named(now, now.foil)}"
        ),
        key="memories",
        caption=f"{check(said, abs(summed + biases - whole), 1e-3 * max(1.0, abs(whole)))} "
        "What a memory adds is its coefficient times its value, read by the unembedding, the final norm's scale as it "
        "was; what it does by way of later layers is not in it.",
        code=code,
        data=listed,
        alt=f"What {found.sizes['top']} memories add to the logit difference. Largest: {best.memory} "
        f"{best.adds:+.3f}; all: {summed:+.3f}.",
    )


def table(now: Chosen, found: DataArray) -> DataFrame:
    """The memories whose effects are farthest from 0, one row each."""
    one = found.isel(prompt=0)
    one = one[np.argsort(-np.abs(one.to_numpy()), kind="stable")[:LISTED]]
    names = one.memory.values.tolist()
    places = [tuple(map(int, name[1:].split("N"))) for name in names]
    says = says_of(now, tuple(layer for layer, _ in places), tuple(neuron for _, neuron in places))
    return DataFrame({
        "memory": names,
        "adds": one.values,
        "coefficient": one.coefficient.values,
        "value length": one.value_norm.values,
        "promotes": list(map(seen, says)),
    })  # fmt: skip


def strongest(now: Chosen, layer: int | None) -> tuple[int, int]:
    """The layer and the neuron of the memory that adds most, or takes most away."""
    one = updates_of(now, layer).isel(prompt=0)
    found, neuron = str(one.memory.values[int(np.abs(one.to_numpy()).argmax())])[1:].split("N")
    return int(found), int(neuron)


def draw_search(now: Chosen, layer: int, neuron: int) -> None:
    """Which values promote a token."""
    st.markdown("**Which values promote a token**")
    text = st.text_input(
        "Token",
        key="promotes",
        placeholder=f"{named(now, now.target)}  (the target)",
        help="Its text, with its leading space, if any. Empty: the target.",
        width=260,
    )
    try:
        token = now.target if not text else token_of(now, text)
    except ValueError as error:
        trouble = told(error)
        st.warning(f"{plain(trouble.cause)} Type one token.", icon=":material/info:")
        return
    found = promoters_of(now, token)
    listed = DataFrame({
        "memory": found.memory.values,
        "logit": found.logit.values,
        "more promoted": found.token_rank.values,
    })  # fmt: skip
    rows(listed, f"promoters_{token}_{layer}_{neuron}", (layer, neuron), height=300)
    n = now.model.cfg.n_layers * now.model.cfg.d_mlp
    st.caption(
        f"Of {n:,} values those whose logit of {token_text(named(now, token))} is largest, each read through the final "
        "norm as if it were the whole stream; `more promoted` counts tokens whose logit is larger. Click one to see it."
    )
    with st.popover("As code", type="tertiary"):
        st.code(opening(now, "memories") + f"found = memories.promoters(model, {token}, {found.sizes['rank']})\n")


def token_of(now: Chosen, text: str) -> int:
    """The token that is meant; raise if it is none."""
    if now.model.tokenizer is not None:
        token = now.model.to_single_token(text)
    elif text.strip().isascii() and text.strip().isdigit():
        token = int(text.strip()[:12])
    else:
        raise ValueError(f"{text[:40]!r} is no token id of this model")
    if token >= now.model.cfg.d_vocab_out:
        raise ValueError(f"{text[:40]!r} is no token that this model predicts")
    return token


def named(now: Chosen, token: int) -> str:
    """A token, its spaces seen."""
    return str(token) if now.model.tokenizer is None else seen(now.model.to_single_str_token(token))


def rows(listed: DataFrame, key: str, on_show: tuple[int, int] | None, height: int = 320) -> None:
    """A table of memories; a click on one puts it on show."""
    names = listed.memory.tolist()

    def pick() -> None:
        if picked := st.session_state[key].selection.rows:
            layer, neuron = names[picked[0]][1:].split("N")
            st.session_state["mlp_layer"], st.session_state["neuron"] = int(layer), int(neuron)

    marked = ["▸" if on_show and name == "L{}N{}".format(*on_show) else "" for name in names]
    st.dataframe(
        DataFrame({"": marked}).join(listed),
        height=height,
        hide_index=True,
        key=key,
        on_select=pick,
        selection_mode="single-row",
        column_config={
            "": st.column_config.TextColumn(width=20),
            "adds": st.column_config.NumberColumn(format="%+.4f"),
            "coefficient": st.column_config.NumberColumn(format="%.4f"),
            "value length": st.column_config.NumberColumn(format="%.4f"),
            "logit": st.column_config.NumberColumn(format="%.3f"),
        },
    )


def check(what: str, off: float, limit: float) -> str:
    """What should hold, and whether it does."""
    if off <= limit:
        return f"{what} (error {off:.0e}) ✓."
    return f":red[{what}: off by {off:.2g} ✗.]"
