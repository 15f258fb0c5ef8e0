"""Kinds of tokens, told by their text: what a head may look for without reading."""

import torch
from jaxtyping import Int
from torch import Tensor

from interp.model import HookedGPT

SPECIAL, WHITESPACE, PUNCTUATION, NUMBER, WORD, CONTINUATION = range(6)
_NAMES = ["special", "whitespace", "punctuation", "number", "word start", "word continuation"]


class TokenClasses:
    """The class of every token of a vocabulary; without a tokenizer there is one, "token".

    special: stands for no text (beginning, end, padding). whitespace: nothing else, line breaks included. number:
    digits and no letter. punctuation: neither letter nor digit. The others have a letter: a word goes on where a token
    begins with a letter, a digit or _ and the one before it ends with one, and starts everywhere else.
    """

    def __init__(self, model: HookedGPT) -> None:
        tokenizer, n_known = model.tokenizer, model.cfg.d_vocab
        self.names = ["token"] if tokenizer is None else _NAMES
        self._of = torch.zeros(n_known, dtype=torch.long)
        self._joins, self._ends = torch.zeros(2, n_known, dtype=torch.bool)
        if tokenizer is None:
            return
        lengths = tokenizer.byte_lengths()[:n_known]
        for token, piece in enumerate(tokenizer.token_bytes(range(len(lengths)))):
            text = piece.decode("utf-8", "replace")
            self._of[token] = _class_of(text) if lengths[token] else SPECIAL
            if lengths[token] and text:
                self._joins[token], self._ends[token] = _is_of_word(text[0]), _is_of_word(text[-1])

    def __call__(self, tokens: Int[Tensor, " pos"]) -> Int[Tensor, " pos"]:
        """The class of each token of a row, as an index into `names`."""
        found = self._of[tokens]
        goes_on = (found[1:] == WORD) & self._joins[tokens[1:]] & self._ends[tokens[:-1]]
        found[1:][goes_on] = CONTINUATION
        return found


def _class_of(text: str) -> int:
    if not text.strip():
        return WHITESPACE
    if any(char.isalpha() or char == "\ufffd" for char in text):  # a part of a character is most often one of a letter
        return WORD
    return NUMBER if any(char.isdigit() for char in text) else PUNCTUATION


def _is_of_word(char: str) -> bool:
    return char.isalnum() or char in "_\ufffd"
