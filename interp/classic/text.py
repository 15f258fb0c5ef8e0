"""Text at the classic model's door: its tokenizer, tokens of texts, texts of tokens."""

# pyright: reportIncompatibleMethodOverride=false
# What is overridden is called in the classic way here.

from collections.abc import Sequence
from typing import Any, Literal, cast

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from interp.classic.config import HookedTransformerConfig
from interp.classic.datasets import TRAINED_ON, get_dataset
from interp.classic.hook_points import HookedRootModule
from interp.classic.tokenizers import native_tokenizer
from interp.model import HookedGPT

Text = str | Sequence[str]
Side = Literal["left", "right"]
USE_DEFAULT_VALUE: Any = None


class Texts(HookedRootModule, HookedGPT):
    """What the classic model does with text."""

    cfg: HookedTransformerConfig
    default_padding_side: Side
    dataset: Any = None  # that `sample_datapoint` takes texts from: rows {"text": …}

    def set_tokenizer(self, tokenizer: Any, default_padding_side: Side | None = None) -> None:
        """The tokenizer that reads and writes text from now on."""
        self.tokenizer = native_tokenizer(tokenizer)
        self.default_padding_side = default_padding_side or self.default_padding_side
        if self.tokenizer.d_vocab > self.cfg.d_vocab:
            raise ValueError(f"the tokenizer has {self.tokenizer.d_vocab} tokens, the model d_vocab={self.cfg.d_vocab}")

    def to_tokens(
        self,
        input: Text,
        prepend_bos: bool | None = USE_DEFAULT_VALUE,
        padding_side: Side | None = USE_DEFAULT_VALUE,
        move_to_device: bool = True,
        truncate: bool = True,
    ) -> Int[Tensor, "batch pos"]:
        """The token ids of one text or several, cut at the length of the context."""
        tokens = HookedGPT.to_tokens(self, input, prepend_bos, padding_side or self.default_padding_side)
        tokens = tokens[:, : self.cfg.n_ctx] if truncate else tokens
        return tokens if move_to_device else tokens.cpu()

    def _read(
        self, text: Text, prepend_bos: bool | None, padding_side: Side | None, mask: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        tokens, found = self.read_input(text, prepend_bos, mask, padding_side or self.default_padding_side)
        return tokens[:, : self.cfg.n_ctx], None if found is None else found[:, : self.cfg.n_ctx]

    def to_str_tokens(
        self,
        input: str | Tensor | Sequence[Any],
        prepend_bos: bool | None = USE_DEFAULT_VALUE,
        padding_side: Side | None = USE_DEFAULT_VALUE,
    ) -> Any:
        """The text of each token; of several texts, a list for each."""
        if isinstance(input, list | tuple) and input and not isinstance(input[0], int):
            return [self.to_str_tokens(each, prepend_bos) for each in input]
        if isinstance(input, Tensor) and input.ndim == 2 and len(input) == 1:
            input = input[0]
        return HookedGPT.to_str_tokens(self, cast(Any, input), prepend_bos)

    def to_single_token(self, string: str) -> int:
        """The id of the one token that a text is."""
        return HookedGPT.to_single_token(self, string)

    def to_single_str_token(self, int_token: int) -> str:
        """The text of one token."""
        return HookedGPT.to_single_str_token(self, int_token)

    def get_token_position(
        self,
        single_token: str | int,
        input: str | Tensor,
        mode: Literal["first", "last"] = "first",
        prepend_bos: bool | None = USE_DEFAULT_VALUE,
        padding_side: Side | None = USE_DEFAULT_VALUE,
    ) -> int:
        """Where a token first or last stands in a text or in tokens."""
        return HookedGPT.get_token_position(self, single_token, input, mode, prepend_bos)

    def load_sample_training_dataset(self, **kwargs: Any) -> Any:
        """Some ten thousand texts like those that the model was trained on; they become its `dataset`."""
        kind = self.cfg.described()["original_architecture"]
        if kind not in TRAINED_ON:
            raise ValueError(f"We do not have an available dataset for the relevant model: {kind}; set model.dataset")
        self.dataset = get_dataset(TRAINED_ON[kind], **kwargs)
        return self.dataset

    def sample_datapoint(
        self,
        tokenize: bool = False,
        prepend_bos: bool | None = USE_DEFAULT_VALUE,
        padding_side: Side | None = USE_DEFAULT_VALUE,
    ) -> str | Tensor:
        """A text of `dataset`, drawn by NumPy, or its tokens."""
        texts = self.load_sample_training_dataset() if self.dataset is None else self.dataset
        text = texts[np.random.randint(0, len(texts))]["text"]
        return self.to_tokens(text, prepend_bos, padding_side) if tokenize else text

    def tokens_to_residual_directions(self, tokens: Any) -> Tensor:
        """The direction in the final stream that raises each token's logit."""
        if isinstance(tokens, str):
            return HookedGPT.tokens_to_residual_directions(self, tokens)
        ids = torch.as_tensor(tokens, device=self.W_U.device)
        return self.W_U.T[ids[0] if ids.ndim == 1 and len(ids) == 1 else ids]
