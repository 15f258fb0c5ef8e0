"""The ablation study: its numbers are the library's, its parts are those that matter, and it goes on after a kill."""

import json
import subprocess
import sys
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from xarray import Dataset

from analyses.ablate import effects, figures, findings, main, models_of, of_model, run, told
from analyses.ablation_study import KINDS, METRICS, Opened, Study, metric_of
from analyses.output import opened
from interp import HookedGPT, interventions, metrics, patching
from interp.interventions import Ablate, Site
from interp.patching import memory
from tests.analyses.ablated import SMALL
from tests.variants import variant

ROOT = Path(__file__).parents[2]
PLANTED = {"models": ("planted/induction",), "sites": ("heads",), "resamples": 200}


@cache
def stdlib() -> HookedGPT:
    return HookedGPT.from_pretrained("stdlib-4l").eval()


def ran(**choices: Any) -> Dataset:
    study = Study(**PLANTED | choices)
    return run(study, study.opened(), progress=False)


# What is found


@pytest.mark.parametrize("kind", ["zero", "mean", "resample"])
def test_of_a_planted_model_exactly_the_planted_heads_matter(kind: str) -> None:
    study = Study(**PLANTED | {"kinds": (kind,), "n_prompts": 24})
    of = study.opened()
    (planted,) = of.values()
    assert planted.planted is not None
    found = effects(run(study, of, progress=False), "planted induction", "loss", kind)
    matter = set(planted.planted.roles.values())
    assert len(matter) == 2
    for name in found.site.values.tolist():
        one = found.sel(site=name)
        if name in matter:
            assert float(one.low) > 0.4
            assert float(one.p) < 0.01
        else:
            assert abs(float(one["mean"])) < 0.01


@pytest.mark.slow
def test_where_random_tokens_repeat_the_previous_token_head_is_needed_most_and_then_induction() -> None:
    study = Study(sites=("L0-1H*",), kinds=("mean",), data="repeats", n_prompts=8, n_ctx=40, modes=("single",))
    found = effects(run(study, study.opened(), progress=False), "stdlib-4l", "loss", "mean")
    mean = {str(name): float(x) for name, x in zip(found.site.values, found["mean"].values, strict=True)}
    order = sorted(mean, key=lambda name: -mean[name])
    assert order[0] == "L0H1", "the previous-token head"
    assert mean["L0H1"] > 1.7 * mean[order[1]]
    assert float(found.low.sel(site="L0H1")) > 3
    later = [name for name in order if name.startswith("L1")]
    assert later[0] == "L1H4", "of the layer behind it, the best induction head"
    assert float(found.low.sel(site="L1H4")) > 0.05


# What is measured


@torch.no_grad()
def test_an_effect_is_the_metric_of_a_run_without_the_part_less_that_of_a_plain_run() -> None:
    texts = ("def f(x):\n    return x", "for i in range(10):\n    print(i)")
    study = Study(sites=("L0H1", "L2 mlp"), kinds=("zero",), metrics=("loss", "logit_diff", "kl", "log_prob"),
                  text=texts, correct=(" x",), wrong=(" i", " y"))  # fmt: skip
    found = run(study, {"it": Opened(stdlib())}, progress=False)
    tokens, mask = stdlib().read_input(list(texts), None, None)
    own = {
        "loss": metrics.loss(),
        "logit_diff": metrics.logit_diff(stdlib(), " x", [" i", " y"]),
        "kl": metrics.kl(stdlib(), tokens, attention_mask=mask),
        "log_prob": metrics.log_prob(stdlib(), " x"),
    }
    for name, metric in own.items():
        base = metrics.measured(stdlib(), tokens, metric, mask)
        np.testing.assert_allclose(found.base.sel(model="it", metric=name), base, rtol=1e-4, atol=1e-4)
        for part, sites in patching.parts_named(stdlib(), "L0H1, L2 mlp").items():
            with stdlib().edit([Ablate(site) for site in sites]):
                without = metrics.measured(stdlib(), tokens, metric, mask)
            here = found.single.sel(model="it", metric=name, kind="zero", site=part)
            np.testing.assert_allclose(here, without, rtol=1e-4, atol=1e-4)
            one = effects(found, "it", name, "zero").sel(site=part)
            assert float(one["mean"]) == pytest.approx(float((without - base).mean()), abs=1e-4)


