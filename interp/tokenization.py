"""Text to tokens and back: bytes, characters, byte-level BPE, or any `tokenizer.json`."""

import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers
from tqdm.auto import tqdm

END_OF_TEXT = "<|endoftext|>"
_PIECE = 2**20  # characters of a long text that are tokenised at once
Bytes = bytes  # in the class below that name makes a tokenizer
_BYTE = re.compile("<0x[0-9A-F]{2}>")  # a token that stands for one byte, among words


@dataclass(frozen=True)
class Merge:
    """One step of byte-pair encoding: the pair that was joined, its rank, and all pieces of the text afterwards."""

    left: str
    right: str
    rank: int
    pieces: list[str]


class Tokenizer:
    """Token ids of texts, without special tokens. Decoding bytes, characters and byte-level BPE is exact.

    `bos_token_id` is what `prepend_bos` prepends, `pad_token_id` what fills ragged batches. Special tokens that are
    spelled out in a text are read as such.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        bos_token: str | None = None,
        eos_token: str | None = None,
        pad_token: str | None = None,
    ) -> None:
        self._backend = backend
        self._backend.no_padding()
        self._backend.no_truncation()
        self.bos_token, self.eos_token, self.pad_token = bos_token, eos_token, pad_token
        for token in {bos_token, eos_token, pad_token} - {None}:
            self._id(str(token))
        self._anchor: tuple[int, str] | None = None

    @classmethod
    def bytes(cls) -> "Tokenizer":
        """One token for each of the 256 bytes, and an end-of-text token."""
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet(), key=_byte_of)
        model = models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[])
        return cls(_byte_level(model), bos_token=END_OF_TEXT, eos_token=END_OF_TEXT)

    @classmethod
    def characters(cls, text: str) -> "Tokenizer":
        """One token for each character that occurs in `text`, and an end-of-text token."""
        _check_text(text)
        model = models.BPE(vocab={char: i for i, char in enumerate(sorted(set(text)))}, merges=[])
        backend = tokenizers.Tokenizer(model)
        backend.decoder = decoders.Fuse()
        backend.add_special_tokens([AddedToken(END_OF_TEXT, normalized=False)])
        return cls(backend, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT)

    @classmethod
    def train(cls, texts: Iterable[str], d_vocab: int, progress: bool = True) -> "Tokenizer":
        """Byte-level BPE learned from texts, with at most `d_vocab` tokens, the last of which ends a text."""
        if d_vocab < 257:
            raise ValueError(f"d_vocab={d_vocab}; 256 bytes and an end-of-text token need at least 257")
        backend = _byte_level(models.BPE(), with_end=False)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=d_vocab - 1, initial_alphabet=alphabet, show_progress=progress)  # type: ignore[call-arg]
        checked = (_check_text(text) for text in texts)
        backend.train_from_iterator(tqdm(checked, desc="reading texts", disable=not progress), trainer)
        backend.add_special_tokens([AddedToken(END_OF_TEXT, normalized=False)])
        return cls(backend, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT)

    @classmethod
    def train_from_files(
        cls, files: Iterable[str | os.PathLike[str]], d_vocab: int, progress: bool = True
    ) -> "Tokenizer":
        """`train` on the text of these files."""
        return cls.train((Path(file).read_text(encoding="utf-8") for file in files), d_vocab, progress)

    @classmethod
    def from_json(cls, text: str, **special: str | None) -> "Tokenizer":
        """From the content of a `tokenizer.json`."""
        try:
            backend = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # the library raises nothing more precise
            raise ValueError(f"this is no tokenizer.json: {error}") from error
        return cls(backend, **special)

    @classmethod
    def load(cls, path: str | os.PathLike[str], **special: str | None) -> "Tokenizer":
        """From a `tokenizer.json`, or a folder with one, or with GPT-2's older pair of files."""
        where = Path(path).expanduser()
        file = where / "tokenizer.json" if where.is_dir() else where
        if file.is_file():
            try:
                return cls.from_json(file.read_text(encoding="utf-8"), **special)
            except (ValueError, UnicodeDecodeError) as error:
                raise ValueError(f"{file}: {error}") from error
        for vocab, merges in (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe")):
            if (where / vocab).is_file() and (where / merges).is_file():
                return cls.from_gpt2_files(where / vocab, where / merges, **special)
        looked_for = "tokenizer.json, vocab.json + merges.txt, encoder.json + vocab.bpe"
        raise FileNotFoundError(f"no tokenizer in {where}: looked for {looked_for}")

    @classmethod
    def from_gpt2_files(
        cls, vocab: str | os.PathLike[str], merges: str | os.PathLike[str], **special: str | None
    ) -> "Tokenizer":
        """From `vocab.json` and `merges.txt`, or `encoder.json` and `vocab.bpe`, as GPT-2 came."""
        try:
            words, pairs = models.BPE.read_file(os.fspath(vocab), os.fspath(merges))
            model = models.BPE(vocab=words, merges=pairs)
        except Exception as error:  # the library raises nothing more precise
            raise ValueError(f"{vocab} and {merges} are no GPT-2 vocabulary: {error}") from error
        if END_OF_TEXT not in words:
            return cls(_byte_level(model, with_end=False), **special)
        return cls(_byte_level(model), **({"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT} | special))

    def knows(self, token: str) -> bool:
        """Whether this text is a token of the vocabulary."""
        return self._backend.token_to_id(token) is not None

    def with_special(
        self, bos_token: str | None = None, eos_token: str | None = None, pad_token: str | None = None
    ) -> "Tokenizer":
        """The same tokenizer with these special tokens, which are read as such where a text spells them out."""
        special = [token for token in (bos_token, eos_token, pad_token) if token is not None]
        self._backend.add_special_tokens(
            [AddedToken(token, normalized=False) for token in special if self.knows(token)]
        )
        return Tokenizer(self._backend, bos_token=bos_token, eos_token=eos_token, pad_token=pad_token)

    def to_json(self) -> str:
        """The content of a `tokenizer.json`."""
        return self._backend.to_str()

    @property
    def d_vocab(self) -> int:
        """One more than the largest token id."""
        return max(self._backend.get_vocab(with_added_tokens=True).values()) + 1

    @property
    def bos_token_id(self) -> int | None:
        return None if self.bos_token is None else self._id(self.bos_token)

    @property
    def eos_token_id(self) -> int | None:
        return None if self.eos_token is None else self._id(self.eos_token)

    @property
    def pad_token_id(self) -> int:
        """What fills ragged batches, masked: the pad token, else the end-of-text token, else 0."""
        token = self.pad_token or self.eos_token or self.bos_token
        return 0 if token is None else self._id(token)

    @property
    def cuts_at_lines(self) -> bool:
        """Whether no token reaches over a single line break between two words: long texts can be read in pieces."""
        cut: Any = self._backend.pre_tokenizer
        is_by_words = isinstance(cut, pre_tokenizers.ByteLevel) and cut.use_regex and not cut.add_prefix_space
        return is_by_words or self._is_of_characters

    def pieces(self, text: str) -> Iterator[tuple[str, bool]]:
        """A long text in pieces that are tokenised as they would be in the whole, and whether each is the last.

        A single line break between two words is a token border in every byte-level vocabulary.
        """
        start = 0
        while self.cuts_at_lines and len(text) - start > _PIECE:
            found = re.compile(r"(?<=\S)\n(?=\S)").search(text, start + _PIECE)
            if found is None:
                break
            yield text[start : found.end()], False
            start = found.end()
        yield text[start:], True

    @property
    def _is_of_characters(self) -> bool:
        return isinstance(self._backend.decoder, decoders.Fuse)

    def byte_lengths(self) -> list[int]:
        """The number of bytes of text that each token stands for; special tokens stand for none."""
        special = {i for i, token in self._backend.get_added_tokens_decoder().items() if token.special}
        pieces = self.token_bytes(range(self.d_vocab))
        return [0 if token in special else len(piece) for token, piece in enumerate(pieces)]

    def special_tokens(self) -> dict[str, str | None]:
        """The arguments that, with `to_json`, make this tokenizer again."""
        return {"bos_token": self.bos_token, "eos_token": self.eos_token, "pad_token": self.pad_token}

    def encode(self, text: str) -> list[int]:
        """The token ids of a text."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The token ids of each text, in parallel."""
        for text in texts:
            _check_text(text)
        encoded = self._backend.encode_batch(list(texts), add_special_tokens=False)
        if self._is_of_characters:
            for text, one in zip(texts, encoded, strict=True):
                self._check_known(text, one.ids)
        return [one.ids for one in encoded]

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of these tokens; what is no whole character yet is U+FFFD."""
        return self._backend.decode(list(tokens), skip_special_tokens=False)

    def token_strings(self, tokens: Sequence[int]) -> list[str]:
        r"""The text of each token alone, its leading space included; bytes that are no whole character as `\xd9`."""
        texts = [piece.decode("utf-8", "backslashreplace") for piece in self.token_bytes(tokens)]
        return [
            f"\\x{ord(text):02x}" if self._is_second(token, text) else text
            for token, text in zip(tokens, texts, strict=True)
        ]

    def token_bytes(self, tokens: Sequence[int]) -> list[Bytes]:
        """The bytes of text that each token stands for, of which a character may take several tokens."""
        pieces = [self._backend.id_to_token(token) or "" for token in tokens]
        if isinstance(self._backend.decoder, decoders.ByteLevel):
            return [_bytes_of(piece) for piece in pieces]
        anchor, shown = self._shown_anchor()  # some decoders drop the space of a text's first word
        texts = self._backend.decode_batch([[anchor, token] for token in tokens], skip_special_tokens=False)
        alone = [text.removeprefix(shown) for text in texts]
        return [
            bytes([int(piece[3:5], 16)]) if _BYTE.fullmatch(piece) and text != piece else text.encode()
            for piece, text in zip(pieces, alone, strict=True)
        ]

    def word_at(self, text: str, place: int) -> tuple[str, int]:
        """The word of a text that its token at this place belongs to, and that token's place among the word's.

        Words are what a text is cut into before tokens are made; a special token is a word of its own.
        """
        encoded = self._backend.encode(text, add_special_tokens=False)
        if not 0 <= place < len(encoded.ids):
            raise ValueError(f"place={place}; the text has the tokens 0 to {len(encoded.ids) - 1}")
        word = encoded.word_ids[place]
        own = [i for i, each in enumerate(encoded.word_ids) if each == word] if word is not None else [place]
        start, end = (edge(encoded.offsets[i][side] for i in own) for edge, side in ((min, 0), (max, 1)))
        return text[start:end], own.index(place)

    def merges(self, text: str) -> list[Merge]:
        """The merges of byte-pair encoding, in order, that lead from the text's bytes to its tokens."""
        whole = json.loads(self.to_json())
        model, cut = whole["model"], whole.get("pre_tokenizer") or {}
        cuts = cut.get("pretokenizers", [cut])  # Llama 3 and Qwen cut words first, and turn them into bytes then
        if model.get("type") != "BPE" or not cuts or cuts[-1].get("type") != "ByteLevel":
            raise ValueError("merges are those of byte-level BPE; this tokenizer is of another kind")
        if self._backend.normalizer is not None:
            text = self._backend.normalizer.normalize_str(text)
        pairs = (tuple(pair.split(" ")) if isinstance(pair, str) else tuple(pair) for pair in model["merges"])
        ranks = {pair: rank for rank, pair in enumerate(pairs)}
        added = [re.escape(token.content) for token in self._backend.get_added_tokens_decoder().values()]
        words: list[list[str]] = []
        for i, part in enumerate(re.split(f"({'|'.join(added)})", text) if added else [text]):
            is_special = i % 2 == 1
            split = [] if is_special else self._backend.pre_tokenizer.pre_tokenize_str(part)
            words += [[part]] if is_special else [list(word) for word, _ in split]
        steps: list[Merge] = []
        for word in words:
            while len(word) > 1:
                rank, i = min((ranks.get((a, b), len(ranks)), i) for i, (a, b) in enumerate(pairwise(word)))
                if rank == len(ranks):
                    break
                left, right = word[i], word[i + 1]
                _join(word, left, right)
                pieces = [_shown(piece) for each in words for piece in each]
                steps.append(Merge(_shown(left), _shown(right), rank, pieces))
        return steps

    def _is_second(self, token: int, text: str) -> bool:
        """Whether this is the byte of a character that has a token of its own."""
        is_byte = len(text) == 1 and _BYTE.fullmatch(self._backend.id_to_token(token) or "") is not None
        return is_byte and (self.knows(text) or self.knows(text.replace(" ", "▁")))

    def _id(self, token: str) -> int:
        found = self._backend.token_to_id(token)
        if found is None:
            raise ValueError(f"the special token {token!r} is not in the vocabulary")
        return found

    def _check_known(self, text: str, tokens: Sequence[int]) -> None:
        if self.decode(tokens) != text:
            known = self._backend.get_vocab(with_added_tokens=False)
            unknown = sorted({char for char in text if char not in known})
            raise ValueError(
                f"characters without a token: {unknown[:10]}; this tokenizer knows {len(known)} characters"
            )

    def _shown_anchor(self) -> tuple[int, str]:
        if self._anchor is None:
            for token in range(self.d_vocab):
                text = self.decode([token])
                if (
                    text.isascii()
                    and text.isalpha()
                    and not str(self._backend.id_to_token(token)).startswith("<0x")
                    and self.decode([token, token]).startswith(text)
                ):
                    self._anchor = token, text
                    break
            else:
                self._anchor = 0, self.decode([0])
        return self._anchor


class TextStream:
    """Text that grows a token at a time, given out in whole characters only."""

    def __init__(self, tokenizer: Tokenizer, before: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._tokens = list(before[-8:])  # what was given out last, which the next may lean on; then what was not yet
        self._n_given = len(self._tokens)

    def push(self, token: int) -> str:
        """The text that this token completes; empty while a character is unfinished."""
        self._tokens.append(token)
        text = self._pending()
        if text.endswith("\ufffd"):
            return ""
        self._tokens = self._tokens[self._n_given :]
        self._n_given = len(self._tokens)
        return text

    def flush(self) -> str:
        """What is left: an unfinished character, as U+FFFD."""
        return self._pending()

    def _pending(self) -> str:
        given = self._tokenizer.decode(self._tokens[: self._n_given])
        return self._tokenizer.decode(self._tokens)[len(given) :]


def _byte_level(model: models.BPE, with_end: bool = True) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    backend.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    if with_end:
        backend.add_special_tokens([AddedToken(END_OF_TEXT, normalized=False)])
    return backend


def _byte_table() -> dict[str, int]:
    """The byte that each character of a byte-level piece stands for; printable bytes stand for themselves."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTES = _byte_table()


def _byte_of(char: str) -> int:
    return _BYTES[char]


def _bytes_of(piece: str) -> bytes:
    """The bytes of a byte-level piece; a token that was added to them is the text that it says."""
    return bytes(map(_byte_of, piece)) if _BYTES.keys() >= {*piece} else piece.encode()


def _shown(piece: str) -> str:
    """The text of a byte-level piece."""
    return _bytes_of(piece).decode("utf-8", "backslashreplace")


def _join(word: list[str], left: str, right: str) -> None:
    i = 0
    while i < len(word) - 1:
        if (word[i], word[i + 1]) == (left, right):
            word[i : i + 2] = [left + right]
        i += 1


def _check_text(text: Any) -> str:
    if not isinstance(text, str):
        raise TypeError(f"a text is a str, not a {type(text).__name__}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        found = f"U+{ord(text[error.start]):04X} at {error.start}"
        raise ValueError(f"the text has a lone surrogate, {found}: no valid Unicode") from None
    return text
