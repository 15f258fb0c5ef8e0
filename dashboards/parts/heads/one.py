"""One head: its pattern, and what is known of it."""

import numpy as np
import streamlit as st
from xarray import DataArray

from dashboards.parts.figure import figure, opening
from dashboards.parts.heads.measured import (
    EFFECTS,
    all_patterns,
    detected,
    effect_if_known,
    offer_to_detect,
    quoted,
    role_of,
)
from dashboards.parts.state import Chosen
from dashboards.parts.words import plain
from interp import plots
from interp.heads import ROLES, SCORES

HELPS = {"Other text": "Its output set to what it is at the same place in other rows of text, a mean of several."}
WINDOW, LONG = 128, 160  # tokens of a pattern at once, where there are more than so many: a click costs 200 kB


def draw_pattern(now: Chosen, layer: int, head: int) -> None:
    """Where the head looks."""
    with st.container(horizontal=True):
        hide = st.toggle("Hide the first token", key="hide_first")
        linear = st.toggle("Linear colour", key="linear")
        moved = st.toggle("Weigh by what each key gives", key="moved")
    found = all_patterns()
    whole = (found.weighted(layer, head) if moved else found[layer, head])[0].detach().float()
    first, last = _window(now)
    pattern = whole[first:last, first:last].clone()
    if hide and first == 0:
        pattern[:, 0] = 0
    values = "share of what is written" if moved else "attention"
    places = [f"{i} {now.labels[i]}" for i in range(first, last)]
    coords = {"query_pos": places, "key_pos": places}
    shown = DataArray(pattern.cpu().numpy(), coords, coords.keys(), values, {"model": now.fingerprint})
    scale, title = "linear" if linear else "sqrt", f"L{layer}H{head}"
    drawn = plots.head_pattern(shown, values=values, scale=scale, title=title, theme=now.theme)
    off = float((whole.sum(-1) - 1).abs().max())
    place = "of all tokens" if last - first == len(now.labels) else f"of tokens {first} to {last - 1}"
    caption = f"Pattern {place}. " + check("Rows sum to 1", off, 1e-4)
    caption += " The first key is left out." if hide and first == 0 else ""
    best = found.strongest(layer, head, 1)
    alt = f"{values} of head {head} of layer {layer}."
    if best.sizes["rank"]:
        query, key = int(best.query_pos[0]), int(best.key_pos[0])
        ends = f"{now.labels[query]!r} at {query} to {now.labels[key]!r} at {key}"
        alt += f" Largest: {float(best.weight[0]):.3f} from {ends}."
    code = opening(now, "heads", "plots") + (
        "from xarray import DataArray\n\n"
        f"found = heads.patterns(model, tokens, [{layer}], [{head}])\n"
        f"pattern = {f'found.weighted({layer}, {head})' if moved else f'found[{layer}, {head}]'}[0].detach().clone()\n"
        f"{'pattern[:, 0] = 0' + chr(10) if hide and first == 0 else ''}"
        f"places = {places!r}\n"
        f"coords = {{'query_pos': places, 'key_pos': places}}\n"
        f"shown = DataArray(pattern[{first}:{last}, {first}:{last}].numpy(), coords, coords.keys())\n"
        f"fig = plots.head_pattern(shown, values={values!r}, scale={scale!r}, title={title!r})\n"
    )
    figure(drawn, key="pattern", caption=caption, code=code, data=shown, alt=alt, height=440)


def _window(now: Chosen) -> tuple[int, int]:
    """The tokens whose pattern is drawn."""
    n = len(now.labels)
    if n <= LONG:
        return 0, n
    if max(st.session_state.get("window", (0, 0))) > n:
        del st.session_state["window"]  # of a longer prompt
    first = min(max(0, now.q - WINDOW // 2), n - WINDOW)
    first, last = st.slider("Tokens drawn", 0, n, (first, first + WINDOW), key="window", step=8)
    return (first, last) if last - first >= 2 else (max(0, last - 2), max(0, last - 2) + 2)


def check(what: str, off: float, limit: float) -> str:
    """What should hold, and whether it does."""
    if off <= limit:
        return f"{what} (largest error {off:.0e}) ✓"
    return f":red[{what}: off by {off:.2g} ✗]"


def draw_numbers(now: Chosen, layer: int, head: int) -> None:
    """What is known of the head, in a few lines."""
    labels = {"direct": "Adds directly", "zero": "Zeroed", "mean": "Mean instead"}
    if EFFECTS.get(st.session_state.get("effect", "")) == "resample":  # it takes several times as long
        labels["resample"] = "Other text"
    effects = {label: effect for kind, label in labels.items() if (effect := effect_if_known(now, kind)) is not None}
    n = now.model.cfg.n_layers * now.model.cfg.n_heads
    st.text(f"L{layer}H{head}: {role_of(now, layer, head)}")
    with st.container(horizontal=True, key="effects"):
        for label, each in effects.items():
            said = f"{float(each.sel(layer=layer, head=head)):+.3f}"
            st.metric(label, said, help=HELPS.get(label), width="content")
    target, foil = plain(quoted(now, now.target)), plain(quoted(now, now.foil))
    st.caption(f"On the logit of {target} less that of {foil}, at position {now.q}.")
    found = detected(now)
    if found is None:
        offer_to_detect(now, "head")
        return
    own = found.sel(layer=layer, head=head)
    named = [name for name in SCORES if bool(own.named.sel(score=name))]
    clear = own.value - own.threshold
    best = named or [str(clear.score[int(np.nan_to_num(clear.to_numpy(), nan=-9.0).argmax())].item())]
    lines = []
    for name in best:
        one = own.sel(score=name)
        rank = 1 + int((found.value.sel(score=name) > one.value).sum())
        label = ROLES.get(name, name).format(k=int(own.value.k))
        sure = f"interval {float(one.low):.3f} to {float(one.high):.3f}, null {float(one.null):.3f}"
        above = f"threshold {float(one.threshold):.3f}, rank {rank} of {n}"
        lines.append(f"**{label} {float(one.value):.3f}**, {sure}, {above}")
    st.caption("  \n".join(lines))
