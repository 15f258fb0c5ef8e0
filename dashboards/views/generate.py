"""What the model writes next, and how each token came to be chosen."""

from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from math import isnan
from typing import Any

import streamlit as st
from pandas import DataFrame
from torch import Tensor

from dashboards.parts.ablation import wanted as ablation
from dashboards.parts.ablation.wanted import Wanted
from dashboards.parts.figure import numbers, opening
from dashboards.parts.models import Trouble
from dashboards.parts.state import Chosen, cached, chosen
from dashboards.parts.strip import strip
from dashboards.parts.words import plain, report, token_text
from interp import HookedGPT
from interp.generation import Choice, Generation, Sampling, explained, runners_up
from interp.plots.theme import seen

ROWS = 20  # tokens of the vocabulary that the table names


@dataclass(frozen=True)
class Choices:
    """What the controls say."""

    sampling: Sampling
    n_new: int
    n_samples: int
    seed: int
    stop: str
    edits: Wanted | None = None  # of the page Ablation


def generated(model: HookedGPT, tokens: Tensor, choices: Choices) -> Generation:
    """The prompt gone on with, `n_samples` times."""
    how = choices.sampling
    with edited(model, tokens, choices):
        return model.generate(
            tokens,
            choices.n_new,
            temperature=how.temperature,
            top_k=how.top_k,
            top_p=how.top_p,
            repetition_penalty=how.repetition_penalty,
            stop=[choices.stop] if choices.stop else [],
            num_return_sequences=choices.n_samples,
            seed=choices.seed,
            return_type="full",
            on_overflow="slide",
        )


def edited(model: HookedGPT, tokens: Tensor, choices: Choices) -> AbstractContextManager[Any]:
    """Within it, the edits that are switched on are in force."""
    return model.edit([] if choices.edits is None else ablation.edits_of(model, tokens, choices.edits))


def choice_of(model: HookedGPT, tokens: Tensor, choices: Choices, row: int, step: int) -> Choice:
    """How one token of it was chosen."""
    found = cached(generated, choices)
    with edited(model, tokens, choices):
        return explained(model, choices.sampling, found, row, step)


def controls(now: Chosen) -> Choices:
    """The controls, and what they say to each other."""
    first, second = st.columns(4), st.columns(4)
    url: Any = {"bind": "query-params"}
    for key, (low, high) in limits(now).items():  # a state file, or another model, may have set it beyond
        if (value := st.session_state.get(key)) is not None and not low <= value <= high:
            st.session_state[key] = min(max(value, low), high)

    def number(where: Any, label: str, key: str, usual: float, step: float, told: str) -> float:
        low, high = limits(now)[key]
        return where.number_input(label, low, high, usual, step, key=key, help=told, **url)

    temperature = number(first[0], "Temperature", "temperature", 1.0, 0.1, "0: the likeliest")
    top_k = number(first[1], "Top k", "top_k", 0, 1, "0: off")
    top_p = number(first[2], "Top p", "top_p", 1.0, 0.05, "1: off")
    penalty = number(first[3], "Repetition penalty", "penalty", 1.0, 0.1, "1: off")
    n_new = number(second[0], "New tokens", "new", 20, 1, "Fewer, where the text ends")
    n_samples = number(second[1], "Samples", "samples", 1, 1, "So many texts, drawn one beside the other")
    seed = number(second[2], "Seed", "seed", 0, 1, "The same seed draws the same text")
    stop = second[3].text_input("Stop at", key="stop", disabled=now.model.tokenizer is None, help="A text.", **url)
    sampling = Sampling(
        temperature=temperature,
        top_k=int(top_k) or None,
        top_p=top_p if 0 < top_p < 1 else None,
        repetition_penalty=penalty,
    )
    if said := conflicts(sampling, top_p, int(n_samples), now.tokens.shape[1] + int(n_new), now.model.cfg.n_ctx):
        st.info(" ".join(said), icon=":material/info:")
    return Choices(sampling, int(n_new), int(n_samples), int(seed), stop or "" if now.model.tokenizer else "")


def limits(now: Chosen) -> dict[str, tuple[Any, Any]]:
    """The least and the most of each number."""
    return {
        "temperature": (0.0, 10.0),
        "top_k": (0, now.model.cfg.d_vocab_out),
        "top_p": (0.0, 1.0),
        "penalty": (0.1, 10.0),
        "new": (1, 200),
        "samples": (1, 10),
        "seed": (0, 2**31 - 1),
    }


