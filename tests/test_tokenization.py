"""Tokenizers: exact round trips, training, files, merges, streams."""

import json
import random
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import normalizers, pre_tokenizers

from interp import HookedGPT
from interp.tokenization import TextStream, Tokenizer
from tests.tokenizers import llama_like

SHARED = Path(__file__).parent.parent.parent / "shared" / "data"
CORPUS = ["def area(width, height):\n    return width * height\n" * 3, "the cat sat on the mat; naïve café 🙂🙂\n" * 5]
BYTES = Tokenizer.bytes()
BPE = Tokenizer.train(CORPUS, d_vocab=300, progress=False)
HOSTILE = [
    "",
    "\x00",
    "\x00\x01\x7f\x85\u2028",
    "a\r\n\tb",
    "🙂👩‍👩‍👧‍👦",
    "\u202eright to left",
    "<|endoftext|>",
    "  two  spaces  ",
    "e\u0301",
]


@given(st.text())
def test_any_unicode_comes_back_exactly(text: str) -> None:
    for tokenizer in (BYTES, BPE):
        assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_comes_back_exactly(text: str) -> None:
    for tokenizer in (BYTES, BPE, Tokenizer.characters("".join(HOSTILE))):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_bytes_are_their_own_ids() -> None:
    assert BYTES.encode("aé\n") == list("aé\n".encode())
    assert (BYTES.d_vocab, BYTES.bos_token_id, BYTES.eos_token_id) == (257, 256, 256)
    assert BYTES.encode("<|endoftext|>") == [256]


def test_characters_have_one_token_each_and_others_are_refused() -> None:
    tokenizer = Tokenizer.characters("hello world")
    assert tokenizer.d_vocab == len(set("hello world")) + 1
    assert tokenizer.token_strings(tokenizer.encode("low")) == ["l", "o", "w"]
    with pytest.raises(ValueError, match=r"characters without a token: \['x', 'z'\].*knows 8"):
        tokenizer.encode("lxz")


def test_training_finds_frequent_pairs_and_keeps_its_size() -> None:
    assert BPE.d_vocab == 300
    assert BPE.bos_token_id == 299
    assert len(BPE.encode(CORPUS[0])) < len(CORPUS[0]) / 2
    assert "return" in "".join(BPE.token_strings(BPE.encode("return")))
    again = Tokenizer.train(CORPUS, d_vocab=300, progress=False)
    assert again.to_json() == BPE.to_json()
    with pytest.raises(ValueError, match="d_vocab=256; 256 bytes and an end-of-text token need at least 257"):
        Tokenizer.train(CORPUS, d_vocab=256)


def test_training_from_files_is_training_on_their_text(tmp_path: Path) -> None:
    files = [tmp_path / f"{i}.txt" for i in range(2)]
    for file, text in zip(files, CORPUS, strict=True):
        file.write_text(text, encoding="utf-8")
    assert Tokenizer.train_from_files(files, 300, progress=False).to_json() == BPE.to_json()


def test_a_lone_surrogate_and_what_is_no_text_are_refused() -> None:
    for tokenizer in (BYTES, BPE):
        with pytest.raises(ValueError, match=r"lone surrogate, U\+D83D at 2"):
            tokenizer.encode("ab\ud83d")
    with pytest.raises(ValueError, match="lone surrogate"):
        Tokenizer.train(["fine", "\udc00"], 300, progress=False)


def test_files_give_the_same_tokenizer(tmp_path: Path) -> None:
    for tokenizer in (BYTES, BPE, Tokenizer.characters("hello world")):
        (tmp_path / "tokenizer.json").write_text(tokenizer.to_json(), encoding="utf-8")
        for where in (tmp_path, tmp_path / "tokenizer.json"):
            loaded = Tokenizer.load(where, **tokenizer.special_tokens())
            assert loaded.encode("hello world") == tokenizer.encode("hello world")
            assert loaded.special_tokens() == tokenizer.special_tokens()


