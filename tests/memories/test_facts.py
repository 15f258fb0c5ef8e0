"""Knowledge neurons are integrated gradients, complete, found where they were planted, and causes of their facts."""

from inspect import unwrap
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from interp import GPTConfig, HookedGPT, metrics, zoo
from interp.interventions import Ablate, Patch, Scale, Site, Steer
from interp.memories import knowledge_neurons, memory_attribution, memory_sites, next_tokens, scaled
from interp.results import labelled
from interp.zoo import planted
from interp.zoo.planted.memories import FACTS
from tests.variants import quick_of, some_tokens, variant

MASK = torch.tensor([[1, 1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0, 0]])
LAST = [6, 6, 4]


def probability(model: HookedGPT, answer: int, **kwargs: Any) -> Tensor:
    """The answer's, behind each prompt's last real token."""
    logits = model.run_with_hooks(some_tokens(), attention_mask=MASK, **kwargs)
    return logits[range(3), LAST].softmax(-1)[:, answer]


@pytest.mark.parametrize("name", quick_of(["gpt2", "llama", "gptj", "post", "gemma2"], "llama"))
def test_each_attribution_is_the_coefficient_times_the_mean_slope_on_the_way(name: str) -> None:
    model = variant(name, torch.float64)
    cache = model.run_with_cache(some_tokens(), attention_mask=MASK)[1]
    for rule, points in (("midpoint", (1 / 6, 3 / 6, 5 / 6)), ("right", (1 / 3, 2 / 3, 1))):
        found = memory_attribution(model, some_tokens(), 4, steps=3, rule=rule, attention_mask=MASK)
        for layer, neuron in ((0, 3), (1, 16)):
            own = cache["post", layer][range(3), LAST]
            slopes = []
            for point in points:
                pair = []
                for step in (1e-5, -1e-5):
                    moved = point * own
                    moved[:, neuron] += step

                    def put(x: Tensor, hook: Any, moved: Tensor = moved) -> None:
                        x[range(3), LAST] = moved

                    pair.append(probability(model, 4, fwd_hooks=[(f"blocks.{layer}.mlp.hook_post", put)]))
                slopes.append((pair[0] - pair[1]) / 2e-5)
            expected = own[:, neuron] * torch.stack(slopes).mean(0)
            close(found.sel(layer=layer, neuron=neuron), expected, 1e-7)


def close(found: Any, expected: Tensor, tolerance: float = 1e-10) -> None:
    np.testing.assert_allclose(np.asarray(found), expected.detach().numpy(), rtol=tolerance, atol=tolerance)


@pytest.mark.slow
def test_the_memories_of_a_layer_sum_to_what_all_of_them_do_for_the_probability() -> None:
    model = variant("llama", torch.float64)
    errors = {}
    for steps, rule in ((20, "midpoint"), (80, "midpoint"), (20, "right")):
        found = memory_attribution(model, some_tokens(), 4, steps=steps, rule=rule, attention_mask=MASK)
        close(found.probability, probability(model, 4))
        for layer in range(2):
            with model.edit([Ablate(Site("post", layer, pos=-1))]):
                close(found.without.sel(layer=layer), probability(model, 4))
        gap = found.sum("neuron") - (found.probability - found.without)
        close(found.error, torch.from_numpy(gap.transpose("layer", "prompt").to_numpy()), 1e-12)
        errors[steps, rule] = found.attrs["completeness_error"]
        assert errors[steps, rule] == float(abs(found.error).max())
    assert errors[80, "midpoint"] < errors[20, "midpoint"] / 10 < errors[20, "right"] / 10
    assert errors[80, "midpoint"] < 1e-4