def conflicts(how: Sampling, top_p: float, n_samples: int, length: int, n_ctx: int) -> list[str]:
    """Which choices leave others without effect, in words."""
    said = []
    if how.temperature == 0:
        idle = [name for name, is_set in (("top k", how.top_k), ("top p", how.top_p)) if is_set]
        also = f" {' and '.join(idle).capitalize()} change nothing." if idle else ""
        said.append(f"At temperature 0 the likeliest token is taken, without chance: the seed changes nothing.{also}")
    elif how.top_k == 1:
        said.append("Top k = 1 leaves one token, the likeliest: temperature, top p and seed change nothing.")
    elif how.top_k and how.top_p:
        said.append("Top k acts first; top p then counts the probabilities of what it left, made to sum to 1 again.")
    if n_samples > 1 and (how.temperature == 0 or how.top_k == 1):
        said.append("All samples are the same.")
    if top_p == 0:
        said.append("Top p = 0 would leave nothing: it is off. For the likeliest alone, take top k = 1.")
    if length - 1 > n_ctx:
        said.append(f"Prompt and new tokens are longer than the context: each token follows from the last {n_ctx}.")
    return said


def names(now: Chosen, tokens: list[int]) -> list[str]:
    """A visible text for each token."""
    if now.model.tokenizer is None:
        return list(map(str, tokens))
    return list(map(seen, now.model.tokenizer.token_strings(tokens)))


def table_of(now: Chosen, choice: Choice) -> DataFrame:
    """The likeliest tokens, each with what every step made of its logit, and all others in a last row."""
    probs = choice.stages["probability"]
    by_logit = choice.stages["logit"].argsort(descending=True, stable=True)  # for tokens that no probability is left
    order = by_logit[probs[by_logit].argsort(descending=True, stable=True)].tolist()
    top = order[:ROWS]
    shown = top if choice.token in top else [*top[:-1], choice.token]
    columns: dict[str, list[object]] = {"token": [*names(now, shown)]}
    for name, values in choice.stages.items():
        columns[name if name != "temperature" else "− largest, ÷ temperature"] = values[shown].tolist()
    if not isnan(choice.random):
        columns["from"] = choice.below[shown].tolist()
        columns["to"] = (choice.below + probs)[shown].tolist()
    columns["drawn"] = ["●" if token == choice.token else "" for token in shown]
    n_rest = len(order) - len(shown)
    if n_rest:
        rest = float(probs.sum() - probs[shown].sum())
        last: dict[str, object] = {"token": f"rest ({n_rest:,} tokens)", "probability": max(rest, 0.0), "drawn": ""}
        for name, column in columns.items():
            column.append(last.get(name))
    return DataFrame(columns)


def caption_of(now: Chosen, choice: Choice) -> str:
    """The arithmetic of the choice, checked."""
    probs = choice.stages["probability"]
    n_left = int((probs > 0).sum())
    name, own = token_text(names(now, [choice.token])[0]), f"{choice.log_prob:.3f}"
    total = f"{n_left:,} of {len(probs):,} tokens are left, with probability {float(probs.double().sum()):.6f} in all ✓"
    if isnan(choice.random):
        return f"{name} is the likeliest: no number was thrown. Log-probability {own} in the model's own distribution."
    low = float(choice.below[choice.token])
    high = low + float(probs[choice.token])
    is_inside = low - 1e-6 <= choice.random <= high + 1e-6
    return (
        f"{total}. The number thrown is {choice.random:.6f}; {name} reaches from {low:.6f} to {high:.6f} "
        f"{'✓' if is_inside else '✗'}, tokens standing in the order of the vocabulary. "
        f"Log-probability {own} in the model's own distribution, before temperature and filters."
    )


def code_of(now: Chosen, choices: Choices, row: int, step: int) -> str:
    """The choice again, in Python."""
    how = choices.sampling
    stop = f", stop=[{choices.stop!r}]" if choices.stop else ""
    arguments = (
        f"temperature={how.temperature}, top_k={how.top_k}, top_p={how.top_p}, "
        f"repetition_penalty={how.repetition_penalty}"
    )
    edits, imports = ("edits = []\n", ()) if choices.edits is None else ablation.code_of(now, choices.edits)
    return (
        opening(now, "generation", *imports)
        + edits
        + f"""
with model.edit(edits):
    text = model.generate(
        tokens, {choices.n_new}, {arguments}{stop},
        num_return_sequences={choices.n_samples}, seed={choices.seed}, return_type="full", on_overflow="slide",
    )
    sampling = generation.Sampling({arguments})
    choice = generation.explained(model, sampling, text, row={row}, step={step})
print(choice.token, choice.random, {{name: float(values[choice.token]) for name, values in choice.stages.items()}})
"""
    )


