import math
from typing import Any

import numpy as np
import pytest
import torch

from interp import HookedGPT, heads
from interp.heads import null as nulls
from interp.heads import trials
from interp.heads.scores import SCORES, _told_by_distance
from tests.heads import literal
from tests.variants import VARIANTS, quick_of, some_tokens, variant

CAUSAL = [name for name in VARIANTS if name != "encoder"]
LOOKS = ["current", "previous", "first", "duplicate", "induction"]


@pytest.fixture(autouse=True)
def _few_shuffled_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nulls, "_HEADS", 60)


def rows(n_pos: int = 9, n_rows: int = 5) -> torch.Tensor:
    """Few different tokens, so that they come again."""
    return torch.randint(0, 5, (n_rows, n_pos), generator=torch.Generator().manual_seed(3))


def masked(side: str, tokens: torch.Tensor) -> torch.Tensor:
    mask = torch.ones_like(tokens, dtype=torch.bool)
    if side != "none":
        mask[0, slice(0, 3) if side == "left" else slice(-3, None)] = False
        mask[2, slice(0, 1) if side == "left" else slice(-1, None)] = False
    return mask


def assert_close(found: Any, wanted: float, name: str) -> None:
    assert (math.isnan(found) and math.isnan(wanted)) or found == pytest.approx(wanted, abs=1e-5), name


