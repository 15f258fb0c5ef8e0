"""The study of steering: what the contrast does, random directions do not; and what is given is what is used."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from xarray import load_dataset

from analyses.steering import METHODS, Contrast, main, read_contrast, study
from interp import HookedGPT, lens
from interp.interventions import Site, Steer


@pytest.mark.long
@pytest.mark.slow
def test_a_direction_toward_methods_makes_self_likelier_and_random_ones_do_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(out=tmp_path)
    said = capsys.readouterr().out
    found = json.loads((tmp_path / "summary.json").read_text())["findings"]
    assert found["dose"] == 1
    for each in found["by_layer"].values():
        assert each["log_odds"] > 2.5 > 1.5 > each["log_odds_random"]
        assert each["loss_random"] > 0.2, "any push of this size costs something"
    best = found["by_layer"][str(found["layer"])]
    assert best["log_odds"] == max(each["log_odds"] for each in found["by_layer"].values())
    assert best["loss"] < 2 * best["loss_random"]
    doses = found["dose_response"]
    assert list(doses) == ["-2.0", "-1.0", "-0.5", "0.0", "0.5", "1.0", "2.0"]
    assert np.all(np.diff(list(doses.values())) > 0.5), "more, the more is added"
    assert doses["-1.0"] < -2.5
    before, after = ("".join(each[name] for each in found["written"]) for name in ("before", "after"))
    assert after.count("self") > 5 + before.count("self")
    result = load_dataset(tmp_path / "result.nc", engine="h5netcdf")
    assert dict(result.log_odds.sizes) == {"layer": 4, "direction": 4, "coefficient": 7, "prompt": len(METHODS.prompts)}
    assert f"{best['log_odds']:+.2f}" in said


@pytest.mark.slow
@torch.no_grad()
def test_numbers_are_those_of_plain_runs_with_the_direction_added(tmp_path: Path) -> None:
    model = HookedGPT.from_pretrained("stdlib-attn-2l")
    contrast = Contrast(
        ["    raise ValueError", "raise"], ["    return None", "return"], ["if x:\n    y ="], [" None", " True"]
    )
    options = {"coefficients": (-1, 3), "draws": 2, "texts": 2, "new_tokens": 2, "seed": 4, "progress": False}
    found = study(model, contrast, [1], **options, folder=tmp_path)
    assert found.findings["dose"] == 3
    direction = lens.mean_difference(model, contrast.toward, contrast.away, 1, pos=-1)
    randoms = lens.random_directions(direction, 2, seed=5)
    answers = [model.to_single_token(each) for each in contrast.targets]
    for kind, each in zip(("contrast", "random 0", "random 1"), (direction, *randoms), strict=True):
        for dose in (-1, 0, 3):
            with model.edit([Steer(Site("resid_post", 1), each, scale=dose)]):
                p = model(contrast.prompts[0])[0, -1].double().softmax(-1)[answers].sum()
            here = found.result.log_odds.sel(layer=1, direction=kind, coefficient=dose, prompt=0)
            assert float(here) == pytest.approx(float((p / (1 - p)).log()), abs=1e-3)
    with model.edit([Steer(Site("resid_post", 1), direction, scale=3)]):
        written = model.generate(contrast.prompts[0], 2, temperature=0)
    assert contrast.prompts[0] + found.findings["written"][0]["after"] == written
    again = study(model, contrast, [1], **options, folder=tmp_path)
    assert again.result.equals(found.result)


def test_a_contrast_is_read_from_a_file_and_a_wrong_one_refused(tmp_path: Path) -> None:
    file = tmp_path / "contrast.json"
    content = {"toward": ["a"], "away": ["b"], "prompts": ["c"], "targets": [" d"]}
    file.write_text(json.dumps(content))
    assert read_contrast(file) == Contrast(["a"], ["b"], ["c"], [" d"])
    for wrong in ({**content, "away": []}, {**content, "away": "b"}, {"toward": ["a"]}, {**content, "more": ["x"]}):
        file.write_text(json.dumps(wrong))
        with pytest.raises(ValueError, match="a contrast has lists of texts: toward, away, prompts, targets"):
            read_contrast(file)
    model = HookedGPT.from_pretrained("stdlib-attn-2l")
    with pytest.raises(ValueError, match="one must be above 0, and one draw made"):
        study(model, coefficients=[-1.0], progress=False)
