"""The study of greater than: who carries the year, and who compares; sentences in tokens; numbers as runs have them."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers

from analyses.greater_than import TEMPLATE, Years, learned, main, sentences, study, written
from analyses.output import Found, opened
from interp import GPTConfig, HookedGPT
from interp.interventions import Patch, Site
from interp.metrics import measured
from interp.tokenization import Tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("greater_than")
    main(out=out)
    return out


@cache
def _random() -> tuple[HookedGPT, Years, Found]:
    """A model that knows nothing."""
    years = sentences(1)
    model = HookedGPT(GPTConfig(n_layers=2, d_model=12, n_heads=3, n_ctx=6, d_vocab=132, seed=1, initializer_range=0.5))
    return model, years, study(model, years, progress=False)


@cache
def _split_in_two(joined: tuple[str, ...] = ()) -> Tokenizer:
    """Bytes, but for centuries and the two digits behind them."""
    pairs = [*(f"{n}" for n in range(11, 20)), *(f"{n:02}" for n in range(100) if n not in range(11, 20))]
    merges = [(pair[0], pair[1]) for pair in pairs] + [("Ġ", f"{n}") for n in range(11, 20)]
    merges += [(f"Ġ{year[:2]}", year[2:]) for year in joined]
    words = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *(a + b for a, b in merges)]
    backend = Backend(models.BPE({word: i for i, word in enumerate(words)}, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return Tokenizer(backend)


def _reader(tokenizer: Tokenizer) -> HookedGPT:
    sizes = {"n_layers": 2, "d_model": 8, "n_heads": 2, "n_ctx": 64, "d_vocab": tokenizer.d_vocab}
    return HookedGPT(GPTConfig(seed=0, default_prepend_bos=False, **sizes), tokenizer)


@pytest.mark.slow
@pytest.mark.long
def test_heads_carry_the_year_and_the_mlp_compares(folder: Path) -> None:
    result, summary = opened(folder)
    found = summary["findings"]
    assert found["probability_difference"] > 0.9
    assert found["least_probability_difference"] > 0.8
    assert abs(found["of_01"]) < 0.15
    assert found["cutoff"] > 0.025
    mlp, attention = found["triangle"]["L0 mlp"], found["triangle"]["L0 attn"]
    assert mlp["share_of_YY"] == 1
    assert mlp["raised"] > 3 > 2 * attention["raised"]
    assert attention["share_of_YY"] < 1
    assert result.stream.sel(layer=0, place="END") > 0.9 > 0.15 > abs(result.stream.sel(layer=0, place="YY"))
    told = {name: of["told"] for name, of in found["heads"].items()}
    assert 0.7 < sum(told.values()) < 1.4
    assert max(of["told_directly"] for of in found["heads"].values()) < 0.1
    assert all(of["attention"] > 0.5 for of in found["heads"].values() if of["told"] > 0.2)
    assert found["mlps"]["L0"] > 0.45
    p = result.probability.to_numpy()
    above = np.arange(100) > result.YY.to_numpy()[:, None]
    assert (p * above).sum(1).min() > 0.9
    active = result.activation.to_numpy() > 0.5 * result.activation.max("YY").to_numpy()[:, None]
    assert (active.mean(1) < 0.75).all(), "each for a range of years"


@pytest.mark.slow
@pytest.mark.long
def test_a_second_look_trains_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.optim.AdamW, "step", None)  # calling it fails
    (kept,) = (folder / "runs").iterdir()
    model = learned(kept)
    years = sentences(1, seed=5)
    assert float(measured(model, years.tokens, years.metric()).mean()) > 0.9, "other nouns, other centuries"


@pytest.mark.slow
def test_a_model_that_knows_nothing_has_no_triangle() -> None:
    _, _, found = _random()
    assert abs(found.findings["probability_difference"]) < 0.4
    for part in found.findings["triangle"].values():
        assert abs(part["raised"]) < 1
    assert list(found.findings["triangle"]) == ["L0 attn", "L0 mlp", "L1 attn", "L1 mlp"]


@pytest.mark.slow
@torch.no_grad()
def test_numbers_are_those_of_plain_runs() -> None:
    model, years, found = _random()
    logits, cache = model.run_with_cache(years.tokens)
    _, other = model.run_with_cache(years.others)
    y, p = years.year, logits[:, -1].softmax(-1)[:, :100].double()
    difference = torch.stack([row[n + 1 :].sum() - row[: n + 1].sum() for row, n in zip(p, y, strict=True)])
    assert found.findings["probability_difference"] == pytest.approx(float(difference.mean()), abs=1e-5)
    cutoff = torch.stack([row[n + 1] - row[n - 1] for row, n in zip(p, y, strict=True)])
    assert found.findings["cutoff"] == pytest.approx(float(cutoff.mean()), abs=1e-6)
    np.testing.assert_allclose(found.result.probability, p, atol=1e-6)

    def with_01(site: Site) -> float:
        with model.edit([Patch(site, other[site.point(model).name])]):
            return float(measured(model, years.tokens, years.metric()).mean())

    base = float(difference.mean())
    lost = (base - with_01(Site("z", 1, head=2, pos=-1))) / base  # behind it is an MLP that hears it
    assert float(found.result.told.sel(layer=1, head=2)) == pytest.approx(lost, abs=1e-4)
    lost = (base - with_01(Site("mlp_out", 1))) / base
    assert float(found.result.mlp_told.sel(layer=1)) == pytest.approx(lost, abs=1e-4)
    with model.edit([Patch(Site("resid_post", 0, pos=3), cache["resid_post", 0])]):
        there = float(measured(model, years.others, years.metric()).mean())
    assert float(found.result.stream.sel(layer=0, place="YY")) == pytest.approx(there, abs=1e-5)
    looks = cache["pattern", 1][:, 2, -1, 3].mean()
    assert float(found.result.attention.sel(layer=1, head=2)) == pytest.approx(float(looks), abs=1e-6)
    of_mlp = cache["mlp_out", 0][:, -1]
    of_mlp = (of_mlp - of_mlp.mean(-1, keepdim=True)) / cache["ln_final.hook_scale"][:, -1] @ model.W_U[:, :100]
    centred = of_mlp - of_mlp.mean(1, keepdim=True)
    np.testing.assert_allclose(found.result.written.sel(part="L0 mlp"), centred, atol=1e-4)


def test_sentences_of_the_trained_model_have_a_later_end_and_one_column_that_differs() -> None:
    years = sentences(2, seed=3)
    assert years.year.tolist() == [year for year in range(2, 99) for _ in range(2)]
    assert years.tokens[:, 3].equal(years.year)
    assert (years.others != years.tokens).any(0).nonzero().flatten().tolist() == [3]
    assert years.tokens[:, 2].equal(years.tokens[:, 5])
    assert years.above.sum(1).equal(99 - years.year)


@pytest.mark.slow
def test_sentences_are_written_in_the_tokens_of_a_model_and_studied(tmp_path: Path) -> None:
    tokenizer = _split_in_two(("1732",))
    model = _reader(tokenizer)
    years = written(model, each=2, seed=1)
    texts = [tokenizer.decode(row.tolist()) for row in years.tokens]
    assert len(texts) == 2 * 97
    assert all(f" {text[-2:]}{year:02} to {text[-2:]}" in text for text, year in zip(texts, years.year, strict=True))
    assert not any("1732" in text for text in texts), "it is one token"
    assert years.mask is not None, "nouns are of several lengths"
    assert [tokenizer.decode([i]) for i in years.tokens[:, years.column].tolist()] == [
        f"{year:02}" for year in years.year
    ]
    assert {tokenizer.decode([i]) for i in years.others[:, years.column].tolist()} == {"01"}
    assert tokenizer.decode(years.ids.tolist()) == "".join(f"{year:02}" for year in range(100))
    few = Years(years.tokens[::24], years.others[::24], years.mask[::24], years.year[::24], years.ids, years.column)
    found = study(model, few, progress=False)
    assert dict(found.result.probability.sizes) == {"YY": len(few.year), "year": 100}
    assert dict(found.result.told.sizes) == {"layer": 2, "head": 2}
    row = int(few.mask[0].sum())
    assert row < few.mask.shape[1], "it is padded"
    plain = model(few.tokens[:1, -row:])[0, -1].softmax(-1)[few.ids]
    np.testing.assert_allclose(found.result.probability[0], plain.detach(), atol=1e-6)


def test_what_cannot_be_studied_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"100 years are several tokens of this model, \d\d, \d\d, \d\d among them"):
        main("stdlib-4l", out=tmp_path)
    with pytest.raises(ValueError, match="has no tokenizer"):
        written(_random()[0])
    model = _reader(_split_in_two())
    with pytest.raises(ValueError, match=r"lacks \{noun\}, \{year\}"):
        written(model, "from {century}")
    with pytest.raises(ValueError, match="must not be near the noun"):
        written(model, TEMPLATE + " or {year}, the {noun}, to {century}")
    blind = HookedGPT(GPTConfig(n_layers=1, d_model=4, n_heads=1, n_ctx=6, d_vocab=132, attn_only=True))
    with pytest.raises(ValueError, match="has no MLPs"):
        study(blind, sentences(1), progress=False)
    joined = tuple(f"{century}{year:02}" for century in range(11, 20) for year in range(100))
    with pytest.raises(ValueError, match="splits no year from 1102 to 1998 in two"):
        written(_reader(_split_in_two(joined)))