@pytest.mark.parametrize("side", ["none", "left", "right"])
@pytest.mark.parametrize("name", quick_of(CAUSAL, "llama"))
def test_looks_are_those_of_a_loop_over_positions(name: str, side: str) -> None:
    model, tokens = variant(name), rows()
    mask = masked(side, tokens)
    queries = mask.clone()
    queries[1, 4:6] = False
    found = heads.scores(model, tokens, attention_mask=mask, queries=queries, progress=False)
    _, cache = model.run_with_cache(tokens, attention_mask=mask)
    for layer in range(model.cfg.n_layers):
        for head in range(model.cfg.n_heads):
            each = [
                literal.looks(cache["pattern", layer][row, head], *(x[row].tolist() for x in (tokens, mask, queries)))
                for row in range(len(tokens))
            ]
            for score in LOOKS:
                values = np.array([row[score] for row in each])
                assert_close(found.sel(score=score)[layer, head].item(), np.nanmean(values), f"{score} L{layer}H{head}")
                n = np.isfinite(values).sum()
                error = 1.96 * np.nanstd(values, ddof=1) / n**0.5
                assert_close(found.low.sel(score=score)[layer, head].item(), np.nanmean(values) - error, f"low {score}")
                assert found.n.sel(score=score).item() == n
            by_back = {
                back: np.nanquantile([row[f"{back} back"] for row in each], 0.25) for back in range(2, max(3, 9 // 2))
            }
            best = max(by_back, key=by_back.__getitem__)
            assert_close(found.sel(score="k_back")[layer, head].item(), by_back[best], "k back")
            assert found.k[layer, head].item() == best


@torch.no_grad()
@pytest.mark.parametrize("name", quick_of(["gpt2", "llama", "olmo2", "attn_only"], "attn_only"))
def test_what_is_moved_and_copied_is_that_of_a_loop_over_positions(name: str) -> None:
    model, tokens = variant(name), rows()
    found = heads.scores(model, tokens, progress=False)
    _, cache = model.run_with_cache(tokens)
    group = model.cfg.n_heads // model.cfg.n_key_value_heads
    real = [True] * tokens.shape[1]
    has_words = not model.cfg.tie_word_embeddings  # else the effective embedding is read
    for layer in range(model.cfg.n_layers):
        attn, resid = model.blocks[layer].attn, cache["resid_pre", layer]
        said = model.ln_final(resid) @ model.W_U + (0 if model.b_U is None else model.b_U)
        predicted = said.argmax(-1)
        for head in range(model.cfg.n_heads):
            pattern, own = cache["pattern", layer][:, head], list[dict[str, float]]()
            copied, suppressed = [], []
            changes = {t: literal.raises(model, layer, head, t) for t in range(5)}
            is_raised = {t: x[t] == x.max() for t, x in changes.items()}
            is_lowered = {t: x[t] == x.min() for t, x in changes.items()}
            for row in range(len(tokens)):
                ids = tokens[row].tolist()
                writes = cache["v", layer][row, :, head // group] @ attn.W_O[head]
                own.append(literal.moved(pattern[row], writes, resid[row], ids, real))
                each = [[float(pattern[row, i, j]) * is_raised[ids[j]] for j in range(i)] for i in range(1, len(ids))]
                copied.append(sum(map(sum, each)) / len(each))
                asked = [
                    [float(pattern[row, i, j]) * is_lowered[ids[j]] for j in range(i) if ids[j] == predicted[row, i]]
                    for i in range(1, len(ids))
                ]
                asked = [each for each in asked if each]
                suppressed.append(sum(map(sum, asked)) / len(asked) if asked else math.nan)
            for score in ("first_moved", "induction_moved"):
                wanted = np.mean([each[score] for each in own])
                assert found.sel(score=score)[layer, head].item() == pytest.approx(wanted, rel=1e-4), score
            if has_words:
                assert found.sel(score="copying")[layer, head].item() == pytest.approx(np.mean(copied), abs=1e-5)
                known = [value for value in suppressed if not math.isnan(value)]
                wanted = np.mean(known) if known else math.nan
                assert_close(found.sel(score="negative")[layer, head].item(), wanted, "negative")


@pytest.mark.slow
def test_induction_in_text_is_that_of_a_loop_over_positions(tmp_path: Any) -> None:
    model = HookedGPT.from_pretrained("stdlib-attn-2l")
    text = "def area(width, height):\n    return width * height\n\ndef volume(width, height, depth):\n    return width"
    found = heads.scores(model, text=[text, text[9:]], progress=False)
    of_text = trials.text_rows(model, [text, text[9:]])
    assert of_text.real.sum() < of_text.real.numel(), "rows of different lengths"
    _, cache = model.run_with_cache(of_text.tokens, attention_mask=of_text.mask)
    ids, real = of_text.tokens.tolist(), of_text.real.tolist()
    for layer, head in ((0, 1), (1, 2), (1, 4)):
        each = [
            literal.looks(cache["pattern", layer][row, head], ids[row], real[row], real[row])["induction_text"]
            for row in range(len(ids))
        ]
        assert found.sel(score="induction_text")[layer, head].item() == pytest.approx(np.mean(each), abs=1e-5)


def test_successors_are_those_that_the_ov_circuit_raises_most() -> None:
    model, lists = variant("attn_only"), [[3, 1, 7, 5], [2, 9, 4]]
    found = heads.scores(model, rows(), lists=lists, progress=False).sel(score="successor")
    for layer in range(model.cfg.n_layers):
        for head in range(model.cfg.n_heads):
            right = [
                literal.raises(model, layer, head, item)[items].argmax().item() == i + 1
                for items in lists
                for i, item in enumerate(items[:-1])
            ]
            assert found[layer, head].item() == pytest.approx(np.mean(right))
    assert found.n.item() == 5


@pytest.mark.slow
def test_scores_depend_neither_on_the_batch_size_nor_on_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokens = variant("qwen3"), rows()
    whole = heads.scores(model, tokens, progress=False)
    longer, mask = torch.nn.functional.pad(tokens, (2, 0)), torch.nn.functional.pad(torch.ones_like(tokens), (2, 0))
    padded = heads.scores(model, longer, attention_mask=mask, progress=False)
    monkeypatch.setattr(nulls, "_AT_ONCE", 1)
    by_row = heads.scores(model, tokens, progress=False)
    looks = whole.sel(score=[score for score in SCORES if score != "k_back"])  # longer rows have more offsets
    for other in (by_row, padded.sel(score=looks.score)):
        for name in ("low", "high", "threshold", "null", "by_distance"):
            np.testing.assert_allclose(other[name].sel(score=looks.score), looks[name], atol=1e-5)
        np.testing.assert_allclose(other.sel(score=looks.score), looks, atol=1e-5)
    np.testing.assert_allclose(by_row, whole, atol=1e-5)


def test_edits_and_hooks_around_it_act_on_what_is_scored() -> None:
    model, tokens = variant("gpt2"), rows()

    def to_itself(pattern: torch.Tensor, hook: Any) -> torch.Tensor:
        return torch.eye(pattern.shape[-1]).expand_as(pattern)

    with model.hooks([("blocks.1.attn.hook_pattern", to_itself)]):
        found = heads.scores(model, tokens, progress=False)
    assert found.sel(score="current", layer=1).to_numpy() == pytest.approx(1)
    assert float(found.sel(score="current", layer=0).max()) < 1


def test_half_precision_scores_as_single_does() -> None:
    tokens = rows()
    one, other = (
        heads.scores(variant("llama", dtype), tokens, progress=False) for dtype in (torch.float32, torch.bfloat16)
    )
    for score in LOOKS:
        np.testing.assert_allclose(other.sel(score=score), one.sel(score=score), atol=0.03)


def test_a_habit_of_distance_explains_itself_and_nothing_more() -> None:
    """Rows of one period: what looks a period back cannot be told from induction. Of several: it can."""
    from interp.zoo import planted

    model = planted.fixed_offset_head(offset=4, d_vocab=12, n_ctx=20)
    same = torch.stack([torch.randperm(11, generator=torch.Generator().manual_seed(i))[:5].repeat(4) for i in range(8)])
    found = heads.scores(model, same + 1, progress=False)
    at = found.sel(score="induction").to_numpy().argmax()
    assert found.sel(score="induction").to_numpy().flat[at] > 0.5
    explained = found.by_distance.sel(score="induction").to_numpy().flat[at]
    assert found.low.sel(score="induction").to_numpy().flat[at] - explained < found.null.sel(score="induction")


def test_no_row_explains_itself() -> None:
    habit = torch.tensor([[[[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.0, torch.nan, 0.5]]]], dtype=torch.float64)
    distances = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, torch.nan]], dtype=torch.float64)
    explained = _told_by_distance(habit, distances)
    assert explained.item() == pytest.approx((0.0 + 0.25) / 2), "of row 0 none, of row 1 half of row 2's half"


