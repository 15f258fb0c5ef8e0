"""The study of memories: what it reports is what was measured."""

import json
from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from xarray import Dataset, load_dataset

from analyses.memories import Study, main, readable, report, study, trends
from interp import HookedGPT, memories
from interp.corpus import standard_library
from interp.memories import Triggers


@cache
def model() -> HookedGPT:
    return HookedGPT.from_pretrained("stdlib-4l")


@cache
def studied() -> Study:
    """Of 3,000 tokens of many documents: keys have many triggers."""
    beginnings = [text[:400] for text in standard_library()]
    return study(model(), beginnings, 3_000, progress=False)


def made(rate: list[float], last: float, single: list[int]) -> Study:
    """A study in which all is known."""
    layers, coords = len(rate), {"layer": range(len(rate))}
    agreement = Dataset({"rate": ("layer", rate), "error": ("layer", [0.01] * layers)}, coords)
    change = np.array([-0.1, last, -0.2])[:, None, None, None] * np.ones((3, layers, 2, 2))
    removed = Dataset(
        {"change": (["removed", "layer", "key", "trigger"], change)}, coords | {"removed": ["first", "last", "random"]}
    )
    counts = Dataset({"single": ("layer", single)}, coords, {"positions": 100})
    return Study(Triggers({}, {}), Dataset(), agreement, removed, counts)


def test_a_trend_holds_where_the_numbers_bear_it_out_and_nowhere_else() -> None:
    holds = lambda *of: [each.holds for each in trends(made(*of))]
    assert holds([0.0, 0.0, 0.1, 0.1], -1.0, [10, 10, 20, 49]) == [True, True, True]
    assert holds([0.1, 0.1, 0.0, 0.0], -0.15, [10, 10, 20, 51]) == [False, False, False]
    assert holds([0.5], -1.0, [0]) == [False, True, True], "one layer has no upper half"
    assert holds([0.0, 0.0, 0.01, 0.01], -1.0, [0, 0, 0, 0]) == [False, True, True], "within two standard errors"
    assert (
        "10.00% in the upper half of the layers, 1.00% in the lower"
        in trends(made([0.01, 0.5, 0.1], -1, [0] * 3))[0].ours
    )


@pytest.mark.long
def test_memories_to_read_are_the_best_by_the_rule_that_is_stated() -> None:
    found = studied().found
    rows, around = found.at.tolist(), found.window[:, 23:26].tolist()
    scores: dict[tuple[int, int], tuple[float, float, tuple[int, int]]] = {}
    for layer in found.layers:
        best = memories.promoted(model(), layer, k=10)
        raised, sure = best.token_id.to_numpy().tolist(), best.probability.to_numpy()
        for neuron in range(model().cfg.d_mlp):
            windows = [around[i] for i in rows[layer][neuron] if i >= 0 and min(around[i]) >= 0]
            if len(windows) < 10:
                continue
            (ending, n), *_ = Counter(tuple(each[:2]) for each in windows).most_common()
            follows = sum(each[2] in raised[neuron] for each in windows)
            scores[layer, neuron] = n * follows / len(windows) ** 2, sure[neuron, 0], ending
    order = sorted(scores, key=lambda key: (-scores[key][0], -scores[key][1]))
    chosen, endings = [], set()
    for key in order:
        if scores[key][0] > 0 and scores[key][2] not in endings and len(chosen) < 10:
            chosen.append(key)
            endings.add(scores[key][2])
    assert len(chosen) == 10
    assert readable(studied()) == chosen


@pytest.mark.long
@pytest.mark.slow
def test_a_report_has_the_numbers_of_the_study() -> None:
    of = studied()
    said = report(of, "stdlib-4l")
    assert said.startswith("# Memories of `stdlib-4l`\n\n3,000 tokens of ")
    for i, layer in enumerate(of.found.layers):
        row = f"| {layer} | {float(of.agreement.rate[i]):.2%} | {float(of.agreement.error[i]):.2%} | "
        assert f"{row}{float(of.agreement.chance[i]):.2%} |" in said
        lost = [
            f"{float(of.removal.change.sel(removed=kind)[i].median()):+.0%}" for kind in ("first", "last", "random")
        ]
        assert f"| {layer} | {' | '.join(lost)} |" in said
        assert f"| {layer} | {int(of.composition.residual[i]) / 3_000:.1%} |" in said
        assert f"| {layer} | {float(of.keys.is_dead[i].mean()):.1%} |" in said
    assert said.count("Reported by Geva et al. 2021: ") == len(trends(of)) == 3
    layer, neuron = readable(of)[0]
    memory = said.split(f"### L{layer}N{neuron}\n")[1]
    own = of.found[layer, neuron]
    assert f"[{str(own.token.values[0]).replace(' ', '·')}]" in memory.replace("⏎", "\n")
    few = replace(of.found, tensors=of.found.tensors | {"at": torch.full_like(of.found.at, -1)})
    assert "None: the keys have too few triggers." in report(replace(of, found=few), "stdlib-4l")


@pytest.mark.long
def test_its_default_leaves_the_report_and_the_numbers_and_goes_on_in_its_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(out=tmp_path)
    said, of_all = capsys.readouterr().out, (tmp_path / "report.md").read_text()
    found = Triggers.load(tmp_path / "triggers")
    assert found.about["tokens"] == 16_000
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["findings"]["read"]["documents"] == found.about["documents"] > 100
    upper, last, single = summary["findings"]["trends"]
    assert last["holds"]
    assert single["holds"]
    for each in (upper, last, single):
        assert f"Here {each['ours']}." in said
        assert each["ours"] in of_all
    result = load_dataset(tmp_path / "result.nc", engine="h5netcdf")
    lost = result.removal_change.median(("key", "trigger"))
    assert float((lost.sel(removed=["first", "random"]) - lost.sel(removed="last")).min()) > 0.2, "the margin"
    assert float(result.composition_single.max()) / 16_000 < 0.3
    assert len(summary["findings"]["to_read"]) == of_all.count("\n### L") == 10
    assert (tmp_path / "trends.html").is_file()
    with pytest.raises(ValueError, match="belongs to another scan"):
        main(max_tokens=2_000, out=tmp_path)
