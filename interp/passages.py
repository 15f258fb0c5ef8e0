"""A corpus in rows that a model reads, one batch after another, in a memory that does not grow with it."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from interp.corpus import standard_library, texts_of, token_file
from interp.model import HookedGPT
from interp.model.inputs import check_range

Part = str | os.PathLike[str] | np.ndarray | Tensor  # a text, a file, tokens
Corpus = Part | Iterable[Part]
Row = tuple[np.ndarray, int, int]  # tokens, their document, and which of its tokens is the first

_PIECE = 2**20  # tokens of an array that are looked through at once


@dataclass(frozen=True, eq=False)
class Passage:
    """Some rows of a corpus, the shorter ones padded on the right."""

    tokens: Int[Tensor, "row pos"]
    mask: Bool[Tensor, "row pos"]  # True where a token is real
    document: Int[Tensor, " row"]  # its number in the corpus, from 0
    start: Int[Tensor, " row"]  # how many tokens of the document come before the row

    def __len__(self) -> int:
        return len(self.tokens)


def passages(
    model: HookedGPT,
    corpus: Corpus,
    n_ctx: int | None = None,
    batch_size: int = 8,
    max_tokens: int | None = None,
    *,
    prepend_bos: bool | None = None,
) -> Iterator[Passage]:
    """The documents of a corpus, each cut into rows of `n_ctx` tokens (the model's context), in order.

    A corpus is a text (a `str`), a file (a `Path`), one row of tokens (an array or a `.npy` file, which stays on disk),
    or any iterable of those, read once and no further than needed. A text is a document, as is each line of a `.jsonl`
    file; a row of tokens is cut behind each end-of-text token of the model's tokenizer. Where the model reads texts
    behind a beginning-of-text token, one stands before each row, and counts as one of its `n_ctx`.
    A tensor [row pos] is read as it is. `max_tokens` counts what is read of the corpus itself.
    """
    width = model.cfg.n_ctx if n_ctx is None else n_ctx
    if not 1 <= width <= model.cfg.n_ctx:
        raise ValueError(f"n_ctx={n_ctx}; the model reads 1 to {model.cfg.n_ctx} tokens at once")
    if batch_size < 1 or (max_tokens is not None and max_tokens < 1):
        raise ValueError(f"batch_size={batch_size}, max_tokens={max_tokens}; both start from 1")
    if isinstance(corpus, np.ndarray | Tensor) and corpus.ndim == 2:
        rows, bos = _as_they_are(torch.as_tensor(corpus), width), []
    else:
        bos = [] if model.tokenizer is None and prepend_bos is None else model.bos_tokens(prepend_bos)
        if len(bos) == width:
            raise ValueError(
                f"n_ctx={n_ctx} has room for a beginning-of-text token alone; prepend_bos=False leaves it out"
            )
        rows = _rows(_documents(model, corpus), width - len(bos))
    return _batches(model, _at_most(rows, max_tokens), bos, batch_size)


def rows_like(model: HookedGPT, tokens: Int[Tensor, "1 pos"], n: int = 8, *, seed: int = 0) -> Int[Tensor, "row pos"]:
    """So many other rows as long as a prompt, from anywhere in as many files of Python's standard library.

    Files and places are drawn from `seed`; a row begins with the beginning-of-text token if the prompt does. For a
    model without a tokenizer, tokens drawn at random.
    """
    draw = torch.Generator().manual_seed(seed)
    if model.tokenizer is None:
        return torch.randint(0, model.cfg.d_vocab, (n, tokens.shape[1]), generator=draw).to(tokens.device)
    first = int(tokens[0, 0])
    bos = [first] if first == model.tokenizer.bos_token_id else []
    width, rows = tokens.shape[1] - len(bos), list[list[int]]()
    for text in standard_library(seed=seed):
        ids = model.tokenizer.encode(text[: 40 * width])
        if len(ids) >= width:
            start = int(torch.randint(0, len(ids) - width + 1, (), generator=draw))
            rows.append(bos + ids[start : start + width])
        if len(rows) == n:
            return torch.tensor(rows, device=tokens.device)
    raise ValueError(f"in the standard library only {len(rows)} files have {width} tokens of this tokenizer, not {n}")


def rows_of(model: HookedGPT, corpus: Corpus, n: int, n_ctx: int, *, seed: int = 0) -> Int[Tensor, "row pos"]:
    """So many whole rows of `n_ctx` tokens of a corpus, drawn from the first 50 times as many."""
    whole = [
        passage.tokens[passage.mask.sum(1) == n_ctx] for passage in _until(passages(model, corpus, n_ctx, 64), 50 * n)
    ]
    rows = torch.cat([tokens for tokens in whole if tokens.shape[1] == n_ctx] or [torch.empty(0, n_ctx).long()])
    if len(rows) < n:
        raise ValueError(f"there are {len(rows)} rows of {n_ctx} tokens here, not {n}: ask for fewer, or shorter ones")
    return rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:n]]


def _until(found: Iterator[Passage], n_rows: int) -> Iterator[Passage]:
    for passage in found:
        yield passage
        n_rows -= len(passage)
        if n_rows <= 0:
            return


def _batches(model: HookedGPT, rows: Iterator[Row], bos: list[int], batch_size: int) -> Iterator[Passage]:
    is_empty, before = True, np.array(bos, np.int64)
    while batch := list(islice(rows, batch_size)):
        is_empty = False
        lengths = torch.tensor([len(bos) + len(ids) for ids, _, _ in batch])
        mask = torch.arange(int(lengths.max())) < lengths[:, None]
        tokens = torch.full(mask.shape, model.pad_token_id())
        ids = np.concatenate([part for ids, _, _ in batch for part in (before, ids)])
        tokens[mask] = torch.from_numpy(ids.astype(np.int64))
        check_range(tokens, model.cfg)
        document, start = (torch.tensor(each) for each in list(zip(*batch, strict=True))[1:])
        yield Passage(tokens, mask, document, start)
    if is_empty:
        raise ValueError("the corpus is empty: it has no token")


def _at_most(rows: Iterator[Row], max_tokens: int | None) -> Iterator[Row]:
    if max_tokens is None:
        yield from rows
        return
    for ids, document, start in rows:
        yield ids[:max_tokens], document, start
        max_tokens -= len(ids)
        if max_tokens <= 0:
            return


def _as_they_are(tokens: Tensor, width: int) -> Iterator[Row]:
    if tokens.is_floating_point() or tokens.dtype == torch.bool:
        raise TypeError(f"a corpus as a tensor holds integer token ids, not {tokens.dtype}")
    if tokens.shape[1] > width:
        raise ValueError(f"rows of {tokens.shape[1]} tokens are longer than n_ctx={width}")
    return ((row.cpu().numpy(), i, 0) for i, row in enumerate(tokens) if len(row))


def _rows(documents: Iterator[Iterable[Any]], width: int) -> Iterator[Row]:
    for number, pieces in enumerate(documents):
        start, left = 0, np.empty(0, np.int64)
        for piece in pieces:
            left = np.concatenate((left, np.asarray(piece, np.int64)))
            while len(left) >= width:
                yield left[:width], number, start
                start, left = start + width, left[width:]
        if len(left):
            yield left, number, start


def _documents(model: HookedGPT, corpus: Any) -> Iterator[Iterable[Any]]:
    """The documents of a corpus, each as its tokens piece by piece. What is wrong with it as a whole is seen now."""
    if isinstance(corpus, str):
        if Path(corpus[:256]).suffix in (".txt", ".jsonl", ".npy") and not set(corpus[:256]) & set(" \n"):
            raise ValueError(f"{corpus!r} is read as a text; a file is given as Path({corpus!r})")
        return iter([_tokenised(model, corpus)])
    if isinstance(corpus, os.PathLike):
        file = Path(corpus)
        if file.suffix == ".npy":
            return _cut(model, token_file(file), os.fspath(file))
        if not file.is_file():
            raise FileNotFoundError(f"no file {file}")
        return (_tokenised(model, text) for text in texts_of([file]))
    if isinstance(corpus, np.ndarray | Tensor):
        return _cut(model, corpus.cpu().numpy() if isinstance(corpus, Tensor) else corpus, "the corpus")
    if not isinstance(corpus, Iterable):
        kinds = "a text, a Path, token ids as an array, or an iterable of those"
        raise TypeError(f"a corpus is {kinds}, not a {type(corpus).__name__}")
    if isinstance(corpus, list | tuple):
        absent = [os.fspath(part) for part in corpus if isinstance(part, os.PathLike) and not Path(part).is_file()]
        if absent:
            raise FileNotFoundError(f"no files {absent}")
    return chain.from_iterable(_documents(model, part) for part in corpus)


def _tokenised(model: HookedGPT, text: str) -> Iterator[list[int]]:
    if model.tokenizer is None:
        raise ValueError("this model has no tokenizer: a corpus of texts needs one; give token ids")
    return (model.tokenizer.encode(piece) for piece, _ in model.tokenizer.pieces(text))


def _cut(model: HookedGPT, tokens: np.ndarray, name: str) -> Iterator[Iterable[np.ndarray]]:
    if tokens.ndim != 1 or tokens.dtype.kind not in "iu":
        raise ValueError(f"{name} must hold one row of integers, not {tokens.dtype} {list(tokens.shape)}")
    end = None if model.tokenizer is None else model.tokenizer.eos_token_id
    return (_pieces(tokens[first:last]) for first, last in _spans(tokens, end))


def _spans(tokens: np.ndarray, end: int | None) -> Iterator[tuple[int, int]]:
    first = 0
    for at in range(0, len(tokens) if end is not None else 0, _PIECE):
        for found in np.flatnonzero(tokens[at : at + _PIECE] == end).tolist():
            yield first, at + found + 1
            first = at + found + 1
    if first < len(tokens):
        yield first, len(tokens)


def _pieces(tokens: np.ndarray) -> Iterator[np.ndarray]:
    return (tokens[at : at + _PIECE] for at in range(0, len(tokens), _PIECE))
