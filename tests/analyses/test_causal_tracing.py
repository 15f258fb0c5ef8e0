"""The study of causal tracing: its numbers are those of the traces, position by position; what is not known is left."""

import json
from pathlib import Path

import numpy as np
import pytest
from xarray import load_dataset

from analyses.causal_tracing import FACTS, PARTS, Fact, main, read_facts, study
from interp import HookedGPT, metrics
from interp.patching import causal_tracing

UNKNOWN = Fact("import struct\n\nsize = struct.", "struct", "self")


@pytest.mark.long
@pytest.mark.slow
def test_what_counts_of_the_subject_is_at_the_end_behind_the_first_layer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(out=tmp_path)
    said = capsys.readouterr().out
    found = json.loads((tmp_path / "summary.json").read_text())["findings"]
    assert found["known"] == found["facts"] == len(FACTS)
    lost = found["clean"] - found["corrupted"]
    assert found["clean"] > 0.75 > 0.4 > found["corrupted"]
    assert found["runs"] == found["runs predicted"]
    assert f"{found['runs']:,} runs, {found['runs']:,} predicted" in said
    for site in ("state", "attention"):
        assert found[site]["peak"]["part"] == "the end"
        assert found[site]["peak"]["gain"] > 0.8 * lost
        assert found[site]["peak before the end"]["gain"] < 0.3 * lost
    assert found["MLP"]["peak"]["gain"] < 0.15 * lost
    result = load_dataset(tmp_path / "result.nc", engine="h5netcdf")["given back"]
    assert dict(result.sizes) == {"site": 3, "layer": 4, "part": len(PARTS), "prompt": len(FACTS)}
    state = result.sel(site="state", part="the end").mean("prompt")
    assert float(state[-1]) == pytest.approx(lost, abs=1e-3), "the last state is the run's end"
    assert float(state[0]) > 0.7 * lost


@pytest.mark.slow
def test_numbers_are_those_of_traces_by_position() -> None:
    model = HookedGPT.from_pretrained("stdlib-4l")
    facts = [UNKNOWN, FACTS[-1], FACTS[3]]
    found = study(model, facts, samples=2, window=3, seed=4, progress=False)
    assert (found.findings["facts"], found.findings["known"]) == (3, 2)
    assert found.findings["runs"] == found.findings["runs predicted"]
    assert found.result.site.values.tolist() == ["state", "attention", "MLP"]
    known = facts[1:]
    prompts, subjects = [fact.prompt for fact in known], [fact.subject for fact in known]
    metric = metrics.prob(model, [fact.answer for fact in known])
    traced = causal_tracing(
        model, prompts, subjects, metric, samples=2, seed=4, site="mlp_out", window=3, progress=False
    )
    gain = (traced - traced.base).to_numpy()
    for i, prompt in enumerate(prompts):
        pieces = model.to_str_tokens(prompt)
        where = traced.is_subject.values[: len(pieces), i].nonzero()[0].tolist()
        assert "".join(pieces[j] for j in where[:1]).strip() in subjects[i]
        here, end = found.result.sel(site="MLP", prompt=i), len(pieces) - 1
        wanted = {"its last": [where[-1]], "inside it": list(range(where[0] + 1, where[-1])), "the end": [end]}
        wanted["between"] = list(range(where[-1] + 2, end))
        for part, columns in wanted.items():
            value = gain[:, columns, i].mean(1) if columns else np.full(4, np.nan)
            np.testing.assert_allclose(here.sel(part=part), value, atol=1e-12)
    with pytest.raises(ValueError, match="of these 1 facts the model knows none"):
        study(model, [UNKNOWN], progress=False)


def test_facts_are_read_from_a_file_and_wrong_ones_refused(tmp_path: Path) -> None:
    file = tmp_path / "facts.json"
    fact = {"prompt": "a b", "subject": "a", "answer": " c"}
    file.write_text(json.dumps({"facts": [fact]}))
    assert read_facts(file) == [Fact("a b", "a", " c")]
    for wrong in ({**fact, "answer": ""}, {"prompt": "a"}, "a", {**fact, "more": "b"}):
        file.write_text(json.dumps({"facts": [wrong]}))
        with pytest.raises(ValueError, match="a fact has three texts, answer, prompt, subject"):
            read_facts(file)
    file.write_text("{}")
    with pytest.raises(ValueError, match="it must have a list, facts"):
        read_facts(file)
