import json
import math
import re
from collections import Counter

import numpy as np
import pytest
import torch

from interp import GPTConfig
from interp.corpus import standard_library
from interp.tokenization import Tokenizer
from interp.training import (
    IGNORED,
    Batch,
    FullBatch,
    Mixture,
    Rows,
    Shorter,
    Stages,
    Task,
    TokenFile,
    modular_addition,
    repeated_tokens,
    split,
    texts_of,
    write_tokens,
)

CFG = GPTConfig(n_layers=1, d_model=8, n_heads=2, n_ctx=16, d_vocab=300)


def long_row(n: int = 1003) -> np.ndarray:
    return np.arange(n, dtype=np.uint16) % 251


def seen(data: TokenFile, n_rows: int, steps: range) -> list[int]:
    return [int(token) for step in steps for token in data.batch(step, n_rows).targets.flatten()]


def test_a_batch_depends_on_the_step_alone() -> None:
    data, again = TokenFile(long_row(), 7, seed=3), TokenFile(long_row(), 7, seed=3)
    later = data.batch(41, 6)
    [again.batch(step, 6) for step in (0, 99, 12)]
    for name in ("tokens", "targets"):
        assert torch.equal(getattr(later, name), getattr(again.batch(41, 6), name))
        parts = [getattr(again.batch(41, 6, slice(i, i + 2)), name) for i in (0, 2, 4)]
        assert torch.equal(getattr(later, name), torch.cat(parts))
    assert not torch.equal(later.tokens, TokenFile(long_row(), 7, seed=4).batch(41, 6).tokens)


@pytest.mark.parametrize("bos", [None, 299])
def test_an_epoch_sees_every_chunk_once(bos: int | None) -> None:
    tokens = np.arange(1003, dtype=np.int32)
    data = TokenFile(tokens, 7, bos=bos)
    for epoch in range(3):
        steps = range(epoch * data.n_chunks, (epoch + 1) * data.n_chunks)
        found = [token for step in steps for token in seen(data, 1, range(step, step + 1))]
        assert len(set(found)) == len(found) == 7 * data.n_chunks > 1003 - 3 * 7
    orders = [seen(data, data.n_chunks, range(epoch, epoch + 1)) for epoch in range(2)]
    assert orders[0] != orders[1]


@pytest.mark.parametrize("bos", [None, 299])
def test_targets_are_the_next_tokens(bos: int | None) -> None:
    tokens = np.arange(500, dtype=np.uint16) % 290
    batch = TokenFile(tokens, 7, bos=bos).batch(5, 4)
    assert batch.tokens.shape == batch.targets.shape == (4, 7)
    assert torch.equal(batch.tokens[:, 1:], batch.targets[:, :-1])
    assert ((batch.targets[:, 1:] - batch.targets[:, :-1]) % 290 == 1).all()
    assert bos is None or (batch.tokens[:, 0] == bos).all()


@pytest.mark.parametrize(("bos", "n"), [(None, 103), (299, 103), (None, 99), (299, 98), (None, 8), (299, 7)])
def test_the_whole_is_asked_for_once(bos: int | None, n: int) -> None:
    data = TokenFile(np.arange(n, dtype=np.uint16), 7, bos=bos)
    batches = list(data.whole(4))
    asked = [int(token) for batch in batches for token in batch.targets.flatten() if token != IGNORED]
    assert asked == list(range(0 if bos is not None else 1, n))
    assert all(batch.tokens.min() >= 0 for batch in batches)


def test_token_files_stay_on_disk_and_equal_the_tokenizers_ids(tmp_path) -> None:
    texts = ["the cat sat", "on\n\nthe mat", "", "and “purred” 😺"]
    tokenizer = Tokenizer.bytes()
    file = write_tokens(texts, tokenizer, tmp_path / "new" / "tokens.npy", progress=False)
    end = tokenizer.eos_token_id
    assert np.load(file).tolist() == [token for text in texts for token in [*tokenizer.encode(text), end]]
    assert isinstance(TokenFile(file, 4).tokens, np.memmap)
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.slow
def test_a_long_text_is_tokenised_in_pieces_as_it_is_in_the_whole(tmp_path, monkeypatch) -> None:
    text = "\n\n".join(standard_library("held_out")[:6]) + " \n \n\n x\ny"
    tokenizer = Tokenizer.train([text], 500, progress=False)
    monkeypatch.setattr("interp.tokenization._PIECE", 100)
    whole = [*tokenizer.encode(text), tokenizer.eos_token_id]
    assert np.load(write_tokens([text], tokenizer, tmp_path / "t.npy", progress=False)).tolist() == whole


