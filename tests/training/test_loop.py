import json
import math
import os
import signal
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from interp import HookedGPT
from interp.loading.files import open_safetensors
from interp.tokenization import Tokenizer
from interp.training import (
    IGNORED,
    Batch,
    FullBatch,
    Run,
    Stages,
    TokenFile,
    TrainingConfig,
    evaluate,
    modular_addition,
    train,
    write_tokens,
)
from interp.training.config import optimiser
from interp.training.loop import _Loop
from interp.training.measures import fourier_power, head_scores, positional_or_induction, repeat_losses
from tests.training.runs import curve, held_out, tiny_config, tiny_data, tiny_model
from tests.variants import quick_of


def literal_losses(model: HookedGPT, cfg: TrainingConfig) -> list[float]:
    """The same training, written out: one batch, one gradient, one update of AdamW by its formula."""
    means = {p: (torch.zeros_like(p), torch.zeros_like(p)) for p in model.parameters()}
    losses = []
    for step in range(cfg.steps):
        batch = tiny_data().batch(step, cfg.batch_size)
        losses_of_tokens = F.cross_entropy(model(batch.tokens).transpose(1, 2), batch.targets, reduction="none")
        loss = losses_of_tokens.sum() / (batch.targets != IGNORED).sum()
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        norm = math.sqrt(sum(g.square().sum().item() for g in gradients))
        lr = cfg.lr * (step + 1) / (cfg.warmup + 1)
        if step >= cfg.warmup:
            done = (step - cfg.warmup) / (cfg.steps - cfg.warmup)
            lr = cfg.lr * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * done)))
        with torch.no_grad():
            for p, g in zip(model.parameters(), gradients, strict=True):
                g = g * min(1.0, cfg.clip / (norm + 1e-6))
                first, second = means[p]
                first.lerp_(g, 1 - cfg.betas[0])
                second.lerp_(g * g, 1 - cfg.betas[1])
                if p.ndim > 1:
                    p.mul_(1 - lr * cfg.weight_decay)
                scale = second.sqrt() / math.sqrt(1 - cfg.betas[1] ** (step + 1)) + cfg.eps
                p.sub_(lr / (1 - cfg.betas[0] ** (step + 1)) * first / scale)
        losses.append(loss.item())
    return losses


def test_the_loop_is_adamw_written_out() -> None:
    cfg = tiny_config(lr=0.02, clip=0.3)
    log = train(tiny_model(dtype=torch.float64), tiny_data(), cfg, progress=False)
    losses = [loss for _, loss, _ in curve(log)]
    expected = literal_losses(tiny_model(dtype=torch.float64), cfg)
    assert losses == pytest.approx(expected, rel=1e-6)
    assert losses[-1] < losses[0] - 0.1


@pytest.mark.parametrize("changes", [{"accumulate": 4}, {"activation_checkpointing": True}])
def test_ways_to_save_memory_change_no_loss(changes: dict) -> None:
    logs = [train(tiny_model(), tiny_data(), tiny_config(**each), progress=False) for each in ({}, changes)]
    for plain, frugal in zip(*map(curve, logs), strict=True):
        assert frugal == pytest.approx(plain, rel=1e-5)


def test_ignored_targets_weigh_alike_in_every_part_of_a_batch() -> None:
    batch = tiny_data().batch(0, 8)
    batch.targets[:5, 3:] = IGNORED
    logs = [train(tiny_model(), FullBatch(batch), tiny_config(accumulate=parts), progress=False) for parts in (1, 2, 8)]
    for other in logs[1:]:
        assert [loss for _, loss, _ in curve(other)] == pytest.approx([loss for _, loss, _ in curve(logs[0])], rel=1e-5)


@pytest.mark.parametrize(
    ("precision", "close"), [("bfloat16", 0.02), pytest.param("float16", 0.005, marks=pytest.mark.slow)]
)
def test_half_precision_learns_nearly_the_same(precision: str, close: float) -> None:
    model = tiny_model()
    log = train(model, tiny_data(), tiny_config(precision=precision, lr=0.02, steps=40), progress=False)
    full = train(tiny_model(), tiny_data(), tiny_config(lr=0.02, steps=40), progress=False)
    assert curve(log)[0] != curve(full)[0]
    assert curve(log)[0][1] == pytest.approx(curve(full)[0][1], rel=close)
    assert curve(log)[-1][1] == pytest.approx(curve(full)[-1][1], rel=0.1)
    assert model.dtype == torch.float32


