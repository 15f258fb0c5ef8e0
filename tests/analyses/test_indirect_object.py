"""The circuit study: of a planted circuit exactly its heads, each in its role; and the way that text takes."""

import json
from pathlib import Path

import pytest
from xarray import load_dataset

from analyses import indirect_object
from analyses.indirect_object import PUBLISHED, main, study
from interp.zoo import planted
from interp.zoo.two_names import NAMES, planted_two_names, two_names
from tests.zoo.test_two_names import speaker

ROLES = {"name mover": "mover", "backup mover": "backup", "S-inhibition": "inhibition", "duplicate token": "duplicate"}


@pytest.mark.slow
def test_of_the_planted_model_exactly_the_circuit_is_found_and_its_backup(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(out=tmp_path)
    said = capsys.readouterr().out
    summary = json.loads((tmp_path / "summary.json").read_text())
    found, of = summary["findings"], planted.indirect_object(distractor_heads=3, seed=0)
    assert found["roles"] == {role: [of.roles[name]] for role, name in ROLES.items()}
    every = {head for some in found["roles"].values() for head in some}
    assert every == of.truth["zero"].nodes - {"embed", "pos_embed"}
    assert found["least_share_of_those_found"] > 0.9 > 0.02 > found["most_share_of_others"]
    assert found["share_right"] == 1
    lost = {name: value / found["logit_difference"] for name, value in found["without"].items()}
    assert min(lost["name mover"], lost["backup mover"], lost["4 others"]) > 0.9
    assert max(lost["name mover and backup"], lost["S-inhibition"], lost["duplicate token"]) < 0.1
    result = load_dataset(tmp_path / "result.nc", engine="h5netcdf")
    assert result.stream.sel(place="S2").values[:2].min() > 0.9 < result.stream.sel(place="END").values[2:].min()
    assert f"{found['logit_difference']:.3f}" in said
    assert "published" not in said
    figures = {"stream", "heads", "paths", "attention", "repair", "without", "planted"}
    assert {each.stem for each in tmp_path.glob("*.html")} == figures


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_so_it_is_wherever_the_heads_stand(seed: int, tmp_path: Path) -> None:
    of = planted.indirect_object(distractor_heads=3, seed=seed)
    first = study(of.model, planted_two_names(of, 8, seed), folder=tmp_path, progress=False)
    assert first.findings["roles"] == {role: [of.roles[name]] for role, name in ROLES.items()}
    again = study(of.model, planted_two_names(of, 8, seed), folder=tmp_path, progress=False)
    assert again.result.equals(first.result)


@pytest.mark.slow
def test_in_sentences_the_same_is_found_and_held_against_what_was_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(indirect_object, "_is_gpt2_small", lambda model: True)
    model, of = speaker(distractor_heads=1)
    names = two_names(model, 9)
    assert names.mask is not None
    assert not names.mask.all(), "templates of several lengths"
    model.save_pretrained(tmp_path / "model")
    main(str(tmp_path / "model"), prompts=9, how="zero", out=tmp_path / "found")
    said = capsys.readouterr().out
    assert f"1 of {len(NAMES)} names are not single tokens, and left out: Emma\n" in said
    found = json.loads((tmp_path / "found" / "summary.json").read_text())["findings"]
    assert found["roles"] == {role: [of.roles[name]] for role, name in ROLES.items()}
    assert found["published"] == {role: [f"L{i}H{j}" for i, j in some] for role, some in PUBLISHED.items()}
    assert sum(map(len, PUBLISHED.values())) == len({place for some in PUBLISHED.values() for place in some}) == 26
    rows = [line.split() for line in said.splitlines() if line.startswith("name mover  ")][:4]
    assert [(row[2], row[-1]) for row in rows] == [
        (of.roles["mover"], "no"),
        *((each, "yes") for each in found["published"]["name mover"]),
    ]
    lost = {name: value / found["logit_difference"] for name, value in found["without"].items()}
    assert lost["name mover"] > 0.9 > 0.1 > lost["name mover and backup"]
    by_mean = study(model, names, how="mean", progress=False).findings
    assert "backup mover" not in by_mean["roles"], "the mean of the mover keeps the mark that it leaves"


def test_a_model_in_which_no_head_moves_a_name_is_refused() -> None:
    of = planted.indirect_object()
    with pytest.raises(ValueError, match="no head moves a name: the most that one tells the logits is"):
        study(of.model, planted_two_names(of, 8), least=1.5, progress=False)
