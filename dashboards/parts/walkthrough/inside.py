"""A stage inside of the model: its quantities, with their shapes and some of their numbers, and a figure of them."""

import numpy as np
import streamlit as st
import torch
from pandas import DataFrame
from xarray import DataArray

from dashboards.parts.figure import figure, opening
from dashboards.parts.heads.one import check
from dashboards.parts.state import Chosen
from dashboards.parts.walkthrough.measured import way
from interp import plots
from interp.plots.theme import seen
from interp.walk import Quantity, Walk, quantities

N = 5  # numbers of a quantity
WINDOW = 32  # tokens of a matrix at once

# The matrices that are drawn at a stage, the one before it and the one after.
MATRICES = {
    "scores": ["product"],
    "scaling": ["product", "score"],
    "mask": ["score", "masked"],
    "softmax": ["masked", "weight"],
}
OUTSIDE = ("embedding", "position", "final norm")  # of all layers
ARRAY = "from xarray import DataArray\n\n"


def draw_inside(now: Chosen, stage: str, layer: int, head: int) -> None:
    """The stage's numbers, and its figure."""
    this = way(now, layer)
    found = quantities(this, stage, head)
    draw_quantities(found, places(now, this, head, found))
    code = opening(now, "heads", "plots") + this.code(found, head)
    if stage in MATRICES:
        _draw_matrices(now, this, head, stage, code)
    elif stage == "logits":
        _draw_logits(now, this, code)
    else:
        _draw_vectors(found, code, now, None if stage in OUTSIDE else layer)
    if said := holds(now, this, stage, found):
        st.caption(said)


def draw_quantities(found: list[Quantity], at: dict[str, dict[str, int]]) -> None:
    """A table for each axis along which there are numbers."""
    for i, along in enumerate(dict.fromkeys(each.along for each in found)):
        own = [each for each in found if each.along == along]
        named = at.get(along) or {f"[{j}]": j for j in told(own)}
        rows = [
            {
                "quantity": each.name,
                "shape": " × ".join(map(str, each.shape)),
                **{label: float(each.values[place]) for label, place in named.items()},
                "is": each.formula,
                "axes": " ".join(each.axes),
                "hook point": each.hook or "",
            }
            for each in own
        ]
        st.dataframe(DataFrame(rows), key=f"walk_numbers_{i}", hide_index=True)


def told(found: list[Quantity]) -> list[int]:
    """The first places; where all is 0 there, those of the largest numbers of what comes last."""
    n = min(N, found[0].shape[-1])
    if any(bool(each.values[:n].any()) for each in found):
        return [*range(n)]
    return sorted(found[-1].values.float().abs().topk(n).indices.tolist())


def places(now: Chosen, this: Walk, head: int, found: list[Quantity]) -> dict[str, dict[str, int]]:
    """The places whose numbers are told: the first, or the largest where they have names."""
    at: dict[str, dict[str, int]] = {}
    for each in found:
        if each.along == "key_pos":
            at["key_pos"] = {f"{key} {seen(now.labels[key])}": key for key in _keys(this, head, each)}
        elif each.along == "d_mlp":  # the same neurons at all stages: those that write most
            size = this.cache[this.at("mlp.hook_post")][0, 0].float().abs()
            at["d_mlp"] = {f"N{i}": i for i in sorted(size.topk(min(N, len(size))).indices.tolist())}
        elif each.along == "d_vocab_out":
            top = each.values.float().topk(min(N, len(each.values))).indices.tolist()
            at["d_vocab_out"] = {f"{token} {name}": token for token, name in zip(top, names(now, top), strict=True)}
    return at


def _keys(this: Walk, head: int, each: Quantity) -> list[int]:
    """The strongest keys; where the mask is told, one that it hides too."""
    keys = this.strongest(head, N)
    hidden = [] if each.name != "masked" else torch.isinf(each.values).nonzero()[:, 0].tolist()
    return sorted({*keys[: N - 1 if hidden else N], *hidden[:1]})


def names(now: Chosen, tokens: list[int]) -> list[str]:
    """A visible text for each output."""
    tokenizer, cfg = now.model.tokenizer, now.model.cfg
    if tokenizer is None or cfg.d_vocab != cfg.d_vocab_out:
        return list(map(str, tokens))
    return list(map(seen, tokenizer.token_strings(tokens)))


def allowed(now: Chosen) -> float:
    """How far two ways to the same number may lie apart, relative to its size."""
    return max(1e-4, 4 * torch.finfo(now.model.dtype).eps)


def holds(now: Chosen, this: Walk, stage: str, found: list[Quantity]) -> str:
    """What must hold of the stage's numbers, and whether it does."""
    of = {each.name: each.values.double() for each in found}
    if stage == "position":
        return _sum_holds(now, of["embedding"] + of["position"], of["stream"], "embedding + position = stream")
    if stage in ("attention added", "mlp added"):
        parts = [x for name, x in of.items() if name in ("stream", "attention adds", "the MLP adds")]
        whole, said = (
            of.get("sum", of["stream after"]),
            " + ".join(n for n in of if n == "stream" or n.endswith("adds")),
        )
        return _sum_holds(now, torch.stack(parts).sum(0), whole, f"{said} = {'sum' if 'sum' in of else 'stream after'}")
    heads = [x for name, x in of.items() if name.startswith("head ")]
    if stage == "heads" and len(heads) == this.model.cfg.n_heads:
        bias = this.model.blocks[this.layer].attn.b_O
        whole = torch.stack(heads).sum(0) + (0 if bias is None else bias.double())
        return _sum_holds(now, whole, of["all heads write"], "The heads together = all heads write")
    if stage == "softmax":
        return check("The weights of the row sum to 1", abs(float(of["weights"].sum()) - 1), allowed(now))
    return ""


