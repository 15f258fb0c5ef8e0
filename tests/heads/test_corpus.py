"""What heads look at in a corpus: the numbers of a loop, whatever the batch, the padding, the block of queries."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from xarray import Dataset

from interp import HookedGPT, zoo
from interp.heads import TokenClasses, corpus_statistics
from interp.passages import passages
from interp.tokenization import Tokenizer
from tests.heads.by_hand import loop
from tests.peak_memory import peak_bytes
from tests.variants import VARIANTS, quick_of, some_tokens, variant

PER_HEAD = ("by_offset", "itself", "previous", "first", "entropy", "relative_entropy", "by_class", "by_query_class")


def statistics(model: HookedGPT, corpus: Any, **choices: Any) -> Dataset:
    return corpus_statistics(model, corpus, progress=False, **choices)


def texts(*lengths: int) -> list[np.ndarray]:
    draw = np.random.default_rng(0)
    return [draw.integers(0, 13, n) for n in lengths]


def assert_same(one: Dataset, other: Dataset, atol: float = 1e-6) -> None:
    assert set(one) == set(other)
    for name in one:
        np.testing.assert_allclose(one[name].values, other[name].values, rtol=0, atol=atol, err_msg=str(name))


def assert_is_the_loops(found: Dataset, model: HookedGPT, corpus: Any, atol: float = 1e-5, **choices: Any) -> None:
    rows = [p.tokens[i, : int(p.mask[i].sum())] for p in passages(model, corpus, **choices) for i in range(len(p))]
    wanted = loop(model, rows)
    n_seen = 0
    for (name, *at), (mean, count) in wanted.items():
        if name == "by_offset":
            value = float(found[name].sel(layer=at[0], head=at[1], offset=at[2]))
            assert int(found["n_at_offset"].sel(layer=at[0], offset=at[2])) == count
            if at[2] in (0, 1):
                assert float(found["previous" if at[2] else "itself"][at[0], at[1]]) == pytest.approx(mean, abs=atol)
        else:
            value = float(found[name].values[tuple(at)])
        assert value == pytest.approx(mean, abs=atol), (name, at)
        n_seen += 1
    n_offsets = sum(name == "by_offset" for name, *_ in wanted)
    assert n_offsets == int((found["n_at_offset"].values > 0).sum()) * model.cfg.n_heads  # and there are no others
    assert n_seen > 60


@pytest.mark.parametrize("at_once", quick_of([1, 60, 2**19], 60))
@pytest.mark.parametrize("name", quick_of(VARIANTS, "gpt2", "gemma2", "encoder"))
def test_every_number_is_that_of_a_loop(name: str, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("interp.heads.corpus._AT_ONCE", {"cpu": at_once})
    model, corpus = variant(name), texts(7, 15, 1)
    assert_is_the_loops(statistics(model, corpus), model, corpus)


@pytest.mark.parametrize("name", ["gpt2", "gemma2", "encoder"])
def test_with_a_tokenizer_keys_and_queries_have_classes(name: str) -> None:
    tokenizer = Tokenizer.bytes()
    model = variant(name, d_vocab=257, d_vocab_out=257)
    model.tokenizer = tokenizer
    corpus = ["a b2, c", "", "x\n(yz) 3"]
    found = statistics(model, corpus)
    assert found["key_class"].values.tolist() == TokenClasses(model).names
    assert (found["n_queries"].values > 0).all()
    assert_is_the_loops(found, model, corpus)
    np.testing.assert_allclose(found["by_class"].sum("key_class"), 1, atol=1e-5)
    np.testing.assert_allclose(found["class_share"].sum("key_class"), 1)


@pytest.mark.parametrize("name", quick_of(["gpt2", "llama", "qwen3", "encoder"], "qwen3"))
@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_neither_the_batch_nor_its_padding_changes_anything(name: str, batch_size: int) -> None:
    model, corpus = variant(name), texts(11, 3, 8, 1, 30, 5)
    assert_same(statistics(model, corpus, batch_size=batch_size), statistics(model, corpus, batch_size=2))


def test_the_order_of_documents_does_not_matter() -> None:
    model, corpus = variant("gpt2"), texts(11, 3, 8, 1, 30, 5)
    one, other = statistics(model, corpus), statistics(model, corpus[::-1])
    assert_same(one, other)
    for name in ("n_queries", "n_at_offset"):
        assert (one[name].values == other[name].values).all()
    assert one.attrs == other.attrs
    assert (one.attrs["tokens"], one.attrs["rows"]) == (58, 8)


def only_itself(pattern: torch.Tensor, hook: Any) -> torch.Tensor:
    pattern[:, 1] = torch.eye(pattern.shape[-1])
    return pattern


def shifted(scores: torch.Tensor, hook: Any) -> torch.Tensor:
    return scores * 0.3


@pytest.mark.parametrize("name", quick_of(["gpt2", "gemma2", "encoder"], "gemma2"))
@pytest.mark.parametrize(
    ("point", "edit"),
    [("hook_pattern", only_itself), ("hook_attn_scores", shifted), ("hook_z", lambda z, hook: z.flip(-1))],
)
def test_edits_around_the_call_act(name: str, point: str, edit: Any) -> None:
    model, corpus = variant(name), texts(7, 11, 2)
    free = statistics(model, corpus)
    with model.hooks([(f"blocks.0.attn.{point}", edit)]):
        found = statistics(model, corpus)
        assert_is_the_loops(found, model, corpus)
    assert np.abs(found["entropy"].values - free["entropy"].values).max() > 1e-3


def test_who_listens_to_patterns_changes_nothing() -> None:
    model, corpus, seen = variant("gemma2"), texts(7, 11, 2), []
    with model.recording("*hook_pattern", lambda x, point: seen.append(x.shape)):
        assert_same(statistics(model, corpus, batch_size=2), statistics(variant("gemma2"), corpus), atol=1e-5)
    assert seen == [(2, 4, 11, 11)] * 2 + [(1, 4, 2, 2)] * 2


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_bfloat16_is_close(name: str) -> None:
    model, corpus = variant(name, torch.bfloat16), texts(7, 11)
    assert_same(statistics(model, corpus), statistics(variant(name, torch.bfloat16).float(), corpus), atol=0.1)


def test_great_scores_stay_finite() -> None:
    model = variant("gpt2")
    with torch.no_grad():
        model.blocks[0].attn.qkv.weight *= 100
    found = statistics(model, texts(11, 4))
    assert all(np.isfinite(found[name].values).all() for name in PER_HEAD if name != "by_query_class")


def test_a_known_head_is_seen() -> None:
    circuit = zoo.planted.previous_token()
    found = statistics(circuit.model, circuit.sample(20).tokens)
    assert float(found["previous"].max()) > 0.99
    assert float(found["by_offset"].max("head").max("layer").sel(offset=2)) < 0.5


@pytest.mark.parametrize(
    ("name", "n_tokens"), [("gpt2", 400), pytest.param("stdlib-4l", 12_000, marks=pytest.mark.slow)]
)
@pytest.mark.long
def test_the_memory_does_not_grow_with_the_corpus(name: str, n_tokens: int) -> None:
    model = variant(name) if name in VARIANTS else HookedGPT.from_pretrained(name)
    corpus = texts(5 * n_tokens) if name in VARIANTS else zoo.standard_library(tokens=5 * n_tokens)
    n_ctx = min(128, model.cfg.n_ctx)

    def read() -> Iterator[Any]:
        yield from corpus

    statistics(model, read(), max_tokens=n_ctx)
    few = peak_bytes(lambda: statistics(model, read(), max_tokens=n_tokens, n_ctx=n_ctx))
    many = peak_bytes(lambda: statistics(model, read(), max_tokens=5 * n_tokens, n_ctx=n_ctx))
    assert many < 1.02 * few


def test_tokens_are_classed_by_their_text() -> None:
    model = HookedGPT.from_pretrained("stdlib-4l")
    classes = TokenClasses(model)
    tokens = model.to_tokens("def areas(width, 12):\n    return")[0]
    shown = [(text, classes.names[i]) for text, i in zip(model.to_str_tokens(tokens), classes(tokens), strict=True)]
    assert shown[0] == ("<|endoftext|>", "special")
    kinds = dict(shown)
    assert kinds["def"] == kinds[" return"] == "word start"
    assert kinds["("] == "punctuation"
    assert kinds[" 12" if " 12" in kinds else "12"] == "number"
    assert all(kind == "whitespace" for text, kind in shown if not text.strip() and text != "<|endoftext|>")
    assert {kind for _, kind in shown} >= {"whitespace", "word continuation"}


def test_a_model_that_drops_at_random_is_refused() -> None:
    with pytest.raises(ValueError, match=r"call model.eval\(\)"):
        statistics(variant("gpt2", dropout=0.1).train(), some_tokens())
