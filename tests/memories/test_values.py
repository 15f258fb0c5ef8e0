"""What values promote, and whether it follows what fires their keys."""

from collections.abc import Callable
from fnmatch import fnmatch
from inspect import unwrap
from itertools import product
from typing import Any

import pytest
import torch

from interp import HookedGPT
from interp.memories import agreement, key_statistics, key_tokens, promoted, promoters, suppressed, triggers
from interp.memories.values import read_off
from interp.zoo.planted import Planted, memories
from interp.zoo.planted.memories import FACTS, Fact
from tests.memories.scanned import model_of, scanned
from tests.memories.test_triggers import MANY, VERY_MANY
from tests.variants import VARIANTS, quick_of, variant

NORMS = ["final", "gain", None]


def vocabulary(facts: tuple[Fact, ...]) -> int:
    return 1 + max(max(fact) for fact in facts)


def followed(facts: tuple[Fact, ...], n_pos: int = 12) -> torch.Tensor:
    """Random rows in which every fact's a and b are followed by its c."""
    draw, d_vocab = torch.Generator().manual_seed(0), vocabulary(facts)
    after = {(a, b): c for a, b, c in facts}
    rows = torch.randint(0, d_vocab, (max(400, d_vocab**2), n_pos), generator=draw)
    for i, row in enumerate(rows.tolist()):
        for pos in range(2, n_pos):
            row[pos] = after.get((row[pos - 2], row[pos - 1]), row[pos])
        rows[i] = torch.tensor(row)
    return rows


def dealt(tokens: torch.Tensor) -> tuple[float, float]:
    """The rate at which tokens dealt to one another's places come to their own again: its mean and standard deviation
    (Hoeffding, 1951)."""
    same = (tokens[:, None] == tokens).double()
    apart = same - same.mean(0) - same.mean(1, keepdim=True) + same.mean()
    n = len(tokens)
    return same.mean().item(), (apart.square().sum() / (n - 1)).sqrt().item() / n


def neuron_of(planted: Planted, fact: int) -> int:
    return int(planted.roles[f"memory{fact}"].split("N")[1])


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("of_model", quick_of([None, "RMS", "LN"], "LN"))
@pytest.mark.parametrize("facts", quick_of([FACTS, MANY, VERY_MANY], FACTS, MANY), ids=len)
def test_every_planted_value_promotes_its_token(facts: tuple[Fact, ...], of_model: Any, norm: Any) -> None:
    planted = memories(facts, d_vocab=vocabulary(facts), norm=of_model, distractor_neurons=9)
    up = promoted(planted.model, 0, k=3, norm=norm)
    negated = suppressed(planted.model, 0, k=1, norm=norm, sign=-1)
    for i, (_, _, c) in enumerate(facts):
        neuron = neuron_of(planted, i)
        assert up.token_id[neuron, 0] == c
        assert up.probability[neuron, 0] > up.probability[neuron, 1]
        assert negated.token_id[neuron, 0] == c
        if i < 8:
            assert promoted(planted.model, 0, neuron, k=3, norm=norm).equals(up.isel(neuron=neuron))
            assert suppressed(planted.model, 0, neuron, k=1, norm=norm, sign=-1).token_id[0] == c


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", ["gpt2", "llama", "neox", "gemma2", "sinusoidal"])
@torch.no_grad()
def test_probabilities_are_those_of_the_values_logits(name: str, norm: Any) -> None:
    model = variant(name)
    n = model.cfg.d_vocab_out
    for layer, neuron in ((0, 3), (1, 16)):
        block = model.blocks[layer]
        v = block.mlp.W_out[neuron]
        if name == "gemma2":
            v = v * block.ln2_post.w  # type: ignore[attr-defined]
        if norm == "final":
            v = model.ln_final(v[None, None])[0, 0]
        elif norm == "gain":
            v = v - v.mean() if name in ("gpt2", "neox", "sinusoidal") else v
            v = v if model.ln_final.w is None else v * model.ln_final.w  # type: ignore[union-attr]
        wanted = (v @ model.W_U).softmax(-1).sort(descending=True)
        up, down = (of(model, layer, neuron, n, norm=norm) for of in (promoted, suppressed))
        torch.testing.assert_close(torch.from_numpy(up.probability.values), wanted.values, rtol=1e-4, atol=1e-7)
        torch.testing.assert_close(
            torch.from_numpy(down.probability.values), wanted.values.flip(0), rtol=1e-4, atol=1e-7
        )
        assert up.token_id.values.tolist() == wanted.indices.tolist()
        assert up.attrs["norm"] == str(norm)


