"""What is written to a memory acts, what is undone is undone to the bit, and an error leaves nothing behind."""

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from interp import GPTConfig, HookedGPT, metrics
from interp.memories import edit_memory, report
from interp.memories.writing import Part, Rewrite
from tests.variants import some_tokens, variant


def bits(model: HookedGPT) -> dict[str, Tensor]:
    return {name: weight.clone().view(torch.uint8) for name, weight in model.state_dict().items()}


def changed(model: HookedGPT, before: dict[str, Tensor]) -> list[str]:
    """The weights that are no longer what they were, to the bit."""
    return [name for name, weight in bits(model).items() if not torch.equal(weight, before[name])]


@pytest.mark.parametrize("name", ["gpt2", "llama", "gptj", "olmo2", "post"])
def test_a_value_is_what_the_memory_then_writes(name: str) -> None:
    model, value = variant(name, torch.float64), torch.arange(14.0, dtype=torch.float64).sin()
    point, before = "blocks.1.mlp.hook_post", bits(model)
    old = model.blocks[1].mlp.W_out.detach().clone()
    model.blocks[1].mlp.W_out.requires_grad_()
    made = edit_memory(model, -1, -4, value=value)
    assert changed(model, before) == ["blocks.1.mlp.down.weight"]
    assert torch.equal(model.blocks[1].mlp.W_out[13], value)
    written = model(some_tokens())
    made.undo()
    assert not changed(model, before)

    def write(out: Tensor, hook: Any) -> Tensor:
        return model.blocks[1].ln2_post.unheard(raw(out)) if name == "olmo2" else raw(out)

    def raw(out: Tensor) -> Tensor:
        coefficient = model.run_with_cache(some_tokens())[1][point]
        own = model.blocks[1].mlp.down(coefficient) if name == "olmo2" else out
        return own + coefficient[..., [13]] * (value - old[13])

    expected = model.run_with_hooks(some_tokens(), fwd_hooks=[("blocks.1.hook_mlp_out", write)])
    torch.testing.assert_close(written, expected)
    with edit_memory(model, 1, 13, scale=2):
        assert torch.equal(model.blocks[1].mlp.W_out[13], 2 * old[13])
    assert not changed(model, before)


def test_a_key_is_what_the_memory_then_reads() -> None:
    model = variant("llama", torch.float64)
    before, key, gate = bits(model), torch.arange(14.0).double().cos(), torch.arange(14.0).double().sin()
    reads = model.run_with_cache(some_tokens())[1]["normalized", 0, "ln2"] * model.blocks[0].ln2.w
    with edit_memory(model, 0, 3, key=key, gate=gate):
        assert changed(model, before) == ["blocks.0.mlp.up.weight", "blocks.0.mlp.gate.weight"]
        cache = model.run_with_cache(some_tokens())[1]
    torch.testing.assert_close(cache["pre", 0][..., 3], reads @ gate)
    torch.testing.assert_close(cache["pre_linear", 0][..., 3], reads @ key)
    assert not changed(model, before)


def test_a_fingerprint_is_of_the_weights_as_they_are() -> None:
    model = variant("gpt2")
    first = model.fingerprint()
    made = edit_memory(model, 0, 3, scale=2)
    second = model.fingerprint()
    with edit_memory(model, 0, 3, scale=2):
        third = model.fingerprint()
    with made.paused():
        assert model.fingerprint() == first
    assert model.fingerprint() == second
    made.undo()
    assert model.fingerprint() == first
    assert len({first, second, third}) == 3
    with torch.inference_mode():
        edit_memory(model, 0, 3, scale=2)
    assert model.fingerprint() == second


def test_undoing_in_another_order_is_refused_and_in_the_right_one_restores_every_bit() -> None:
    model = variant("gpt2")
    before = bits(model)
    first, apart = edit_memory(model, 0, 3, scale=1 / 3), edit_memory(model, 0, 4, scale=3)
    second = edit_memory(model, 0, 3, scale=3)
    for refused in (first.undo, first.paused().__enter__):
        with pytest.raises(ValueError, match=r"W_out of L0N3 was written again since: undo what came later first"):
            refused()
    apart.undo()  # of another memory
    second.undo()
    first.undo()
    assert not changed(model, before)
    for refused in (first.undo, first.paused().__enter__):
        with pytest.raises(ValueError, match="undone already"):
            refused()


def test_after_an_error_or_an_interruption_nothing_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    model = variant("llama")
    before, ones = bits(model), torch.ones(14)
    with pytest.raises(ValueError, match="W_out of L1N2: what was to be written is not finite"):
        edit_memory(model, 1, 2, key=ones, value=torch.full((14,), torch.nan))
    assert not changed(model, before)
    copy, n_calls = Tensor.copy_, 0

    def interrupted(self: Tensor, *args: Any) -> Tensor:
        nonlocal n_calls
        n_calls += 1
        if n_calls == 2:
            raise KeyboardInterrupt
        return copy(self, *args)

    monkeypatch.setattr(Tensor, "copy_", interrupted)
    with pytest.raises(KeyboardInterrupt):
        edit_memory(model, 1, 2, key=ones, gate=ones, value=ones)
    assert n_calls > 2
    assert not changed(model, before)
    made = edit_memory(model, 1, 2, key=ones, gate=ones, value=ones)
    written, n_calls = bits(model), 0
    with pytest.raises(KeyboardInterrupt):
        made.undo()
    assert not changed(model, written)
    with pytest.raises(RuntimeError, match="in between"), made:
        raise RuntimeError("in between")
    assert not changed(model, before)


