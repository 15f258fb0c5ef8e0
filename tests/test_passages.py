"""A corpus in rows: nothing lost, nothing mixed, no further read than needed."""

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from interp import GPTConfig, HookedGPT
from interp.corpus import standard_library
from interp.passages import Passage, passages, rows_like
from interp.passages import rows_of as whole_rows
from interp.tokenization import Tokenizer

BYTES = Tokenizer.bytes()
END = 256
TEXTS = ["the cat sat on the mat", "", "a dog", "and so on\nand on"]


def model(n_ctx: int = 8, tokenizer: Tokenizer | None = BYTES, **choices: Any) -> HookedGPT:
    cfg = GPTConfig(n_layers=1, d_model=8, n_heads=2, n_ctx=n_ctx, d_vocab=257, seed=0, **choices)
    return HookedGPT(cfg, tokenizer)


def rows_of(found: Iterator[Passage]) -> list[tuple[int, int, list[int]]]:
    """Document, start and tokens of every row; what is padded is checked to stand on the right."""
    rows = []
    for passage in found:
        assert passage.mask.any(0).all()
        for i in range(len(passage)):
            n = int(passage.mask[i].sum())
            assert passage.mask[i, :n].all()
            rows.append((int(passage.document[i]), int(passage.start[i]), passage.tokens[i, :n].tolist()))
    return rows


@pytest.mark.parametrize("prepend_bos", [True, False])
def test_the_rows_of_a_document_are_its_tokens_in_order(prepend_bos: bool) -> None:
    rows = rows_of(passages(model(), TEXTS, prepend_bos=prepend_bos))
    for number, text in enumerate(TEXTS):
        own = [(start, ids) for document, start, ids in rows if document == number]
        assert all(ids[0] == END for _, ids in own) or not prepend_bos
        bare = [ids[prepend_bos:] for _, ids in own]
        assert [token for ids in bare for token in ids] == BYTES.encode(text)
        assert all(len(ids) == 8 for _, ids in own[:-1])
        assert [start for start, _ in own] == [sum(map(len, bare[:i])) for i in range(len(bare))]
    assert [document for document, _, _ in rows] == sorted(document for document, _, _ in rows)


@pytest.mark.parametrize("batch_size", [1, 2, 5, 100])
def test_rows_do_not_depend_on_the_batch_size(batch_size: int) -> None:
    assert rows_of(passages(model(), TEXTS, batch_size=batch_size)) == rows_of(passages(model(), TEXTS))