def test_label_smoothing_and_double_precision_are_torchs() -> None:
    batch = tiny_data().batch(0, 8)
    with torch.no_grad():
        logits = tiny_model()(batch.tokens).flatten(0, 1)
    for changes, expected in (
        ({"label_smoothing": 0.2}, F.cross_entropy(logits, batch.targets.flatten(), label_smoothing=0.2)),
        ({"loss_in_float64": True}, F.cross_entropy(logits.double(), batch.targets.flatten())),
    ):
        log = train(tiny_model(), tiny_data(), tiny_config(steps=1, warmup=0, **changes), progress=False)
        assert curve(log)[0][1] == pytest.approx(expected.item(), rel=1e-6)


def test_the_last_position_alone_is_computed_where_it_alone_is_asked() -> None:
    rows, _ = modular_addition(5, 0.9)
    model = lambda: tiny_model(d_vocab=6, d_vocab_out=5, n_ctx=3)
    logs = [
        train(model(), FullBatch(rows), tiny_config(batch_size=22, last_only=each), progress=False)
        for each in (False, True)
    ]
    for whole, last in zip(*map(curve, logs), strict=True):
        assert last == pytest.approx(whole, rel=1e-4)
    with pytest.raises(ValueError, match=r"last_only, but the data asks at other positions too"):
        train(tiny_model(), tiny_data(), tiny_config(last_only=True), progress=False)
    later = Stages([(2, FullBatch(rows)), (None, FullBatch(Batch(rows.tokens, rows.tokens % 5)))])
    with pytest.raises(ValueError, match=r"last_only, but the data asks at other positions too"):
        train(model(), later, tiny_config(batch_size=22, last_only=True), progress=False)