def test_a_model_moved_to_another_precision_meanwhile_cannot_be_restored_to_the_bit() -> None:
    model = variant("gpt2")
    made = edit_memory(model, 0, 3, scale=2)
    model.double()
    with pytest.raises(ValueError, match="written again since"):
        made.undo()


def test_a_report_measures_the_model_as_it_was_and_as_it_is() -> None:
    model, tokens = variant("gpt2"), some_tokens()
    before, others = bits(model), some_tokens(4, 6)
    rank, log_prob = metrics.rank(model, 4), metrics.log_prob(model, 4)
    own = [metrics.measured(model, tokens, metric) for metric in (rank, log_prob)]
    loss = metrics.measured(model, others, metrics.loss())
    first = model.fingerprint()
    with edit_memory(model, 1, 3, scale=-6) as made:
        written = bits(model)
        found = report(made, tokens, 4, paraphrases=tokens[:2, 1:], neighbours=others)
        assert not changed(model, written)
        assert found.attrs["model"] == model.fingerprint()
        new = [metrics.measured(model, tokens, metric) for metric in (rank, log_prob)]
        for when, values in (("before", own), ("after", new)):
            at = found.sel(when=when)
            assert at["rank"].values.tolist() == values[0].tolist()
            assert at.probability.values == pytest.approx(values[1].exp().tolist(), rel=1e-5)
        assert found.neighbour_loss[0].values == pytest.approx(loss.tolist(), rel=1e-5)
        assert found.neighbour_loss[1].values == pytest.approx(
            metrics.measured(model, others, metrics.loss()).tolist(), rel=1e-5
        )
        log_prob_cut = metrics.measured(model, tokens[:2, 1:], log_prob)
        assert found.paraphrase_probability[1].values == pytest.approx(log_prob_cut.exp().tolist(), rel=1e-5)
        assert found.paraphrase_rank.shape == (2, 2)
        assert set(report(made, tokens, 4).data_vars) == {"probability", "rank"}
    assert found.attrs["model_before"] == first
    assert (found.probability[0] != found.probability[1]).all()
    assert not changed(model, before)


COMPILED = """
import torch
from interp import GPTConfig, HookedGPT
from interp.memories import edit_memory, insert
for tied in (False, True):
    cfg = GPTConfig(n_layers=2, d_model=16, n_heads=2, n_ctx=8, d_vocab=11, seed=0, tie_word_embeddings=tied)
    model, tokens = HookedGPT(cfg).eval(), torch.arange(6)[None]
    model.compile(backend="eager")
    with torch.no_grad():
        before = model(tokens)
        for change in (lambda: edit_memory(model, 1, 3, scale=9), lambda: insert(model, 1, tokens, 7)):
            with change():
                during = model(tokens)
                with model.hooks([("hook_embed", lambda x, hook: None)]):
                    torch.testing.assert_close(model(tokens), during)
            assert not torch.equal(during, before)
            assert torch.equal(model(tokens), before)
print("compiled models are edited")
"""


@pytest.mark.slow
def test_compiled_and_tied_models_run_with_what_was_written() -> None:
    run = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True)
    assert "compiled models are edited" in run.stdout, run.stderr


def test_bad_input_is_refused() -> None:
    model, ones = variant("gpt2"), torch.ones(14)
    bare = HookedGPT(GPTConfig(n_layers=1, d_model=8, n_heads=2, n_ctx=8, d_vocab=13, attn_only=True, seed=0))
    with pytest.raises(ValueError, match="the model is attn_only"):
        edit_memory(bare, 0, 0, scale=2)
    with pytest.raises(ValueError, match="layer=2; the model has 2"):
        edit_memory(model, 2, 0, scale=2)
    with pytest.raises(ValueError, match="neuron=17; a layer has 17: -17 to 16"):
        edit_memory(model, 0, 17, scale=2)
    with pytest.raises(ValueError, match="this model's MLPs have no gate"):
        edit_memory(model, 0, 0, gate=ones)
    with pytest.raises(ValueError, match="not both"):
        edit_memory(model, 0, 0, value=ones, scale=2)
    with pytest.raises(ValueError, match="nothing to write"):
        edit_memory(model, 0, 0)
    with pytest.raises(ValueError, match=r"W_out of L0N0: shape \[13\] was given; it is \[14\]"):
        edit_memory(model, 0, 0, value=torch.ones(13))
    made = Rewrite.of(model, {Part(0, "W_in", 2): ones}, {})
    with pytest.raises(ValueError, match="answers are tokens 13 to 13"):
        report(made, some_tokens(), 13)
    assert torch.equal(model.blocks[0].mlp.W_in[:, 2], ones)
