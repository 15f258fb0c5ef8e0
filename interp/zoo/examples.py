"""What to show a model first: prompts, each with what there is to see in it. They lie beside the model's card."""

import json
from dataclasses import dataclass

from interp.loading import BUNDLED, bundled
from interp.model import HookedGPT
from interp.zoo.planted import Planted


@dataclass(frozen=True)
class Example:
    """A prompt for a model, what to look for, and which two answers to tell apart.

    `counterpart` is a prompt of as many tokens, of which another answer is right: what to patch from, or into.
    """

    name: str
    prompt: str  # text; token ids, for a model without a tokenizer
    look_for: str
    target: str | None = None
    foil: str | None = None
    counterpart: str | None = None


def examples(of: str | Planted, model: HookedGPT) -> list[Example]:
    """Prompts for a bundled model, a planted one, or any other."""
    if isinstance(of, Planted):
        return _drawn(of)
    if of in bundled():
        return [Example(**each) for each in json.loads((BUNDLED / of / "examples.json").read_text(encoding="utf-8"))]
    if model.tokenizer is None:
        ids = [i % model.cfg.d_vocab for i in (1, 2, 3, 4, 1, 2, 3, 4)][: model.cfg.n_ctx]
        return [
            Example(
                "Four tokens, twice",
                " ".join(map(str, ids)),
                "What repeats is what an induction head is for.",
                counterpart=" ".join(map(str, ids[::-1])),
            )
        ]
    return [Example(**each) for each in _ANY_TEXT]


_ANY_TEXT = (
    {
        "name": "Two names",
        "prompt": "When Mary and John went to the store, John gave a drink to",
        "look_for": "The name that came once: heads that look back at it, and heads that hold the other down.",
        "counterpart": "When Mary and John went to the store, Mary gave a drink to",
    },
    {
        "name": "The same again",
        "prompt": "one fish two fish red fish blue fish, one fish two fish red fish",
        "look_for": "In the second half, heads look at what followed the same word before: induction.",
    },
)


def _drawn(planted: Planted) -> list[Example]:
    """Three examples of a planted task, each asked at its last question."""
    found = []
    inputs = planted.sample(3)
    for i, (tokens, answers) in enumerate(zip(inputs.tokens.tolist(), inputs.answers.tolist(), strict=True)):
        asked = [pos for pos, is_asked in enumerate(inputs.mask[i].tolist()) if is_asked]
        answer = f" At position {asked[-1]} the right answer is {answers[asked[-1]]}." if asked else ""
        words = f"An input of the task that this model was built for.{answer}"
        other = inputs.tokens[(i + 1) % len(inputs.tokens)].tolist()
        found.append(Example(f"Sample {i}", " ".join(map(str, tokens)), words, counterpart=" ".join(map(str, other))))
    return found