def page() -> None:
    """The page."""
    now = chosen()
    cfg = now.model.cfg
    if cfg.d_vocab_out != cfg.d_vocab or cfg.attention_dir == "bidirectional":
        why = "it looks both ways" if cfg.d_vocab_out == cfg.d_vocab else "its outputs are answers, not its tokens"
        st.warning(f"This model writes no text: {why}. Choose another model.", icon=":material/info:")
        return
    choices = controls(now)
    if ablation.is_any() and st.toggle("With the edits of the page Ablation", key="abl_on", bind="query-params"):
        with st.expander("The edits", icon=":material/content_cut:"):
            edits = ablation.fields(now)
            if isinstance(edits, Trouble):
                report(edits, "edits")
        if isinstance(edits, Trouble):
            return
        st.caption(plain(ablation.in_words(edits)))
        choices = replace(choices, edits=edits)
    try:
        found = cached(generated, choices)
    except ValueError as error:
        st.warning(plain(str(error)), icon=":material/info:")
        return
    lengths = found.lengths.tolist()
    row = min(int(st.session_state.get("row") or 0), len(lengths) - 1)
    if (st.session_state.get("row") or 0) > row:
        st.session_state["row"] = row
    step = min(int(st.session_state.get("step") or 0), lengths[row] - 1)
    for i, length in enumerate(lengths):
        show_sample(now, choices, found, i, length, step if i == row else None)
    st.subheader(f"How token {step} was chosen" + (f", in sample {row}" if len(lengths) > 1 else ""))
    columns = st.columns(4)
    columns[0].number_input(
        "Step", 0, None, None, key="step", bind="query-params", placeholder="0", help="Or click a token above."
    )
    if len(lengths) > 1:
        columns[1].number_input("Sample", 0, len(lengths) - 1, None, key="row", bind="query-params", placeholder="0")
    choice = cached(choice_of, choices, row, step)
    numbers(table_of(now, choice), key="steps", caption=caption_of(now, choice), code=code_of(now, choices, row, step))


def show_sample(now: Chosen, choices: Choices, found: Generation, row: int, length: int, step: int | None) -> None:
    """A sample as a strip of tokens, by the model's own probability of each."""
    n_prompt = now.tokens.shape[1]
    fits = n_prompt + length - 1 <= now.model.cfg.n_ctx
    tokens = found.tokens[row, n_prompt : n_prompt + length].tolist()
    notes = [in_words(now, tokens) for tokens in cached(others, choices, row)] if fits else None
    text = now.prompt + (now.model.tokenizer.decode(tokens) if now.model.tokenizer else "")
    st.caption(f"Sample {row}, {length} tokens" + (", ended" if length < choices.n_new else ""))
    labels, at = names(now, tokens), f"sample_{row}"
    strip(
        labels,
        key=at,
        values=found.log_probs[row, :length].exp().numpy(),
        selected=step,
        sets="step",
        name=f"Sample {row}: click a token to see how it was chosen",
        of="own probability",
        also={"row": row},
        notes=notes,
        is_dark=now.is_dark,
    )
    if now.model.tokenizer is not None:
        with st.popover("Text", type="tertiary"):
            st.code(text, language=None, wrap_lines=True)


def others(model: HookedGPT, tokens: Tensor, choices: Choices, row: int) -> list[list[tuple[int, float]]]:
    """At each step of a sample, the likeliest tokens that were not taken."""
    found = cached(generated, choices)
    with edited(model, tokens, choices):
        return runners_up(model, choices.sampling, found, row)


def in_words(now: Chosen, tokens: list[tuple[int, float]]) -> str:
    """The other tokens that a place might have had, with their probabilities."""
    if not tokens:
        return "nothing else was left"
    shown = zip(names(now, [token for token, _ in tokens]), tokens, strict=True)
    return "others, after temperature and filters: " + ", ".join(f"{name} {prob:.2g}" for name, (_, prob) in shown)


page()