def _sum_holds(now: Chosen, made: torch.Tensor, whole: torch.Tensor, said: str) -> str:
    size = max(1.0, float(whole.abs().max()))
    return check(said, float((made - whole).abs().max()), allowed(now) * size)


def _draw_vectors(found: list[Quantity], code: str, now: Chosen, layer: int | None) -> None:
    """The stage's vectors as bar codes: those along the axis that comes out of it."""
    along = found[-1].along
    rows = [each for each in found if each.along == along]
    vectors = [each.name for each in rows]
    values = np.stack([each.values.detach().float().cpu().numpy() for each in rows])
    data = DataArray(values, coords={"vector": vectors}, dims=["vector", along], name="value")
    title = f"At position {now.q}, {now.labels[now.q]}" + ("" if layer is None else f", layer {layer}")
    made = ARRAY + (
        f"vectors = {vectors!r}\n"
        "values = [torch.as_tensor(numbers[name]).detach().float() for name in vectors]\n"
        f"data = DataArray(torch.stack(values).numpy(), coords={{'vector': vectors}}, dims=['vector', {along!r}])\n"
        f"fig = plots.bar_code(data, title={title!r})\n"
    )
    largest = np.unravel_index(int(np.abs(np.nan_to_num(values)).argmax()), values.shape)
    figure(
        plots.bar_code(data, title=title, theme=now.theme),
        key="walk_figure",
        code=with_torch(code) + made,
        data=data,
        alt=f"{', '.join(vectors)} as lines of colour, {values.shape[1]} numbers each. The largest is "
        f"{values[largest]:.3g}, of {vectors[largest[0]]}.",
    )


def _draw_matrices(now: Chosen, this: Walk, head: int, stage: str, code: str) -> None:
    """A window of the head's matrices, before the stage and after it."""
    first, last = _window(now)
    labels = [f"{i} {now.labels[i]}" for i in range(first, last)]
    steps = this.patterns.steps(this.layer, head, slice(first, last), slice(first, last))
    steps = steps.assign_coords(query_pos=labels, key_pos=labels)
    row = now.q - first if first <= now.q < last else None
    shown, title = MATRICES[stage], f"Layer {this.layer}, head {head}: every query with every key"
    made = (
        f"places = {labels!r}\n"
        f"window = slice({first}, {last})\n"
        f"drawn = found.steps({this.layer}, {head}, window, window).assign_coords(query_pos=places, key_pos=places)\n"
        f"fig = plots.attention_steps(drawn, {shown}, query={row}, title={title!r})\n"
    )
    n = len(now.labels)
    alt = f"{' and '.join(_in_words(shown))} of {last - first} queries with as many keys."
    if row is not None and np.isfinite(of_row := steps[shown[-1]].to_numpy()[row]).any():
        best = int(np.where(np.isfinite(of_row), of_row, -np.inf).argmax())
        alt += f" Of the query at {now.q} the largest is {of_row[best]:.3g}, at key {labels[best]}."
    size = f"The whole is {n} × {n}" + ("." if last - first == n else f"; drawn are tokens {first} to {last - 1}.")
    figure(
        plots.attention_steps(steps, shown, query=row, title=title, theme=now.theme),
        key="walk_figure",
        caption=f"{size} The table above is of one row, that of the query at {now.q}, which has a frame.",
        code=code + made,
        data=steps[shown[-1]],
        alt=alt,
    )


def _in_words(steps: list[str]) -> list[str]:
    """Matrices by the names that the figure gives them."""
    named = {"product": "q · k", "score": "scaled scores", "masked": "masked scores", "weight": "weights"}
    return [named[step] for step in steps]


def _window(now: Chosen) -> tuple[int, int]:
    """The tokens whose matrices are drawn: all, or those about the one that is read, unless others are asked for."""
    n = len(now.labels)
    if n <= WINDOW:
        return 0, n
    about = min(max(0, now.q - WINDOW + 4), n - WINDOW)
    read = now.fingerprint, now.prompt, now.bos, now.q
    if st.session_state.get("_walk_read") != read:
        st.session_state["_walk_read"], st.session_state["_walk_first"] = read, about
    first = st.slider("First token drawn", 0, n - WINDOW, key="_walk_first")
    return first, first + WINDOW


def _draw_logits(now: Chosen, this: Walk, code: str) -> None:
    """The largest logits."""
    top = this.logits.float().topk(min(20, len(this.logits)))
    ids = top.indices.tolist()
    tokens = [f"{i} {name}" for i, name in zip(ids, names(now, ids), strict=True)]
    data = DataArray(top.values.cpu().numpy(), coords={"output": tokens}, dims=["output"], name="logit")
    title = f"The {len(ids)} largest of {len(this.logits):,} logits at position {now.q}"
    made = ARRAY + (
        f"outputs = {tokens!r}\n"
        f"largest = numbers['logits'].detach().float()[{ids}]\n"
        "data = DataArray(largest.numpy(), coords={'output': outputs}, dims=['output'], name='logit')\n"
        f"fig = plots.bars(data, title={title!r})\n"
    )
    figure(
        plots.bars(data, title=title, theme=now.theme),
        key="walk_figure",
        code=code + made,
        data=data,
        alt=f"Bars: the largest logits. {tokens[0]} has {float(top.values[0]):.3g}.",
    )


def with_torch(code: str) -> str:
    """The code, with torch imported."""
    return code if code.startswith("import torch") else f"import torch\n\n{code}"
