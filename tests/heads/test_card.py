from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from interp import HookedGPT, heads, metrics, plots
from interp.heads import HeadCard
from interp.heads import null as nulls
from interp.interventions import Ablate, Site
from interp.weights import composition_scores, ov_circuit, qk_circuit
from interp.zoo import planted
from tests.variants import variant

TEXTS = ["def area(width, height):\n    return width * height\n", "class Area:\n    def __init__(self, width):\n"]


@cache
def model() -> HookedGPT:
    return HookedGPT.from_pretrained("stdlib-4l")


@cache
def card(layer: int = 1, head: int = 4) -> HeadCard:
    found = heads.detect(model(), progress=False)
    return heads.head_card(model(), layer, head, TEXTS * 3, found=found, k=5, progress=False)


@pytest.mark.long
def test_a_card_says_what_is_known_of_a_head() -> None:
    found = card()
    assert found.name == "L1H4"
    assert "induction" in found.role
    scores = heads.scores(model(), progress=False).sel(layer=1, head=4)
    np.testing.assert_allclose(found["scores"].value, scores, atol=1e-6)
    np.testing.assert_allclose(found["scores"].low, scores.low, atol=1e-6)
    text = str(found)
    for part in ("L1H4: ", "* induction", "composition", "looks hardest", "without it"):
        assert part in text


@pytest.mark.slow
def test_its_circuits_are_those_of_the_weights() -> None:
    found, tokenizer = card(), model().tokenizer
    assert tokenizer is not None
    ov, qk = (of(model(), 1, 4, vocab=True) for of in (ov_circuit, qk_circuit))
    writes, reads = found["writes"], found["reads"]
    for i in range(2):
        (source,) = tokenizer.encode(str(writes.token.values[i]))
        best = (ov.A[source] @ ov.B).topk(5)
        assert list(writes.raised.values[i]) == tokenizer.token_strings(best.indices.tolist())
        np.testing.assert_allclose(writes.value.values[i], best.values.detach(), rtol=1e-5)
    (query,), (key,) = (tokenizer.encode(str(reads[end].values[0])) for end in ("query_token", "key_token"))
    score = (qk.A[query] @ qk.B[:, key]).item() / model().cfg.attn_scale
    assert reads.value.values[0] == pytest.approx(score, rel=1e-5)
    scores = composition_scores(model(), "K", progress=False)
    partners = dict(zip(found["partners"].edge.values.tolist(), found["partners"].value.values.tolist(), strict=True))
    assert partners["L0H1->L1H4.k"] == pytest.approx(scores[0, 1, 1, 4].item(), rel=1e-5)
    assert list(partners.values()) == sorted(partners.values(), reverse=True)


@pytest.mark.slow
def test_where_it_looks_hardest_is_there_to_be_seen() -> None:
    found = card()
    contexts = found["contexts"]
    texts = TEXTS * 3
    for i in range(len(contexts.weight)):
        tokens = model().to_tokens(texts[int(contexts.document[i])])
        _, cache = model().run_with_cache(tokens, None, names_filter="*1*hook_pattern")
        pattern = cache["pattern", 1][0, 4].clone()
        pattern[:, 0] = 0
        assert contexts.weight.values[i] == pytest.approx(pattern.max().item(), rel=1e-5)
        query, key = int(contexts.query_pos[i]), int(contexts.key_pos[i])
        assert pattern[query, key].item() == pytest.approx(pattern.max().item(), rel=1e-5)
        words = model().to_str_tokens(tokens[0])
        assert contexts.query_token.values[i] == words[query]
        assert f"[{words[query]}]" in str(contexts.text.values[i])
    assert len(set(contexts.document.values.tolist())) == len(contexts.document), "once in a document"


@pytest.mark.slow
def test_what_is_lost_without_it_is_what_a_run_without_it_loses() -> None:
    from interp.heads import trials

    rows = trials.repeats(model())
    with torch.no_grad():
        _, cache = model().run_with_cache(rows.tokens, None, names_filter="*1*hook_z")
    base = metrics.measured(model(), rows.tokens, metrics.loss()).mean()
    with model().edit([Ablate.from_reference(Site("z", 1, head=4), "mean", cache["z", 1][:, :, [4]])]):
        without = metrics.measured(model(), rows.tokens, metrics.loss()).mean()
    found = card()["ablation"].sel(on="repeats")
    assert float(found.loss) == pytest.approx(base.item(), rel=1e-4)
    assert float(found.change) == pytest.approx((without - base).item(), rel=1e-3)
    assert float(found.change) > 0.1


@pytest.mark.slow
def test_a_card_is_saved_and_loaded_whole(tmp_path: Path) -> None:
    card().save(tmp_path / "card.nc")
    again = HeadCard.load(tmp_path / "card.nc")
    assert str(again) == str(card())
    assert again.tables.identical(card().tables)
    whole = (tmp_path / "card.nc").read_bytes()
    (tmp_path / "cut.nc").write_bytes(whole[: len(whole) // 2])
    for name, error, message in (
        ("cut.nc", ValueError, "no complete netCDF file"),
        ("none.nc", FileNotFoundError, "no file"),
    ):
        with pytest.raises(error, match=message):
            HeadCard.load(tmp_path / name)
    heads.scores(variant("gpt2"), torch.randint(0, 13, (4, 8)), progress=False).to_netcdf(tmp_path / "scores.nc")
    with pytest.raises(ValueError, match="holds no head's card"):
        HeadCard.load(tmp_path / "scores.nc")


@pytest.mark.slow
def test_models_without_a_tokenizer_have_cards_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nulls, "_HEADS", 100)
    circuit = planted.induction(d_vocab=30, n_ctx=40)
    layer, head = int(circuit.roles["induction"][1]), int(circuit.roles["induction"][3:])
    found = heads.head_card(circuit.model, layer, head, circuit.sample(20).tokens, k=3, progress=False)
    assert found["partners"].edge.values[0] == f"{circuit.roles['previous']}->{circuit.roles['induction']}.k"
    assert all(
        source == raised[0]
        for source, raised in zip(found["writes"].token.values, found["writes"].raised.values, strict=True)
    )
    assert heads.head_card(circuit.model, layer, head, k=3, progress=False)["contexts"].weight.size


@pytest.mark.slow
def test_cards_of_what_is_not_there_are_refused() -> None:
    with pytest.raises(ValueError, match="head=8; the model has 8"):
        heads.head_card(model(), 1, 8)
    found = heads.detect(variant("gpt2"), torch.randint(0, 13, (4, 8)), progress=False)
    with pytest.raises(ValueError, match="found is of another model"):
        heads.head_card(model(), 1, 4, found=found)
    with pytest.raises(KeyError, match=r"no table 'score' on a head's card; there are \['scores'"):
        card()["score"]


@pytest.mark.slow
def test_a_cards_figure_says_what_the_card_says() -> None:
    for theme in ("light", "dark"):
        figure = plots.head_card(card(), theme=theme)  # type: ignore[arg-type]
        assert figure.layout.title.text.startswith("L1H4: ")
        assert "without it" in figure.layout.title.subtitle.text
        traces = {trace.name or trace.header["values"][-1]: trace for trace in figure.data}
        known = card()["scores"].value.to_numpy()
        np.testing.assert_allclose(traces["scores"].x, known[np.isfinite(known)])
        np.testing.assert_allclose(traces["composition"].x, card()["partners"].value)
        assert len(traces["raises"].cells["values"][0]) == len(card()["writes"].token)
        assert traces["text"].cells["values"][0][0] == f"{float(card()['contexts'].weight[0]):.3f}"