def test_jsonl_has_a_text_a_line(tmp_path) -> None:
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text, "id": 3}) + "\n" for text in ("x y", "z\n")))
    (tmp_path / "b.txt").write_text("plain\n")
    (tmp_path / "marked.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "x"}\r\n\n')
    assert list(texts_of([tmp_path / "marked.jsonl"])) == ["x"]
    (tmp_path / "latin.txt").write_bytes("naïve".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin\.txt is no text in UTF-8"):
        list(texts_of([tmp_path / "latin.txt"]))
    assert list(texts_of([tmp_path / "a.jsonl", tmp_path / "b.txt"])) == ["x y", "z\n", "plain\n"]
    for line in ("no json", "[1]", '{"t": 1}', '{"text": 7}'):
        (tmp_path / "bad.jsonl").write_text('{"text": "fine"}\n' + line + "\n")
        with pytest.raises(ValueError, match=r"bad\.jsonl, line 2"):
            list(texts_of([tmp_path / "bad.jsonl"]))
    with pytest.raises(FileNotFoundError, match=r"no file .*absent"):
        list(texts_of([tmp_path / "absent.txt"]))


def test_no_text_is_both_trained_on_and_held_out() -> None:
    texts = [f"text {i % 700}" for i in range(1000)]
    train, held_out = split(texts, 0.1)
    assert not set(train) & set(held_out)
    assert Counter(train + held_out) == Counter(texts)
    assert 50 < len(held_out) < 160
    for few in (["a", "b"], ["a", "b", "c", "a"]):
        train, held_out = split(few, 0.001)
        assert train
        assert held_out
        assert not set(train) & set(held_out)
    assert split(["0123456789" * 10] * 2) == (["0123456789" * 9], ["0123456789"])
    assert split(["0123456789" * 10]) == (["0123456789" * 9], ["0123456789"])


@pytest.mark.slow
def test_the_standard_library_is_read_the_same_way_again_and_held_out_files_stay_out() -> None:
    train, held_out = standard_library("train"), standard_library("held_out")
    assert train == standard_library("train") != standard_library("train", seed=1)
    assert Counter(train + held_out) == Counter(standard_library())
    assert not set(train) & set(held_out)
    assert 0.01 < len(held_out) / len(train) < 0.15
    assert any("class ThreadPoolExecutor" in text for text in train + held_out)
    with pytest.raises(ValueError, match=r"split='test'; allowed"):
        standard_library("test")


@pytest.mark.parametrize("bos", [None, 40])
@pytest.mark.parametrize("first_copy", [True, False])
def test_repeated_tokens_repeat_with_periods_of_their_own(bos: int | None, first_copy: bool) -> None:
    draw = repeated_tokens(41, 30, (5, 9), bos=bos, first_copy=first_copy)
    batch = draw(torch.Generator().manual_seed(0), 200)
    assert batch.tokens.shape == batch.targets.shape == (200, 30)
    first = int(bos is not None)
    periods = Counter()
    for tokens, targets in zip(batch.tokens.tolist(), batch.targets.tolist(), strict=True):
        assert bos is None or tokens[0] == bos
        rest = tokens[first:]
        period = next(p for p in range(1, 30) if rest[p:] == rest[:-p])
        assert len(set(rest[:period])) == period
        assert bos is None or bos not in rest
        followed = [*tokens[1:], rest[len(rest) % period]]
        n_first = period - 1 + first
        assert targets == (followed if first_copy else [IGNORED] * n_first + followed[n_first:])
        periods[period] += 1
    assert set(periods) == {5, 6, 7, 8, 9}
    with pytest.raises(ValueError, match=r"periods=\(5, 42\)"):
        repeated_tokens(41, 30, (5, 42))


def test_repeats_may_be_made_of_few_tokens() -> None:
    drawn = repeated_tokens(500, 30, (5, 9), among=(16, 500), bos=3)(torch.Generator().manual_seed(0), 4_000).tokens
    largest = drawn[:, 1:].amax(1)
    assert (drawn[:, 1:] != 3).all()
    assert largest.max() < 500
    for n in (32, 64, 128, 256):  # the logarithm is uniform, and the largest of 5 to 9 tokens is not far below
        share = (largest < n).double().mean()
        assert 0 < share - math.log(n / 16) / math.log(500 / 16) < 0.1
    few = repeated_tokens(500, 30, (5, 9), among=(10, 10))(torch.Generator().manual_seed(0), 500).tokens
    assert sorted(few.unique().tolist()) == list(range(10))
    for among in ((9, 20), (20, 501), (30, 20)):
        with pytest.raises(ValueError, match=rf"among=\({among[0]}, {among[1]}\); more tokens than the longest"):
            repeated_tokens(500, 30, (5, 9), among=among)


def test_pairs_of_a_sum_are_all_there_once() -> None:
    train, held_out = modular_addition(11, 0.3, seed=2)
    assert len(train) == 36
    rows = torch.cat((train.tokens, held_out.tokens))
    assert sorted(map(tuple, rows.tolist())) == [(a, b, 11) for a in range(11) for b in range(11)]
    targets = torch.cat((train.targets, held_out.targets))
    assert (targets[:, :2] == IGNORED).all()
    assert torch.equal(targets[:, 2], (rows[:, 0] + rows[:, 1]) % 11)


def test_a_mixture_keeps_its_shares() -> None:
    parts = [Task(lambda generator, n, i=i: Batch(*[torch.full((n, 4), i)] * 2)) for i in range(3)]
    mixture = Mixture([(parts[0], 5), (parts[1], 1), (parts[2], 2)])
    assert mixture.batch(3, 16).tokens[:, 0].tolist() == [0] * 10 + [1] * 2 + [2] * 4
    assert mixture.batch(3, 16, slice(8, 13)).tokens[:, 0].tolist() == [0, 0, 1, 1, 2]
    with pytest.raises(ValueError, match=r"a share of 1 in 8 is less than one of 3 rows"):
        mixture.batch(0, 3)
    shorter = Shorter(Task(lambda generator, n: Batch(*[torch.zeros(n, 1, dtype=torch.long)] * 2)), 4)
    with pytest.raises(ValueError, match=r"rows of one width, not \[\(4, 4\), \(16, 1\)\]"):
        Mixture([(parts[0], 1), (shorter, 1)]).batch(0, 8)


def test_rows_of_an_iterable_come_in_order_and_from_the_beginning_when_resumed() -> None:
    rows = [[i, i + 1, i + 2] for i in range(20)]
    data = Rows(rows)
    assert data.batch(0, 3).tokens.tolist() == [[0, 1], [1, 2], [2, 3]]
    assert data.batch(4, 3).tokens[:, 0].tolist() == [12, 13, 14]
    assert data.batch(1, 3, slice(1, 3)).targets.tolist() == [[5, 6], [6, 7]]
    with pytest.raises(ValueError, match=r"the data ended at row 20; rows up to 21 are needed"):
        data.batch(6, 3)
    once = Rows(iter(rows))
    for _ in range(2):  # a step may be asked for again
        assert once.batch(1, 3).tokens[:, 0].tolist() == [3, 4, 5]
    with pytest.raises(ValueError, match=r"was read already"):
        once.batch(0, 3)
    with pytest.raises(ValueError, match=r"one length, not \[3, 4\]"):
        Rows([[1, 2, 3], [1, 2, 3, 4]]).batch(0, 2)


def test_tasks_draw_anew_at_every_step() -> None:
    task = Task(repeated_tokens(41, 30, (5, 9)), seed=1)
    assert torch.equal(task.batch(7, 5).tokens, task.batch(7, 5).tokens)
    assert not torch.equal(task.batch(7, 5).tokens, task.batch(8, 5).tokens)
    assert torch.equal(task.batch(7, 5).tokens[2:4], task.batch(7, 5, slice(2, 4)).tokens)


def test_data_knows_itself_again() -> None:
    same = [TokenFile(long_row(), 7), TokenFile(long_row(), 7)]
    other = long_row()
    other[500] += 1
    others = [
        TokenFile(other, 7),
        TokenFile(long_row(), 8),
        TokenFile(long_row(), 7, seed=1),
        TokenFile(long_row(), 7, bos=3),
    ]
    assert same[0].identity() == same[1].identity()
    assert len({data.identity() for data in [*same, *others]}) == 5


def test_data_that_a_model_cannot_read_is_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"has 7 tokens; a context of 7 needs 8"):
        TokenFile(long_row(7), 7)
    with pytest.raises(ValueError, match=r"one row of integers, not float64 \(3,\)"):
        TokenFile(np.ones(3), 2)
    with pytest.raises(ValueError, match=r"chunks of 17 tokens are longer than the context, n_ctx=16"):
        TokenFile(long_row(), 17).check(CFG)
    with pytest.raises(ValueError, match=r"token ids from 0 to 400; the model knows 0 to 299"):
        TokenFile(np.arange(401), 7).check(CFG)
    with pytest.raises(ValueError, match=r"token ids from -1 to 9"):
        TokenFile(np.arange(-1, 10), 7).check(CFG)
    with pytest.raises(FileNotFoundError, match=r"no token file .*absent\.npy"):
        TokenFile(tmp_path / "absent.npy", 7)
    for content in (b"", b"\x93NUMPY\x01\x00", b"some text, and no array"):
        (tmp_path / "bad.npy").write_bytes(content)
        with pytest.raises(ValueError, match=r"bad\.npy is no complete \.npy file"):
            TokenFile(tmp_path / "bad.npy", 7)
    np.save(tmp_path / "cut.npy", long_row())
    (tmp_path / "cut.npy").write_bytes((tmp_path / "cut.npy").read_bytes()[:-5])
    with pytest.raises(ValueError, match=r"cut\.npy is no complete"):
        TokenFile(tmp_path / "cut.npy", 7)
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"objects\.npy"):
        TokenFile(tmp_path / "objects.npy", 7)
    with pytest.raises(ValueError, match=r"the data is empty"):
        write_tokens(["", ""], Tokenizer.bytes(), tmp_path / "t.npy", progress=False)
    assert not (tmp_path / "t.npy").exists()
    tokens = torch.zeros(2, 5, dtype=torch.long)
    with pytest.raises(ValueError, match=r"no position is asked"):
        FullBatch(Batch(tokens, tokens + IGNORED)).check(CFG)
    with pytest.raises(ValueError, match=r"targets from 300 to 300; the model knows 0 to 299"):
        FullBatch(Batch(tokens, tokens + 300)).check(CFG)
    with pytest.raises(ValueError, match=re.escape("a full batch has 2 rows; batch_size=3")):
        FullBatch(Batch(tokens, tokens)).batch(0, 3)
    with pytest.raises(ValueError, match=r"rows of 5 tokens; the context has n_ctx=4"):
        Rows([[1] * 6] * 3).check(GPTConfig(n_layers=1, d_model=8, n_heads=2, n_ctx=4, d_vocab=300))