def test_answers_positions_and_layers_are_what_was_asked_for() -> None:
    model = variant("gpt2", torch.float64)
    whole = memory_attribution(model, some_tokens(), [4, 5, 6], steps=2)
    for prompt, answer in enumerate((4, 5, 6)):
        alone = memory_attribution(model, some_tokens()[prompt], answer, steps=2, layers=[-1])
        assert list(alone.layer.values) == [1]
        close(alone[0, :, 0], torch.from_numpy(whole.sel(layer=1).to_numpy())[:, prompt])
    early = memory_attribution(model, some_tokens(), 4, steps=2, pos=3)
    cut = memory_attribution(model, some_tokens()[:, :4], 4, steps=2)
    close(early, torch.from_numpy(cut.to_numpy()))
    both = memory_attribution(model, some_tokens(), [[4, 5]] * 3, steps=2)
    five = memory_attribution(model, some_tokens(), 5, steps=2)
    four = memory_attribution(model, some_tokens(), 4, steps=2)
    close(both, torch.from_numpy((four + five).to_numpy()))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_half_precision_gives_what_single_does_up_to_its_rounding() -> None:
    model = variant("llama")
    found = memory_attribution(model, some_tokens(), 4)
    half = memory_attribution(model.to(torch.bfloat16), some_tokens(), 4)
    close(half, torch.from_numpy(found.to_numpy()), 0.1 * float(abs(found).max()))


def test_edits_in_force_act_on_every_run() -> None:
    model = variant("neox", torch.float64)
    others = model.run_with_cache(some_tokens().roll(1, 0))[1]
    with model.edit([Ablate(Site("post", 1, neuron=3)), Patch(Site("z", 0, head=1), others["z", 0])]):
        found = memory_attribution(model, some_tokens(), 4, steps=2)
        expected = model(some_tokens())[:, -1].softmax(-1)[:, 4]
    assert (found.sel(layer=1, neuron=3) == 0).all()
    close(found.probability, expected)


def paraphrases(fact: int, n: int = 6) -> Tensor:
    """A planted fact's two tokens behind others."""
    before = torch.randint(8, (n, 4), generator=torch.Generator().manual_seed(fact))
    return torch.cat((before, torch.tensor(FACTS[fact][:2]).expand(n, 2)), 1)


@pytest.mark.parametrize("fact", quick_of([0, 5], 5))
def test_the_planted_memory_of_a_fact_is_found_and_is_its_cause(fact: int) -> None:
    made = planted.memories(distractor_neurons=24)
    model, answer = made.model, FACTS[fact][2]
    prompts = paraphrases(fact)
    found = knowledge_neurons(memory_attribution(model, prompts, answer))
    neuron = made.roles[f"memory{fact}"]
    assert list(found.memory.values) == [neuron]
    assert found.share == 1
    rank = metrics.rank(model, answer)
    ranks = scaled(model, found.memory.values, prompts, rank)
    assert (ranks.base == 0).all()
    assert (ranks.sel(factor=0) > 0).all()
    probabilities = scaled(model, [neuron], prompts, metrics.log_prob(model, answer), factors=(0.0, 1.0, 2.0))
    assert (probabilities.sel(factor=2.0) > probabilities.base).all()
    close(probabilities.sel(factor=1.0), torch.from_numpy(probabilities.base.to_numpy()))
    for other in set(range(8)) - {fact}:
        unrelated = scaled(model, [neuron], paraphrases(other), metrics.log_prob(model, FACTS[other][2]))
        close(unrelated, torch.from_numpy(np.stack([unrelated.base.to_numpy()] * 2)), 1e-6)


@pytest.mark.slow
def test_in_a_trained_model_a_facts_memories_move_it_and_little_else() -> None:
    model = HookedGPT.from_pretrained("stdlib-4l")
    prompts = ["import os\nimport sys\n\nos.", "import os\n\ndef f():\n    return os.", "x = os."]
    found = memory_attribution(model, prompts, "path", progress=False)
    assert found.attrs["completeness_error"] < 1e-3
    neurons = knowledge_neurons(found, share=0.5).memory.values
    assert 5 < len(neurons) < 100
    related = ["import os, re\n\nprint(os.", "    if os."]
    for some in (prompts, related):
        moved = scaled(model, neurons, some, metrics.log_prob(model, "path"))
        assert (moved.sel(factor=0) < moved.base - 0.2).all()
        assert (moved.sel(factor=2) > moved.base + 0.1).all()
    unrelated = [text[:400] for text in zoo.standard_library(split="held_out")[:4]]
    loss = scaled(model, neurons, unrelated, metrics.loss(), pos=None)
    assert (abs(loss - loss.base) < 0.05).all()


