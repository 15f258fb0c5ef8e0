"""Beam search against `transformers`, and its groups against a literal search that runs every prefix anew."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from interp import HookedGPT
from interp.generation import current_step
from interp.tokenization import Tokenizer
from tests.families import saved_model
from tests.variants import quick_of, some_tokens, variant

TOKENS = torch.randint(0, 31, (3, 7), generator=torch.Generator().manual_seed(1))
MASK = torch.ones_like(TOKENS)
MASK[1, :3] = 0
CHOICES: list[dict[str, Any]] = [
    {"num_beams": 3},
    {"num_beams": 4, "length_penalty": -1.5, "num_return_sequences": 3},
    {"num_beams": 3, "length_penalty": 2.0, "early_stopping": True, "num_return_sequences": 2},
    {"num_beams": 2, "early_stopping": "never", "length_penalty": 0.5, "num_return_sequences": 2},
]


@pytest.mark.parametrize("name", quick_of(["GPT-2", "Mistral", "BLOOM", "Gemma 3"], "GPT-2"))
def test_beams_equal_theirs_token_by_token(name: str, tmp_path: Path) -> None:
    theirs = saved_model(name, tmp_path)
    ours = HookedGPT.from_pretrained(tmp_path)
    eos = int(ours.generate(TOKENS, 9, num_beams=3, attention_mask=MASK)[0, -4])
    ended = 0
    for choices in CHOICES:
        how = {"attention_mask": MASK, "max_new_tokens": 9, "eos_token_id": eos, **choices}
        reference = theirs.generate(
            TOKENS, do_sample=False, pad_token_id=eos, return_dict_in_generate=True, output_scores=True, **how
        )
        found = ours.generate(TOKENS, return_type="full", **how)
        assert torch.equal(found.tokens, reference.sequences)
        torch.testing.assert_close(found.scores, reference.sequences_scores, rtol=1e-4, atol=1e-4)
        ended += int((found.lengths < 9).sum())
    assert ended


def literal(
    model: HookedGPT, prompt: Tensor, n_new: int, eos: int, n_groups: int, size: int, diversity: float, penalty: float
) -> list[tuple[float, list[int]]]:
    """What groups of beams do to one prompt, each prefix read anew."""
    beams: list[list[tuple[float, list[int]]]] = [[(0.0, [])] for _ in range(n_groups)]
    done: list[list[tuple[float, list[int]]]] = [[] for _ in range(n_groups)]
    resting = [False] * n_groups
    for step in range(1, n_new + 1):
        taken: list[int] = []
        for g in range(n_groups):
            candidates = []
            for total, prefix in beams[g]:
                log_probs = model(torch.tensor([[*prompt.tolist(), *prefix]]))[0, -1].float().log_softmax(-1)
                for token, log_prob in enumerate(log_probs.tolist()):
                    candidates.append((total + log_prob - diversity * taken.count(token), [*prefix, token]))
            candidates.sort(key=lambda each: -each[0])
            going = []
            for rank, (total, prefix) in enumerate(candidates):
                if prefix[-1] != eos:
                    going.append((total, prefix))
                if (prefix[-1] == eos or step == n_new) and rank < size and not resting[g]:
                    done[g].append((total / step**penalty, prefix))
            done[g] = sorted(done[g], key=lambda each: -each[0])[:size]
            beams[g] = going[:size]
            taken += [prefix[-1] for _, prefix in beams[g]]
            if len(done[g]) == size and going[0][0] / step**penalty <= done[g][-1][0]:
                resting[g] = True
    return sorted((one for group in done for one in group), key=lambda each: -each[0])


@pytest.mark.slow
@torch.no_grad()
def test_groups_are_those_of_the_literal_search() -> None:
    model = variant("llama", n_ctx=16)
    tokens = some_tokens(2, 4)
    shared = set()
    for n_groups, size, diversity, penalty, eos in ((2, 2, 1.5, 1.0, 4), (3, 1, 0.7, 0.0, 9), (2, 3, 0.3, 2.0, 7)):
        how = {"num_beams": n_groups * size, "num_beam_groups": n_groups, "diversity_penalty": diversity}
        found = model.generate(
            tokens, 6, eos_token_id=eos, length_penalty=penalty, num_return_sequences=n_groups * size,
            return_type="full", **how,
        )  # fmt: skip
        expected = [one for row in tokens for one in literal(model, row, 6, eos, n_groups, size, diversity, penalty)]
        for i, (score, new) in enumerate(expected):
            assert found.tokens[i, 4 : 4 + found.lengths[i]].tolist() == new
            assert float(found.scores[i]) == pytest.approx(score, abs=1e-4)
        shared.add(len({tuple(new) for _, new in expected}))
    assert len(shared) > 1


def test_hooks_act_on_every_beam_and_text_comes_as_asked() -> None:
    model = variant("llama", d_vocab=257, n_ctx=48)
    model.tokenizer = Tokenizer.bytes()
    seen: list[tuple[int | None, tuple[int, ...]]] = []
    with model.hooks([("blocks.1.attn.hook_z", lambda z, hook: seen.append((current_step(), (*z.shape[:2],))))]):
        found = model.generate(["ab", "xyz"], 4, num_beams=3, stop_at_eos=False, return_type="full")
    assert seen == [(0, (2, 4)), *((step, (6, 1)) for step in (1, 2, 3))]
    alone = [model.generate(text, 4, num_beams=3, stop_at_eos=False) for text in ("ab", "xyz")]
    assert found.text == alone
    zeroed = [("blocks.*.attn.hook_z", lambda z, hook: z * 0)]
    with model.hooks(zeroed):
        edited = model.generate("ab", 5, num_beams=3, stop_at_eos=False, return_type="full")
    with torch.no_grad():
        log_probs = model.run_with_hooks(edited.tokens, fwd_hooks=zeroed).log_softmax(-1)[0, -6:-1]
    own = log_probs.gather(1, edited.tokens[0, -5:, None])[:, 0]
    torch.testing.assert_close(edited.log_probs[0], own, rtol=1e-4, atol=1e-4)
    assert float(edited.scores[0]) == pytest.approx(float(own.mean()), abs=1e-4)


def test_beams_that_make_no_sense_are_refused() -> None:
    model = variant("gpt2")
    for wrong, message in (
        ({"num_beams": 4, "num_beam_groups": 3}, "groups of one size"),
        ({"num_beams": 4, "num_beam_groups": 2}, "a penalty above 0"),
        ({"num_beams": 4, "diversity_penalty": 0.5}, "a penalty needs groups"),
        ({"length_penalty": 2.0}, "for several num_beams"),
        ({"num_beams": 2, "num_return_sequences": 3}, "more than num_beams"),
        ({"num_beams": 2, "top_k": 3}, "top_k"),
        ({"num_beams": 2, "stream": True}, "stream"),
        ({"num_beams": 2, "cache": True}, "cache"),
    ):
        with pytest.raises(ValueError, match=message):
            model.generate(some_tokens(2, 4), 3, **wrong)
