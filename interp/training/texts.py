"""From texts to files of tokens: split without leakage, tokenised in parallel."""

import hashlib
import os
from collections.abc import Iterable
from itertools import chain, islice
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from interp.loading.files import replacing
from interp.tokenization import Tokenizer


def split(texts: Iterable[str], held_out: float = 0.1) -> tuple[list[str], list[str]]:
    """Texts to train on, and about `held_out` of them to evaluate on, chosen by their content: no text is in both.

    A single text is cut: its end is held out.
    """
    texts = list(texts)
    if len(set(texts)) <= 1:
        text = "".join(texts[:1])
        cut = int(len(text) * (1 - held_out))
        return [text[:cut]], [text[cut:]]
    drawn = [int.from_bytes(hashlib.sha256(text.encode("utf-8", "replace")).digest()[:4]) / 2**32 for text in texts]
    distinct = sorted(set(drawn))
    n_held_out = sum(chance < held_out for chance in distinct)
    bound = distinct[min(max(n_held_out, 1), len(distinct) - 1)]  # neither side stays empty
    return (
        [text for text, chance in zip(texts, drawn, strict=True) if chance >= bound],
        [text for text, chance in zip(texts, drawn, strict=True) if chance < bound],
    )


def write_tokens(
    texts: Iterable[str], tokenizer: Tokenizer, file: str | os.PathLike[str], *, progress: bool = True
) -> Path:
    """Tokenise texts in parallel into a `.npy` file for `TokenFile`; an end-of-text token stands after each."""
    path = Path(file)
    path.parent.mkdir(parents=True, exist_ok=True)
    dtype, n_tokens, n_characters = np.dtype(np.uint16 if tokenizer.d_vocab <= 2**16 else np.uint32), 0, 0
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    pieces = chain.from_iterable(map(tokenizer.pieces, texts))
    with replacing(path) as unfinished, unfinished.open("wb") as out:
        _write_header(out, dtype, 0)
        with tqdm(desc="tokenising", unit=" characters", unit_scale=True, disable=not progress) as bar:
            while group := list(islice(pieces, 64)):
                for ids, (text, is_last) in zip(
                    tokenizer.encode_batch([text for text, _ in group]), group, strict=True
                ):
                    row = np.asarray(ids + end if is_last else ids, dtype=dtype)
                    out.write(row.tobytes())
                    n_tokens, n_characters = n_tokens + len(row), n_characters + len(text)
                    bar.update(len(text))
        if not n_characters:
            raise ValueError("there is no text to train on: the data is empty")
        out.seek(0)
        _write_header(out, dtype, n_tokens)
    return path


def _write_header(out, dtype: np.dtype, n_tokens: int) -> None:
    about = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (n_tokens,)}
    np.lib.format.write_array_header_1_0(out, about)  # it leaves room for the length to grow