def test_what_cannot_be_measured_is_nan_and_bad_input_is_refused() -> None:
    model, tokens = variant("sinusoidal"), some_tokens()
    found = heads.scores(model, tokens, progress=False)
    for score in ("copying", "negative", "successor", "induction_text"):
        assert np.isnan(found.sel(score=score)).all(), "it predicts other tokens than it reads; it has no tokenizer"
        assert np.isnan(found.threshold.sel(score=score))
    cases = [
        ("give 3 at least", (tokens[:, :2],), {}),
        (r"queries has shape \[3, 2\]; the tokens are \[3, 7\]", (tokens,), {"queries": torch.ones(3, 2).bool()}),
        ("give tokens=", (), {"queries": torch.ones(3, 7).bool()}),
        ("text= needs a tokenizer", (), {"text": "a text"}),
        ("too short to tell a successor", (tokens,), {"lists": [[1, 2]]}),
    ]
    for message, given, choices in cases:
        with pytest.raises(ValueError, match=message):
            heads.scores(model, *given, **choices, progress=False)
    small = variant("gpt2", n_ctx=4)
    with pytest.raises(ValueError, match="have no room for three periods: give tokens= yourself"):
        heads.scores(small, progress=False)


def test_random_rows_repeat_with_periods_of_their_own() -> None:
    model = HookedGPT.from_pretrained("stdlib-4l")
    found = trials.repeats(model, 40, 64)
    bos = model.tokenizer.bos_token_id  # type: ignore[union-attr]
    assert (found.tokens[:, 0] == bos).all()
    assert not (found.tokens[:, 1:] == bos).any()
    periods = set()
    for row in found.tokens[:, 1:].tolist():
        lengths = [p for p in range(1, 40) if row[-p:] == row[-2 * p : -p]]
        periods.add(lengths[0])
        assert len(set(row[-lengths[0] :])) == lengths[0], "within a period no token occurs twice"
    assert len(periods) > 10
    assert torch.equal(trials.repeats(model, 40, 64).tokens, found.tokens)
    assert not torch.equal(trials.repeats(model, 40, 64, seed=1).tokens, found.tokens)


def test_rows_in_other_tokens_repeat_at_the_same_places() -> None:
    model = HookedGPT.from_pretrained("stdlib-attn-2l")
    tokens = trials.repeats(model, 6, 64).tokens
    others = trials.in_other_tokens(model, tokens)
    assert torch.equal(others[:, 0], tokens[:, 0]), "BOS stays"
    assert (others != tokens)[:, 1:].all()
    same = lambda rows: rows[:, :, None] == rows[:, None, :]
    assert torch.equal(same(others), same(tokens))
    assert torch.isin(others[:, 1:], trials.ordinary_tokens(model)).all()


def test_a_pattern_of_ones_own_is_scored_as_the_named_one() -> None:
    model, tokens = variant("gpt2"), rows()
    found = heads.scores(model, tokens, progress=False)
    previous = torch.ones(8).diag(-1)
    own = heads.detect_pattern(model, tokens, previous, progress=False)
    for name in ("low", "high", "threshold", "null"):
        np.testing.assert_allclose(own[name], found[name].sel(score="previous"), atol=1e-6)
    np.testing.assert_allclose(own, found.sel(score="previous"), atol=1e-6)
    each = (tokens[:, :, None] == tokens[:, None]).tril(-1)
    own = heads.detect_pattern(model, tokens, each, progress=False)
    np.testing.assert_allclose(own, found.sel(score="duplicate"), atol=1e-6)
    halved = heads.detect_pattern(model, tokens, each * 0.5, progress=False)
    np.testing.assert_allclose(halved, found.sel(score="duplicate") / 2, atol=1e-6)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (torch.ones(3, 3), r"target has shape \[3, 3\]; it weighs \[query_pos key_pos\], \[9, 9\]"),
        (2 * torch.eye(9), "weighs keys from 0 to 1"),
        (torch.full((9, 9), torch.nan), "weighs keys from 0 to 1"),
        (torch.zeros(9, 9), "some of them above 0"),
    ],
)
def test_a_target_that_is_none_is_refused(target: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        heads.detect_pattern(variant("gpt2"), rows(), target, progress=False)
