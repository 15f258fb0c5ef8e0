"""What edits do, drawn: numbers, losses, next tokens, texts, self-repair, and the curves over the parts."""

from functools import partial

import numpy as np
import streamlit as st
from pandas import DataFrame
from xarray import DataArray

from dashboards.parts import jobs
from dashboards.parts.ablation.measured import (
    How,
    Outcome,
    curves,
    curves_code,
    has_loss,
    losses,
    repair,
    seconds,
    texts,
)
from dashboards.parts.ablation.wanted import Wanted, code_of
from dashboards.parts.figure import figure, numbers, opening
from dashboards.parts.heads.measured import AT_ONCE, quoted
from dashboards.parts.state import Chosen
from dashboards.parts.words import plain
from interp import plots

ROWS = 10  # tokens of each of two tables that are made one
SMALL = 0.05  # of what was taken away: heads that restore less are not counted
LITTLE = 0.2  # of all that later heads change: what was taken away is no measure for it


def draw_numbers(now: Chosen, before: Outcome, after: Outcome) -> None:
    """The logit difference, the target's probability, and the loss, after and before."""
    pairs = {
        f"Logit {quoted(now, now.target)} − {quoted(now, now.foil)}": (before.difference, after.difference),
        f"Probability of {quoted(now, now.target)}": tuple(
            float(x.log_probs[now.target].exp()) for x in (before, after)
        ),
    }
    if before.loss is not None and after.loss is not None:
        pairs["Mean loss"] = float(before.loss.mean()), float(after.loss.mean())
    with st.container(horizontal=True, key="abl_metrics"):
        for label, (old, new) in pairs.items():
            st.metric(plain(label), f"{old:.3f} → {new:.3f}", f"{new - old:+.3f}", delta_color="off", width="content")


def draw_losses(now: Chosen, wanted: Wanted, before: Outcome, after: Outcome) -> None:
    """The loss of each token of the prompt."""
    if not has_loss(now.model) or before.loss is None:
        st.caption("This model predicts no token of its prompt: there is no loss by position.")
        return
    found = losses(now, before, after)
    change = found.sel(run="after") - found.sel(run="before")
    order = np.argsort(-np.abs(change.to_numpy()))[:2]
    largest = "; ".join(f"{found.pos.values[i]} {float(change[i]):+.3f}" for i in order)
    total, mean = float(change.sum()), _mean_change(before, after)
    caption = (
        f"Of each token, by what comes before it. Changes sum to {total:+.4g}: {len(change)} tokens × "
        f"{float(change.mean()):+.4g}, the change of the mean {_check(total - len(change) * mean)}."
    )
    code, imports = code_of(now, wanted)
    whole = (
        opening(now, "plots", *imports)
        + "import numpy as np\nfrom xarray import DataArray\n\n"
        + code
        + (
            "each = lambda: model(tokens, return_type='loss', loss_per_token=True)[0].detach().numpy()\n"
            "before = each()\n"
            "with model.edit(edits):\n    after = each()\n"
            "found = DataArray(np.stack([before, after]), dims=('run', 'pos'), name='loss')\n"
            "found = found.assign_coords(run=['before', 'after'])\n"
            "fig = plots.lines(found, title='Loss by position')\n"
        )
    )
    drawn = plots.lines(found, title="Loss by position", theme=now.theme)
    alt = f"Two lines: the loss of each token before and after. Largest changes: {largest}."
    figure(drawn, key="abl_loss", caption=caption, code=whole, data=found, alt=alt, height=340)


def draw_tokens(now: Chosen, wanted: Wanted, before: Outcome, after: Outcome) -> None:
    """The likeliest next tokens of both runs."""
    old, new = before.log_probs.exp(), after.log_probs.exp()
    n = min(ROWS, len(old))
    shown = dict.fromkeys([*new.topk(n).indices.tolist(), *old.topk(n).indices.tolist()])
    ranks = [x.argsort(descending=True).argsort() for x in (old, new)]
    rows = [
        {
            "token": quoted(now, token)[1:-1],
            "before": float(old[token]),
            "after": float(new[token]),
            "change": float(new[token] - old[token]),
            "rank before": int(ranks[0][token]) + 1,
            "rank after": int(ranks[1][token]) + 1,
        }
        for token in shown
    ]
    rest = [1 - float(x[list(shown)].double().sum()) for x in (old, new)]
    total = [float(x.double().sum()) for x in (old, new)]
    code, imports = code_of(now, wanted)
    whole = (
        opening(now, *imports)
        + code
        + (
            f"before = model(tokens)[0, {now.q}].softmax(-1)\n"
            f"with model.edit(edits):\n    after = model(tokens)[0, {now.q}].softmax(-1)\n"
            f"table = [(i, float(before[i]), float(after[i])) for i in {list(shown)}]\n"
        )
    )
    caption = (
        f"Probabilities after position {now.q}. All other tokens: {rest[0]:.4f} before, {rest[1]:.4f} after; in all "
        f"{total[0]:.5f} and {total[1]:.5f} {_check(max(abs(x - 1) for x in total), 1e-4)}."
    )
    numbers(DataFrame(rows), key="abl_tokens", caption=caption, code=whole)


