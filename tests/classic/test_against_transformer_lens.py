"""The same calls on TransformerLens 3.9, where it is installed, give the same: names, order, shapes, numbers."""

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from interp import classic
from interp.classic import evals, head_detector, patching, utils
from interp.classic import loading_from_pretrained as loading
from tests.classic.shapes import KINDS, SIZES, filled, rows

tl = pytest.importorskip("transformer_lens", reason="transformer_lens is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")


def theirs(kind: str, ours: classic.HookedTransformer) -> Any:
    model = tl.HookedTransformer(tl.HookedTransformerConfig(seed=0, device="cpu", **KINDS[kind]))
    model.load_state_dict(ours.state_dict(), strict=False)
    return model


def pair(kind: str, dtype: torch.dtype = torch.float32, **processing: bool) -> tuple[Any, classic.HookedTransformer]:
    ours = filled(kind)
    their = theirs(kind, ours).to(dtype)
    ours = ours.to(dtype)
    if processing:
        weights = {name: weight.clone() for name, weight in ours.state_dict().items()}
        their.load_and_process_state_dict(dict(their.state_dict()), **processing)
        ours.load_and_process_state_dict(weights, **processing)
    return their, ours


FOLDED = {"fold_ln": True, "center_writing_weights": True, "center_unembed": True, "fold_value_biases": True}
UNFOLDED = FOLDED | {"fold_ln": False, "center_writing_weights": False}  # all that either does to a shortformer


def close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one.nan_to_num(neginf=-9.0), other.nan_to_num(neginf=-9.0), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_cache_has_the_same_entries_in_the_same_order(kind: str) -> None:
    their, ours = pair(kind)
    (a, one), (b, other) = (model.run_with_cache(rows()) for model in (their, ours))
    close(a, b)
    assert list(one) == list(other)
    behind = ("hook_q", "hook_k", "hook_v") if kind == "mpt" else ()  # which are clipped here, and there later
    for name in one:
        if not name.endswith(behind):
            close(one[name], other[name])


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_the_same_where_a_norm_is_called_once(kind: str) -> None:
    """Theirs of ln1 are of the last of three calls."""
    their, ours = pair(kind)
    _, one = their.run_with_cache(rows(), return_type="loss", incl_bwd=True)
    _, other = ours.run_with_cache(rows(), return_type="loss", incl_bwd=True)
    names = [name for name in one if name.endswith("_grad")]
    assert len(names) > 20
    assert names == [name for name in other if name.endswith("_grad")]
    for name in names:
        if ".ln1." not in name:
            close(one[name], other[name])


@pytest.mark.parametrize("kind", KINDS)
def test_processed_weights_are_the_same(kind: str) -> None:
    their, ours = pair(kind, **(UNFOLDED if kind == "shortformer" else FOLDED))
    one, other = dict(their.state_dict()), ours.state_dict()
    assert ours.cfg.normalization_type == their.cfg.normalization_type
    assert set(other) <= set(one)
    for name, weight in other.items():
        close(one[name], weight)


@pytest.mark.parametrize("kind", ["gpt2", "solu_ln", "shortformer", "attention"])
def test_refactored_circuits_are_the_same(kind: str) -> None:
    folded = UNFOLDED if kind == "shortformer" else FOLDED
    their, ours = pair(kind, torch.float64, **folded, refactor_factored_attn_matrices=True)
    close(their(rows()), ours(rows()))
    for name in ("QK", "OV"):
        close(getattr(their, name).AB, getattr(ours, name).AB)
    close(their.W_O @ their.W_O.mT, ours.W_O @ ours.W_O.mT)
    close(their.W_Q.norm(dim=2), ours.W_Q.norm(dim=2))


