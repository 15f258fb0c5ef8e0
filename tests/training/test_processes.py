"""Runs in processes of their own: killed, interrupted, several at once, compiled."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from interp.training import Run
from tests.training.runs import curve, tiny_data

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).with_name("runs.py")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}


def run(out: Path, n_processes: int = 1, check: bool = True, **choices: object) -> subprocess.CompletedProcess[str]:
    process = start(out, n_processes, **choices)
    said, _ = process.communicate(timeout=300)
    assert not check or process.returncode == 0, said
    return subprocess.CompletedProcess(process.args, process.returncode, said)


def start(out: Path, n_processes: int = 1, **choices: object) -> subprocess.Popen[str]:
    how = [] if n_processes == 1 else ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={n_processes}"]
    command = [sys.executable, *how, str(SCRIPT), str(out), *(f"{name}={value}" for name, value in choices.items())]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(command, env=ENVIRONMENT, text=True, start_new_session=True, **pipes)  # type: ignore[call-overload]


def losses(out: Path) -> list[float]:
    return [loss for _, loss, _ in curve(Run(out).log)]


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one process that nobody disturbed."""
    out = tmp_path_factory.mktemp("runs") / "single"
    run(out)
    return out


@pytest.mark.long
def test_a_run_killed_ten_times_has_the_curve_of_one_left_alone(tmp_path) -> None:
    choices = {"dropout": 0.1, "steps": 60, "checkpoint_every": 2, "eval_every": 7}
    run(tmp_path / "whole", **choices)
    moments, n_kills = random.Random(0), 0
    while n_kills < 10:
        process = start(tmp_path / "killed", resume=True, slow=0.1, **choices)
        begun = len(Run(tmp_path / "killed").log) if (tmp_path / "killed" / "checkpoints").exists() else 0
        wanted = moments.randint(1, 5)
        log = tmp_path / "killed" / "log.jsonl"
        while process.poll() is None:
            time.sleep(0.01)
            if log.exists() and abs(log.read_text().count('"loss"') - begun) >= wanted:
                break
        time.sleep(moments.random() * 0.1)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        n_kills += 1
    run(tmp_path / "killed", resume=True, **choices)
    rows = [
        [{name: value for name, value in row.items() if name != "seconds"} for row in Run(tmp_path / out).log]
        for out in ("whole", "killed")
    ]
    assert rows[0] == rows[1]
    assert len(curve(rows[0])) == 60


@pytest.mark.parametrize("parallel", ["data", "fsdp"])
def test_two_processes_have_the_losses_of_one(parallel: str, single: Path, tmp_path) -> None:
    for choices in ({}, {"accumulate": 2}):
        out = tmp_path / f"two-{len(choices)}"
        run(out, 2, parallel=parallel, **choices)
        assert losses(out) == pytest.approx(losses(single), rel=1e-5)
        both, one = ([row for row in Run(each).log if "loss" not in row] for each in (out, single))
        for row, expected in zip(both, one, strict=True):
            assert row.get("held_out_loss", 0) == pytest.approx(expected.get("held_out_loss", 0), rel=1e-5)
            assert row.get("repeats", {}) == pytest.approx(expected.get("repeats", {}), rel=1e-5)


def test_a_sharded_checkpoint_opens_and_goes_on_in_one_process_and_back(single: Path, tmp_path) -> None:
    out = tmp_path / "sharded"
    assert run(out, 2, parallel="fsdp", fail=7, check=False).returncode != 0
    assert Run(out).steps == [3, 6]
    assert len(list((out / "checkpoints" / "step-00000006").glob("*.safetensors"))) == 2
    tokens = tiny_data().batch(0, 4).tokens
    torch.testing.assert_close(Run(out).model(6)(tokens), Run(single).model(6)(tokens), rtol=1e-5, atol=1e-6)
    run(out, 1, parallel="fsdp", resume=True, fail=10, check=False)
    assert Run(out).steps == [3, 6, 9]
    run(out, 2, parallel="fsdp", resume=True)
    assert losses(out) == pytest.approx(losses(single), rel=1e-5)
    torch.testing.assert_close(Run(out).model()(tokens), Run(single).model()(tokens), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("signal_sent", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_process_saves_and_goes_on(signal_sent: signal.Signals, single: Path, tmp_path) -> None:
    process = start(tmp_path / "run", slow=0.05, checkpoint_every=0)
    log = tmp_path / "run" / "log.jsonl"
    while not (log.exists() and log.read_text().count('"loss"') >= 3):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)
    process.send_signal(signal_sent)
    said, _ = process.communicate(timeout=60)
    assert "goes on with resume=True" in said
    assert process.returncode != 0
    assert len(Run(tmp_path / "run").steps) == 1
    run(tmp_path / "run", resume=True, checkpoint_every=0)
    assert losses(tmp_path / "run") == losses(single)


@pytest.mark.long
def test_a_compiled_run_has_the_losses_of_a_plain_one(single: Path, tmp_path) -> None:
    run(tmp_path / "compiled", compile=True)
    assert losses(tmp_path / "compiled") == pytest.approx(losses(single), rel=1e-5)