def test_shared_memories_are_those_above_a_share_of_the_largest_in_enough_prompts() -> None:
    values = torch.zeros(2, 3, 4)
    values[0, 1] = torch.tensor([10.0, 10, 10, 10])
    values[1, 2] = torch.tensor([2.1, 2.1, 2.1, 1.9])  # above a fifth in three of four
    values[1, 0] = torch.tensor([9.0, 9, 0, 0])
    values[0, 0] = -20
    axes = {"layer": [2, 5], "neuron": range(3), "prompt": range(4)}
    attribution = labelled(values, axes, "attribution", {"method": "by hand"})
    found = knowledge_neurons(attribution)
    assert list(found.memory.values) == ["L2N1", "L5N2"]
    close(found, torch.tensor([10.0, 2.05]), 1e-6)
    close(found.share, torch.tensor([1.0, 0.75]))
    assert list(knowledge_neurons(attribution, share=0.75).memory.values) == ["L2N1"]
    assert list(knowledge_neurons(attribution, share=0.4).memory.values) == ["L2N1", "L5N0", "L5N2"]
    assert not len(knowledge_neurons(-attribution.where(attribution >= 0, 0)))


def test_memories_are_scaled_swapped_and_steered_with_in_one_line_each() -> None:
    model = variant("gpt2", torch.float64)
    tokens, point = some_tokens(), "blocks.1.mlp.hook_post"
    other = model.run_with_cache(tokens.roll(1, 0))[1]
    value = model.blocks[1].mlp.W_out[7].detach()
    for edits, by_hand in (
        ([Scale(site, 3) for site in memory_sites(["L1N7", "L1N2"])], lambda x: x[..., [2, 7]] * 3),
        (
            [Patch(site, other["post", 1]) for site in memory_sites(["L1N2", "L1N7"])],
            lambda x: other[point][..., [2, 7]],
        ),
        ([Ablate(site) for site in memory_sites(["L1N2", "L1N7"])], lambda x: 0),
    ):

        def put(x: Tensor, hook: Any, by_hand: Any = by_hand) -> None:
            x[..., [2, 7]] = by_hand(x)

        with model.edit(edits):
            edited = model(tokens)
        torch.testing.assert_close(edited, model.run_with_hooks(tokens, fwd_hooks=[(point, put)]))
    with model.edit([Steer(Site("mlp_out", layer=1), value, scale=4)]):
        steered = model(tokens)
    more = lambda x, hook: x + 4 * torch.eye(17, dtype=x.dtype)[7]
    torch.testing.assert_close(steered, model.run_with_hooks(tokens, fwd_hooks=[(point, more)]))


@pytest.mark.parametrize("name", ["gpt2", "llama", "sinusoidal"])
@torch.no_grad()
def test_next_tokens_are_those_of_the_run_as_it_is_and_of_the_run_with_memories_scaled(name: str) -> None:
    model, tokens = variant(name), some_tokens(1)
    n = model.cfg.d_vocab_out
    for pos, factor in ((-1, 0), (None, 3), (2, -1.5)):

        def multiply(x: Tensor, hook: Any, pos: int | None = pos, factor: float = factor) -> None:
            x[:, slice(None) if pos is None else pos, 5] *= factor

        before = model(tokens)[0, -1].softmax(-1)
        after = model.run_with_hooks(tokens, fwd_hooks=[("blocks.0.mlp.hook_post", multiply)])[0, -1].softmax(-1)
        for given in (tokens, tokens[0]):
            found = next_tokens(model, ["L0N5"], given, factor, n, pos=pos)
            ids = found.token_id.values
            np.testing.assert_allclose(found.before, before[ids], rtol=1e-4)
            np.testing.assert_allclose(found.after, after[ids], rtol=1e-4)
            assert (np.diff(np.maximum(found.before, found.after)) <= 0).all()
            assert found.attrs["kl"] == pytest.approx((after * (after / before).log()).sum().item(), abs=1e-6)
            assert found.attrs["rest"] == pytest.approx([0, 0], abs=1e-6)
    assert not torch.allclose(before, after)
    some = next_tokens(model, ["L0N5"], tokens, 0, 3)
    assert some.attrs["rest"][0] == pytest.approx(1 - float(some.before.sum()))


