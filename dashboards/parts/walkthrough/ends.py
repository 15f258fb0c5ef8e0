"""Where the walk begins, text and tokens, and where it ends: from logits to a token, and on to the next."""

from math import isnan
from typing import Any

import numpy as np
import streamlit as st
from pandas import DataFrame
from xarray import DataArray, Dataset

from dashboards.parts.figure import figure, numbers, opening
from dashboards.parts.heads.one import check
from dashboards.parts.sidebar import LONGEST
from dashboards.parts.state import Chosen, cached
from dashboards.parts.walkthrough.inside import ARRAY, N, allowed, names
from dashboards.parts.walkthrough.measured import LONGEST_WORD, chances, drawn, step_of, word
from dashboards.parts.words import token_text
from interp import plots
from interp.generation import Choice, Sampling
from interp.plots.theme import seen

ROWS, BARS = 20, 10  # tokens of the vocabulary that a table names, and a figure
KEYS = 12  # keys drawn below the query


def draw_text(now: Chosen) -> None:
    """How much text there is, and how many tokens it is."""
    text = now.prompt[:LONGEST]
    counted = {"characters": len(text), "bytes": len(text.encode()), "tokens read": len(now.labels)}
    code = opening(now) + (
        f"text = {text!r}\n"
        "numbers = {\n"
        "    'characters': len(text),\n"
        "    'bytes': len(text.encode()),\n"
        "    'tokens read': tokens.shape[1],\n"
        "}\n"
        "table = list(numbers.items())\n"
    )
    begins = " The first token was put there: it begins every text." if now.bos else ""
    data = DataFrame({"what": counted.keys(), "how many": counted.values()})
    numbers(data, key="walk_text", caption=f"Tokens are in the row above; a click reads another.{begins}", code=code)


def draw_tokens(now: Chosen) -> None:
    """The merges that make the tokens of the word that is read."""
    found = word(now)
    if found is None:
        name = token_text(now.labels[0])
        st.info(f"{name} was put before the text: no merges make it. Click another token.", icon=":material/info:")
        return
    own, number = names(now, found.tokens), found.tokens[found.within]
    st.markdown(
        f"The token that is read, **{token_text(own[found.within])}**, number {number:,} of the vocabulary, is of the "
        f"word **{token_text(found.text)}**."
    )
    if found.merges is None:
        size = len(found.text.encode())
        st.info(f"This word has {size:,} bytes; merges are shown of up to {LONGEST_WORD}.", icon=":material/info:")
        return
    code = opening(now) + (
        f"merges = model.tokenizer.merges({found.text!r})\n"
        "table = [(merge.left, merge.right, merge.rank, merge.pieces) for merge in merges]\n"
        f"numbers = {{'rank': [merge.rank for merge in merges], 'tokens': model.tokenizer.encode({found.text!r})}}\n"
    )
    rows = {
        "step": [*range(1, len(found.merges) + 1)],
        "left": [seen(merge.left) for merge in found.merges],
        "right": [seen(merge.right) for merge in found.merges],
        "rank": [merge.rank for merge in found.merges],
        "pieces after it": [" | ".join(map(seen, merge.pieces)) for merge in found.merges],
    }
    caption = (
        f"It starts from {len(found.text.encode())} bytes. Of all pairs of neighbours, that with "
        f"the lowest rank is joined first; no pair of what is left is in the list. "
        + _ends_in(found.merges[-1].pieces if found.merges else None, own)
    )
    numbers(DataFrame(rows), key="walk_merges", caption=caption, code=code)


def _ends_in(pieces: list[str] | None, own: list[str]) -> str:
    """Whether the merges end in the model's tokens."""
    said = " ".join(token_text(name) for name in own)
    if pieces is None:
        return f"There is nothing to join here: {said}."
    return f"They end in {said} ✓" if [*map(seen, pieces)] == own else f":red[They do not end in {said} ✗]"


def controls(now: Chosen, of: tuple[str, ...]) -> tuple[Sampling, int]:
    """Temperature, filters and seed: the same as on the page Generate; those that this stage is about can be moved."""
    limits: dict[str, tuple[Any, Any]] = {
        "temperature": (0.0, 10.0),
        "top_k": (0, now.model.cfg.d_vocab_out),
        "top_p": (0.0, 1.0),
        "seed": (0, 2**31 - 1),
    }
    told = {
        "temperature": ("Temperature", 1.0, 0.1, "0: the likeliest"),
        "top_k": ("Top k", 0, 1, "0: off"),
        "top_p": ("Top p", 1.0, 0.05, "1: off"),
        "seed": ("Seed", 0, 1, "The same seed draws the same token"),
    }
    values: dict[str, Any] = {}
    columns = st.container(horizontal=True)
    for key, (low, high) in limits.items():
        label, default, step, what = told[key]
        before = st.session_state.get(key)
        if before is not None and not low <= before <= high:  # a state file, or another model, may have set it
            st.session_state[key] = min(max(before, low), high)
        if key in of:
            values[key] = columns.number_input(
                label, low, high, default, step, key=key, help=what, bind="query-params", width=170
            )
        else:
            values[key] = default
    top_k, top_p = int(values["top_k"]) or None, values["top_p"]
    how = Sampling(temperature=values["temperature"], top_k=top_k, top_p=top_p if 0 < top_p < 1 else None)
    return how, int(values["seed"])