CALLS: dict[str, Callable[[Any], Any]] = {
    "accumulated_resid": lambda c: c.accumulated_resid(return_labels=True),
    "accumulated_resid, normed": lambda c: c.accumulated_resid(None, False, True, -1, return_labels=True),
    "accumulated_resid to a layer": lambda c: c.accumulated_resid(1, pos_slice=(2, 5), return_labels=True),
    "decompose_resid": lambda c: c.decompose_resid(apply_ln=True, return_labels=True),
    "decompose_resid to a layer": lambda c: c.decompose_resid(1, mode="attn", pos_slice=[1, 3], return_labels=True),
    "stack_head_results": lambda c: c.stack_head_results(-1, True, True, -1, True),
    "stack_activation": lambda c: c.stack_activation("pattern"),
    "logit_attrs": lambda c: c.logit_attrs(c.decompose_resid(), 3, 4),
    "logit_attrs of prompts": lambda c: c.logit_attrs(
        c.decompose_resid(pos_slice=-1), torch.tensor([1, 2, 3]), torch.tensor([4, 5, 6]), pos_slice=-1
    ),
    "logit_attrs of tokens": lambda c: c.logit_attrs(c.decompose_resid(), rows()),
    "a row": lambda c: c.apply_slice_to_batch_dim(1)["resid_post", 1],
    "some rows": lambda c: c.apply_slice_to_batch_dim((0, 2)).decompose_resid(apply_ln=True),
    "compute_head_results": lambda c: (c.compute_head_results(), c["result", 1])[1],
    "QK composition": lambda c: c.model.all_composition_scores("Q"),
    "K composition": lambda c: c.model.all_composition_scores("K"),
    "all heads' keys": lambda c: c.model.W_K,
    "head labels": lambda c: (torch.zeros(1), c.model.all_head_labels()),
}
WITH_MLP: dict[str, Callable[[Any], Any]] = {
    "stack_neuron_results": lambda c: c.stack_neuron_results(-1, (2, 5), None, True, True, True),
    "stack_neuron_results, some": lambda c: c.stack_neuron_results(1, None, [0, 3], True),
    "get_neuron_results": lambda c: c.get_neuron_results(1, (0, 5), -1),
    "get_full_resid_decomposition": lambda c: c.get_full_resid_decomposition(apply_ln=True, return_labels=True),
    "get_full_resid_decomposition, MLPs": lambda c: c.get_full_resid_decomposition(
        expand_neurons=False, pos_slice=-1, return_labels=True
    ),
    "accumulated_bias": lambda c: c.model.accumulated_bias(2),
}


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "shortformer"])
def test_a_cache_answers_the_same(kind: str) -> None:
    """Where norms are folded: theirs leaves out the gain of one that is not."""
    their, ours = pair(kind, **FOLDED)
    (_, one), (_, other) = (model.run_with_cache(rows()) for model in (their, ours))
    for name, call in (CALLS | ({} if kind == "attention" else WITH_MLP)).items():
        a, b = call(one), call(other)
        if isinstance(a, tuple):
            assert list(a[1]) == list(b[1]), name
            a, b = a[0], b[0]
        assert a.shape == b.shape, name
        close(a, b)


PATCHES = [name for name in dir(patching) if name.startswith("get_act_patch")]


@pytest.mark.parametrize("kind", KINDS)
def test_every_sweep_gives_the_same(kind: str) -> None:
    their, ours = pair(kind)
    clean = rows(n_pos=6)
    corrupted = clean.clone()
    corrupted[:, 2] = (corrupted[:, 2] + 3) % 29
    (_, one), (_, other) = (model.run_with_cache(clean) for model in (their, ours))
    last = lambda logits: (logits[:, -1, 3] - logits[:, -1, 4]).mean()
    everywhere = lambda logits: logits.log_softmax(-1)[:, :-1].gather(-1, corrupted[:, 1:, None]).mean()
    assert {name for name in dir(tl.patching) if name.startswith("get_act_patch")} == set(PATCHES)
    lacking = {"neox": ("resid_mid",), "attention": ("resid_mid", "mlp_out", "block_every")}.get(kind, ())
    for name in PATCHES:
        if name.endswith(lacking) and lacking:
            continue
        for metric in (last,) if "dest_src" in name else (last, everywhere):
            a = getattr(tl.patching, name)(their, corrupted, one, metric)
            b = getattr(patching, name)(ours, corrupted, other, metric)
            assert a.shape == b.shape, name
            close(a, b)


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_generation_is_the_same(kind: str) -> None:
    """Theirs without their cache of keys, which without a tokenizer counts learned positions twice."""
    their, ours = pair(kind)
    choices: dict[str, Any] = {"stop_at_eos": False, "do_sample": False, "verbose": False}
    a = their.generate(rows(n_pos=4), 5, use_past_kv_cache=False, **choices)
    assert torch.equal(a, ours.generate(rows(n_pos=4), 5, **choices))


@pytest.mark.parametrize("kind", ["gpt2", "shortformer"])
def test_what_comes_as_a_stream_and_what_follows_an_end_is_the_same(kind: str) -> None:
    their, ours = pair(kind)
    choices: dict[str, Any] = {"do_sample": False, "verbose": False, "use_past_kv_cache": False}
    written = ours.generate(rows(n_pos=4), 9, stop_at_eos=False, **choices)[:, 4:]
    for ends in (int(written[0, 2]), [int(written[0, 2]), int(written[1, 5])], written[:, 3].tolist()):
        choices["eos_token_id"] = ends
        a, b = (model.generate(rows(n_pos=4), 9, **choices) for model in (their, ours))
        assert torch.equal(a, b)
        for n_each in (3, 5, 6, 99):
            one, other = (list(model.generate_stream(rows(n_pos=4), 9, n_each, **choices)) for model in (their, ours))
            assert [x.tolist() for x in one] == [x.tolist() for x in other]


def test_functions_take_the_same_arguments() -> None:
    for name in utils.__all__:
        one, other = getattr(tl.utilities, name), getattr(utils, name)
        if inspect.isfunction(one):
            assert list(inspect.signature(one).parameters) == list(inspect.signature(other).parameters), name