def test_pairs_and_steps_are_of_the_strongest_parts() -> None:
    found = of_model(ran(modes=("pairs", "cumulative"), strongest=3, n_prompts=6, kinds=("zero",)), "planted induction")
    one = found.sel(metric="loss", kind="zero")
    order = sorted(one.site.values.tolist(), key=lambda name: -abs(float(one["mean"].sel(site=name))))
    assert one.one.values.tolist() == one.other.values.tolist() == order[:3] == one.removed.values.tolist()
    alone, pairs, steps = one.single, one.pairs, one["cumulative"]
    for name in order[:3]:
        np.testing.assert_allclose(pairs.sel(one=name, other=name), alone.sel(site=name), atol=1e-6)
    np.testing.assert_allclose(pairs, pairs.transpose("other", "one", "prompt"))
    np.testing.assert_allclose(steps[0], alone.sel(site=order[0]), atol=1e-6)
    np.testing.assert_allclose(steps[1], pairs.sel(one=order[0], other=order[1]), atol=1e-6)
    effect = lambda x: x - one.base
    both, each = effect(pairs.sel(one=order[0], other=order[1])), [effect(alone.sel(site=n)) for n in order[:2]]
    beyond = float((both - each[0] - each[1]).mean())
    assert float(one["interaction mean"].sel(one=order[0], other=order[1])) == pytest.approx(beyond, abs=1e-6)
    assert beyond < -0.3, "each of the two breaks it: both break it no further"
    assert float(one["cumulative mean"][1]) == pytest.approx(float(both.mean()), abs=1e-6)


def test_a_greedy_order_takes_the_costliest_next() -> None:
    found = ran(modes=("cumulative",), order="greedy_highest", n_steps=3, strongest=0, n_prompts=6, kinds=("zero",))
    one = of_model(found, "planted induction").sel(metric="loss", kind="zero")
    mean = one["cumulative"].mean("prompt").values
    assert one.removed.values[0] in ("L0H2", "L1H1")
    assert len(mean) == 3
    assert mean[0] == pytest.approx(float(one.single.mean("prompt").max()))


def test_models_that_differ_in_shape_stand_beside_each_other_and_others_share_an_axis() -> None:
    choices: dict[str, Any] = {"n_prompts": 4, "kinds": ("zero",)}
    alike = ran(models=("planted/induction", "planted/induction"), **choices)
    assert models_of(alike) == ["planted induction", "planted induction 2"]
    assert alike.sizes["model"] == 2
    apart = ran(models=("planted/induction", "planted/previous_token"), metrics=("kl",), **choices)
    assert "model" not in apart.dims
    for name in models_of(apart):
        own = ran(models=(f"planted/{name.split()[1]}",), metrics=("kl",), **choices)
        assert of_model(apart, name).equals(of_model(own, name))
        assert effects(apart, name, "kl", "zero").equals(effects(own, name, "kl", "zero"))
        assert [each for each in figures(apart) if name.replace(" ", "-") in each]


def test_the_same_seed_gives_the_same_numbers_and_another_gives_others() -> None:
    first, again, other = (ran(seed=seed, n_prompts=4, kinds=("resample",)) for seed in (1, 1, 2))
    assert first.identical(again)
    assert not first.equals(other)