def draw_chances(now: Chosen, layer: int, stage: str) -> None:
    """What temperature, filters and chance make of the logits."""
    of = {"Temperature": ("temperature",), "Top k, top p": ("temperature", "top_k", "top_p")}
    how, seed = controls(now, of.get(stage, ("temperature", "top_k", "top_p", "seed")))
    found = chances(now, layer, how, ROWS)
    code = _chances_code(now, how)
    choice = None if stage in of else drawn(now, layer, how, seed)
    if choice is not None:
        code += _drawn_code(seed)
        st.markdown(_said(now, choice))
    left = f"{found.attrs['n_left']:,} of {now.model.cfg.d_vocab_out:,} outputs are left."
    whole = float(found.probability.sum()) + found.attrs["rest"]["probability"]
    figure(
        plots.choice_bars(chances(now, layer, how, BARS), theme=now.theme),
        key="walk_figure",
        caption=f"{left} {check('All probabilities sum to 1', abs(whole - 1), 1e-4)}",
        code=code,
        data=found[["own", "probability"]].to_dataframe().reset_index(),
        alt="Bars of the likeliest outputs, before and after. "
        f"{found.token.values[0]!r} goes from {float(found.own[0]):.3f} to {float(found.probability[0]):.3f}.",
    )
    table = _table(now, found, choice)
    st.dataframe(table, key="walk_chances", hide_index=True, height=38 + 35 * len(table))


def _table(now: Chosen, found: Dataset, choice: Choice | None) -> DataFrame:
    """The likeliest outputs with what each step made of their logits, and all others in a last row."""
    ids = found.token_id.to_numpy().tolist()
    said = {"temperature": "− largest, ÷ temperature", "own": "softmax of the logit"}
    columns: dict[str, list[Any]] = {"token": names(now, ids)}
    for name in [*(each for each in found.data_vars if each != "own"), "own"]:
        columns[said.get(str(name), str(name))] = found[name].to_numpy().tolist()
    rest = {"token": f"rest ({found.attrs['n_rest']:,})", "probability": found.attrs["rest"]["probability"]}
    rest[said["own"]] = found.attrs["rest"]["own"]
    if choice is not None:
        if not isnan(choice.random):
            low = choice.below[ids]
            columns["from"] = low.tolist()
            columns["to"] = (low + choice.stages["probability"][ids].double()).tolist()
        columns["drawn"] = ["●" if token == choice.token else "" for token in ids]
        rest["drawn"] = "" if choice.token in ids else "●"
    if found.attrs["n_rest"]:
        for name, column in columns.items():
            column.append(rest.get(name))
    return DataFrame(columns)


def _said(now: Chosen, choice: Choice) -> str:
    """How the token was chosen, in words."""
    name = f"**{token_text(names(now, [choice.token])[0])}**"
    if isnan(choice.random):
        return f"At temperature 0 the likeliest is taken, without chance: {name}"
    low = float(choice.below[choice.token])
    high = low + float(choice.stages["probability"][choice.token])
    return f"The number thrown is {choice.random:.6f}. It falls between {low:.6f} and {high:.6f}: {name}"


def _chances_code(now: Chosen, how: Sampling) -> str:
    return opening(now, "generation", "plots", "walk") + (
        f"sampling = generation.Sampling(temperature={how.temperature}, top_k={how.top_k}, top_p={how.top_p})\n"
        f"logits, before = model(tokens)[0, {now.q}].detach(), tokens[:, : {now.q + 1}]\n"
        f"found = walk.choices(model, sampling, logits, before, {ROWS})\n"
        "numbers = {name: found[name].values for name in found.data_vars}\n"
        f"fig = plots.choice_bars(walk.choices(model, sampling, logits, before, {BARS}))\n"
    )


def _drawn_code(seed: int) -> str:
    return f"choice = walk.sampled(sampling, logits, before, seed={seed})\nprint(choice.token, choice.random)\n"


