"""Text at the model's door: tokens of texts, texts of tokens, directions of tokens in the stream."""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.model.stacked import StackedWeights
from interp.tokenization import Tokenizer

Text = str | Sequence[str]


class TextInterface(StackedWeights):
    """What a model with a tokenizer can do with text."""

    tokenizer: Tokenizer | None

    def to_tokens(
        self, text: Text, prepend_bos: bool | None = None, padding_side: Literal["left", "right"] = "right"
    ) -> Int[Tensor, "batch pos"]:
        """The token ids of one text or several; shorter ones are padded. `read` gives the mask of the padding too."""
        return self.read(text, prepend_bos, padding_side)[0]

    def read(
        self, text: Text, prepend_bos: bool | None = None, padding_side: Literal["left", "right"] = "right"
    ) -> tuple[Int[Tensor, "batch pos"], Int[Tensor, "batch pos"] | None]:
        """The token ids of texts, and their attention mask where some are padded."""
        tokenizer = self._tokenizer()
        texts = [text] if isinstance(text, str) else list(text)
        if not texts:
            raise ValueError("no text was given: an empty list")
        start = self.bos_tokens(prepend_bos)
        rows = [start + tokens for tokens in tokenizer.encode_batch(texts)]
        if empty := [i for i, row in enumerate(rows) if not row]:
            raise ValueError(f"texts {empty} are empty and become no token; prepend_bos=True gives each at least one")
        n_pos = max(map(len, rows))
        if padding_side not in ("left", "right"):
            raise ValueError(f"padding_side={padding_side!r}; allowed: 'left', 'right'")
        tokens = torch.full((len(rows), n_pos), self.pad_token_id())
        mask = torch.zeros_like(tokens)
        for i, row in enumerate(rows):
            here = slice(n_pos - len(row), n_pos) if padding_side == "left" else slice(len(row))
            tokens[i, here] = torch.tensor(row)
            mask[i, here] = 1
        return tokens.to(self.device), None if mask.all() else mask.to(self.device)

    def pad_token_id(self) -> int:
        """What fills ragged batches: the tokenizer's choice, if the model has an embedding for it."""
        pad = 0 if self.tokenizer is None else self.tokenizer.pad_token_id
        return pad if pad < self.cfg.d_vocab else 0

    def read_input(
        self,
        input: Text,
        prepend_bos: bool | None,
        mask: Tensor | None,
        padding_side: Literal["left", "right"] = "right",
    ) -> tuple[Tensor, Tensor | None]:
        """What was given to the model, if it is text, as tokens and mask."""
        is_list = isinstance(input, list | tuple)
        if not isinstance(input, str) and not (is_list and all(isinstance(text, str) for text in input)):
            raise TypeError(f"input is text, texts, or token ids as a tensor [batch pos] or [pos], not {_kind(input)}")
        if mask is not None:
            raise ValueError("attention_mask is for tokens; of texts the model knows what is padding")
        return self.read(input, prepend_bos, padding_side)

    def to_string(self, tokens: Int[Tensor, "..."] | Sequence[int] | int) -> str | list[str]:
        """The text of tokens `[pos]`, or the texts of tokens `[batch pos]`."""
        ids = torch.as_tensor(tokens)
        if ids.ndim == 2:
            return [self._tokenizer().decode(row) for row in ids.tolist()]
        return self._tokenizer().decode(ids.reshape(-1).tolist())

    def to_str_tokens(
        self, text: str | Int[Tensor, "..."] | Sequence[int], prepend_bos: bool | None = None
    ) -> list[str]:
        r"""The text of each token; bytes that are no whole character as `\xd9`."""
        ids = self.to_tokens(text, prepend_bos)[0] if isinstance(text, str) else torch.as_tensor(text)
        if ids.ndim == 2 and len(ids) > 1:
            raise ValueError(f"tokens have shape {list(ids.shape)}; give one sequence, [pos] or [1 pos]")
        return self._tokenizer().token_strings(ids.reshape(-1).tolist())

    def to_single_token(self, text: str) -> int:
        """The id of the one token that a text is; an error that shows the pieces where it is several."""
        ids = self._tokenizer().encode(text)
        if len(ids) != 1:
            raise ValueError(f"{text!r} is {len(ids)} tokens, not one: {self._tokenizer().token_strings(ids)}")
        return ids[0]

    def to_single_str_token(self, token: int) -> str:
        """The text of one token."""
        return self._tokenizer().token_strings([token])[0]

    def get_token_position(
        self,
        single_token: str | int,
        input: str | Int[Tensor, "..."],
        mode: Literal["first", "last"] = "first",
        prepend_bos: bool | None = None,
    ) -> int:
        """Where a token first or last stands in a text or in tokens."""
        wanted = self.to_single_token(single_token) if isinstance(single_token, str) else single_token
        tokens = self.to_tokens(input, prepend_bos)[0] if isinstance(input, str) else torch.as_tensor(input)
        ids = tokens.reshape(-1).tolist()
        if wanted not in ids:
            raise ValueError(f"token {single_token!r} does not occur in {self.to_str_tokens(ids)}")
        return ids.index(wanted) if mode == "first" else len(ids) - 1 - ids[::-1].index(wanted)

    def tokens_to_residual_directions(self, tokens: str | int | Int[Tensor, "..."]) -> Float[Tensor, "... d_model"]:
        """The direction in the final stream that raises each token's logit: its column of W_U."""
        ids = self.to_single_token(tokens) if isinstance(tokens, str) else tokens
        return self.W_U.T[torch.as_tensor(ids, device=self.device)]

    def _tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise ValueError("this model has no tokenizer: give tokens, or set model.tokenizer")
        return self.tokenizer

    def bos_tokens(self, prepend_bos: bool | None = None) -> list[int]:
        """What stands in front of a text: the beginning-of-text token, or nothing."""
        if not (self.cfg.default_prepend_bos if prepend_bos is None else prepend_bos):
            return []
        bos = self._tokenizer().bos_token_id
        if bos is None:
            raise ValueError(
                "prepend_bos: this model's tokenizer has no beginning-of-text token; pass prepend_bos=False"
            )
        return [bos]


def _kind(input: object) -> str:
    return f"a {type(input).__name__}" + (f" of {type(input[0]).__name__}" if isinstance(input, list) and input else "")
