"""What triggers have in common, and what is lost of a coefficient without a token of the prefix."""

import pytest
import torch

from interp import GPTConfig, HookedGPT
from interp.memories import removal_test, shared_patterns, triggers
from interp.memories.patterns import REMOVED
from interp.memories.scan import BEFORE
from interp.tokenization import Tokenizer
from interp.zoo.planted import memories
from interp.zoo.planted.memories import FACTS
from tests.memories.scanned import model_of, scanned
from tests.variants import quick_of, variant


@pytest.mark.parametrize("norm", [None, "RMS"])
def test_the_triggers_of_a_planted_key_share_its_two_tokens(norm: str | None) -> None:
    planted = memories(norm=norm)
    found = triggers(planted.model, planted.sample(300).tokens, 0, progress=False)
    for i, (a, b, _) in enumerate(FACTS):
        shared = shared_patterns(found, 0, int(planted.roles[f"memory{i}"].split("N")[1]))
        assert shared.text.values[0] == f"{a} {b}"
        assert shared.n[0] == 2
        assert shared.share[0] == shared.share_at_end[0] == 1
        assert not {str(a), str(b)} & set(shared.text.values.tolist()), "they are parts of it"


def test_patterns_are_those_of_a_count() -> None:
    model = model_of()
    corpus = torch.randint(0, 4, (200, 6), generator=torch.Generator().manual_seed(0))
    found = triggers(model, corpus, top=10, per="position", progress=False)
    for neuron in range(3):
        shared = shared_patterns(found, 1, neuron, longest=2, least=0.3, within=4)
        at = found.at[1, neuron]
        prefixes = [[t for t in row[BEFORE - 3 : BEFORE + 1] if t >= 0] for row in found.window[at[at >= 0]].tolist()]
        shown = {tuple(map(int, text.split())): i for i, text in enumerate(shared.text.values)}
        for gram in [(a,) for a in range(4)] + [(a, b) for a in range(4) for b in range(4)]:
            n = len(gram)
            having = [i for i, p in enumerate(prefixes) if any(tuple(p[j : j + n]) == gram for j in range(len(p)))]
            if gram in shown:
                assert shared.share[shown[gram]] == pytest.approx(len(having) / len(prefixes))
                ending = sum(tuple(p[-n:]) == gram for p in prefixes)
                assert shared.share_at_end[shown[gram]] == pytest.approx(ending / len(prefixes))
            elif n == 2:
                assert len(having) < max(2, 0.3 * len(prefixes))
        assert shared.share.values.tolist() == sorted(shared.share.values, reverse=True)


def test_a_planted_key_loses_all_without_one_of_its_tokens_and_nothing_without_another() -> None:
    planted = memories()
    found = triggers(planted.model, planted.sample(300).tokens, 0, progress=False)
    result = removal_test(planted.model, found, range(8), n_triggers=8, progress=False)
    for fact, (a, _, _) in enumerate(FACTS):
        neuron = int(planted.roles[f"memory{fact}"].split("N")[1])
        own = result.isel(layer=0, key=neuron)
        assert own.neuron == neuron
        for trigger in range(8):
            prefix = [t for t in found.window[found.at[0, neuron, trigger], : BEFORE + 1].tolist() if t >= 0]
            change = own.isel(trigger=trigger).change
            if len(prefix) < 3:
                assert change.isnull().all()
                continue
            assert own.base[trigger] == own.value[trigger] == pytest.approx(0.5)
            assert change.sel(removed="first") == pytest.approx(0)
            assert change.sel(removed="last") == -1
            is_safe = len(prefix) > 3 and prefix[-3] == a  # then another a stands before b
            assert change.sel(removed="random") in ((0,) if is_safe else (0, -1))
    assert (result.change.sel(removed="random") == -1).any()
    assert (result.change.sel(removed="random") == 0).any()


@pytest.mark.parametrize("name", quick_of(["llama", "gpt2"], "llama"))
@pytest.mark.parametrize("batch_size", quick_of([1, 7, 64], 7))
def test_changes_are_those_of_runs_one_by_one(name: str, batch_size: int) -> None:
    model = model_of(name)
    found = scanned(model)
    result = removal_test(model, found, n_keys=5, n_triggers=3, batch_size=batch_size, progress=False)
    n_compared = 0
    for layer in range(2):
        for key in range(5):
            neuron = int(result.neuron[layer, key])
            for trigger in range(3):
                at = int(found.at[layer, neuron, trigger])
                prefix = [t for t in found.window[at, : BEFORE + 1].tolist() if t >= 0]
                one = result.isel(layer=layer, key=key, trigger=trigger)
                if at < 0 or len(prefix) < 3:
                    assert one.base.isnull()
                    continue

                def m(tokens: list[int], layer: int = layer, neuron: int = neuron) -> float:
                    _, cache = model.run_with_cache(torch.tensor([tokens]), None, names_filter="*mlp.hook_post")
                    return cache["post", layer][0, -1, neuron].item()

                base = m(prefix)
                assert one.base == pytest.approx(base, rel=1e-4)
                assert one.value == pytest.approx(base, rel=1e-4), "the row held no more before it"
                first, last, random = (float(one.change.sel(removed=removed)) for removed in REMOVED[1:])
                assert first == pytest.approx((m(prefix[1:]) - base) / abs(base), rel=1e-3, abs=1e-4)
                assert last == pytest.approx((m(prefix[:-1]) - base) / abs(base), rel=1e-3, abs=1e-4)
                between = [(m(prefix[:i] + prefix[i + 1 :]) - base) / abs(base) for i in range(1, len(prefix) - 1)]
                assert min(abs(random - each) for each in between) < 1e-3
                n_compared += 1
    assert n_compared > 10


def test_prefixes_are_read_behind_the_token_that_texts_begin_with() -> None:
    cfg = GPTConfig(n_layers=1, d_model=8, n_heads=2, n_ctx=10, d_vocab=257, seed=0, default_prepend_bos=True)
    model = HookedGPT(cfg, Tokenizer.bytes())
    found = triggers(model, ["the cat sat", "on a mat", "dogs bark"], top=2, progress=False)
    result = removal_test(model, found, progress=False)
    assert (abs(result.base - result.value) < 1e-5).where(result.base.notnull(), True).all()


def test_bad_choices_are_refused() -> None:
    found = scanned()
    with pytest.raises(ValueError, match="another model"):
        removal_test(variant("gpt2"), found)
    with pytest.raises(ValueError, match="n_keys=0"):
        removal_test(model_of(), found, n_keys=0)
    with pytest.raises(ValueError, match="within=26"):
        shared_patterns(found, 0, 0, within=26)
    with pytest.raises(KeyError, match="no key"):
        shared_patterns(found, 2, 0)