@pytest.mark.parametrize("name", ["gpt2", "llama", "sinusoidal", "gptj", "post"])
@torch.no_grad()
def test_next_tokens_from_a_cache_are_those_of_whole_runs_and_begin_at_the_layer(name: str) -> None:
    model, tokens = variant(name), some_tokens(1)
    _, cache = model.run_with_cache(tokens)
    metric, heard = metrics.logit_diff(model, 3, 4), list[str]()
    for n, layer, pos in ((tokens.shape[1], 1, -1), (4, 0, None), (4, 1, -1)):
        memory, prompt = [f"L{layer}N5"], tokens[:, :n]
        whole = next_tokens(model, memory, prompt, -2, 5, pos=pos, metric=metric)
        with model.recording("blocks.*.hook_resid_post", lambda x, point: heard.append(point.name)):
            found = next_tokens(model, memory, prompt, -2, 5, pos=pos, metric=metric, cache=cache)
        assert heard == [f"blocks.{each}.hook_resid_post" for each in range(layer, 2)]
        heard.clear()
        assert found.token_id.values.tolist() == whole.token_id.values.tolist()
        for column in ("before", "after"):
            np.testing.assert_allclose(found[column], whole[column], rtol=1e-4)
        of_factors = scaled(model, memory, prompt, metric, factors=[1, -2], pos=pos)
        np.testing.assert_allclose(whole.attrs["metric"], of_factors[:, 0], rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(found.attrs["metric"], of_factors[:, 0], rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match="a run of other tokens"):
        next_tokens(model, memory, (tokens + 1) % 13, 0, 3, cache=cache)
    with pytest.raises(ValueError, match=r"reads the positions \(2,\); give one of the last"):
        next_tokens(model, memory, tokens, 0, 3, metric=metrics.logit_diff(model, 3, 4, pos=2))


def test_next_tokens_take_no_longer_run_where_later_tokens_change_earlier_ones() -> None:
    model = variant("encoder")
    _, cache = model.run_with_cache(some_tokens(1))
    with pytest.raises(ValueError, match="later ones change earlier"):
        next_tokens(model, ["L0N5"], some_tokens(1)[:, :3], 0, 3, cache=cache)


def test_bad_input_is_refused() -> None:
    model = variant("gpt2")
    with pytest.raises(ValueError, match="3 prompts were given"):
        next_tokens(model, ["L0N5"], some_tokens(), 0)
    with pytest.raises(ValueError, match="k=14; allowed: 1 to 13"):
        next_tokens(model, ["L0N5"], some_tokens(1), 0, 14)
    bare = HookedGPT(GPTConfig(n_layers=1, d_model=8, n_heads=2, n_ctx=8, d_vocab=13, attn_only=True, seed=0))
    with pytest.raises(ValueError, match="the model is attn_only"):
        memory_attribution(bare, some_tokens(), 4)
    with pytest.raises(ValueError, match="steps=0, rule='left'; allowed"):
        unwrap(memory_attribution)(model, some_tokens(), 4, steps=0, rule="left")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="2 were given for 3 prompts"):
        memory_attribution(model, some_tokens(), [4, 5])
    with pytest.raises(ValueError, match="the model knows 0 to 12"):
        memory_attribution(model, some_tokens(), 13)
    with pytest.raises(ValueError, match="layer=2; the model has 2"):
        memory_attribution(model, some_tokens(), 4, layers=[2])
    with torch.inference_mode(), pytest.raises(ValueError, match="inference_mode"):
        memory_attribution(model, some_tokens(), 4)
    found = memory_attribution(model, some_tokens(), 4, steps=1)
    with pytest.raises(ValueError, match=r"threshold=1, share=0\.7; both are from 0 to below 1"):
        knowledge_neurons(found, threshold=1)
    with pytest.raises(ValueError, match=r"its axes are \['neuron', 'prompt'\]"):
        knowledge_neurons(found[0])
    with pytest.raises(ValueError, match="'L2H1' is no memory; they are named like 'L2N17'"):
        scaled(model, ["L2H1"], some_tokens(), metrics.loss())
    with pytest.raises(ValueError, match="no memories are given"):
        memory_sites([])
