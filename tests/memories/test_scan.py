"""What is kept while a corpus streams by is what sorting all of it would give, however it is cut."""

from itertools import pairwise

import pytest
import torch

from interp.memories.scan import LOWEST, Batch, Histogram, Largest, Reservoir
from tests.memories.scanned import largest

N_ROWS, N_POS, N_LAYERS, N_KEYS, K = 24, 5, 2, 4, 6
CPU = torch.device("cpu")
DRAW = torch.Generator().manual_seed(0)
TOKENS = torch.randint(0, 3, (N_ROWS, N_POS), generator=DRAW)  # few, so that contexts are often the same
DOCUMENT = torch.tensor([0, 0, 0, 1, 2, 2, 3, 4, 5, 5, 5, 5, 6, 7, 8, 8, 9, 10, 11, 11, 12, 13, 14, 14])
PLACE = torch.arange(N_ROWS * N_POS).view(N_ROWS, N_POS)
CONTEXTS = [tuple(TOKENS[row, : column + 1].tolist()) for row in range(N_ROWS) for column in range(N_POS)]
COEFFICIENTS = {
    "all different": torch.randn(N_LAYERS, N_ROWS, N_POS, N_KEYS, generator=DRAW),
    "mostly equal": torch.randint(-3, 3, (N_LAYERS, N_ROWS, N_POS, N_KEYS), generator=DRAW).float(),
    "mostly 0": torch.randn(N_LAYERS, N_ROWS, N_POS, N_KEYS, generator=DRAW).sub(1.5).relu(),
    "all 0": torch.zeros(N_LAYERS, N_ROWS, N_POS, N_KEYS),
}
CUTS = [[0, 24], [0, 1, 2, 3, 4, 5, 6, 7, 10, 24], [*range(25)], [0, 9, 10, 11, 23, 24], [0, 12, 24]]


def rows(index: torch.Tensor) -> Batch:
    return Batch(TOKENS[index], torch.ones(len(index), N_POS, dtype=torch.bool), PLACE[index], DOCUMENT[index], index)


def read(x: torch.Tensor, index: torch.Tensor, cuts: list[int], by_document: bool) -> Largest:
    """What is kept of these rows, read in batches with these ends; saved and loaded between them."""
    kept = Largest(N_LAYERS, N_KEYS, K, by_document, CPU)
    for first, last in pairwise(cuts):
        if len(some := index[first:last]):
            state = {name: each.clone() for name, each in kept.state().items()}
            kept = Largest(N_LAYERS, N_KEYS, K, by_document, CPU)
            kept.load(state)
            for layer in range(N_LAYERS):
                kept.add(layer, x[layer, some], PLACE[some])
            kept.settle(rows(some))
    kept.end()
    return kept


def check(kept: Largest, x: torch.Tensor, by_document: bool) -> None:
    document = DOCUMENT.repeat_interleave(N_POS).tolist()
    for layer in range(N_LAYERS):
        for key in range(N_KEYS):
            values = x[layer, :, :, key].flatten()
            wanted = largest(values, PLACE.flatten().tolist(), document, CONTEXTS, K, by_document)
            n = len(wanted)
            assert kept.value[layer, key].tolist() == [value for value, _, _ in wanted] + [0] * (K - n)
            assert kept.place[layer, key].tolist() == [place for _, place, _ in wanted] + [-1] * (K - n)


@pytest.mark.parametrize("by_document", [True, False], ids=["documents", "positions"])
@pytest.mark.parametrize("cuts", CUTS, ids=lambda cuts: f"{len(cuts) - 1} batches")
@pytest.mark.parametrize("kind", COEFFICIENTS)
def test_the_largest_are_those_of_a_sort_in_any_chunking(kind: str, cuts: list[int], by_document: bool) -> None:
    check(read(COEFFICIENTS[kind], torch.arange(N_ROWS), cuts, by_document), COEFFICIENTS[kind], by_document)


