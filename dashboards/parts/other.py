"""The other prompt, beside the one on show: the field for it, and where the two part."""

from collections.abc import Hashable, Sequence
from difflib import SequenceMatcher

import streamlit as st

from dashboards.parts.state import Chosen
from dashboards.parts.strip import strip
from interp import zoo


def example_of(now: Chosen) -> zoo.Example | None:
    """The example of the model's card that is on show, if it has a counterpart."""
    found = zoo.examples(now.planted or now.name, now.model)
    return next((each for each in found if each.prompt == now.prompt and each.counterpart), None)


def other_prompt(now: Chosen, label: str, *, placeholder: str, help: str) -> str:
    """Draw the field of the other prompt; what it says, or else the counterpart of the example on show."""
    example = example_of(now)
    known = None if example is None else example.counterpart
    text = st.text_area(
        label if now.model.tokenizer else f"{label} (token ids)",
        key="other",
        bind="query-params",
        height=90,
        placeholder=known or placeholder,
        help=help,
    )
    return text or known or ""


def draw_parting(
    labels: list[str], differs: list[bool], *, key: str, name: str, read: int, notes: list[str], now: Chosen
) -> None:
    """One of two prompts, token by token, coloured where it differs from the other."""
    values = [float(each) for each in differs]
    strip(labels, key=key, values=values, read=read, name=f"{name}, token by token", notes=notes, is_dark=now.is_dark)


def aligned(one: Sequence[Hashable], other: Sequence[Hashable]) -> tuple[list[int | None], list[int | None]]:
    """For each token of either, the place of its like in the other, where there is one.

    Prompts of one length are held against each other place by place, others in the same order.
    """
    if len(one) == len(other):
        same = [i if a == b else None for i, (a, b) in enumerate(zip(one, other, strict=True))]
        return same, same
    there: list[int | None] = [None] * len(one)
    back: list[int | None] = [None] * len(other)
    for a, b, n in SequenceMatcher(None, one, other, autojunk=False).get_matching_blocks():
        there[a : a + n], back[b : b + n] = range(b, b + n), range(a, a + n)
    return there, back


def parting(one: Sequence[str], other: Sequence[str]) -> str:
    """Where two prompts part, in words."""
    said = []
    for kind, a, b, c, d in SequenceMatcher(None, one, other, autojunk=False).get_opcodes():
        if kind != "equal":
            first, second = "".join(one[a:b]), "".join(other[c:d])
            said.append(f"at {a} “{first[:40]}” ({b - a}) against “{second[:40]}” ({d - c})")
    more = f" and {len(said) - 4} more" if len(said) > 4 else ""
    return "; ".join(said[:4]) + more
