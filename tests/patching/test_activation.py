from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from interp import HookedGPT, metrics
from interp.interventions import Ablate, Patch, Scale, Site, Steer
from interp.patching import activation_patching, engine
from interp.patching.engine import Base, Packed, Row
from interp.patching.sweep import Sweep
from interp.tokenization import Tokenizer
from tests.patching.oracle import one_by_one, put
from tests.variants import VARIANTS, config, quick_of, some_tokens, variant

CAUSAL = [name for name in VARIANTS if VARIANTS[name].get("attention_dir") != "bidirectional"]
POINTS = (
    "resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post", "q", "k", "v", "rot_q", "rot_k", "attn_scores",
    "pattern", "z", "result", "pre", "post", "q_input", "k_input", "v_input", "attn_in", "mlp_in",
)  # fmt: skip


def padded(side: str | None, n_rows: int = 3, n_pos: int = 7) -> torch.Tensor | None:
    if side is None:
        return None
    mask = torch.ones(n_rows, n_pos, dtype=torch.bool)
    mask[1, :2] = side != "left"
    mask[1, -2:] &= side != "right"
    return mask


def assert_as_alone(
    model: HookedGPT, tokens: torch.Tensor, mask: torch.Tensor | None, rows: list[Row], wanted: torch.Tensor
) -> None:
    base = Base(model, tokens, mask)
    found = Packed(base, [base.prepared(row) for row in rows], wanted).logits()
    is_real = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask
    for row, logits in zip(rows, found, strict=True):
        with model.edit(row.edits):
            alone = model(tokens, attention_mask=mask)[row.prompt, wanted[row.prompt]]
        real = is_real[row.prompt, wanted[row.prompt]]
        torch.testing.assert_close(logits[real], alone[real], rtol=0, atol=1e-10)


