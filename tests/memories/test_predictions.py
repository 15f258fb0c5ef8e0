"""How memories compose: counted as a literal loop over positions and memories counts."""

from itertools import pairwise
from typing import Any

import pytest
import torch

from interp import HookedGPT
from interp.memories import composition
from interp.passages import passages
from interp.zoo.planted import memories
from interp.zoo.planted.memories import FACTS
from tests.memories.scanned import N_CTX, corpus, model_of, scanned
from tests.variants import quick_of, variant

KINDS = ["residual", "ffn", "agreement", "composition"]


def literal(model: HookedGPT, layer: int, least: torch.Tensor) -> dict[str, float]:
    """The counts of a layer, position by position."""
    counts: dict[str, float] = dict.fromkeys([*KINDS, "single", "active"], 0)
    block, end, cfg = model.blocks[layer], model.ln_final, model.cfg
    later = (
        [] if cfg.norm_position != "post" else [n for b in model.blocks[layer + 1 :] for n in (b.ln1_post, b.ln2_post)]
    )  # type: ignore[attr-defined]
    norms = [*([block.ln2_post] if cfg.norm_position == "post" else []), *later, end]  # type: ignore[attr-defined]

    W_U = model.W_U

    def says(x: torch.Tensor) -> int:
        for norm in norms:
            if cfg.normalization_type in ("LN", "LNPre") and hasattr(norm, "w"):
                x = x - x.mean()
            x = x if getattr(norm, "w", None) is None else x * norm.w  # type: ignore[union-attr]
        return int((x @ W_U).argmax())

    values = [block.mlp.W_out[n] for n in range(cfg.d_mlp)]
    if cfg.norm_position in ("both", "output"):
        gain = block.ln2_post.w  # type: ignore[attr-defined]
        values = [(v - v.mean() if cfg.normalization_type == "LN" else v) * gain for v in values]
    tops = [(says(v), says(-v)) for v in values]
    for row in passages(model, corpus(), N_CTX, batch_size=1):
        _, cache = model.run_with_cache(row.tokens)
        if cfg.parallel_attn_mlp:
            stream = cache["resid_pre", layer][0] + cache["attn_out", layer][0]
        else:
            stream = cache["resid_mid", layer][0]
        for before, ffn, m in zip(stream, cache["mlp_out", layer][0], cache["post", layer][0], strict=True):
            b, f, a = says(before), says(ffn), says(before + ffn)
            kind = "agreement" if a == b == f else "residual" if a == b else "ffn" if a == f else "composition"
            counts[kind] += 1
            said = [tops[n][0] for n in range(cfg.d_mlp) if m[n] > least[n]]
            said += [tops[n][1] for n in range(cfg.d_mlp) if -m[n] > least[n]]
            counts["single"] += f in said
            counts["active"] += len(said)
    return counts


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", quick_of(["gpt2", "llama", "gptj", "post", "sandwich", "output_ln", "relu2"], "sandwich")
)
@torch.no_grad()
def test_counts_are_those_of_a_loop(name: str) -> None:
    model = model_of(name)
    found = None if name == "relu2" else scanned(model)
    result = composition(model, corpus(), found=found, n_ctx=N_CTX, batch_size=3, progress=False)
    n = result.attrs["positions"]
    for layer in range(2):
        least = torch.zeros(model.cfg.d_mlp)
        if found is not None:
            assert found.sample is not None
            if model.cfg.act_fn != "relu":
                least = 0.1 * torch.maximum(found.value[layer, :, 0], found.sample[:, layer].abs().amax(0).float())
        wanted = literal(model, layer, least)
        ours = result.isel(layer=layer)
        assert {kind: int(ours[kind]) for kind in KINDS} == {kind: wanted[kind] for kind in KINDS}
        assert ours.single == wanted["single"]
        assert ours.active == pytest.approx(wanted["active"] / n)
        assert sum(int(ours[kind]) for kind in KINDS) == n == sum(map(len, corpus()))


@pytest.mark.parametrize("norm", [None, "RMS"])
def test_a_planted_memory_alone_changes_the_prediction_to_its_own(norm: Any) -> None:
    planted = memories(norm=norm)
    tokens = planted.sample(200).tokens
    result = composition(planted.model, tokens, progress=False).isel(layer=0)
    facts = {(a, b) for a, b, _ in FACTS}
    n_fired = sum((a, b) in facts for row in tokens.tolist() for a, b in pairwise(row))
    assert result.ffn == n_fired
    assert result.composition == 0
    assert result.single == n_fired
    assert result.active == n_fired / tokens.numel()


def test_nothing_depends_on_how_many_positions_are_counted_at_once(monkeypatch: Any) -> None:
    model = model_of("llama")
    found = scanned(model)
    whole = composition(model, corpus(), 1, found=found, n_ctx=N_CTX, progress=False)
    every = composition(model, corpus(), found=found, n_ctx=N_CTX, progress=False)
    assert whole.equals(every.isel(layer=[1]))
    monkeypatch.setattr("interp.memories.predictions._AT_ONCE", 2000)
    assert whole.equals(composition(model, corpus(), 1, found=found, n_ctx=N_CTX, batch_size=2, progress=False))


def test_what_cannot_be_counted_is_refused() -> None:
    model = model_of()
    with pytest.raises(ValueError, match="give found="):
        composition(model, corpus(), progress=False)
    with pytest.raises(ValueError, match=r"no triggers of layers \[0\]"):
        composition(model, corpus(), found=scanned(layer=1), progress=False)
    with pytest.raises(ValueError, match="another model"):
        composition(variant("gpt2"), corpus(), found=scanned(), progress=False)
    with pytest.raises(ValueError, match="attn_only"):
        composition(variant("attn_only"), corpus(), progress=False)