def draw_next(now: Chosen, layer: int, head: int) -> None:
    """The token that was drawn, read over kept keys and values."""
    how, seed = controls(now, ("temperature", "top_k", "top_p", "seed"))
    choice = drawn(now, layer, how, seed)
    step = cached(step_of, now.q, choice.token, layer, head)
    n = now.q + 1  # the new token's position
    labels = [*now.labels[:n], names(now, [choice.token])[0]]
    st.markdown(f"The new token, **{token_text(labels[n])}**, stands at position {n}; layer {layer}, head {head}:")
    best = sorted(step.weights[0].float().topk(min(N, int((step.weights > 0).sum()))).indices.tolist())
    rows = [
        _row("q", step.q, [f"[{i}]" for i in range(N)], step.q[0, :N], "query_pos d_head", "the new token's alone"),
        _row("k", step.k, [f"[{i}]" for i in range(N)], step.k[-1, :N], "key_pos d_head", f"{n} were kept, 1 is new"),
        _row("v", step.v, [f"[{i}]" for i in range(N)], step.v[-1, :N], "key_pos d_head", f"{n} were kept, 1 is new"),
        _row("z", step.z, [f"[{i}]" for i in range(N)], step.z[0, :N], "query_pos d_head", "weights · v"),
    ]
    st.dataframe(DataFrame(rows), key="walk_numbers_0", hide_index=True)
    at = [f"{key} {seen(labels[key])}" for key in best]
    rows = [
        _row("scores", step.scores, at, step.scores[0, best], "query_pos key_pos", "q · k, scaled and masked: one row"),
        _row("weights", step.weights, at, step.weights[0, best], "query_pos key_pos", "softmax of scores"),
    ]
    st.dataframe(DataFrame(rows), key="walk_numbers_1", hide_index=True)
    worst = max(step.errors.values())
    seen_scores = step.scores[step.scores.isfinite()]
    size = max(1.0, *(float(x.abs().max()) for x in (step.q, step.k, step.v, seen_scores, step.logits)))
    st.caption(
        check(
            "Equal to one pass over the whole text: q, k, v, scores, weights, z and logits", worst, allowed(now) * size
        )
        + f" That pass would make {n + 1} × {n + 1} scores; this one makes 1 × {n + 1}."
    )
    first = max(0, n + 1 - KEYS)
    vectors = ["q", *(f"k of {i} {labels[i]}" for i in range(first, n + 1))]
    values = np.concatenate([step.q.float().cpu().numpy(), step.k[first:].float().cpu().numpy()])
    data = DataArray(values, coords={"vector": vectors}, dims=["vector", "d_head"], name="value")
    code = _chances_code(now, how) + _drawn_code(seed)
    code += ARRAY + (
        f"step = walk.next_step(model, before, choice.token, {layer}, {head})\n"
        f"numbers = {{name: getattr(step, name)[-1] for name in ('q', 'k', 'v', 'z', 'scores', 'weights')}}\n"
        f"vectors = {vectors!r}\n"
        f"values = [*step.q.numpy(), *step.k[{first}:].numpy()]\n"
        "data = DataArray(values, coords={'vector': vectors}, dims=['vector', 'd_head'])\n"
        "fig = plots.bar_code(data, title='One query, many keys')\n"
    )
    figure(
        plots.bar_code(data, title="One query, many keys", theme=now.theme),
        key="walk_figure",
        caption="" if first == 0 else f"Of {n + 1} keys the last {KEYS} are drawn.",
        code=code,
        data=data,
        alt=f"The query of the new token, one line of {values.shape[1]} numbers, above {len(vectors) - 1} keys.",
    )
    _walk_on(now, choice.token)


def _row(name: str, whole: Any, labels: list[str], values: Any, axes: str, formula: str) -> dict[str, Any]:
    shown = dict(zip(labels, values.tolist(), strict=False))
    return {"quantity": name, "shape": " × ".join(map(str, whole.shape)), **shown, "is": formula, "axes": axes}


def _walk_on(now: Chosen, token: int) -> None:
    """A button that adds the token to the prompt, where the longer text is cut into the same tokens."""
    tokenizer, before = now.model.tokenizer, now.tokens[0, : now.q + 1].tolist()
    own = before[1:] if now.bos else before
    if tokenizer is None:
        longer = " ".join(map(str, [*own, token]))
    else:
        longer = tokenizer.decode([*own, token])
        if tokenizer.encode(longer) != [*own, token]:
            st.caption("Added to the prompt, this token would be cut into others: it cannot be read on as text.")
            return
    is_last = now.q == len(now.labels) - 1
    words = "Add the token to the prompt, and walk on" if is_last else "Go on from here with this token instead"
    st.button(words, key="walk_on", icon=":material/add:", on_click=_take, args=(longer,))


def _take(longer: str) -> None:
    """The prompt, longer; it is drawn outside of what a click draws again."""
    st.session_state["prompt"], st.session_state["q"], st.session_state["_walk_longer"] = longer, None, True