def test_learning_rates_warm_up_and_fall() -> None:
    cfg = {"steps": 100, "batch_size": 1, "lr": 1.0, "warmup": 9, "final_lr": 0.2}
    cosine, linear, constant = (TrainingConfig(schedule=each, **cfg) for each in ("cosine", "linear", "constant"))
    for each in (cosine, linear, constant):
        assert [each.lr_at(step) for step in range(10)] == pytest.approx([0.1 * i for i in range(1, 11)])
    assert (cosine.lr_at(100), linear.lr_at(100), constant.lr_at(100)) == pytest.approx((0.2, 0.2, 1.0))
    assert linear.lr_at(9 + 91 // 7) == pytest.approx(1 - 0.8 / 7)
    assert cosine.lr_at(9 + 91 // 7) == pytest.approx(0.2 + 0.4 * (1 + math.cos(math.pi / 7)))


def test_measures_are_taken_at_log_spaced_steps_or_at_equal_ones() -> None:
    assert TrainingConfig(steps=1000, batch_size=1, measures=4).measured_at() == {0, 1, 10, 100, 1000}
    assert TrainingConfig(steps=10, batch_size=1, measure_every=4).measured_at() == {0, 4, 8, 10}
    assert len(TrainingConfig(steps=5000, batch_size=1, measures=30).measured_at()) >= 27
    seen = []
    log = train(
        tiny_model(), tiny_data(), tiny_config(measure_every=5), progress=False,
        measures={"width": lambda model: seen.append(model.training) or torch.arange(2.0)},
    )  # fmt: skip
    assert [(row["step"], row["width"]) for row in log if "width" in row] == [(i, [0.0, 1.0]) for i in (0, 5, 10, 12)]
    assert seen == [False] * 4


def test_evaluation_is_a_sum_over_all_held_out_tokens(tmp_path) -> None:
    text = "the cat “sat” on the mat, and the dog sat on the log " * 5
    tokenizer = Tokenizer.train([text], 300, progress=False)
    model = tiny_model(d_vocab=tokenizer.d_vocab)
    model.tokenizer = tokenizer
    data = TokenFile(write_tokens([text], tokenizer, tmp_path / "t.npy", progress=False), 10)
    total = right = n_tokens = 0
    for batch in data.whole(1):
        log_probs = model(batch.tokens).log_softmax(-1)[0]
        for row, target in zip(log_probs, batch.targets[0].tolist(), strict=True):
            if target != IGNORED:
                total, right, n_tokens = (
                    total - row[target].item(),
                    right + (row.argmax() == target).item(),
                    n_tokens + 1,
                )
    first = tokenizer.decode(tokenizer.encode(text)[:1])
    n_bytes = len(text.encode()) - len(first.encode())
    expected = {
        "loss": total / n_tokens,
        "perplexity": math.exp(total / n_tokens),
        "accuracy": right / n_tokens,
        "bits_per_byte": total / math.log(2) / n_bytes,
    }
    for n_rows in (1, 3, 50):
        assert evaluate(model, data, n_rows=n_rows) == pytest.approx(expected, rel=1e-5)
    assert model.training
    assert evaluate(model, data, n_rows=2, n_batches=1) != pytest.approx(expected, rel=1e-3)


def test_what_is_not_finite_stops_the_run_and_is_named(tmp_path) -> None:
    model = tiny_model(act_fn="relu2")
    with torch.no_grad():
        model.blocks[1].mlp.W_in.mul_(1e30)
    before = {name: p.clone() for name, p in model.named_parameters()}
    with pytest.raises(FloatingPointError, match=r"step 0: .* first at blocks\.1\.mlp\.hook_post, at \{'batch': 0"):
        train(model, tiny_data(), tiny_config(), progress=False)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())

    model = tiny_model()
    with torch.no_grad():
        model.blocks[1].attn.W_K[1, 3, 2] = math.nan
    with pytest.raises(FloatingPointError, match=r"the weight blocks\.1\.attn\.qkv\.weight"):
        train(model, tiny_data(), tiny_config(), progress=False)

    model = tiny_model()
    poison = lambda x, hook: torch.where(torch.arange(14)[:, None] == 4, math.nan, x)
    with (
        model.hooks([("blocks.0.hook_attn_out", poison)]),
        pytest.raises(
            FloatingPointError,
            match=r"blocks\.0\.hook_attn_out, at \{'batch': 0, 'pos': 4, 'd_model': 0\}.*data\.batch\(0, 8\)",
        ),
    ):
        train(model, tiny_data(), tiny_config(), tmp_path / "run", progress=False)

    model = tiny_model()
    late = lambda grad, hook: grad * math.inf
    with (
        model.hooks(bwd_hooks=[("blocks.1.hook_mlp_out", late)]),
        pytest.raises(FloatingPointError, match=r"the gradient of blocks\.1\.mlp"),
    ):
        train(model, tiny_data(), tiny_config(), progress=False)


def test_gradients_that_never_fit_float16_stop_the_run() -> None:
    model = tiny_model()
    with (
        model.hooks(bwd_hooks=[("blocks.1.hook_mlp_out", lambda grad, hook: grad * math.inf)]),
        pytest.raises(FloatingPointError, match=r"step 19: .* the gradient of blocks\.1\.mlp"),
    ):
        train(model, tiny_data(), tiny_config(precision="float16", steps=40), progress=False)


@pytest.mark.parametrize("lag", quick_of([0, 1, 3], 3))
def test_a_loss_that_is_read_late_changes_nothing(lag: int, tmp_path, monkeypatch) -> None:
    """As on a GPU, which is asked for a loss while it works on the next."""
    made = _Loop.__init__

    def late(self: _Loop, *args: Any, **kwargs: Any) -> None:
        made(self, *args, **kwargs)
        self.lag = lag

    whole = train(tiny_model(), tiny_data(), tiny_config(log_every=5), progress=False)
    monkeypatch.setattr(_Loop, "__init__", late)
    log = train(tiny_model(), tiny_data(), tiny_config(log_every=5), tmp_path / "run", progress=False)
    assert curve(log) == curve(whole)
    assert [row["step"] for row in log] == [0, 5, 10]
    model = tiny_model(act_fn="relu2")
    with torch.no_grad():
        model.blocks[1].mlp.W_in.mul_(1e30)
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(FloatingPointError, match=r"step 0: .* first at blocks\.1\.mlp\.hook_post"):
        train(model, tiny_data(), tiny_config(), progress=False)
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))


