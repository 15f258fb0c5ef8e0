import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from interp import GPTConfig, HookedGPT
from interp.training import PRESETS, Given, Job, Run, train
from interp.training.measures import head_scores, repeat_losses
from interp.training.presets import grown
from tests.variants import quick_of

ROOT = Path(__file__).parents[2]
TEXT = "To be, or not to be, that is the question:\nWhether 'tis nobler in the mind to suffer\n" * 40


def run_cli(*arguments: object, n_processes: int = 1) -> subprocess.CompletedProcess[str]:
    how = ["torch.distributed.run", "--standalone", f"--nproc-per-node={n_processes}", "-m"] if n_processes > 1 else []
    command = [sys.executable, "-m", *how, "interp.training", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=300)


@pytest.mark.long
def test_the_command_line_trains_resumes_and_says_what_it_did(tmp_path) -> None:
    (tmp_path / "play.txt").write_text(TEXT)
    out = tmp_path / "run"
    given = ["shakespeare-char-cpu", "--data", tmp_path / "play.txt", "--out", out]
    choices = ["--steps", 4, "--checkpoint-every", 2, "--eval-every", 2]
    done = run_cli(*given, *choices)
    assert done.returncode == 0, done.stderr
    run = Run(out)
    assert run.steps == [2, 4]
    assert run.config["about"]["preset"] == "shakespeare-char-cpu"
    assert run.config["about"]["command"].startswith("python -m interp.training shakespeare-char-cpu --data")
    assert run.series("held_out_loss")[0] == [0, 2, 4]
    model = run.model()
    assert model.generate("To be", max_new_tokens=3, temperature=0).startswith("To be")
    log = (out / "log.jsonl").read_text()
    again = run_cli(*given, *choices)
    assert again.returncode != 0
    assert "is already a run: resume it, or name another folder" in again.stderr
    assert "Traceback" not in again.stderr
    assert (out / "log.jsonl").read_text() == log
    (tmp_path / "other.txt").write_text(TEXT[::-1])
    other = ["shakespeare-char-cpu", "--data", tmp_path / "other.txt", "--out", out]
    refused = run_cli(*other, *choices, "--resume")
    assert "was made of another text, or with another tokenizer" in refused.stderr
    resumed = run_cli(*given, *choices, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    steps = [
        [row["step"] for row in map(json.loads, text.splitlines())] for text in (log, (out / "log.jsonl").read_text())
    ]
    assert steps[0] == steps[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["shakespeare-char-cpu"], "this preset reads a text that you give: --data FILE"),
        (["shakespeare-char-cpu", "--data", "absent.txt"], "no file absent.txt"),
        (["shakespeare-char-cpu", "--data", "EMPTY"], "there is no text to train on: the data is empty"),
        (["shakespeare-char-cpu", "--data", "SHORT"], "a context of 64 needs 65"),
        (["gpt2-124m", "--data", "BEYOND"], "token ids from 0 to 60000; the model knows 0 to 50303"),
        (
            ["induction-toy", "--data", "SHORT"],
            "induction-toy reads no text of yours: leave out --data and --tokenizer",
        ),
        (["induction-toy", "--steps", "0"], "steps=0; it must be positive"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else None,
)
def test_wrong_input_gets_one_line(arguments: list[str], said: str, tmp_path) -> None:
    (tmp_path / "EMPTY").write_text("")
    (tmp_path / "SHORT").write_text("too short")
    np.save(tmp_path / "BEYOND.npy", np.resize(np.array([0, 60_000], dtype=np.uint16), 3000))
    named = {name: tmp_path / name for name in ("EMPTY", "SHORT")} | {"BEYOND": tmp_path / "BEYOND.npy"}
    done = run_cli(*(named.get(each, each) for each in arguments), "--out", tmp_path / "run")
    assert done.returncode != 0
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run" / "log.jsonl").exists()


@pytest.mark.slow
def test_the_command_line_runs_under_torchrun(tmp_path) -> None:
    done = run_cli("induction-toy", "--out", tmp_path / "run", "--steps", 2, "--parallel", "fsdp", n_processes=2)
    assert done.returncode == 0, done.stderr[-3000:]
    assert Run(tmp_path / "run").model().cfg.n_layers == 2


@pytest.mark.parametrize("name", quick_of(PRESETS, *(set(PRESETS) - {"gpt2-124m"})))
def test_every_preset_builds_and_its_data_fit_its_model(name: str, tmp_path, monkeypatch) -> None:
    (tmp_path / "text.txt").write_text(TEXT * 20)
    tokens = np.resize(np.arange(50_000, dtype=np.uint16), 200_000)
    np.save(tmp_path / "tokens.npy", tokens)
    monkeypatch.setattr("interp.training.presets.standard_library", lambda split: [TEXT, TEXT[::-1]])
    file = tmp_path / ("tokens.npy" if name == "gpt2-124m" else "text.txt")
    job = PRESETS[name].job(Given(tmp_path / "data", [file]))
    job.data.check(job.model.cfg)
    if job.held_out is not None:
        job.held_out.check(job.model.cfg)
    batch = job.data.batch(0, PRESETS[name].training.batch_size, slice(0, 2))
    with torch.no_grad():
        assert job.model(batch.tokens, stop_at_layer=1).shape[:2] == batch.targets.shape
    assert PRESETS[name].training.measured_at() >= ({0} if job.measures else set())


def test_a_grown_model_computes_what_it_grew_from_and_can_learn_more() -> None:
    kinds = {"positional_embedding_type": "rotary", "normalization_type": "RMS", "bias_norm": False, "seed": 0}
    sizes = {"n_layers": 2, "d_model": 12, "n_heads": 3, "n_ctx": 9, "d_vocab": 17, "attn_only": True}
    small = HookedGPT(GPTConfig(**sizes, **kinds))
    large = grown(small, n_layers=3, attn_only=False, d_mlp=20, seed=1)
    tokens = torch.randint(0, 17, (4, 9), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(large(tokens), small(tokens))
    assert large.cfg.n_layers == 3
    large(tokens, "loss").backward()
    assert all(block.mlp.down.weight.grad.abs().max() > 0 for block in large.blocks)
    assert large.blocks[2].attn.out.weight.grad.abs().max() > 0
    with pytest.raises(ValueError, match=r"these weights of it have no place: \['blocks.2"):
        grown(large, n_layers=2)


def trained(job: Job, name: str, steps: int, **choices: object) -> HookedGPT:
    cfg = replace(PRESETS[name].training, steps=steps, compile=False, **choices)
    train(job.model, job.data, cfg, progress=False)
    return job.model


@pytest.mark.long
def test_random_periods_grow_an_induction_head_in_the_second_layer(tmp_path) -> None:
    job = PRESETS["induction-toy"].job(Given(tmp_path))
    model = trained(job, "induction-toy", 700, measure_every=0)
    fresh = job.data.batch(10_001, 64).tokens
    scores = head_scores(model, fresh)["induction"]
    assert repeat_losses(model, fresh)["again"] <= 0.6
    assert scores[1].max() >= 0.7
    assert scores[0].max() <= 0.1
    found = job.measures["heads"](model)
    assert found["positional"] == []
    assert found["induction"]
    assert all(head.startswith("L1") for head in found["induction"])


@pytest.mark.long
def test_a_fixed_period_grows_a_positional_shortcut_and_is_reported_as_that(tmp_path) -> None:
    job = PRESETS["induction-toy-fixed"].job(Given(tmp_path))
    model = trained(job, "induction-toy-fixed", 500, measure_every=0)
    rows = job.data.batch(10_001, 64).tokens
    assert repeat_losses(model, rows)["again"] <= 0.6
    scores = head_scores(model, rows)["induction"]
    assert scores[0].max() >= 0.4  # two heads share the work
    assert scores[1].max() <= 0.05
    found = job.measures["heads"](model)
    assert any(head.startswith("L0") for head in found["positional"])
    assert found["induction"] == []