@pytest.mark.parametrize("norm", quick_of(NORMS, "final"))
@pytest.mark.parametrize("name", quick_of(["gpt2", "llama", "post", "gemma2", "sinusoidal"], "gemma2"))
def test_the_promoters_of_a_token_are_the_values_whose_logit_of_it_is_largest(name: str, norm: Any) -> None:
    model, token = variant(name), 5
    n = model.cfg.d_vocab_out
    for sign, layer in product((1, -1), (None, 1)):
        layers = range(2) if layer is None else [layer]
        known: list[tuple[float, str, int]] = []
        for each, neuron in product(layers, range(model.cfg.d_mlp)):
            table = promoted(model, each, neuron, n, norm=norm, sign=sign)
            rank = table.token_id.values.tolist().index(token)
            known.append((float(table.logit[rank]), f"L{each}N{neuron}", rank))
        found = promoters(model, token, 6, layer=layer, norm=norm, sign=sign)
        wanted = sorted(known, reverse=True)[:6]
        assert found.memory.values.tolist() == [memory for _, memory, _ in wanted]
        assert found.token_rank.values.tolist() == [rank for _, _, rank in wanted]
        assert found.logit.values == pytest.approx([logit for logit, _, _ in wanted], rel=1e-4, abs=1e-5)
    for wrong, said in (
        ({"token": n}, "the model predicts tokens 0 to"),
        ({"token": -1}, "token=-1"),
        ({"k": 2 * model.cfg.d_mlp + 1}, "allowed: 1 to 34"),
        ({"layer": 2}, "layer=2; the model has 2"),
    ):
        with pytest.raises(ValueError, match=said):
            promoters(model, **{"token": 0, **wrong})


@pytest.mark.parametrize("effective", [False, True])
@pytest.mark.parametrize(
    "name", quick_of([name for name in VARIANTS if not VARIANTS[name].get("attn_only")], "llama", "post")
)
def test_a_key_reads_a_token_as_in_a_run_without_positions_attention_and_other_mlps(name: str, effective: bool) -> None:
    model, tokens = variant(name), torch.arange(13)[:, None]
    gone = [
        "blocks.*.hook_attn_out",
        "*hook_pos_embed",
        *(["blocks.1.hook_mlp_out"] if effective else ["*hook_mlp_out"]),
    ]
    with torch.no_grad(), model.hooks([(where, zero) for where in gone if where in matched(model, where)]):
        _, cache = model.run_with_cache(tokens)
    for layer, neuron in ((0, 3), (1, 16)):
        for sign in (1, -1):
            found = key_tokens(model, layer, neuron, 13, effective=effective, sign=sign)  # type: ignore[arg-type]
            own = cache["post", layer][:, 0, neuron]
            assert found.coefficient.values == pytest.approx(own[found.token_id.values].numpy(), rel=1e-3, abs=1e-5)
            assert (sign * found.coefficient.diff("rank") <= 0).all()
            assert sorted(found.token_id.values) == list(range(13))


def zero(x: torch.Tensor, hook: Any) -> torch.Tensor:
    return torch.zeros_like(x)


def matched(model: HookedGPT, where: str) -> list[str]:
    """The pattern itself, if the model has such a hook point."""
    return [where] if any(fnmatch(name, where) for name in model.hook_dict) else []