def test_parts_of_characters_show_their_bytes() -> None:
    assert BYTES.token_strings(BYTES.encode(" مر")) == [" ", r"\xd9", r"\x85", r"\xd8", r"\xb1"]
    assert BYTES.token_strings(BYTES.encode("🙂")) == [r"\xf0", r"\x9f", r"\x99", r"\x82"]
    assert BPE.token_strings(BPE.encode(" 🙂 مر")) == [" 🙂", " ", r"\xd9", r"\x85", r"\xd8", r"\xb1"]
    arabic = Tokenizer.train(["مر مز مش"], 259, progress=False)
    assert arabic.token_strings(arabic.encode("مر")) == [r"م\xd8", r"\xb1"], "whole characters stay"
    words = llama_like()
    assert words.token_strings(words.encode("hi م🙂")) == [
        " h", "i", " ", r"\xd9", r"\x85", r"\xf0", r"\x9f", r"\x99", r"\x82",
    ]  # fmt: skip


def test_each_token_has_a_text_of_its_own() -> None:
    words = llama_like()
    for tokenizer in (BYTES, BPE, words, HookedGPT.from_pretrained("stdlib-4l").tokenizer):
        assert len({*tokenizer.token_strings(range(tokenizer.d_vocab))}) == tokenizer.d_vocab
    newline, second = words.encode("\n")[-1], 2 + ord("a")
    assert words.token_strings([newline, second, words.encode("a")[-1]]) == ["\n", r"\x61", " a"]


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_the_bytes_of_tokens_are_those_of_the_text(text: str) -> None:
    for tokenizer in (BYTES, BPE, Tokenizer.characters(text + "a")):
        assert b"".join(tokenizer.token_bytes(tokenizer.encode(text))) == text.encode()


@pytest.mark.parametrize("content", ["", "{}", '{"model": 3}', "not json", "[" * 100_000])
def test_a_damaged_file_is_one_clear_error(content: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ValueError, match=r"tokenizer.json: this is no tokenizer.json"):
        Tokenizer.load(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"looked for tokenizer.json, vocab.json \+ merges.txt"):
        Tokenizer.load(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"special token '<s>' is not in the vocabulary"):
        Tokenizer.from_json(BPE.to_json(), bos_token="<s>")


@given(st.text())
def test_merges_lead_from_bytes_to_the_tokens(text: str) -> None:
    steps = BPE.merges(text)
    if steps:
        assert steps[-1].pieces == list(BPE.token_strings(BPE.encode(text)))
        assert all("\\x" in step.left + step.right or step.left + step.right in step.pieces for step in steps)
    else:
        assert len(BPE.encode(text)) == len(text.encode())


def test_merges_leave_special_tokens_whole() -> None:
    steps = BPE.merges("the<|endoftext|>the")
    assert steps[-1].pieces == BPE.token_strings(BPE.encode("the<|endoftext|>the"))
    assert "<|endoftext|>" in steps[0].pieces


def test_an_old_pair_of_files_has_the_special_tokens_it_is_told(tmp_path: Path) -> None:
    model = json.loads(BPE.to_json())["model"]
    vocab = model["vocab"] | {"</s>": 299, "<pad>": 300}
    (tmp_path / "vocab.json").write_text(json.dumps({k: v for k, v in vocab.items() if k != "<|endoftext|>"}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in model["merges"]))
    tokenizer = Tokenizer.load(tmp_path).with_special(bos_token="</s>", eos_token="</s>", pad_token="<pad>")
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (299, 299, 300)
    assert tokenizer.encode("</s>the") == [299, *BPE.encode("the")]
    assert not tokenizer.knows("<|endoftext|>")


@given(st.text(alphabet=st.sampled_from("the cat, sat on ä\n 12ﬁ"), max_size=30))
def test_words_may_be_cut_before_they_become_bytes(text: str) -> None:
    backend = tokenizers.Tokenizer.from_str(BPE.to_json())
    words = pre_tokenizers.Split(tokenizers.Regex(r" ?\w+|\s+|[^\s\w]+"), "isolated")
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([words, as_bytes])  # type: ignore[assignment]
    backend.normalizer = normalizers.NFC()  # type: ignore[assignment]
    tokenizer = Tokenizer(backend)
    steps, ids = tokenizer.merges(text), tokenizer.encode(text)
    assert not steps or steps[-1].pieces == tokenizer.token_strings(ids)
    for place in range(len(ids)):
        word, within = tokenizer.word_at(text, place)
        assert tokenizer.encode(word)[within] == ids[place]