def test_edits_of_a_file_are_in_force_in_every_run(tmp_path: Path) -> None:
    of = Study(**PLANTED).opened()
    (planted,) = of.values()
    tokens, _ = planted.prompts(Study(**PLANTED))
    edit = Ablate(Site("z", 0, head=2))
    interventions.save([edit], tmp_path / "mine.json")
    found = ran(edits=str(tmp_path / "mine.json"), kinds=("zero",)).isel(model=0).sel(metric="loss", kind="zero")
    with planted.model.edit([edit]):
        base = metrics.measured(planted.model, tokens, metrics.loss())
    np.testing.assert_allclose(found.base, base, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found.single.sel(site="L0H2"), base, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("metric", METRICS)
def test_every_metric_is_measured_by_name(metric: str) -> None:
    opened = Opened.named("planted/induction")
    study = Study(metrics=(metric,), correct=("3",), wrong=(4,), pos=(-2,))
    tokens, _ = opened.prompts(study)
    values = metrics.measured(opened.model, tokens, metric_of(opened.model, metric, study, tokens, None))
    assert values.shape == (60,)
    assert bool(values.isfinite().all())


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_the_librarys(kind: Any) -> None:
    opened = Opened.named("planted/induction")
    study = Study(**PLANTED | {"kinds": (kind,), "n_prompts": 3, "sites": ("L0H2", "L1H1")})
    tokens, _ = opened.prompts(study)
    sites = [Site("z", 0, head=2), Site("z", 1, head=1)]
    found = run(study, {"it": opened}, progress=False).single.isel(model=0, metric=0, kind=0)
    own = patching.ablation(opened.model, tokens, sites, metrics.loss(), kind=kind, progress=False)
    np.testing.assert_array_equal(found, own)


# Data


def test_rows_are_read_from_texts_and_token_files(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("import os\n" * 60)
    np.save(tmp_path / "a.npy", np.arange(1000, dtype=np.uint16) % 300 + 300)
    np.save(tmp_path / "rows.npy", np.arange(120).reshape(10, 12))
    read = lambda **choices: Opened(stdlib()).prompts(Study(n_prompts=5, n_ctx=12, **choices))[0]
    for name in ("a.txt", "a.npy", "rows.npy"):
        assert read(data=str(tmp_path / name)).shape == (5, 12)
    assert sorted(read(data=str(tmp_path / "rows.npy"))[:, 0].tolist()) != list(range(0, 60, 12)), "drawn by the seed"
    tokens, mask = Opened(stdlib()).prompts(Study(text=("a b c", "a")))
    assert mask is not None
    assert tokens.shape == mask.shape
    with pytest.raises(FileNotFoundError, match=r"no file 'none.txt'"):
        read(data="none.txt")
    with pytest.raises(ValueError, match="rows of 12 tokens here, not 500"):
        Opened(stdlib()).prompts(Study(data=str(tmp_path / "a.txt"), n_prompts=500, n_ctx=12))
    blind = Opened(variant("gpt2"))
    with pytest.raises(ValueError, match="has no tokenizer"):
        blind.prompts(Study())


@pytest.mark.slow
def test_a_reference_stands_in_for_the_prompts_own() -> None:
    study = Study(text=("x = 1",), sites=("L0H1",), kinds=("mean",), reference="sample")
    found = run(study, {"it": Opened(stdlib())}, progress=False).single
    edits = patching.removals(stdlib(), "L0H1", "mean", patching.sample(stdlib(), 16, 64))["L0H1"]
    with stdlib().edit(edits):
        own = metrics.measured(stdlib(), stdlib().to_tokens("x = 1"), metrics.loss())
    np.testing.assert_allclose(found.values.flatten(), own, rtol=1e-4)


# Options and files

EVERYTHING = Study(
    models=("stdlib-4l", 'a "quoted" \\ name'), sites=("L0H1", "resid_pre layer 1 pos -1"), kinds=("mean",),
    metrics=("logit_diff",), modes=("single", "pairs"), strongest=3, order="greedy", n_steps=2,
    text=("def f():\n\treturn 'é'\x7f\x01", ""), n_prompts=3, n_ctx=9, correct=(" x", 5), wrong=("y",), pos=(3,),
    reference="sample", edits="none.json", seed=4, level=0.9, resamples=10,
)  # fmt: skip


@pytest.mark.parametrize("study", [Study(), EVERYTHING, Study(data="a.txt", level=0.5)])
def test_a_study_is_read_back_from_either_file(tmp_path: Path, study: Study) -> None:
    (tmp_path / "it.toml").write_text(study.toml(), encoding="utf-8")
    (tmp_path / "it.json").write_text(json.dumps(asdict(study)))
    assert Study.read(tmp_path / "it.toml") == study
    assert Study.read(tmp_path / "it.json") == study


def test_a_file_may_name_others_beside_it_and_one_where_a_list_is_meant(tmp_path: Path) -> None:
    (tmp_path / "tokens.npy").write_bytes(b"")
    (tmp_path / "it.toml").write_text('sites = "L0H1"\ndata = "tokens.npy"\nlevel = 0.9\n')
    assert Study.read(tmp_path / "it.toml") == Study(sites=("L0H1",), data=str(tmp_path / "tokens.npy"), level=0.9)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('site = ["L0H1"]', "it.toml: key 'site': did you mean sites"),
        ('kinds = ["zeroo"]', "it.toml: kind 'zeroo': did you mean zero\\? allowed: zero, mean"),
        ('metrics = ["los"]', "metric 'los': did you mean loss"),
        ('modes = ["triples"]', "mode 'triples'.* allowed: single, pairs, cumulative"),
        ('order = "random"', "order 'random'.* allowed: given, greedy"),
        ('n_prompts = "many"', "n_prompts='many': it is a whole number"),
        ("n_prompts = true", "n_prompts=True: it is a whole number"),
        ("sites = [1]", "sites=\\[1\\]: it is a list of texts"),
        ("correct = [1.5]", "correct=\\[1.5\\]: it is a list of texts or whole numbers"),
        ("level = 2", "level=2.0; it lies between 0 and 1"),
        ("n_ctx = 1", "n_ctx=1; it starts from 2"),
        ("n_steps = 0", "n_steps=0; take away at least 1"),
        ("sites = []", "sites: name at least one"),
        ('metrics = ["logit_diff"]', "'logit_diff': it compares two answers"),
        ('metrics = ["prob"]', "'prob': it is of an answer, give correct"),
        ('metrics = ["rank"]\ncorrect = ["a"]\npos = [1, 2]', "an answer is read at one position"),
        ('text = ["a"]\ndata = "b"', "text and data: give one of them"),
        ("sites = [", "it.toml is no valid TOML"),
        ("[sites]\na = 1", "it is a list of texts"),
    ],
)
def test_what_no_study_has_is_told_with_what_was_meant(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "it.toml").write_text(content)
    with pytest.raises(ValueError, match=said) as refused:
        Study.read(tmp_path / "it.toml")
    assert "\n" not in str(refused.value).replace("at line", "")


