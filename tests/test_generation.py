"""Generation: against `transformers`, step by step, ragged, streamed, hooked, cached."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from interp import HookedGPT, KVCache
from interp.generation import Sampling, current_step, drawn, explained, runners_up
from interp.tokenization import Tokenizer
from tests.families import saved_model
from tests.tokenizers import llama_like
from tests.variants import quick_of, some_tokens, variant

TOKENS = some_tokens(n_pos=5)


@pytest.fixture
def model() -> HookedGPT:
    made = variant("llama", d_vocab=257, n_ctx=48)
    made.tokenizer = Tokenizer.bytes()
    return made


@pytest.mark.parametrize("name", quick_of(["GPT-2", "Llama 2 and 3.x", "Mistral", "Gemma 2"], "Mistral"))
def test_greedy_output_equals_theirs_token_by_token(name: str, tmp_path: Path) -> None:
    theirs = saved_model(name, tmp_path)
    ours = HookedGPT.from_pretrained(tmp_path)
    tokens = torch.randint(0, 31, (3, 7), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(tokens)
    mask[1, :3] = 0
    for penalty in (1.0, 1.3):
        if penalty != 1:
            mask = torch.ones_like(tokens)  # theirs counts padding as seen
        reference = theirs.generate(
            tokens, attention_mask=mask, max_new_tokens=20, do_sample=False, repetition_penalty=penalty, pad_token_id=0
        )
        generated = ours.generate(
            tokens, 20, temperature=0, attention_mask=mask, repetition_penalty=penalty, return_type="tokens"
        )
        assert torch.equal(generated, reference)


@pytest.mark.parametrize(
    "choices",
    [
        {"temperature": 0.7},
        {"top_k": 5},
        {"top_p": 0.6},
        {"min_p": 0.1},
        {"repetition_penalty": 1.4},
        {"temperature": 1.7, "top_k": 9, "top_p": 0.9, "min_p": 0.05, "repetition_penalty": 0.8},
        {"top_k": 1000, "top_p": 1.0},
    ],
    ids=str,
)
def test_distributions_equal_theirs(choices: dict[str, Any]) -> None:
    draw = torch.Generator().manual_seed(0)
    logits, seen = 3 * torch.randn(64, 50, generator=draw), torch.randint(0, 50, (64, 9), generator=draw)
    warpers = {
        "repetition_penalty": RepetitionPenaltyLogitsProcessor,
        "temperature": TemperatureLogitsWarper,
        "top_k": TopKLogitsWarper,
        "top_p": TopPLogitsWarper,
        "min_p": MinPLogitsWarper,
    }
    theirs = LogitsProcessorList([make(choices[name]) for name, make in warpers.items() if name in choices])
    expected = theirs(seen, logits.clone()).softmax(-1)
    torch.testing.assert_close(Sampling(**choices).distribution(logits, seen), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", quick_of(["GPT-2", "Qwen3", "Gemma 2"], "Gemma 2"))
def test_the_filtered_distribution_equals_theirs_at_every_step_of_a_sample(name: str, tmp_path: Path) -> None:
    theirs = saved_model(name, tmp_path)
    ours = HookedGPT.from_pretrained(tmp_path)
    tokens = torch.randint(0, 31, (3, 7), generator=torch.Generator().manual_seed(1))
    choices = {"temperature": 1.4, "top_k": 12, "top_p": 0.9, "min_p": 0.02, "repetition_penalty": 1.2}
    torch.manual_seed(0)
    how = {"do_sample": True, "max_new_tokens": 10, "output_scores": True, "return_dict_in_generate": True}
    reference = theirs.generate(tokens, pad_token_id=0, **how, **choices)
    past = KVCache()
    with torch.no_grad():
        for step, scores in enumerate(reference.scores):
            seen = reference.sequences[:, : 7 + step]
            logits = ours(seen[:, past.length :], past_kv_cache=past)[:, -1]
            distribution = Sampling(**choices).distribution(logits, seen)
            torch.testing.assert_close(distribution, scores.softmax(-1), rtol=1e-5, atol=1e-5)


def test_samples_follow_the_distribution_and_their_seed(model: HookedGPT) -> None:
    one = model.generate("ab", 12, seed=3)
    assert one == model.generate("ab", 12, seed=3)
    assert one != model.generate("ab", 12, seed=4)
    many = model.generate("ab", 1, num_return_sequences=4000, top_k=3, seed=0, return_type="full")
    probs = Sampling(top_k=3).distribution(model("ab")[:, -1], model.to_tokens("ab"))[0]
    drawn = many.tokens[:, -1].bincount(minlength=257) / 4000
    assert (drawn - probs).abs().max() < 0.03
    assert set(drawn.nonzero()[:, 0].tolist()) == set(probs.nonzero()[:, 0].tolist())


def test_one_number_says_which_token_is_drawn() -> None:
    probs = torch.tensor([[0.0, 0.25, 0.0, 0.5, 0.25, 0.0]])
    for random, token in {0.0: 1, 0.249: 1, 0.25: 3, 0.5: 3, 0.75: 4, 1 - 2**-53: 4}.items():
        assert drawn(probs, torch.tensor([random], dtype=torch.float64)).tolist() == [token], random
    with pytest.raises(ValueError, match="not finite"):
        drawn(probs * torch.nan, torch.tensor([0.5]))


@pytest.mark.parametrize("choices", [{"temperature": 0.7, "top_k": 9, "top_p": 0.8}, {"repetition_penalty": 1.5}])
def test_a_choice_is_explained_from_the_logits_to_the_number_that_decided(
    model: HookedGPT, choices: dict[str, Any]
) -> None:
    found = model.generate("ab", 45, num_return_sequences=2, seed=3, return_type="full", stop_at_eos=False, **choices)
    for row, step in ((0, 0), (1, 7), (0, 44)):
        choice = explained(model, Sampling(**choices), found, row, step)
        at = found.tokens.shape[1] - 45 + step
        logits = model(found.tokens[row : row + 1, :at])[0, -1]
        torch.testing.assert_close(choice.stages["logit"], logits, rtol=1e-5, atol=1e-5)
        assert choice.token == int(found.tokens[row, at])
        probs = choice.stages["probability"]
        assert choice.below[choice.token] <= choice.random < choice.below[choice.token] + probs[choice.token]
        assert choice.log_prob == pytest.approx(float(found.log_probs[row, step]), abs=1e-4)
    assert list(choice.stages)[-1] == "probability"
    for step, others in enumerate(runners_up(model, Sampling(**choices), found, 1)):
        probs = explained(model, Sampling(**choices), found, 1, step).stages["probability"]
        probs[found.tokens[1, found.tokens.shape[1] - 45 + step]] = 0
        expected = [prob for prob in probs.topk(3).values.tolist() if prob > 1e-9]
        assert [prob for _, prob in others if prob > 1e-9] == pytest.approx(expected, rel=1e-3)
        assert all(probs[token] == pytest.approx(prob, rel=1e-3) for token, prob in others)
    assert ("top k" in choice.stages) == ("top_k" in choices)


def test_without_chance_no_number_is_thrown(model: HookedGPT) -> None:
    found = model.generate("ab", 5, temperature=0, return_type="full")
    assert found.random.isnan().all()
    choice = explained(model, Sampling(temperature=0), found, 0, 2)
    assert choice.stages["probability"][choice.token] == 1
    assert list(choice.stages) == ["logit", "probability"]
    with pytest.raises(ValueError, match="steps 0 to 4"):
        explained(model, Sampling(temperature=0), found, 0, 5)


def test_log_probs_are_the_models_own(model: HookedGPT) -> None:
    result = model.generate("ab", 6, temperature=0.5, top_k=4, seed=1, return_type="full")
    log_probs = model(result.tokens).log_softmax(-1)
    expected = [log_probs[0, pos - 1, result.tokens[0, pos]] for pos in range(3, 9)]
    torch.testing.assert_close(result.log_probs[0], torch.stack(expected), rtol=1e-4, atol=1e-5)


def test_ragged_rows_go_on_as_if_alone(model: HookedGPT) -> None:
    texts = ["hello there", "a", "some"]
    together = model.generate(texts, 8, temperature=0, stop_at_eos=False)
    assert together == [model.generate(text, 8, temperature=0, stop_at_eos=False) for text in texts]
    tokens, mask = model.read(texts)  # padded on the right
    again = model.generate(tokens, 8, temperature=0, attention_mask=mask, stop_at_eos=False, return_type="text")
    assert again == together


def test_a_row_ends_at_a_token_or_a_text_and_the_others_go_on(model: HookedGPT) -> None:
    plain = model.generate(["ab", "xyz"], 12, temperature=0, stop_at_eos=False, return_type="full")
    token = int(plain.tokens[0, -9])
    ended = model.generate(["ab", "xyz"], 12, temperature=0, stop_at_eos=False, stop=token, return_type="full")
    for row in (0, 1):
        new = plain.tokens[row, -12:].tolist()
        length = new.index(token) + 1 if token in new else 12
        assert ended.lengths[row] == length
        n_shown = ended.tokens.shape[1] - plain.tokens.shape[1] + 12
        assert ended.tokens[row, -n_shown:].tolist()[:length] == new[:length]
        assert not ended.log_probs[row, length:].any()
    as_eos = model.generate("ab", 12, temperature=0, eos_token_id=token)
    assert as_eos == model.tokenizer.decode(
        model.to_tokens("ab", False)[0].tolist()
        + plain.tokens[0, -12:].tolist()[: plain.tokens[0, -12:].tolist().index(token)]
    )
    letters = variant("gpt2", d_vocab=257, n_ctx=48, tie_word_embeddings=False, bias_unembed=True)
    letters.tokenizer = model.tokenizer
    with torch.no_grad():  # only lower-case letters are ever likely
        letters.unembed.bias.fill_(-1000.0)
        letters.unembed.bias[97:123] = 0.0
    text = letters.generate("ab", 30, seed=0)
    start = next(i for i in range(5, 25) if text.index(text[i : i + 2]) == i)
    assert letters.generate("ab", 30, seed=0, stop=text[start : start + 2]) == text[: start + 2]


def test_a_stream_gives_the_same_text_in_whole_characters(model: HookedGPT) -> None:
    whole = model.generate("ab", 30, seed=2, stop_at_eos=False)
    pieces = list(model.generate("ab", 30, seed=2, stop_at_eos=False, stream=True))
    assert "ab" + "".join(pieces) == whole
    rows = list(model.generate(["ab", "cd"], 10, temperature=0, stream=True, stop_at_eos=False))
    assert ["".join(row) for row in zip(*rows, strict=True)] == [
        text[2:] for text in model.generate(["ab", "cd"], 10, temperature=0, stop_at_eos=False)
    ]
    tokens = list(model.generate(TOKENS, 4, temperature=0, stream=True, stop_at_eos=False))
    assert torch.equal(torch.stack(tokens, 1), model.generate(TOKENS, 4, temperature=0, stop_at_eos=False)[:, 5:])


def zero_heads(z: Tensor, hook: object) -> Tensor:
    return z * 0


def test_hooks_act_at_every_step_and_know_it(model: HookedGPT) -> None:
    seen: list[tuple[int | None, int]] = []
    with model.hooks([("blocks.1.attn.hook_z", lambda z, hook: seen.append((current_step(), z.shape[1])))]):
        model.generate("abc", 4, temperature=0, stop_at_eos=False)
    assert seen == [(0, 4), (1, 1), (2, 1), (3, 1)]
    assert current_step() is None
    hooks = [("blocks.*.attn.hook_z", zero_heads)]
    with model.hooks(hooks):
        edited = model.generate("abc", 10, temperature=0, stop_at_eos=False)
    by_hand = model.to_tokens("abc")
    for _ in range(10):
        logits = model.run_with_hooks(by_hand, fwd_hooks=hooks)
        by_hand = torch.cat((by_hand, logits[:, -1:].argmax(-1)), 1)
    assert edited == model.to_string(by_hand[0, 1:])
    assert edited != model.generate("abc", 10, temperature=0, stop_at_eos=False)


def test_a_stream_keeps_the_hooks_of_its_call_and_leaks_none(model: HookedGPT) -> None:
    plain = list(model.generate("abc", 8, temperature=0, stream=True, stop_at_eos=False))
    with model.hooks([("blocks.*.attn.hook_z", zero_heads)]):
        edited = list(model.generate("abc", 8, temperature=0, stream=True, stop_at_eos=False))
        hooked = model.generate("abc", 8, temperature=0, stream=True, stop_at_eos=False)
        first = next(hooked)
    assert not model.is_observed()
    assert [first, *hooked] == edited != plain
    late = model.generate("abc", 8, temperature=0, stream=True, stop_at_eos=False)
    with model.hooks([("blocks.*.attn.hook_z", zero_heads)]):
        assert list(late) == plain


@pytest.mark.parametrize("name", quick_of(["gpt2", "gemma2", "neox"], "gemma2"))
def test_the_cache_of_all_steps_is_that_of_one_pass(name: str) -> None:
    model = variant(name, torch.float64)
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1], [0, 1, 1, 1, 1]])
    for given in (None, mask):
        result = model.generate(TOKENS, 6, temperature=0, cache=True, attention_mask=given)
        whole_mask = None if given is None else torch.cat((given, torch.ones(3, 5, dtype=torch.long)), 1)
        _, cache = model.run_with_cache(result.tokens[:, :-1], attention_mask=whole_mask)
        assert list(result.cache) == list(cache)
        for key, value in cache.items():
            torch.testing.assert_close(result.cache[key], value, rtol=1e-8, atol=1e-8)
        parts = result.cache.decompose_resid()
        torch.testing.assert_close(parts.sum(0), cache["resid_post", -1], rtol=1e-8, atol=1e-8)
    few = model.generate(TOKENS, 6, temperature=0, cache="*hook_z")
    assert {key.rpartition(".")[2] for key in few.cache} == {"hook_z"}


def test_beyond_the_context_is_an_error_or_slides() -> None:
    model = variant("gpt2")
    with pytest.raises(
        ValueError, match=r"5 tokens and 8 new ones go beyond n_ctx=11; ask for fewer, or pass on_overflow"
    ):
        model.generate(TOKENS, 8)
    assert model.generate(TOKENS, 7, temperature=0).shape == (3, 12)
    slid = model.generate(TOKENS, 15, temperature=0, on_overflow="slide")
    by_hand = TOKENS
    for _ in range(15):
        by_hand = torch.cat((by_hand, model(by_hand[:, -11:])[:, -1:].argmax(-1)), 1)
    assert torch.equal(slid, by_hand)


def test_words_with_marks_and_bytes_stream_and_stop_as_they_read() -> None:
    tokenizer = llama_like()
    model = variant("gpt2", d_vocab=tokenizer.d_vocab, n_ctx=48, tie_word_embeddings=False, default_prepend_bos=False)
    model.tokenizer = tokenizer
    written = tokenizer.encode(" a b")[1:] + tokenizer.encode("好好")[1:]  # the first piece is the text's own mark

    def forced(logits: Tensor, hook: object) -> Tensor:
        step = current_step()
        assert step is not None
        wanted = torch.full_like(logits, -100.0)
        wanted[..., ([*written, tokenizer.eos_token_id])[min(step, len(written))]] = 0.0
        return wanted

    with model.hooks([("unembed.hook_out", forced)]):
        whole = model.generate("hi", 12, temperature=0)
        pieces = list(model.generate("hi", 12, temperature=0, stream=True))
        stopped = model.generate("hi", 12, temperature=0, stop=" b")
        at_character = model.generate("hi", 12, temperature=0, stop="好")
    assert whole.endswith("a b好好")
    assert "hi" + "".join(pieces) == whole, "no space is lost, and the end-of-text token is not shown"
    assert stopped == whole[: whole.index(" b") + 2]
    assert at_character == whole[: whole.index("好") + 1]
    assert model.to_str_tokens("好")[-3:] == ["\\xe5", "\\xa5", "\\xbd"]


def test_cold_samples_are_greedy_and_ids_of_any_integer_type_stop(model: HookedGPT) -> None:
    greedy = model.generate("ab", 6, temperature=0, stop_at_eos=False)
    assert model.generate("ab", 6, temperature=1e-40, stop_at_eos=False) == greedy
    first = model.generate("ab", 1, temperature=0, stop_at_eos=False, return_type="full").tokens[0, -1]
    ended = model.generate("ab", 6, temperature=0, stop_at_eos=False, stop=[first.numpy()[()]], return_type="full")
    assert ended.lengths.tolist() == [1]


def test_choices_that_make_no_sense_are_refused(model: HookedGPT) -> None:
    with pytest.raises(ValueError, match=r"make no distribution: \{'temperature': -1, 'top_p': 0.0\}.*allowed"):
        model.generate("a", 2, temperature=-1, top_p=0.0)
    for bad in ({"max_new_tokens": 0}, {"num_return_sequences": 0}):
        with pytest.raises(ValueError, match="both must be positive"):
            model.generate("a", **bad)
    with pytest.raises(ValueError, match="empty text, which every text contains"):
        model.generate("a", 2, stop="")
    with pytest.raises(ValueError, match="need the whole"):
        model.generate("a", 2, stream=True, cache=True)
    with pytest.raises(ValueError, match="without on_overflow='slide'"):
        model.generate("a", 2, cache=True, on_overflow="slide")
    with pytest.raises(ValueError, match="attention_mask is for tokens"):
        model.generate("a", 2, attention_mask=torch.ones(1, 2))
    with pytest.raises(ValueError, match="prepend_bos is for text"):
        model.generate(TOKENS, 2, prepend_bos=True)
    with pytest.raises(ValueError, match="does not generate"):
        variant("encoder").generate(TOKENS, 2)
    plain = variant("gpt2")
    with pytest.raises(ValueError, match="this model has no tokenizer"):
        plain.generate(TOKENS, 2, return_type="text")
    with pytest.raises(ValueError, match="are texts, and this model has no tokenizer"):
        plain.generate(TOKENS, 2, stop="a")
    assert model.generate("", 3, temperature=0, stop_at_eos=False)