def test_evaluation_takes_parts_as_training_does_and_smooths_nothing() -> None:
    seen = []
    model = tiny_model()
    with model.hooks([("hook_embed", lambda x, hook: seen.append(len(x)))]):
        log = train(
            model,
            tiny_data(),
            tiny_config(steps=1, accumulate=4, label_smoothing=0.3),
            held_out=held_out(),
            progress=False,
        )
    assert max(seen) == 2
    assert log[-1]["held_out_loss"] == pytest.approx(evaluate(model, held_out())["loss"], rel=1e-6)


def test_gains_do_not_decay_unless_everything_does() -> None:
    model = tiny_model(use_qk_norm=True, qk_norm_over_width=True)
    decays = lambda cfg: {
        id(p) for group in optimiser(model, cfg).param_groups if group["weight_decay"] for p in group["params"]
    }
    names = {name for name, p in model.named_parameters() if id(p) not in decays(tiny_config())}
    assert {"blocks.0.attn.q_norm.w", "blocks.1.attn.k_norm.w", "ln_final.w", "blocks.0.mlp.up.bias"} <= names
    assert not any(name.endswith(("weight", "W_E", "W_pos")) for name in names)
    assert decays(tiny_config(decay="all")) == {id(p) for p in model.parameters()}


def test_float16_goes_on_with_its_scale(tmp_path) -> None:
    choices = {"precision": "float16", "lr": 0.01}
    whole = train(tiny_model(), tiny_data(), tiny_config(**choices), progress=False)
    with pytest.raises(RuntimeError, match=r"the data broke"):
        train(tiny_model(), tiny_data(fail=8), tiny_config(**choices), tmp_path / "run", progress=False)
    about = open_safetensors(tmp_path / "run/checkpoints/step-00000006/training.safetensors").metadata()["about"]
    assert json.loads(about)["scaler"]["_growth_tracker"] == 6
    log = train(tiny_model(), tiny_data(), tiny_config(**choices), tmp_path / "run", resume=True, progress=False)
    assert curve(log) == curve(whole)
    about = open_safetensors(tmp_path / "run/checkpoints/step-00000012/training.safetensors").metadata()["about"]
    assert json.loads(about)["scaler"]["_growth_tracker"] == 12


def test_a_broken_run_goes_on_as_if_nothing_had_happened(tmp_path) -> None:
    whole = train(tiny_model(dropout=0.1), tiny_data(), tiny_config(), progress=False)
    with pytest.raises(RuntimeError, match=r"the data broke"):
        train(tiny_model(dropout=0.1), tiny_data(fail=8), tiny_config(), tmp_path / "run", progress=False)
    assert Run(tmp_path / "run").steps == [3, 6]
    assert [row["step"] for row in Run(tmp_path / "run").log] == list(range(8))
    model = tiny_model(dropout=0.1, seed=99)
    with pytest.raises(ValueError, match=r"model\.seed: it began with 0, now 99"):
        train(model, tiny_data(), tiny_config(), tmp_path / "run", resume=True, progress=False)
    log = train(tiny_model(dropout=0.1), tiny_data(), tiny_config(), tmp_path / "run", resume=True, progress=False)
    assert curve(log) == curve(whole) == curve(Run(tmp_path / "run").log)
    seconds = [row["seconds"] for row in log if "loss" in row]
    assert seconds == sorted(seconds)  # the clock goes on too