@pytest.mark.parametrize("side", quick_of([None, "left", "right"], "left"))
@pytest.mark.parametrize("name", quick_of(CAUSAL, "gemma2"))
def test_packed_rows_are_the_runs_made_alone(name: str, side: str | None) -> None:
    model, mask = variant(name, torch.float64), padded(side)
    tokens, others = some_tokens(), some_tokens().roll(1, 0)
    points = [
        (point, layer) for layer in range(model.cfg.n_layers) for point in POINTS
        if any(full.endswith(f".hook_{point}") for full in model.hook_dict)
    ]  # fmt: skip
    names = [Site(point, layer).point(model).name for point, layer in points]
    _, cache = model.run_with_cache(others, attention_mask=mask, names_filter=names)
    positions = (None, 4, -1, slice(1, 4))
    rows = [
        Row((i + shift) % 3, (Patch(Site(point, layer, pos=positions[(i + i // 3 + shift) % 4]), cache[full]),))
        for shift in range(2)
        for i, ((point, layer), full) in enumerate(zip(points, names, strict=True))
    ]
    end = [
        Ablate(Site(full, pos=pos))
        for full, pos in (("ln_final.hook_normalized", 3), ("unembed.hook_out", -3))
        if full in model.hook_dict
    ]
    rows += [Row(2, (Steer(Site("resid_post", 0, pos=-2), torch.ones(14, dtype=torch.float64)), *end))]
    wanted = torch.tensor([[0, 4, 6], [5, 3, 3], [6, 6, 2]])
    assert_as_alone(model, tokens, mask, rows, wanted)
    split = {point.name for point in model.blocks[-1].split_points}
    kept = [i for i, row in enumerate(rows) if not any(edit.site.point(model).name in split for edit in row.edits)]
    base = Base(model, tokens, mask)
    packed = lambda some: Packed(base, [base.prepared(rows[i]) for i in some], wanted).logits()
    # without those rows, only the wanted positions ask in the last layer
    torch.testing.assert_close(packed(kept), packed(range(len(rows)))[kept], rtol=0, atol=1e-10)


def test_a_lone_row_leaves_what_lies_before_it_as_it_was() -> None:
    model = variant("gpt2", torch.float64)
    row = Row(0, (Steer(Site("resid_pre", 0, pos=6), torch.arange(14.0)),))
    assert_as_alone(model, some_tokens(), None, [row], torch.tensor([[0, 6]] * 3))


def test_a_patch_after_another_edit_acts_where_both_runs_are_alike_too() -> None:
    model, tokens = variant("gpt2", torch.float64), some_tokens()
    others = tokens.clone()
    others[:, 4] = (tokens[:, 4] + 1) % 13
    _, cache = model.run_with_cache(others)
    site = Site("resid_pre", 0)
    rows = [Row(prompt, (Ablate(site), Patch(site, cache["resid_pre", 0]))) for prompt in range(3)]
    assert_as_alone(model, tokens, None, rows, torch.tensor([[2, 6]] * 3))


def test_rows_that_change_different_parts_of_one_place_are_kept_apart() -> None:
    model, basis = variant("gpt2", torch.float64), torch.eye(14, dtype=torch.float64)
    sites = [
        *(Site("resid_pre", 1, pos=5, subspace=basis[:, [i]]) for i in range(3)),
        *(Site("resid_pre", 1, pos=5, neuron=i) for i in (3, 4)),
        *(Site("z", 1, head=i, neuron=2) for i in range(3)),
    ]
    rows = [Row(i % 3, (Ablate(site),)) for i, site in enumerate(sites)]
    assert_as_alone(model, some_tokens(), None, rows, torch.tensor([[5, 6]] * 3))


@pytest.mark.slow
@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.data())
def test_sites_drawn_at_random_together_are_the_runs_made_alone(data: st.DataObject) -> None:
    model = variant(data.draw(st.sampled_from(["gpt2", "llama", "neox", "gemma2"])), torch.float64)
    tokens, mask = some_tokens(), padded(data.draw(st.sampled_from([None, "left", "right"])))
    points = [name for name in model.hook_dict if name.startswith("blocks.") and "ln" not in name]
    _, cache = model.run_with_cache(tokens.roll(1, 0), attention_mask=mask, names_filter=points)
    position = st.one_of(st.none(), st.integers(-5, 6), st.slices(7), st.lists(st.integers(0, 6), min_size=1))
    site = st.tuples(st.sampled_from(points), position)
    drawn = data.draw(st.lists(st.lists(site, max_size=3), min_size=1, max_size=9))
    rows = [
        Row(i % 3, tuple(Patch(Site(name, pos=pos), cache[name]) for name, pos in sites))
        for i, sites in enumerate(drawn)
    ]
    wanted = torch.tensor(data.draw(st.lists(st.tuples(*[st.integers(0, 6)] * 2), min_size=3, max_size=3)))
    assert_as_alone(model, tokens, mask, rows, wanted)


@pytest.mark.parametrize("side", quick_of([None, "left"], "left"))
@pytest.mark.parametrize("name", quick_of(["gpt2", "llama", "gptj"], "llama"))
def test_patching_by_layer_and_position_or_head_is_a_loop_of_runs(name: str, side: str | None) -> None:
    model, mask, clean = variant(name), padded(side), some_tokens()
    corrupted = clean.clone()
    corrupted[:, 3:] = clean[:, 3:].roll(1, 0)
    metric = metrics.logit_diff(model, [1, 2, 3], 5)
    _, cache = model.run_with_cache(clean, attention_mask=mask)
    layers = range(model.cfg.n_layers)
    streams = activation_patching(model, clean, corrupted, "resid_pre", metric, attention_mask=mask, progress=False)
    sites = [
        [(f"blocks.{i}.hook_resid_pre", put(cache["resid_pre", i], slice(None), p))] for i in layers for p in range(7)
    ]
    alone = one_by_one(model, corrupted, metric, sites, mask).view(len(layers), 7, 3)
    assert streams.dims == ("layer", "pos", "prompt")
    is_real = torch.ones(3, 7, dtype=torch.bool) if mask is None else mask
    for prompt in range(3):
        for p in is_real[prompt].nonzero().flatten().tolist():
            found = torch.from_numpy(streams.values[:, p, prompt])
            torch.testing.assert_close(found.float(), alone[:, p, prompt], rtol=1e-5, atol=1e-5)
    heads = activation_patching(
        model, clean, corrupted, "z", metric, direction="noise", attention_mask=mask, progress=False
    )
    _, cache = model.run_with_cache(corrupted, attention_mask=mask)
    whole = slice(None)
    sites = [
        [(f"blocks.{i}.attn.hook_z", put(cache["z", i], whole, whole, h))]
        for i in layers
        for h in range(model.cfg.n_heads)
    ]
    alone = one_by_one(model, clean, metric, sites, mask).view(heads.shape)
    assert heads.dims == ("layer", "head", "prompt")
    torch.testing.assert_close(torch.from_numpy(heads.values).float(), alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["sinusoidal", "gemma2"])  # with a bias of the logits, and with a cap
def test_the_logits_of_answers_alone_give_the_metric(name: str) -> None:
    model, tokens = variant(name, torch.float64), some_tokens()
    few = metrics.logit_diff(model, [[1, 2], [3, 2], [2, 12]], [5, 1, 2], pos=-2)
    full = metrics.Metric("of all logits", few, (-2,))
    edits = [
        Ablate(Site("unembed.hook_out", neuron=[2, 5])),
        Steer(Site("unembed.hook_in"), torch.arange(14.0)),
        Steer(Site("resid_post", 0), torch.arange(14.0).sin()),
        Scale(Site("post", 0, neuron=[2, 5]), 3),
    ]
    rows = [Row(prompt, tuple(edits[:n])) for n in range(5) for prompt in range(3)]
    found, expected = (Sweep(Base(model, tokens), metric, progress=False).values(rows) for metric in (few, full))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    assert len(set(found.tolist())) == 15
    chosen, narrow = metrics.narrowed(few, model.cfg.d_vocab_out)
    assert chosen.tolist() == [1, 2, 3, 5, 12]
    logits = model(tokens)[:, -2:-1]
    assert torch.equal(narrow(logits[..., chosen], metrics.Rows.of(tokens)), few(logits, metrics.Rows.of(tokens)))
    assert metrics.narrowed(full, 13) == (None, full)
    with pytest.raises(ValueError, match="answers are tokens 1 to 12; the model knows 0 to 9"):
        metrics.narrowed(few, 10)


def test_a_row_that_begins_between_the_positions_a_metric_reads_is_run() -> None:
    model, clean = variant("gpt2"), some_tokens()
    corrupted, metric = (clean + 4) % 13, metrics.kl(model, clean, pos=[1, 4])
    found = activation_patching(model, clean, corrupted, "resid_pre", metric, layers=[1], progress=False)
    _, cache = model.run_with_cache(clean)
    sites = [[("blocks.1.hook_resid_pre", put(cache["resid_pre", 1], slice(None), pos))] for pos in range(7)]
    alone = one_by_one(model, corrupted, metric, sites)
    torch.testing.assert_close(torch.from_numpy(found.values[0]).float(), alone, rtol=1e-5, atol=1e-5)
    assert (found.values[0, 4] != found.base.values).all()
    assert found.attrs["rows"] == 3 * 5


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2"])
def test_rows_that_begin_together_with_others_are_the_runs_made_alone(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokens, wanted = variant(name, torch.float64), some_tokens(), torch.tensor([[6, 3]] * 3)
    monkeypatch.setattr(engine, "_GROUP", {"cpu": 9 * 2 * sum(p.numel() for p in model.blocks[0].parameters())})
    _, cache = model.run_with_cache(tokens.roll(1, 0))
    rows = [
        Row(pos % 3, (Patch(Site(point, layer, pos=pos), cache[point, layer]),))
        for point in ("resid_pre", "z") for layer in range(2) for pos in range(7)
    ]  # fmt: skip
    base = Base(model, tokens)
    assert {base.prepared(row).start for row in rows} == {0, 3, 6, 7}
    assert_as_alone(model, tokens, None, rows, wanted)


def test_two_runs_made_together_are_the_runs_made_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    model, clean, mask = variant("llama", torch.float64), some_tokens(), padded("left")
    names = ["blocks.1.hook_resid_pre", "blocks.0.attn.hook_pattern"]
    together = Base(model, clean, mask, other=clean.roll(1, 0), names=names)
    assert len(together.resid[0]) == 6
    monkeypatch.setattr(engine, "_TOGETHER", 0)
    apart = Base(model, clean, mask, other=clean.roll(1, 0), names=names)
    assert len(apart.resid[0]) == 3
    assert len(apart.resid) == len(together.resid) == 3
    _, cache = model.run_with_cache(clean.roll(1, 0), attention_mask=mask, names_filter=names)
    for base in (together, apart):
        for name in names:
            torch.testing.assert_close(base.cache[name], cache[name], rtol=0, atol=1e-12)
    for one, other in zip(together.resid, apart.resid, strict=True):
        torch.testing.assert_close(one[:3], other, rtol=0, atol=1e-12)


def test_a_token_that_is_the_same_in_both_runs_takes_no_work() -> None:
    model, clean = variant("gpt2"), some_tokens()
    corrupted = clean.clone()
    corrupted[:, 2] = (clean[:, 2] + 1) % 13
    found = activation_patching(
        model, clean, corrupted, "resid_pre", metrics.logit(model, 3), layers=[0, 1], progress=False
    )
    assert found.attrs["rows"] == 3 * (1 + 5)
    assert (found.values[0, [0, 1, 3, 4, 5, 6]] == found.base.values).all()
    assert (abs(found.values[0, 2] - found.base.values) > 1e-6).all()


def test_patching_a_run_into_itself_changes_nothing_and_the_whole_stream_changes_everything() -> None:
    model, clean = variant("llama"), some_tokens()
    corrupted = (clean + 4) % 13
    metric = metrics.logit_diff(model, 3, 5, clean=clean, corrupted=corrupted)
    nothing = activation_patching(model, clean, clean, "z", metric, progress=False)
    torch.testing.assert_close(torch.from_numpy(nothing.values.mean(-1)).float(), torch.ones(nothing.shape[:2]))
    assert nothing.attrs["rows"] == 0
    everything = activation_patching(model, clean, corrupted, "resid_post", metric, by="layer", progress=False)
    assert everything.dims == ("layer", "prompt")
    torch.testing.assert_close(torch.from_numpy(everything.values.mean(-1)).float(), torch.ones(2))
    none = activation_patching(model, clean, corrupted, [()], metric, progress=False)
    assert abs(float(none.mean())) < 1e-6


def test_prompts_that_are_padded_differently_are_refused() -> None:
    tokenizer = Tokenizer.bytes()
    model = HookedGPT(config("gpt2", d_vocab=tokenizer.d_vocab, n_ctx=32), tokenizer).eval()
    metric = metrics.logit(model, 3)
    with pytest.raises(ValueError, match="padded differently: position for position, tokens must align"):
        activation_patching(model, ["abc", "d"], ["a", "bcd"], "z", metric, progress=False)
    with pytest.raises(ValueError, match=r"clean has \[2, 4\] tokens and corrupted \[2, 3\]"):
        activation_patching(model, ["abc", "d"], ["ab", "d"], "z", metric, progress=False)


def test_layers_that_the_model_has_not_are_refused_and_negative_ones_count_from_the_end() -> None:
    model, clean, metric = variant("gpt2"), some_tokens(), metrics.loss()
    how: dict[str, Any] = {"metric": metric, "progress": False}
    for layers in ([5], [-3], []):
        with pytest.raises(ValueError, match=r"layers=\[.*\]; allowed: some of -2 to 1"):
            activation_patching(model, clean, clean.roll(1, 0), "z", layers=layers, **how)
    last = activation_patching(model, clean, clean.roll(1, 0), "z", layers=[-1], **how)
    assert last.layer.values.tolist() == [1]


def test_padding_of_either_run_alone_is_refused() -> None:
    model, tokens = variant("gpt2", d_vocab=270), Tokenizer.train(["abc def"] * 3, d_vocab=262, progress=False)
    model.tokenizer = tokens
    for clean, corrupted in ((["abc", "def"], ["abc", "d"]), (["abc", "d"], ["abc", "def"])):
        with pytest.raises(ValueError, match=r"padded differently|both need as many"):
            activation_patching(model, clean, corrupted, "z", metrics.loss(), progress=False)
