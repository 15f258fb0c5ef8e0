"""One patch: what would be said next in the run with it; and what one head says to another."""

import re

import pandas as pd
import streamlit as st
from xarray import DataArray

from dashboards.parts.figure import numbers
from dashboards.parts.models import Trouble
from dashboards.parts.patching.chosen import said_of
from dashboards.parts.patching.map import before, flat, picked
from dashboards.parts.patching.measured import PLACES, STEPS, Asked, patched_of, paths_of, shares_of
from dashboards.parts.state import Chosen, cached
from dashboards.parts.words import report, token_text
from interp.plots.theme import seen


def draw_patch(now: Chosen, asked: Asked, place: str, layer: int | None, found: DataArray, is_exact: bool) -> None:
    """The patch that is picked on the maps, or that which changes most."""
    z = flat(now, place, layer, found).to_numpy()
    row, column = picked(z)
    what = PLACES[place]
    at = layer if layer is not None else row
    head = row if layer is not None else column if what.by == ("head",) else None
    pos = column if "pos" in what.by else None
    one = cached(patched_of, asked, what.site, at, head, pos)
    name = f"layer {at}" + ("" if head is None else f", head {head}")
    where = "" if pos is None else f", position {pos} {token_text(now.labels[pos])}"
    st.markdown(f"**One patch**: {place.lower()}, {name}{where}")
    ids = one.token_id.to_numpy().tolist()
    tokens = [str(i) if now.model.tokenizer is None else seen(now.model.to_single_str_token(i)) for i in ids]
    table = pd.DataFrame({"token": tokens} | {run: one[run].to_numpy() for run in ("patched", "clean", "corrupted")})
    change = one.attrs["change"]
    caption = f"What follows position {asked.q}. A whole run with this patch changes the metric by {change:+.4f}"
    if is_exact:
        off = abs(change - float(z[row, column]))
        caption += (
            ", as the map says ✓." if off <= 1e-3 * max(1.0, abs(change)) else f":red[; the map is {off:.2g} off ✗]"
        )
    else:
        caption += f"; estimated {float(z[row, column]):+.4f}."
    site = f"Site({what.site!r}, {at}{_name_of(head, pos)})"
    own, other = ("corrupted", "tokens") if asked.direction == "denoise" else ("tokens", "corrupted")
    code = before(now, asked) + (
        "from interp.interventions import Patch, Site\n\n"
        f"site = {site}\nname = site.point(model).name\n"
        f"_, cache = model.run_with_cache({other}, names_filter=[name])\n"
        f"with model.edit([Patch(site, cache[name])]):\n    logits = model({own})[0, {asked.q}]\n"
        f"table = logits.softmax(-1).topk({len(ids)})\n"
    )
    numbers(table, key="patch_tokens", caption=caption, code=code)
    if what.site not in ("q", "k"):
        _draw_shares(now, asked, what.site, at, head, pos)


def _draw_shares(now: Chosen, asked: Asked, site: str, layer: int, head: int | None, pos: int | None) -> None:
    """The same patch of a part of the space."""
    st.markdown("**Which part of it counts**: only the coordinates in a subspace come from the other run")
    fits = st.toggle("Fit a direction", key="patch_fit", bind="query-params")
    found = cached(shares_of, asked, site, layer, head, pos, fits)
    table = pd.DataFrame(
        {
            "from the other run": found.subspace.to_numpy(),
            "change": found.to_numpy(),
            "along": found.along.to_numpy().round(3),
        }
    )
    caption = (
        f"Change of the {said_of(asked, now)}; along: how much of each lies in the direction in which the logits tell "
        "target from foil."
    )
    if fits:
        caption += (
            f" The fitted direction was trained, in {STEPS} steps, to make this one pair say what the other run says: "
            "of one pair many can. What one is worth, patching\\.subspace\\_controls tells on many pairs."
        )
    whole, other = _name_of(head, pos), ("corrupted", "tokens")
    own, source = other if asked.direction == "denoise" else other[::-1]
    code = before(now, asked, "metrics", "patching") + (
        f"from interp.interventions import Site\n\n{asked.code()}"
        f"toward = (model.W_U[:, {asked.target}] - model.W_U[:, {asked.foil}]).detach()\n"
        + ("" if head is None else f"toward = model.blocks[{layer}].attn.W_O[{head}].detach() @ toward\n")
        + f"basis = toward[:, None] / toward.norm()\n"
        f"table = patching.interchange(model, {own}, {source}, Site({site!r}, {layer}{whole}), basis, metric)\n"
    )
    numbers(table, key="patch_shares", caption=caption, code=code)


def _name_of(head: int | None, pos: int | None) -> str:
    return ("" if head is None else f", head={head}") + ("" if pos is None else f", pos={pos}")


def draw_paths(now: Chosen, asked: Asked) -> None:
    """What a later head, or the logits, hear from an earlier head alone."""
    st.subheader("From one head to another")
    with st.container(horizontal=True, vertical_alignment="bottom"):
        sender = st.text_input("From", key="path_from", bind="query-params", placeholder="L0H0", width=130)
        receiver = st.text_input("To", key="path_to", bind="query-params", placeholder="logits", width=130)
    if not sender:
        st.caption(
            "Path patching: the later head hears the other run from the earlier one, and from nowhere else. Name a "
            "head as L1H4; without a second one, the logits hear it."
        )
        return
    one = _head(now, sender, "From")
    to = None if receiver.strip().lower() in ("", "logits") else _head(now, receiver, "To")
    for found in (one, to):
        if isinstance(found, Trouble):
            report(found, "paths")
            return
    assert isinstance(one, tuple)
    assert not isinstance(to, Trouble)
    if to is not None and to[0] <= one[0]:
        report(Trouble(f"{receiver} does not come after {sender}.", "Name a head of a later layer."), "paths")
        return
    found = cached(paths_of, asked, one, to)
    values = found.to_numpy()
    names = ["logits"] if to is None else ["its queries", "its keys", "its values", "all three"]
    table = pd.DataFrame({"heard by": names, "change": values})
    listens = '["logits"]' if to is None else _receivers(now, to)
    code = before(now, asked, "metrics", "patching") + (
        f"from interp.interventions import Site\n\n{asked.code()}"
        f"table = patching.path_patching(\n    model, tokens, corrupted, [Site('z', {one[0]}, head={one[1]})],\n"
        f"    {listens}, metric, direction={asked.direction!r}\n)\n"
    )
    caption = (
        f"Change of the {said_of(asked, now)}, when only this path carries the other run; MLPs between the two "
        f"are {found.attrs['mlps']}."
    )
    numbers(table, key="paths", caption=caption, code=code)


def _receivers(now: Chosen, to: tuple[int, int]) -> str:
    layer, head = to
    kv = head // (now.model.cfg.n_heads // now.model.cfg.n_key_value_heads)
    q, k, v = (f"Site({name!r}, {layer}, head={h})" for name, h in (("q", head), ("k", kv), ("v", kv)))
    return f"[[{q}], [{k}], [{v}], [{q}, {k}, {v}]]"


def _head(now: Chosen, text: str, field: str) -> tuple[int, int] | Trouble:
    cfg = now.model.cfg
    found = re.fullmatch(r"\s*[Ll](\d{1,4})[Hh.](\d{1,4})\s*", text)
    if found is None or int(found[1]) >= cfg.n_layers or int(found[2]) >= cfg.n_heads:
        return Trouble(
            f"{field}: {text[:20]!r} is no head of this model.",
            f"Heads are L0H0 to L{cfg.n_layers - 1}H{cfg.n_heads - 1}.",
        )
    return int(found[1]), int(found[2])