def test_only_files_of_a_known_kind_are_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is a .toml or a .json file"):
        Study.read(tmp_path / "study.yaml")
    with pytest.raises(FileNotFoundError, match="no study"):
        Study.read(tmp_path / "study.toml")
    (tmp_path / "study.json").write_text("[1]")
    with pytest.raises(ValueError, match="must hold names and values, not a list"):
        Study.read(tmp_path / "study.json")


def test_models_that_are_not_there_are_told() -> None:
    with pytest.raises(ValueError, match="planted model 'inductoin': did you mean induction"):
        Opened.named("planted/inductoin")
    tokens = torch.zeros(1, 4, dtype=torch.long)
    with pytest.raises(ValueError, match="does not predict the next token of its prompt; try 'kl'"):
        metric_of(Opened.named("planted/duplicate_token").model, "loss", Study(), tokens, None)
    with pytest.raises(ValueError, match="'x' is no token id"):
        metric_of(variant("gpt2"), "logit", Study(correct=("x",)), tokens, None)


# Folders


def small(folder: Path, **choices: Any) -> Path:
    """A study file, of a model of its own."""
    if not (folder / "model").exists():
        variant("gpt2").save_pretrained(folder / "model")
        np.save(folder / "tokens.npy", np.arange(700) * 7 % 11)
    (folder / "study.json").write_text(
        json.dumps(
            {"models": [str(folder / "model")], "sites": ["all", "L0N*"], "kinds": ["mean"], "data": "tokens.npy",
             "n_prompts": 12, "n_ctx": 7, "modes": ["cumulative"], "strongest": 3, "resamples": 100} | choices
        )
    )  # fmt: skip
    return folder / "study.json"