def test_one_source_follows_another() -> None:
    first, then = (Task(lambda generator, n, i=i: Batch(*[torch.full((n, 4), i)] * 2)) for i in range(2))
    found = [int(Stages([(3, first), (None, then)]).batch(step, 2).tokens[0, 0]) for step in range(6)]
    assert found == [0, 0, 0, 1, 1, 1]
    long = Task(repeated_tokens(41, 30, (5, 9)), seed=1)
    assert torch.equal(Stages([(3, first), (None, long)]).batch(10, 2).tokens, long.batch(7, 2).tokens)
    with pytest.raises(ValueError, match=r"the data ended with step 2; step 3"):
        Stages([(3, first)]).batch(3, 2)


def test_shorter_rows_are_more_and_are_shared_out_alike() -> None:
    task = Task(lambda generator, n: Batch(*[torch.arange(n)[:, None]] * 2))
    shorter = Shorter(task, 4)
    assert shorter.batch(0, 6, slice(2, 4)).tokens.flatten().tolist() == list(range(8, 16))
    assert len(shorter.batch(0, 6)) == 24
    assert shorter.identity() != Shorter(task, 3).identity()
    with pytest.raises(ValueError, match=r"drew 9 rows; it was asked for 6"):
        Task(lambda generator, n: Batch(*[torch.zeros(9, 1, dtype=torch.long)] * 2)).batch(0, 6)