def test_names_of_checkpoints_mean_the_same() -> None:
    theirs = tl.loading.make_model_alias_map()
    ours = {name: official for name, official in loading.make_model_alias_map().items() if name in theirs}
    assert len(ours) > 400
    assert ours == {name: theirs[name] for name in ours}
    assert loading.PYTHIA_CHECKPOINTS == tl.loading.PYTHIA_CHECKPOINTS
    assert loading.STANFORD_CRFM_CHECKPOINTS == tl.loading.STANFORD_CRFM_CHECKPOINTS


@pytest.mark.parametrize("shape", [(7,), (5, 6), (3, 4, 5)])
def test_weights_are_drawn_the_same(shape: tuple[int, ...]) -> None:
    for name in ("xavier_uniform", "xavier_normal", "kaiming_uniform", "kaiming_normal"):
        drawn = []
        for place in (tl.utilities, utils):
            torch.manual_seed(0)
            drawn.append(getattr(place, f"init_{name}_")(torch.empty(shape), gain=1.5))
        close(*drawn)


def test_short_names_mean_the_same() -> None:
    asked = [("k", 6, "a"), ("pre", 2), ("embed",), ("normalized", 27, "ln2"), ("k6",), ("scale4ln1",), ("pre5",)]
    asked += [
        ("resid_pre", 3),
        ("attn", 1),
        ("mlp_post", 2),
        ("attn_out", 1),
        ("hook_embed",),
        ("scale",),
        ("q_input", 1),
    ]
    for each in asked:
        assert utils.get_act_name(*each) == tl.utilities.get_act_name(*each)


@pytest.mark.parametrize("name", head_detector.HEAD_NAMES)
@pytest.mark.parametrize("measure", ["mul", "abs"])
def test_heads_score_the_same_on_a_pattern(name: str, measure: str) -> None:
    their, ours = pair("gpt2")
    tokens = torch.tensor([[1, 5, 2, 5, 2, 1, 5, 7, 2, 1]])
    options: dict[str, Any] = {"error_measure": measure, "heads": [(0, 1), (1, 0), (1, 2)]}
    for skips in ({}, {"exclude_bos": True}, {"exclude_current_token": True}):
        for model in (their, ours):
            model.to_tokens = lambda seq, **_: tokens
        one = tl.head_detector.detect_head(their, "text", name, **options, **skips)
        other = head_detector.detect_head(ours, "text", name, **options, **skips)
        torch.testing.assert_close(one, other, atol=2e-3 if measure == "abs" else 1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["OV", "w_in", "w_out"])
def test_singular_vectors_are_the_same_but_for_their_signs(kind: str) -> None:
    their, ours = pair("gpt2")
    which: dict[str, Any] = {"layer_index": 1, "num_vectors": 4, "head_index": 2 if kind == "OV" else None}
    one = tl.SVDInterpreter(their).get_singular_vectors(kind, **which)
    other = classic.SVDInterpreter(ours).get_singular_vectors(kind, **which)
    close(one.abs(), other.abs())


def test_evaluations_are_the_same() -> None:
    their, ours = pair("gpt2")
    data = [
        {"prompt": torch.tensor(p), "IO": torch.tensor(io), "S": torch.tensor(s)}
        for p, io, s in (([1, 2, 3, 4], [4], [2]), ([5, 6, 7, 8, 9], [8, 9], [8, 6]), ([3, 2, 9], [9], [4]))
    ]
    one = tl.evals.ioi_eval(their, dataset=data, tokenizer=object(), batch_size=2)
    other = evals.ioi_eval(ours, dataset=data, tokenizer=object(), batch_size=2)
    assert one["Accuracy"] == other["Accuracy"]
    assert one["Logit Difference"] == pytest.approx(other["Logit Difference"], abs=1e-4)


# Classic slopes are those of the paper where the number of heads is a power of two.
LEANING = SIZES | {"n_heads": 4, "d_head": 6, "act_fn": "gelu_fast", "positional_embedding_type": "alibi"}
LATER: dict[str, dict[str, Any]] = {
    "bloom": LEANING | {"post_embedding_ln": True},
    "mpt": LEANING | {"clip_qkv": 0.5},
    "yarn": KINDS["llama"] | {"use_yarn_rope": True, "yarn_factor": 4.0, "yarn_original_max_position_embeddings": 8},
}


@pytest.mark.parametrize("kind", LATER)
def test_what_later_families_have_is_the_same(kind: str) -> None:
    ours = classic.HookedTransformer(classic.HookedTransformerConfig(**LATER[kind], seed=0))
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.normal_(std=0.3)
        for block in ours.blocks if LATER[kind].get("gated_mlp") else []:
            block.mlp.b_in.zero_()  # which classic gated MLPs misplace
    their = tl.HookedTransformer(tl.HookedTransformerConfig(seed=0, device="cpu", **LATER[kind]))
    their.load_state_dict(ours.state_dict(), strict=False)
    close(their(rows()), ours(rows()))
    one, other = (model.run_with_cache(rows())[1] for model in (their, ours))
    assert list(one) == list(other)
    behind = ("hook_q", "hook_k", "hook_v") if kind == "mpt" else ()  # which are clipped here, and there later
    for name in one:
        if not name.endswith(behind):
            close(one[name], other[name])
