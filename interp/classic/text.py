"""Text at the classic model's door: its tokenizer, tokens of texts, texts of tokens."""

# pyright: reportIncompatibleMethodOverride=false
# What is overridden is called in the classic way here.

from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from jaxtyping import Int
from torch import Tensor

from interp.classic.config import HookedTransformerConfig
from interp.classic.hook_points import HookedRootModule
from interp.model import HookedGPT
from interp.tokenization import Tokenizer

Text = str | Sequence[str]
Side = Literal["left", "right"]
USE_DEFAULT_VALUE: Any = None


class Texts(HookedRootModule, HookedGPT):
    """What the classic model does with text."""

    cfg: HookedTransformerConfig
    default_padding_side: Side

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

    def tokens_to_residual_directions(self, tokens: Any) -> Tensor:
        """The direction in the final stream that raises each token's logit."""
        if isinstance(tokens, str):
            return HookedGPT.tokens_to_residual_directions(self, tokens)
        ids = torch.as_tensor(tokens, device=self.W_U.device)
        return self.W_U.T[ids[0] if ids.ndim == 1 and len(ids) == 1 else ids]


def native_tokenizer(tokenizer: Any) -> Tokenizer:
    """A tokenizer of `transformers` as ours; ours as it is."""
    if isinstance(tokenizer, Tokenizer):
        return tokenizer
    if not hasattr(tokenizer, "backend_tokenizer"):
        raise TypeError(f"{type(tokenizer).__name__} is no fast tokenizer; load it with use_fast=True")
    special = {name: getattr(tokenizer, name, None) for name in ("bos_token", "eos_token", "pad_token")}
    return Tokenizer.from_json(tokenizer.backend_tokenizer.to_str(), **special)