def draw_texts(now: Chosen, wanted: Wanted) -> None:
    """What is written, without the edits and with them."""
    cfg = now.model.cfg
    if cfg.d_vocab != cfg.d_vocab_out or cfg.attention_dir == "bidirectional":
        st.caption("This model writes no text.")
        return
    with st.container(horizontal=True):
        n_new = st.number_input("New tokens", 1, 200, 20, key="new", bind="query-params", width=140)
        temperature = st.number_input(
            "Temperature", 0.0, 10.0, 1.0, 0.1, key="temperature", bind="query-params", width=140
        )
        seed = st.number_input("Seed", 0, 2**31 - 1, 0, key="seed", bind="query-params", width=140)
    how = How(int(n_new), float(temperature), int(seed))
    try:
        both = texts(now, wanted, how)
    except (ValueError, IndexError) as error:
        st.warning(f"{plain(str(error))} No text can be written so.", icon=":material/info:")
        return
    rows = [x.tokens[0, now.tokens.shape[1] :][: int(x.lengths[0])].tolist() for x in both]
    for column, name, tokens in zip(st.columns(2, gap="medium"), ("Before", "After"), rows, strict=True):
        column.caption(name)
        said = now.model.tokenizer.decode(tokens) if now.model.tokenizer else " ".join(map(str, tokens))
        column.code(said, language=None, wrap_lines=True)
    first = next((i for i, (a, b) in enumerate(zip(*rows, strict=False)) if a != b), None)
    same = (
        "Both are the same."
        if rows[0] == rows[1]
        else f"They part at new token {min(map(len, rows)) if first is None else first}."
    )
    st.caption(f"{same} One seed: at each step both are drawn with the same number.")


def draw_repair(now: Chosen, wanted: Wanted) -> None:
    """What later parts make up for."""
    if not wanted.parts:
        return
    try:
        found = repair(now, wanted)
    except ValueError as error:  # of parts that are neither heads nor MLPs
        st.caption(plain(f"No self-repair is told: {error}."))
        return
    st.subheader("Self-repair")
    said = repaired(found, wanted)
    drawn = plots.attribution_bars(found, top=16, title="Direct effects, after less before", theme=now.theme)
    kinds = {
        kind: float(found[(found.kind == kind).values].sum()) for kind in dict.fromkeys(found.kind.values.tolist())
    }
    names = {"edited": "parts taken away", "head": "heads", "mlp": "MLPs", "norm": "final norm", "embed": "embeddings"}
    parts = " + ".join(f"{names.get(kind, kind)} {x:+.4g}" for kind, x in kinds.items() if abs(x) > 5e-7)
    off = float(found.sum()) - float(found.total)
    caption = f"{parts or '0'} = change of the logit difference {float(found.total):+.4g} {_check(off, 1e-4)}. " + (
        "The final norm's scale is that of the run before; what its own change does is told apart."
        + (" Steering and edits from a file are left out here." if wanted.steering or wanted.uploaded else "")
    )
    code, imports = code_of(now, wanted, parts_only=True)
    whole = (
        opening(now, "heads", "plots", *imports)
        + code
        + (
            f"found = heads.self_repair(model, tokens, edits, {now.target}, {now.foil}, pos={now.q})\n"
            "fig = plots.attribution_bars(found, top=16)\n"
        )
    )
    st.text(said)
    figure(drawn, key="abl_repair", caption=caption, code=whole, data=found, alt=said)