def test_texts_files_and_tokens_are_the_same_corpus(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(TEXTS[0])
    (tmp_path / "b.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in TEXTS[1:]))
    wanted = rows_of(passages(model(), TEXTS))
    assert rows_of(passages(model(), [tmp_path / "a.txt", tmp_path / "b.jsonl"])) == wanted
    assert rows_of(passages(model(), (text for text in TEXTS))) == wanted
    assert rows_of(passages(model(), TEXTS[:1])) == rows_of(passages(model(), TEXTS[0]))


@pytest.mark.parametrize("piece", [3, 2**20])
def test_a_row_of_tokens_is_cut_behind_each_end_of_text(tmp_path: Path, monkeypatch: Any, piece: int) -> None:
    monkeypatch.setattr("interp.passages._PIECE", piece)
    tokens = np.array([token for text in TEXTS for token in [*BYTES.encode(text), END]], dtype=np.uint16)
    np.save(tmp_path / "tokens.npy", tokens)
    ended = [text + "<|endoftext|>" for text in TEXTS]
    wanted = rows_of(passages(model(), ended))
    assert rows_of(passages(model(), tmp_path / "tokens.npy")) == wanted
    assert rows_of(passages(model(), tokens)) == wanted
    assert rows_of(passages(model(), torch.from_numpy(tokens.astype(np.int64)))) == wanted


def test_tokens_need_no_tokenizer() -> None:
    assert rows_of(passages(model(4, None), np.arange(10))) == [
        (0, 0, [0, 1, 2, 3]),
        (0, 4, [4, 5, 6, 7]),
        (0, 8, [8, 9]),
    ]


def test_a_tensor_of_rows_is_read_as_it_is() -> None:
    tokens = torch.randint(0, 257, (5, 6), generator=torch.Generator().manual_seed(0))
    found = list(passages(model(), tokens, batch_size=2))
    assert torch.equal(torch.cat([passage.tokens for passage in found]), tokens)
    assert torch.cat([passage.document for passage in found]).tolist() == list(range(5))


def test_a_generator_is_read_no_further_than_needed() -> None:
    given = []

    def texts() -> Iterator[str]:
        for i in range(1000):
            given.append(i)
            yield "some text"

    assert len(list(islice(passages(model(), texts(), batch_size=2), 2))) == 2
    assert len(given) <= 3
    for max_tokens, n_texts in ((18, 2), (20, 3)):
        given.clear()
        n_read = sum(len(ids) - 1 for _, _, ids in rows_of(passages(model(), texts(), max_tokens=max_tokens)))
        assert (n_read, len(given)) == (max_tokens, n_texts)


def test_a_long_text_is_tokenised_in_pieces_as_in_the_whole(monkeypatch: Any) -> None:
    text = "one line of words\nand another\n" * 40
    whole = rows_of(passages(model(), text))
    monkeypatch.setattr("interp.tokenization._PIECE", 100)
    assert rows_of(passages(model(), text)) == whole


@pytest.mark.parametrize(
    ("corpus", "choices", "error", "message"),
    [
        (TEXTS, {"n_ctx": 9}, ValueError, "n_ctx=9; the model reads 1 to 8"),
        (TEXTS, {"n_ctx": 1}, ValueError, "beginning-of-text token alone"),
        (TEXTS, {"batch_size": 0}, ValueError, "batch_size=0"),
        (TEXTS, {"max_tokens": 0}, ValueError, "max_tokens=0"),
        ([], {}, ValueError, "the corpus is empty"),
        (["", ""], {}, ValueError, "the corpus is empty"),
        ("book.txt", {}, ValueError, r"Path\('book.txt'\)"),
        (Path("absent.txt"), {}, FileNotFoundError, "absent.txt"),
        (["a", Path("absent.jsonl")], {}, FileNotFoundError, "absent.jsonl"),
        (Path("absent.npy"), {}, FileNotFoundError, "absent.npy"),
        (np.array([3, 257]), {}, ValueError, "token id 257 is out of range"),
        (np.array([3, -1]), {}, ValueError, "token id -1 is out of range"),
        (np.array([0.5]), {}, ValueError, "float64"),
        (torch.zeros(2, 3), {}, TypeError, "float32"),
        (torch.zeros(2, 9, dtype=torch.long), {}, ValueError, "rows of 9 tokens"),
        (iter([1, 2]), {}, TypeError, "not a int"),
    ],
)
def test_a_corpus_that_cannot_be_read_is_refused(
    corpus: Any, choices: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        list(passages(model(), corpus, **choices))


def test_texts_need_a_tokenizer() -> None:
    with pytest.raises(ValueError, match="no tokenizer"):
        list(passages(model(tokenizer=None), TEXTS))


@pytest.mark.slow
def test_rows_like_a_prompt_are_as_long_each_from_a_file_of_its_own_and_drawn_from_the_seed() -> None:
    byte = model(n_ctx=16)
    for prompt in (torch.arange(65, 80)[None], torch.tensor([[END, *b"def area(w):"]])):
        rows = rows_like(byte, prompt, 5)
        assert rows.shape == (5, prompt.shape[1])
        has_bos = prompt[0, 0] == END
        assert (rows[:, 0] == END).tolist() == [bool(has_bos)] * 5
        texts = [BYTES.decode(row[int(has_bos) :].tolist()) for row in rows]
        library = standard_library()[:20]
        assert [any(text in each for each in library) for text in texts] == [True] * 5
        assert len(set(texts)) == 5
        assert torch.equal(rows, rows_like(byte, prompt, 5))
        assert not torch.equal(rows, rows_like(byte, prompt, 5, seed=1))
    bare = rows_like(model(tokenizer=None), torch.zeros(1, 7, dtype=torch.long), 3)
    assert bare.shape == (3, 7)
    assert len(bare.unique()) > 10
    with pytest.raises(ValueError, match=r"only \d+ files have 30 tokens of this tokenizer, not 100000"):
        rows_like(byte, torch.zeros(1, 30, dtype=torch.long), 100_000)


def test_rows_are_whole_and_drawn_by_the_seed() -> None:
    texts = [f"number {i} of many rows" for i in range(30)] + ["short"]
    every = {tuple(row) for _, _, row in rows_of(passages(model(), texts, 6)) if len(row) == 6}
    found = whole_rows(model(), texts, 9, 6)
    assert found.shape == (9, 6)
    assert {tuple(row) for row in found.tolist()} <= every
    assert torch.equal(found, whole_rows(model(), texts, 9, 6))
    assert not torch.equal(found, whole_rows(model(), texts, 9, 6, seed=1))
    with pytest.raises(ValueError, match="there are 0 rows of 8 tokens here, not 2"):
        whole_rows(model(), ["abc"], 2, 8)


def test_no_more_of_a_corpus_is_read_than_rows_are_drawn_from() -> None:
    read = []

    def endless() -> Iterator[str]:
        while True:
            read.append(1)
            yield "abcdefgh"

    assert len(whole_rows(model(), endless(), 2, 4)) == 2
    assert len(read) < 200
