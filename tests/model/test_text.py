"""Text in, tokens and directions out."""

import pytest
import torch

from interp import HookedGPT
from interp.tokenization import Tokenizer
from tests.variants import config

TEXTS = ["hello", "hi", "a longer one"]


@pytest.fixture
def model() -> HookedGPT:
    tokenizer = Tokenizer.bytes()
    return HookedGPT(config("gpt2", d_vocab=tokenizer.d_vocab, n_ctx=32), tokenizer).eval()


def test_tokens_of_texts_begin_with_bos_and_are_padded(model: HookedGPT) -> None:
    assert model.to_tokens("hi").tolist() == [[256, 104, 105]]
    assert model.to_tokens("hi", prepend_bos=False).tolist() == [[104, 105]]
    right = model.to_tokens(TEXTS)
    assert right.shape == (3, 13)
    assert right[1].tolist() == [256, 104, 105] + [256] * 10
    tokens, mask = model.read(TEXTS, padding_side="left")
    assert tokens[1].tolist() == [256] * 10 + [256, 104, 105]
    assert mask[1].tolist() == [0] * 10 + [1] * 3
    assert model.read("hi")[1] is None


def test_a_batch_of_texts_gives_each_texts_own_logits(model: HookedGPT) -> None:
    logits, cache = model.run_with_cache(TEXTS)
    assert torch.equal(model(TEXTS), logits) or torch.allclose(model(TEXTS), logits, atol=1e-5)
    for i, text in enumerate(TEXTS):
        alone = model(text)[0]
        torch.testing.assert_close(logits[i, : len(alone)], alone)
        torch.testing.assert_close(
            cache.accumulated_resid(pos_slice=-1)[-1][i], cache["resid_post", -1][i, len(alone) - 1]
        )
    assert model(TEXTS, prepend_bos=False).shape == (3, 12, 257)
    assert cache.tokens.tolist() == model.to_tokens(TEXTS).tolist()
    edited = model.run_with_hooks("hi", fwd_hooks=[("hook_embed", lambda x, hook: x * 0)])
    assert edited.shape == (1, 3, 257)


def test_strings_come_back(model: HookedGPT) -> None:
    tokens = model.to_tokens(TEXTS[:1], prepend_bos=False)
    assert model.to_string(tokens) == ["hello"]
    assert model.to_string(tokens[0]) == "hello"
    assert model.to_string(104) == "h"
    assert model.to_str_tokens("hi") == ["<|endoftext|>", "h", "i"]
    assert model.to_str_tokens(tokens) == list("hello")
    with pytest.raises(ValueError, match=r"shape \[3, 13\]; give one sequence"):
        model.to_str_tokens(model.to_tokens(TEXTS))


def test_single_tokens_and_their_places(model: HookedGPT) -> None:
    assert model.to_single_token("h") == 104
    assert model.to_single_str_token(104) == "h"
    with pytest.raises(ValueError, match=r"'hi' is 2 tokens, not one: \['h', 'i'\]"):
        model.to_single_token("hi")
    assert model.get_token_position("l", "hello") == 3
    assert model.get_token_position("l", "hello", mode="last", prepend_bos=False) == 3
    assert model.get_token_position(256, model.to_tokens("hi")) == 0
    with pytest.raises(ValueError, match="'z' does not occur in"):
        model.get_token_position("z", "hello")


def test_directions_are_columns_of_the_unembedding(model: HookedGPT) -> None:
    assert torch.equal(model.tokens_to_residual_directions("h"), model.W_U[:, 104])
    tokens = model.to_tokens(["hi", "ho"])
    assert model.tokens_to_residual_directions(tokens).shape == (2, 3, 14)


def test_text_that_becomes_nothing_is_refused(model: HookedGPT) -> None:
    assert model("").shape == (1, 1, 257)
    with pytest.raises(ValueError, match=r"texts \[1\] are empty"):
        model(["a", ""], prepend_bos=False)
    with pytest.raises(ValueError, match="no text was given"):
        model([])
    with pytest.raises(ValueError, match="33 tokens are longer than the context"):
        model("x" * 32)
    with pytest.raises(ValueError, match="attention_mask is for tokens"):
        model("hi", attention_mask=torch.ones(1, 3))
    no_bos = HookedGPT(config("gpt2", d_vocab=257), Tokenizer.from_json(Tokenizer.bytes().to_json()))
    with pytest.raises(ValueError, match="has no beginning-of-text token"):
        no_bos("hi")
    assert no_bos("hi", prepend_bos=False).shape == (1, 2, 257)
    with pytest.raises(ValueError, match="this model has no tokenizer"):
        HookedGPT(config("gpt2"))("hi")