def repaired(found: DataArray, wanted: Wanted) -> str:
    """What later heads do, in a sentence."""
    direct = float(found[(found.kind == "edited").values].sum())
    names = ", ".join(wanted.parts)
    if abs(direct) < 1e-6:
        return f"{names} writes nothing here that reaches the logit difference directly: there is nothing to repair."
    later, rest = found[(found.kind == "head").values], found[np.isin(found.kind.values, ["mlp", "norm"])]
    total = float(found.total)
    whole = f"Without {names}, {direct:+.3f} comes directly; in all the logit difference changes by {total:+.3f}."
    order = np.argsort(-np.abs(later.to_numpy()))
    if abs(direct) < LITTLE * float(abs(later).sum()):
        best = ", ".join(f"{later.component.values[i]} {float(later[i]):+.3f}" for i in order[:3])
        return f"{whole} That is little beside what later heads do otherwise: most {best}."
    restoring = [i for i in order if float(later[i]) / direct < -SMALL]
    opposing = [i for i in order if float(later[i]) / direct > SMALL]
    said = "No later head makes up for it."
    if restoring:
        best = ", ".join(f"{later.component.values[i]} {float(later[i]):+.3f}" for i in restoring[:3])
        verb, share = "head repairs" if len(restoring) == 1 else "heads repair", -float(later[restoring].sum()) / direct
        said = f"{len(restoring)} later {verb} {share:.0%} of that (most {best})."
    if opposing:
        verb, share = "adds" if len(opposing) == 1 else "add", float(later[opposing].sum()) / direct
        said += f" {len(opposing)} {verb} {share:.0%} to it."
    return f"{whole} {said} MLPs and the final norm: {float(rest.sum()):+.3f}."


def draw_curves(now: Chosen, wanted: Wanted) -> None:
    """Each part alone, all but each, all up to each."""
    if len(wanted.parts) < 2:
        return
    st.subheader("Part by part")
    key = (wanted.parts, wanted.how, wanted.text, now.q, now.target, now.foil)
    cost, draw = seconds(len(wanted.parts)), partial(draw_found, now, wanted)
    found = jobs.offer(
        curves, *key, name="Part by part", seconds=cost, draw=draw, of=f"{3 * len(wanted.parts)} runs",
        at_once=cost < AT_ONCE,
    )  # fmt: skip
    if found is not None:
        draw(found)


def draw_found(now: Chosen, wanted: Wanted, found: DataArray) -> None:
    """The curves, or as much of them as is known."""
    title = f"Logit {quoted(now, now.target)} − {quoted(now, now.foil)} without parts"
    drawn = plots.lines(found, title=title, theme=now.theme)
    alone, others, up_to = (found.sel(way=way).to_numpy() for way in found.way.values)
    base = float(found.attrs["base"])
    n_missing = int(np.isnan(found.to_numpy()).sum())
    off = max(abs(alone[0] - up_to[0]), abs(up_to[-2] - others[-1])) if not n_missing else np.nan
    known = (
        f"{n_missing} of {found.size} are still to come."
        if n_missing
        else (f"Lines meet where they must, at the first part and at the last but one {_check(off)}.")
    )
    with_all = "" if np.isnan(up_to[-1]) else f"; without all of them {up_to[-1]:.4g}"
    caption = f"With nothing taken away it is {base:.4g}{with_all}. {known}"
    code, imports = code_of(now, wanted, parts_only=True)
    whole = (
        opening(now, "metrics", "plots", *imports)
        + "from xarray import DataArray\n\n"
        + code
        + (
            f"metric = metrics.logit_diff(model, {now.target}, {now.foil}, pos={now.q})\n"
            + curves_code()
            + "fig = plots.lines(found)\n"
        )
    )
    worst = int(np.nanargmax(np.abs(alone - base))) if not np.isnan(alone).all() else 0
    alt = f"Three lines over the parts. Alone, {found.part.values[worst]} changes most: {alone[worst] - base:+.3f}."
    figure(drawn, key="abl_curves", caption=caption, code=whole, data=found, alt=alt, height=360)


def _mean_change(before: Outcome, after: Outcome) -> float:
    assert before.loss is not None
    assert after.loss is not None
    return float(after.loss.double().mean() - before.loss.double().mean())


def _check(off: float, limit: float = 1e-3) -> str:
    return f"(error {abs(off):.0e}) ✓" if abs(off) <= limit else f":red[(off by {abs(off):.2g}) ✗]"