@pytest.mark.slow
def test_a_folder_has_numbers_figures_and_what_was_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(study=small(tmp_path), out=tmp_path / "out")
    result, summary = opened(tmp_path / "out")
    study = Study.read(tmp_path / "study.json")
    assert result.equals(run(study, study.opened(), progress=False))
    assert summary["config"] == json.loads(json.dumps(asdict(study)))
    assert summary["findings"] == json.loads(json.dumps(findings(result)))
    said = capsys.readouterr().out
    assert said.startswith(told(result))
    names = {file.name for file in (tmp_path / "out").glob("*.html")}
    assert names == {f"{kind}-model-loss-mean.html" for kind in ("map", "bars", "steps")}
    main(study=small(tmp_path), out=tmp_path / "out")
    assert opened(tmp_path / "out")[0].identical(result)
    with pytest.raises(ValueError, match=r"was begun with another study: not the same kinds, seed; give"):
        main(study=small(tmp_path, kinds=["zero"], seed=1), out=tmp_path / "out")
    with pytest.raises(ValueError, match="leave out the other options"):
        main(Study(seed=2), study=small(tmp_path), out=tmp_path / "out")
    variant("sinusoidal").save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="not the same the models' weights"):
        main(study=small(tmp_path), out=tmp_path / "out")


@pytest.mark.long
@pytest.mark.slow
def test_one_that_was_killed_goes_on_and_two_processes_give_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = small(tmp_path)
    part = [sys.executable, "-m", "tests.analyses.ablated", str(study)]
    killed = subprocess.run([*part, str(tmp_path / "killed"), "20"], cwd=ROOT, capture_output=True)
    assert killed.returncode == -9, killed.stderr.decode()
    assert not (tmp_path / "killed" / "summary.json").exists()
    (file,) = (tmp_path / "killed" / "sweeps").iterdir()
    n_kept = len(file.read_bytes().splitlines())
    assert n_kept > 3
    monkeypatch.setitem(memory._LARGEST, "cpu", SMALL)
    for name in ("killed", "whole"):
        main(study=study, out=tmp_path / name)
    assert len(file.read_bytes().splitlines()) > n_kept
    whole = opened(tmp_path / "whole")[0]
    assert opened(tmp_path / "killed")[0].identical(whole)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    ran = subprocess.run([*torchrun, *part[1:], str(tmp_path / "two")], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("95% from") == 1, "one of them tells"
    two = opened(tmp_path / "two")[0]
    assert two.removed.equals(whole.removed)
    for name in ("single", "cumulative", "base", "mean", "low", "high"):
        np.testing.assert_allclose(two[name], whole[name], rtol=1e-5, atol=1e-6)
    assert {file.name[-6:] for file in (tmp_path / "two" / "sweeps").iterdir()} == {"0-of-2", "1-of-2"}


@pytest.mark.slow
def test_the_command_line_takes_options_and_tells_what_is_wrong_in_a_line(tmp_path: Path) -> None:
    call = lambda *options: subprocess.run(
        [sys.executable, "-m", "analyses.ablate", *options], cwd=ROOT, capture_output=True, text=True
    )
    asked = ["--models", "planted/induction", "--sites", "L*H1", "L0H2", "--kinds", "zero", "--n-prompts", "4"]
    done = call(*asked, "--out", str(tmp_path / "it"))
    assert done.returncode == 0, done.stderr
    assert opened(tmp_path / "it")[0].site.values.tolist() == ["L0H1", "L1H1", "L0H2"]
    wrong = call("--kinds", "zeroo", "--out", str(tmp_path / "not"))
    assert wrong.returncode == 1
    assert wrong.stderr.strip().splitlines()[-1].startswith("ValueError: kind 'zeroo': did you mean zero?")