@pytest.mark.parametrize("norm", quick_of([None, "RMS"], "RMS"))
@pytest.mark.parametrize("facts", quick_of([FACTS, MANY, VERY_MANY], FACTS), ids=len)
def test_values_agree_where_their_token_follows_and_by_chance_where_they_were_dealt(
    facts: tuple[Fact, ...], norm: Any
) -> None:
    planted, corpus = memories(facts, d_vocab=vocabulary(facts), norm=norm), followed(facts)
    model, W_out = planted.model, planted.model.blocks[0].mlp.W_out

    def agreed() -> Any:
        return agreement(model, triggers(model, corpus, 0, batch_size=100, progress=False))

    result = agreed()
    assert result.rate.item() == 1
    assert result.n_keys.item() == len(facts)
    assert (result.next_rank == 0).all()
    assert result.median_rank.item() == 0
    promised = torch.empty(len(facts), dtype=torch.long)
    promised[[neuron_of(planted, i) for i in range(len(facts))]] = torch.tensor([c for _, _, c in facts])
    chance, error = dealt(promised)
    assert result.chance.item() == pytest.approx(chance)
    own, rates = W_out.detach().clone(), []
    for seed in range(12 if len(facts) < 100 else 3):
        order = torch.randperm(len(facts), generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            W_out.copy_(own[order])  # each key has another's value: nothing follows from what fires it
        twin = agreed()
        assert twin.chance.item() == pytest.approx(chance)
        assert twin.rate.item() == pytest.approx((promised[order] == promised).double().mean().item())
        rates.append(twin.rate.item())
    assert abs(sum(rates) / len(rates) - chance) < 4 * error / len(rates) ** 0.5
    assert chance + 4 * error < 1, "they can be told apart"


def test_agreement_is_what_a_loop_over_keys_counts() -> None:
    model = model_of("llama")
    found = scanned(model)
    result = agreement(model, found, norm=None)
    table = found.table()
    for layer in range(2):
        n = agreed = 0
        for neuron in range(model.cfg.d_mlp):
            own = promoted(model, layer, neuron, model.cfg.d_vocab_out, norm=None).token_id.values.tolist()
            after = next((token for token in table.next_id[layer, neuron].values.tolist() if token >= 0), -1)
            assert result.token_id[layer, neuron] == own[0]
            assert result.next_rank[layer, neuron] == (own.index(after) if after >= 0 else -1)
            n, agreed = n + (after >= 0), agreed + (after == own[0])
        assert result.n_keys[layer] == n
        own_id, next_id = result.token_id.values[layer], result.next_id.values[layer]
        assert result.chance[layer] == pytest.approx((own_id[:, None] == next_id[next_id >= 0]).mean())
        assert result.rate[layer] == pytest.approx(agreed / n)


def test_the_values_of_negative_triggers_are_negated() -> None:
    model = model_of("llama")
    negative = agreement(model, scanned(model, sign=-1))
    assert (negative.token_id == promoted(model, 1, 3, 1, sign=-1).token_id.item())[1, 3]


def set_biases(model: HookedGPT, biases: dict[int, float]) -> HookedGPT:
    with torch.no_grad():
        for neuron, bias in biases.items():
            b_in = model.blocks[1].mlp.b_in
            assert b_in is not None
            b_in[neuron] = bias
    return model


@pytest.mark.parametrize("act_fn", ["relu", "gelu"])
def test_dead_and_dense_keys_are_told(act_fn: str) -> None:
    model = set_biases(variant("gpt2", d_vocab=500, act_fn=act_fn), {3: -100.0, 5: 100.0})
    found = key_statistics(model, scanned(model))
    assert found.is_dead[1].values.nonzero()[0].tolist() == [3]
    assert 5 in found.is_dense[1].values.nonzero()[0]
    assert found.active[1, 5] == 1
    assert found.active[1, 3] == 0
    assert found.largest[1, 5] > 90


@pytest.mark.parametrize("name", ["relu2", "llama", "gpt2"])
def test_statistics_are_those_of_the_sample_and_the_weights(name: str) -> None:
    model = model_of(name)
    found = scanned(model)
    result = key_statistics(model, found)
    assert found.sample is not None
    for layer, neuron in product(range(2), range(model.cfg.d_mlp)):
        m = found.sample[:, layer, neuron].float()
        largest = float(found.value[layer, neuron, 0])
        least = 0 if name == "relu2" else 0.1 * max(largest, m.abs().max().item())
        one = result.isel(layer=layer, neuron=neuron)
        assert one.active == pytest.approx((m > least).float().mean().item())
        assert one.active_negative == pytest.approx((-m > least).float().mean().item())
        mlp = model.blocks[layer].mlp
        assert one.key_norm == pytest.approx(mlp.W_in[:, neuron].norm().item())
        assert one.value_norm == pytest.approx(mlp.W_out[neuron].norm().item())
        if name == "llama":
            assert one.gate_norm == pytest.approx(mlp.W_gate[:, neuron].norm().item())  # type: ignore[attr-defined]


BAD: list[tuple[Callable[[HookedGPT], Any], str]] = [
    (lambda model: promoted(model, 2, 0), "layer=2"),
    (lambda model: promoted(model, 0, 17), r"no such neurons: \[17\]"),
    (lambda model: promoted(model, 0, []), "no neuron"),
    (lambda model: promoted(model, 0, 0, k=14), "k=14"),
    (lambda model: next(unwrap(read_off)(model, 0, "ln")), "norm='ln'; allowed"),
    (lambda _: promoted(variant("attn_only"), 0, 0), "attn_only"),
    (lambda model: agreement(model, scanned()), "of another model"),
    (lambda model: key_statistics(model_of(), scanned(reservoir=0)), "needs a scan with a reservoir"),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_what_cannot_be_read_is_refused(call: Callable[[HookedGPT], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(variant("gpt2"))