def test_a_checkpoint_gets_its_name_when_it_is_whole(tmp_path, monkeypatch) -> None:
    """Its files are on disk before the folder is renamed; what a killed process left half written goes."""
    checkpoints, kept = tmp_path / "run" / "checkpoints", ["step-00000003", "step-00000006"]
    with pytest.raises(RuntimeError, match=r"the data broke"):
        train(tiny_model(), tiny_data(fail=8), tiny_config(steps=9), tmp_path / "run", progress=False)
    assert sorted(os.listdir(checkpoints)) == kept
    left = checkpoints / ".step-00000008"
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"half of it")
    flushed = set()

    def fsync(descriptor: int, really: Callable[[int], None] = os.fsync) -> None:
        assert not (checkpoints / "step-00000009").exists()
        flushed.add(os.fstat(descriptor).st_ino)
        really(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    train(tiny_model(), tiny_data(), tiny_config(steps=9), tmp_path / "run", resume=True, progress=False)
    assert sorted(os.listdir(checkpoints)) == [*kept, "step-00000009"]
    whole = [file.stat().st_ino for file in (checkpoints / "step-00000009").iterdir()]
    assert len(whole) >= 3
    assert flushed.issuperset(whole)  # the very files, renamed: a copy would be half there for a while


def test_a_run_opens_as_models_and_curves(tmp_path) -> None:
    model = tiny_model()
    train(
        model, tiny_data(), tiny_config(keep=1, eval_every=6), tmp_path / "run",
        held_out=held_out(), progress=False, about={"command": "x"},
    )  # fmt: skip
    run = Run(tmp_path / "run")
    assert run.steps == [9, 12]
    assert run.config["about"]["command"] == "x"
    assert run.config["training"]["lr"] == 1e-3
    tokens = tiny_data().batch(0, 3).tokens
    torch.testing.assert_close(run.model()(tokens), model(tokens), rtol=0, atol=0)
    assert not torch.allclose(run.model(9)(tokens), model(tokens))
    steps, losses = run.series("held_out_loss")
    assert steps == [0, 6, 12]
    assert losses[-1] == pytest.approx(evaluate(model, held_out())["loss"])
    with pytest.raises(KeyError, match=r"no checkpoint of step 3; it has \[9, 12\]"):
        run.model(3)
    with pytest.raises(KeyError, match=r"no 'los' on its log; it has \['grad_norm', .*'loss'"):
        run.series("los")
    with pytest.raises(FileNotFoundError, match=r"is no run"):
        Run(tmp_path)


def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path) -> None:
    before = signal.getsignal(signal.SIGINT)

    def interrupt(model: HookedGPT) -> int:
        if not Run(tmp_path / "run").steps:
            os.kill(os.getpid(), signal.SIGINT)
        return 0

    cfg = tiny_config(checkpoint_every=0, measure_every=4)
    with pytest.raises(KeyboardInterrupt, match=r"stopped after 1 of 12 steps; .*run goes on with resume=True"):
        train(tiny_model(), tiny_data(), cfg, tmp_path / "run", measures={"stop": interrupt}, progress=False)
    assert signal.getsignal(signal.SIGINT) is before
    assert Run(tmp_path / "run").steps == [1]
    log = train(
        tiny_model(), tiny_data(), cfg, tmp_path / "run", measures={"stop": interrupt}, resume=True, progress=False
    )
    assert curve(log) == curve(train(tiny_model(), tiny_data(), cfg, progress=False))


def test_a_run_in_a_thread_leaves_signals_alone() -> None:
    logs = []
    thread = threading.Thread(
        target=lambda: logs.append(train(tiny_model(), tiny_data(), tiny_config(), progress=False))
    )
    thread.start()
    thread.join()
    assert curve(logs[0]) == curve(train(tiny_model(), tiny_data(), tiny_config(), progress=False))


def test_nothing_of_the_process_is_left_changed() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    model = tiny_model(dropout=0.1)
    train(model, tiny_data(), tiny_config(activation_checkpointing=True), progress=False)
    assert torch.equal(torch.rand(2), expected)
    assert not model.training
    assert all("forward" not in vars(block) for block in model.blocks)


