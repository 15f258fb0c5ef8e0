"""What heads are tried on: random tokens that repeat, a text, lists in order."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from interp import corpus
from interp.model import HookedGPT
from interp.tokenization import Tokenizer

_ORDERED = (
    "0 1 2 3 4 5 6 7 8 9",
    "one two three four five six seven eight nine ten",
    "first second third fourth fifth sixth seventh eighth ninth tenth",
    "a b c d e f g h i j k l m n o p q r s t u v w x y z",
    "A B C D E F G H I J K L M N O P Q R S T U V W X Y Z",
    "Monday Tuesday Wednesday Thursday Friday Saturday Sunday",
    "January February March April May June July August September October November December",
)


@dataclass(frozen=True)
class Rows:
    """Rows of tokens, real where the mask is True; `queries`: about which of them something is asked."""

    tokens: Int[Tensor, "row pos"]
    real: Bool[Tensor, "row pos"]
    queries: Bool[Tensor, "row pos"]

    @property
    def mask(self) -> Tensor | None:
        """As the model takes it."""
        return None if bool(self.real.all()) else self.real

    def to(self, device: torch.device) -> "Rows":
        return Rows(self.tokens.to(device), self.real.to(device), self.queries.to(device))

    def batches(self, n: int) -> Iterator[tuple[int, "Rows"]]:
        """So many rows at once, and the number of the first."""
        for first in range(0, len(self.tokens), n):
            some = slice(first, first + n)
            yield first, Rows(self.tokens[some], self.real[some], self.queries[some])

    @classmethod
    def of(cls, tokens: Int[Tensor, "row pos"], real: Tensor | None = None, queries: Tensor | None = None) -> "Rows":
        """All tokens are real, and all real ones asked about, where it is not said otherwise."""
        real = torch.ones_like(tokens, dtype=torch.bool) if real is None else real
        return cls(tokens, real, real if queries is None else queries.to(real.device) & real)


def repeats(model: HookedGPT, n_rows: int = 24, n_pos: int = 64, *, seed: int = 0) -> Rows:
    """Random tokens, each row repeated with a period, and behind a prefix, of its own. Of special tokens, BOS alone.

    Within a period no token occurs twice. Periods are drawn from an eighth to three eighths of the row; a head that
    looks a fixed distance back meets its period in few of them.
    """
    cfg, draw = model.cfg, torch.Generator().manual_seed(seed)
    n_pos = min(n_pos, cfg.n_ctx)
    bos, usable = beginning(model), ordinary_tokens(model)
    n = n_pos - len(bos)
    shortest, longest = max(2, n // 8), max(4, 3 * n // 8)
    longest = min(longest, len(usable) - 1)
    if n < 2 * shortest + 2 or longest < shortest + 2:
        raise ValueError(
            f"rows of {n_pos} tokens, drawn from {len(usable)}, have no room for three periods: give tokens= yourself"
        )
    period = torch.randint(shortest, longest + 1, (n_rows, 1), generator=draw)
    phase = torch.randint(0, max(1, n // 16) + 1, (n_rows, 1), generator=draw)
    order = torch.rand(n_rows, len(usable), generator=draw).argsort(1)
    step = torch.arange(n) - phase
    before = (longest + phase + step).clamp(max=len(usable) - 1)  # tokens of no period
    place = torch.where(step < 0, before, step % period)
    tokens = usable[order.gather(1, place)]
    if bos:
        tokens = torch.cat((torch.full((n_rows, 1), bos[0]), tokens), 1)
    return Rows.of(tokens)


def in_other_tokens(model: HookedGPT, tokens: Int[Tensor, "row pos"]) -> Int[Tensor, "row pos"]:
    """The same rows in other tokens: what repeats does so at the same places. Special tokens stay."""
    usable = ordinary_tokens(model)
    place = torch.searchsorted(usable, tokens.contiguous()).clamp(max=len(usable) - 1)
    turned = usable[(place + len(usable) // 2) % len(usable)]
    return torch.where(usable[place] == tokens, turned, tokens)


def text_rows(model: HookedGPT, text: str | Sequence[str] | None, n_rows: int = 16, n_pos: int = 64) -> Rows:
    """Rows of a text, or of several in turn; unless one is given, of Python's standard library."""
    assert model.tokenizer is not None
    texts = corpus.standard_library("held_out") if text is None else [text] if isinstance(text, str) else list(text)
    bos, n_pos = beginning(model), min(n_pos, model.cfg.n_ctx)
    n, rows = n_pos - len(bos), []
    for each in texts:
        ids = model.tokenizer.encode(each[: 16 * n * n_rows])
        rows += [bos + ids[i : i + n] for i in range(0, len(ids), n)][: 2 if text is None else n_rows]
        if len(rows) >= n_rows:
            break
    rows = [row for row in rows if len(row) > len(bos) + 1][:n_rows]
    if not rows:
        raise ValueError("text= has no two tokens: there is nothing to look back to")
    longest = max(map(len, rows))
    tokens = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    return Rows.of(tokens, torch.tensor([[i < len(row) for i in range(longest)] for row in rows]))


def ordered_lists(model: HookedGPT) -> list[list[int]]:
    """Digits, numbers, letters, days and months, with and without a space before; their stretches of single tokens."""
    if model.tokenizer is None:
        return []
    found = []
    for words in _ORDERED:
        for space in ("", " "):
            ids = [_single(model.tokenizer, space + word) for word in words.split()]
            stretches = [list(some) for is_one, some in groupby(ids, lambda i: i is not None) if is_one]
            found += [stretch for stretch in stretches if len(stretch) >= 4]
    return found


def _single(tokenizer: Tokenizer, text: str) -> int | None:
    ids = tokenizer.encode(text)
    return ids[0] if len(ids) == 1 else None


def beginning(model: HookedGPT) -> list[int]:
    """BOS, where the model reads one."""
    bos = None if model.tokenizer is None else model.tokenizer.bos_token_id
    return [bos] if bos is not None and model.cfg.default_prepend_bos else []


def ordinary_tokens(model: HookedGPT) -> Int[Tensor, " token"]:
    """All tokens but special ones."""
    n = min(model.cfg.d_vocab, model.cfg.d_vocab_out)
    if model.tokenizer is None:
        return torch.arange(n)
    named = [token for token in model.tokenizer.special_tokens().values() if token is not None]
    special = torch.tensor([i for i in (_single(model.tokenizer, token) for token in named) if i is not None])
    every = torch.arange(min(n, model.tokenizer.d_vocab))
    return every[~torch.isin(every, special)]