def test_merges_of_a_known_case() -> None:
    steps = BPE.merges("the")
    assert [step.left + step.right for step in steps][-1] == BPE.token_strings(BPE.encode("the"))[0]
    with pytest.raises(ValueError, match="byte-level BPE"):
        Tokenizer.characters("the").merges("the")


@given(st.text())
def test_a_stream_gives_the_text_in_whole_characters(text: str) -> None:
    for tokenizer in (BYTES, BPE):
        stream = TextStream(tokenizer)
        parts = [stream.push(token) for token in tokenizer.encode(text)]
        assert "".join(parts) == text or text.endswith("\ufffd")
        assert "".join(parts) + stream.flush() == text


def test_a_stream_waits_for_the_rest_of_a_character() -> None:
    stream = TextStream(BYTES)
    assert [stream.push(byte) for byte in "é!🙂".encode()] == ["", "é", "!", "", "", "", "🙂"]
    stream.push(0xC3)
    assert stream.flush() == "\ufffd"


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "gpt2").is_dir(), reason="GPT-2's vocabulary is not here")
def test_gpt2s_own_vocabulary_gives_the_reference_ids(tmp_path: Path) -> None:
    from transformers import GPT2Tokenizer

    ours = Tokenizer.load(SHARED / "gpt2")
    theirs = GPT2Tokenizer(str(SHARED / "gpt2" / "encoder.json"), str(SHARED / "gpt2" / "vocab.bpe"))
    assert ours.d_vocab == 50257
    text = (SHARED / "tinyshakespeare.txt").read_text()
    assert ours.encode(text) == theirs(text)["input_ids"]
    draw = random.Random(0)
    alphabets = [range(32, 127), range(0x20, 0x250), range(0x4E00, 0x4F00), range(0x1F600, 0x1F650), range(0xD800)]
    for _ in range(2000):
        text = "".join(chr(draw.choice(draw.choice(alphabets))) for _ in range(draw.randrange(40)))
        ids = ours.encode(text)
        assert ids == theirs(text)["input_ids"], repr(text)
        assert ours.decode(ids) == text


def test_tokens_know_how_many_bytes_of_text_they_are() -> None:
    text = "the “cat” 😺 sat — naïve\n\ton the mat"
    kinds = Tokenizer.bytes(), Tokenizer.train([text] * 3, 290, progress=False), Tokenizer.characters(text)
    for tokenizer in kinds:
        lengths = tokenizer.byte_lengths()
        assert sum(lengths[token] for token in tokenizer.encode(text)) == len(text.encode())
        assert lengths[tokenizer.eos_token_id] == 0
        assert len(lengths) == tokenizer.d_vocab
    words = llama_like()
    assert [words.byte_lengths()[token] for token in words.encode("hi م")] == [2, 1, 1, 1, 1]


@given(st.text(), st.data())
def test_the_word_of_a_token_has_the_tokens_around_it(text: str, data: st.DataObject) -> None:
    for tokenizer in (BYTES, BPE):
        ids = tokenizer.encode(text)
        if not ids:
            continue
        place = data.draw(st.integers(0, len(ids) - 1))
        word, within = tokenizer.word_at(text, place)
        own = tokenizer.encode(word)
        assert word in text
        assert own == ids[place - within : place - within + len(own)]
        assert own[within] == ids[place]


def test_words_of_a_known_text() -> None:
    text = "the cat<|endoftext|>, the  dog"
    words = list(dict.fromkeys(BPE.word_at(text, i)[0] for i in range(len(BPE.encode(text)))))
    assert words == ["the", " cat", "<|endoftext|>", ",", " the", " ", " dog"]
    with pytest.raises(ValueError, match="the text has the tokens 0 to 0"):
        BPE.word_at("the", 7)