def test_wrong_choices_are_refused_before_any_step(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"(?s)betas=\(1\.5, 0\.9\).*eval_batches=0"):
        TrainingConfig(steps=1, batch_size=8, betas=(1.5, 0.9), eval_batches=0)
    with pytest.raises(ValueError, match=r"a full batch has 8 rows; batch_size=4"):
        train(
            tiny_model(), FullBatch(tiny_data().batch(0, 8)), tiny_config(batch_size=4), tmp_path / "r", progress=False
        )
    assert not (tmp_path / "r").exists()
    with pytest.raises(ValueError, match=r"this one is torch\.float16"):
        train(tiny_model().half(), tiny_data(), tiny_config(precision="float16"), progress=False)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text("{}")
    with pytest.raises(FileExistsError, match=r"has a config\.json that is no run's"):
        train(tiny_model(), tiny_data(), tiny_config(), tmp_path / "other", resume=True, progress=False)
    with pytest.raises(ValueError, match=r"(?s)steps=0; .*warmup=-1; .*no multiple of accumulate=3"):
        TrainingConfig(steps=0, batch_size=8, warmup=-1, accumulate=3)
    with pytest.raises(ValueError, match=r"compile with parallel='fsdp'"):
        TrainingConfig(steps=1, batch_size=8, compile=True, parallel="fsdp")
    with pytest.raises(ValueError, match=r"rows of 14 tokens; the context has n_ctx=5"):
        train(tiny_model(n_ctx=5), tiny_data(), tiny_config(), held_out=held_out(), progress=False)
    train(tiny_model(), tiny_data(), tiny_config(), tmp_path / "run", progress=False)
    log = (tmp_path / "run" / "log.jsonl").read_text()
    with pytest.raises(FileExistsError, match=r"is already a run: resume it, or name another folder"):
        train(tiny_model(), tiny_data(), tiny_config(), tmp_path / "run", progress=False)
    with pytest.raises(ValueError, match=r"(?s)training\.lr: it began with 0\.001, now 0\.1.*the data: it began with"):
        train(tiny_model(), held_out(), tiny_config(lr=0.1), tmp_path / "run", resume=True, progress=False)
    assert (tmp_path / "run" / "log.jsonl").read_text() == log
    damaged = tmp_path / "run" / "checkpoints" / "step-00000012" / "training.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:100])
    model = tiny_model()
    with pytest.raises(ValueError, match=r"training\.safetensors is no complete"):
        train(
            model,
            tiny_data(),
            tiny_config(activation_checkpointing=True),
            tmp_path / "run",
            resume=True,
            progress=False,
        )
    assert all("forward" not in vars(block) for block in model.blocks)


def test_head_scores_are_sums_over_the_pattern() -> None:
    model, tokens = tiny_model(dtype=torch.float64), tiny_data().batch(0, 5).tokens
    _, cache = model.run_with_cache(tokens, names_filter="*pattern")
    scores = head_scores(model, tokens)
    for layer in range(2):
        for head in range(3):
            previous, induction = [], []
            for row, pattern in zip(tokens.tolist(), cache["pattern", layer][:, head], strict=True):
                previous += [pattern[i, i - 1].item() for i in range(1, 14)]
                for i in range(14):
                    follows = [j for j in range(1, i + 1) if row[j - 1] == row[i]]
                    if follows:
                        induction.append(sum(pattern[i, j].item() for j in follows))
            assert scores["previous"][layer, head].item() == pytest.approx(sum(previous) / len(previous), rel=1e-5)
            assert scores["induction"][layer, head].item() == pytest.approx(sum(induction) / len(induction), rel=1e-5)
    losses = model(tokens, "loss", loss_per_token=True)
    again = torch.tensor([[tokens[row, i + 1] in tokens[row, : i + 1] for i in range(13)] for row in range(5)])
    found = repeat_losses(model, tokens)
    assert found == pytest.approx({"first": losses[~again].mean().item(), "again": losses[again].mean().item()})


def test_the_fourier_power_of_one_cosine_is_at_its_frequency() -> None:
    model = tiny_model(d_vocab=14, d_vocab_out=13)
    with torch.no_grad():
        model.W_E[:13] = torch.cos(2 * math.pi * 4 * torch.arange(13) / 13)[:, None] * torch.rand(12)
    power = fourier_power(model, 13)
    assert power.argmax() == 3
    assert power[3] == pytest.approx(1, abs=1e-5)


def test_a_head_that_looks_a_fixed_distance_back_is_called_positional() -> None:
    model = tiny_model(attn_only=True, d_mlp=0, positional_embedding_type=None)
    fixed = lambda pattern, hook: torch.eye(14).roll(-5, 1).tril().expand(len(pattern), 3, 14, 14) * 1.0
    rows = torch.stack([torch.randperm(18)[torch.arange(14) % 6] for _ in range(6)])
    others = tiny_data().batch(0, 6).tokens
    with model.hooks([("blocks.0.attn.hook_pattern", fixed)]):
        found = positional_or_induction(model, rows, others)
    assert found == {"induction": [], "positional": ["L0H0", "L0H1", "L0H2"]}


def test_a_batch_may_be_asked_for_in_parts() -> None:
    batch = Batch(torch.arange(12).view(4, 3), torch.arange(12).view(4, 3) + 1)
    assert len(batch[1:3]) == 2
    assert batch[1:3].targets.tolist() == [[4, 5, 6], [7, 8, 9]]