@pytest.mark.parametrize("by_document", [True, False], ids=["documents", "positions"])
@pytest.mark.parametrize("n_parts", [2, 3])
@pytest.mark.parametrize("kind", COEFFICIENTS)
def test_parts_of_a_corpus_merge_into_the_whole(kind: str, n_parts: int, by_document: bool) -> None:
    number = DOCUMENT if by_document else torch.arange(N_ROWS)
    x = COEFFICIENTS[kind]
    parts = [read(x, (number % n_parts == i).nonzero()[:, 0], [0, 2, 7, 24], by_document) for i in range(n_parts)]
    whole = parts.pop()
    for part in parts:
        whole.merge(part)
    check(whole, x, by_document)


def test_a_coefficient_that_is_no_number_is_refused() -> None:
    x = COEFFICIENTS["all different"][0].clone()
    x[3, 2, 1] = torch.nan
    every = rows(torch.arange(N_ROWS))
    for by_document in (True, False):
        kept = Largest(2, N_KEYS, K, by_document, CPU)
        kept.add(0, x.nan_to_num(0.0), PLACE)
        with pytest.raises(ValueError, match="key 1 of layer 1 of those scanned"):  # noqa: PT012
            kept.add(1, x, PLACE)
            kept.settle(every)


@pytest.mark.parametrize("cuts", CUTS, ids=lambda cuts: f"{len(cuts) - 1} batches")
def test_the_reservoir_is_the_same_however_the_corpus_is_cut(cuts: list[int]) -> None:
    def drawn(index: torch.Tensor, cuts: list[int], seed: int = 0) -> Reservoir:
        kept = Reservoir(50, N_LAYERS, N_KEYS, seed, CPU)
        for first, last in pairwise(cuts):
            if len(some := index[first:last]):
                wanted = kept.draw(rows(some))
                assert set(kept.place.tolist()) & set(PLACE[some].flatten().tolist()) == set(
                    PLACE[some][wanted].tolist()
                )
                for layer in range(N_LAYERS):
                    kept.add(layer, COEFFICIENTS["all different"][layer, some])
        return kept

    def sample(kept: Reservoir) -> tuple[torch.Tensor, torch.Tensor]:
        order = kept.place.argsort()
        return kept.place[order], kept.coefficients[order]

    every = torch.arange(N_ROWS)
    place, coefficients = sample(drawn(every, [0, 24]))
    x = COEFFICIENTS["all different"].flatten(1, 2)[:, place].transpose(0, 1)
    assert torch.equal(coefficients, x.half())
    assert len(place.unique()) == 50
    halves = drawn(every[::2], cuts), drawn(every[1::2], cuts)
    halves[0].merge(halves[1])
    for other in (drawn(every, cuts), halves[0]):
        assert torch.equal(sample(other)[0], place)
        assert torch.equal(sample(other)[1], coefficients)
    assert not torch.equal(sample(drawn(every, cuts, seed=1))[0], place)


def test_random_positions_are_spread_evenly() -> None:
    kept = Reservoir(4000, 1, 1, 0, CPU)
    for first in range(0, 40_000, 1000):
        place = torch.arange(first, first + 1000)[None]
        real = torch.ones_like(place, dtype=torch.bool)
        kept.draw(Batch(place, real, place, torch.zeros(1, dtype=torch.long), torch.zeros(1, dtype=torch.long)))
    counts = torch.histc(kept.place.float(), 10, 0, 40_000)
    assert (counts - 400).abs().max() < 4 * 400**0.5


def test_a_histogram_counts_each_size_and_sign() -> None:
    histogram = Histogram(1, 2, CPU)
    values = [0.0, 1.0, 1.99, 2.0, -1.0, -3.9, 1e-9, -1e-9, 1e9, 0.25]
    histogram.add(0, torch.tensor([values, [1.5] * len(values)]).T)
    counts = histogram.counts[0, 0]
    found = {(sign, level + LOWEST): int(counts[sign, level]) for sign, level in counts.nonzero().tolist()}
    assert found == {(0, -16): 2, (0, 0): 2, (0, 1): 1, (1, 0): 1, (1, 1): 1, (1, -16): 1, (0, 15): 1, (0, -2): 1}
    assert int(histogram.counts[0, 1, 0, -LOWEST]) == len(values) == histogram.counts[0, 1].sum()
