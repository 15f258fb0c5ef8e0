"""ActivationCache: names, decompositions, files."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from interp import ActivationCache, HookedGPT
from tests.variants import VARIANTS, quick_of, some_tokens, variant

TOKENS = some_tokens()
RIGHT = torch.tensor([[1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1, 0]])
PLAIN_SUMS = [name for name in VARIANTS if VARIANTS[name].get("norm_position") != "post"]


@pytest.fixture
def model() -> HookedGPT:
    return variant("gpt2")


@pytest.fixture
def cache(model: HookedGPT) -> ActivationCache:
    with torch.no_grad():
        return model.run_with_cache(TOKENS)[1]


def test_short_names_mean_full_ones(cache: ActivationCache) -> None:
    assert cache["pattern", 1] is cache["blocks.1.attn.hook_pattern"]
    assert cache["resid_post", -1] is cache["blocks.1.hook_resid_post"]
    assert cache["scale", 0, "ln2"] is cache["blocks.0.ln2.hook_scale"]
    assert cache["scale", None, "ln_final"] is cache["ln_final.hook_scale"]
    assert cache["embed"] is cache["hook_embed"]
    assert ("pattern", 1) in cache
    assert ("pattern", 2) not in cache
    assert "nonsense" not in cache


def test_a_wrong_name_is_refused_with_what_there_is(cache: ActivationCache) -> None:
    with pytest.raises(KeyError, match=r"could mean any of .*ln1.*ln2"):
        cache["scale", 0]
    with pytest.raises(KeyError, match=r"nearest.*blocks.0.attn.hook_pattern"):
        cache["patern", 0]
    with pytest.raises(TypeError):
        cache["pattern", 1] = torch.zeros(1)  # type: ignore[index]


def test_the_default_leaves_out_what_is_costly_but_scores_and_patterns(
    model: HookedGPT, cache: ActivationCache
) -> None:
    left_out = {"hook_result", "hook_q_input", "hook_k_input", "hook_v_input", "hook_attn_in", "hook_mlp_in"}
    assert {name.rpartition(".")[2] for name in set(model.hook_dict) - set(cache)} == left_out


def test_cache_size_is_told_before_the_run(model: HookedGPT) -> None:
    for names in (None, "*", "blocks.*.attn.hook_pattern"):
        for same in (model, variant("llama"), variant("gpt2").bfloat16()):
            with torch.no_grad():
                _, cache = same.run_with_cache(TOKENS, names_filter=names)
            assert same.cache_size(TOKENS, names) == sum(tensor.nbytes for tensor in cache.values())


@pytest.mark.parametrize("pos", [2, -1, slice(1, 4), [0, -1], slice(None, None, 2)])
def test_positions_are_cut_as_activations_are_taken(model: HookedGPT, pos: int | slice | list[int]) -> None:
    with torch.no_grad():
        _, whole = model.run_with_cache(TOKENS, names_filter="*")
        _, part = model.run_with_cache(TOKENS, names_filter="*", pos_slice=pos)
    for name, value in part.items():
        axis = (
            model.hook_dict[name]
            .axes.split()
            .index("query_pos" if "query_pos" in model.hook_dict[name].axes else "pos")
        )
        wanted = whole[name].movedim(axis, 0)[pos]
        assert torch.equal(value, wanted if isinstance(pos, int) else wanted.movedim(0, axis))
        assert value.untyped_storage().nbytes() <= value.nbytes, f"{name} holds more memory than it shows"


def test_position_minus_one_is_the_last_real_token(model: HookedGPT) -> None:
    _, whole = model.run_with_cache(TOKENS, attention_mask=RIGHT)
    _, last = model.run_with_cache(TOKENS, attention_mask=RIGHT, pos_slice=-1)
    for row, pos in enumerate([6, 3, 5]):
        assert torch.equal(last["resid_post", 1][row], whole["resid_post", 1][row, pos])
        assert torch.equal(last["pattern", 1][row], whole["pattern", 1][row, :, pos])
        assert torch.equal(whole.accumulated_resid(pos_slice=-1)[-1][row], whole["resid_post", 1][row, pos])
        assert torch.equal(whole.decompose_resid(pos_slice=-2)[0][row], whole["embed"][row, pos - 1])
    with pytest.raises(IndexError, match=r"pos_slice=-8 is out of range"):
        whole.accumulated_resid(pos_slice=-8)
    with pytest.raises(ValueError, match=r"cannot be cut again"):
        last.accumulated_resid(pos_slice=-1)


def test_positions_are_checked_and_counted_in_each_row(model: HookedGPT) -> None:
    _, whole = model.run_with_cache(TOKENS, attention_mask=RIGHT)
    resid = whole["resid_post", 1]
    both = whole.accumulated_resid(pos_slice=[0, -1])[-1]
    for row, last in enumerate([6, 3, 5]):
        assert torch.equal(both[row, 0], resid[row, 0])
        assert torch.equal(both[row, 1], resid[row, last])
    assert torch.equal(whole.accumulated_resid(pos_slice=(1, 3))[-1], resid[:, 1:3])
    with pytest.raises(IndexError, match=r"pos_slice=-5 is out of range.*real tokens"):
        model.run_with_cache(TOKENS, attention_mask=RIGHT, pos_slice=-5)
    for bad in (7, [0, 9], -8):
        with pytest.raises(IndexError, match="there are 7 positions"):
            model.run_with_cache(TOKENS, pos_slice=bad)
    for bad in ([], True):
        with pytest.raises(TypeError, match="must be an index, a slice"):
            model.run_with_cache(TOKENS, pos_slice=bad)
    one = model.run_with_cache(TOKENS[1], attention_mask=RIGHT[1:2], remove_batch_dim=True)[1]
    assert torch.equal(one.accumulated_resid(pos_slice=-1)[-1], one["resid_post", 1][3])
    _, part = model.run_with_cache(TOKENS, pos_slice=(2, 7))
    with pytest.raises(ValueError, match="cannot be cut again"):
        part.accumulated_resid(pos_slice=-1)


def test_device_and_dtype_are_applied_to_the_copy_alone(model: HookedGPT) -> None:
    logits, cache = model.run_with_cache(TOKENS, dtype=torch.float64, device="cpu")
    assert logits.dtype == torch.float32
    assert all(tensor.dtype == torch.float64 for tensor in cache.values())
    assert cache.to(torch.float16)["embed"].dtype == torch.float16


def test_the_batch_axis_of_one_can_go(model: HookedGPT) -> None:
    _, cache = model.run_with_cache(TOKENS[0], remove_batch_dim=True)
    assert cache["resid_post", 1].shape == (7, 14)
    whole = cache["resid_post", 1]
    for parts in (cache.get_full_resid_decomposition(), cache.decompose_resid(pos_slice=-1)):
        torch.testing.assert_close(parts.sum(0), whole if parts.ndim == 3 else whole[-1])
    assert cache.logit_attrs(cache.decompose_resid(), 4).shape == (6, 7)
    with pytest.raises(ValueError, match="only a batch of one"):
        model.run_with_cache(TOKENS, remove_batch_dim=True)


def test_cached_tensors_keep_their_graph_unless_gradients_are_off(model: HookedGPT) -> None:
    logits, cache = model.run_with_cache(TOKENS)
    grads = torch.autograd.grad(logits.square().sum(), [cache["z", 0], cache["resid_mid", 1], cache["pattern", 1]])
    assert all(grad.any() for grad in grads)
    with torch.no_grad():
        assert not any(tensor.requires_grad for tensor in model.run_with_cache(TOKENS)[1].values())


def test_gradients_are_cached_beside_values_and_touch_no_parameter(model: HookedGPT) -> None:
    with torch.no_grad():
        _, cache = model.run_with_cache(TOKENS, "loss", names_filter="*hook_resid_post", incl_bwd=True, pos_slice=-2)
    assert cache["resid_post_grad", 0].shape == cache["resid_post", 0].shape == (3, 14)
    assert cache["resid_post_grad", 0].any()
    assert all(parameter.grad is None for parameter in model.parameters())
    with pytest.raises(ValueError, match=r"one number.*shape \[3, 7, 13\]"):
        model.run_with_cache(TOKENS, incl_bwd=True)


@pytest.mark.parametrize("name", quick_of(PLAIN_SUMS, "gpt2", "llama", "gptj", "gemma2"))
def test_heads_and_neurons_with_the_remainder_sum_to_the_stream_at_any_layer(name: str) -> None:
    model = variant(name, torch.float64)
    _, cache = model.run_with_cache(TOKENS)
    for layer in (0, 1, 2, None):
        at = cache.accumulated_resid(layer)[-1]
        stacks = [cache.stack_head_results(layer, incl_remainder=True)]
        if not model.cfg.attn_only:
            stacks.append(cache.stack_neuron_results(layer, incl_remainder=True, neuron_slice=slice(2, 5)))
        stacks += [cache.decompose_resid(layer), cache.get_full_resid_decomposition(layer)]
        for parts in stacks:
            torch.testing.assert_close(parts.sum(0), at)
    if "blocks.1.hook_resid_mid" in cache:
        at = cache.accumulated_resid(1, mlp_input=True)[-1]
        torch.testing.assert_close(at, cache["resid_mid", 1])
        torch.testing.assert_close(cache.decompose_resid(1, mlp_input=True).sum(0), at)
        torch.testing.assert_close(cache.get_full_resid_decomposition(1, mlp_input=True).sum(0), at)


def test_a_heads_result_is_what_the_hook_sees(model: HookedGPT) -> None:
    _, cache = model.run_with_cache(TOKENS, names_filter="*")
    stack, labels = cache.stack_head_results(return_labels=True)
    for layer in (0, 1):
        for head in range(3):
            torch.testing.assert_close(stack[labels.index(f"L{layer}H{head}")], cache["result", layer][:, :, head])
    neurons, labels = cache.stack_neuron_results(neuron_slice=[3, 11], return_labels=True)
    assert labels == ["L0N3", "L0N11", "L1N3", "L1N11"]
    by_hand = cache["post", 1][..., 11, None] * model.W_out[1, 11]
    torch.testing.assert_close(neurons[3], by_hand)
    only = cache.stack_neuron_results(1, neuron_slice=4)
    torch.testing.assert_close(only[0], cache["post", 0][..., 4, None] * model.W_out[0, 4])


@pytest.mark.parametrize("name", quick_of(PLAIN_SUMS, "gpt2", "llama", "gptj", "gemma2"))
def test_logit_attributions_sum_to_the_logit(name: str) -> None:
    model = variant(name, torch.float64)
    _, cache = model.run_with_cache(TOKENS)
    logits = cache["unembed.hook_out"]  # before any soft cap
    constant = model.b_U
    if getattr(model.ln_final, "b", None) is not None:
        constant = constant + model.ln_final.b @ model.W_U
    parts = cache.get_full_resid_decomposition()
    torch.testing.assert_close(cache.logit_attrs(parts, 4).sum(0) + constant[4], logits[..., 4])
    answers, wrong = torch.tensor([1, 8, 2]), torch.tensor([3, 0, 5])
    per_row = cache.logit_attrs(parts, answers, wrong).sum(0)
    rows = torch.arange(3)
    expected = logits[rows, :, answers] - logits[rows, :, wrong] - (constant[answers] - constant[wrong])[:, None]
    torch.testing.assert_close(per_row, expected)
    at_end = cache.logit_attrs(cache.decompose_resid(pos_slice=-1), answers, pos_slice=-1).sum(0)
    torch.testing.assert_close(at_end, logits[rows, -1, answers] - constant[answers])
    per_token = cache.logit_attrs(parts, TOKENS).sum(0)
    torch.testing.assert_close(per_token, logits.gather(2, TOKENS[..., None])[..., 0] - constant[TOKENS])


def test_apply_ln_sees_parts_as_the_norm_before_a_layer_does(model: HookedGPT) -> None:
    _, cache = model.run_with_cache(TOKENS)
    for layer, mlp_input, norm, read in [
        (1, False, model.blocks[1].ln1, cache["resid_pre", 1]),
        (1, True, model.blocks[1].ln2, cache["resid_mid", 1]),
        (None, False, model.ln_final, cache["resid_post", 1]),
    ]:
        parts = cache.decompose_resid(layer, mlp_input=mlp_input, apply_ln=True)
        torch.testing.assert_close(parts.sum(0) + norm.b, norm(read))


def test_what_makes_no_sense_is_refused(model: HookedGPT, cache: ActivationCache) -> None:
    for layer in (3, -2):
        with pytest.raises(ValueError, match=f"layer={layer}; allowed: 0 to 2"):
            cache.decompose_resid(layer)
    with pytest.raises(ValueError, match="no MLP reads the end"):
        cache.decompose_resid(mlp_input=True)
    with pytest.raises(ValueError, match="no resid_mid"):
        variant("neox").run_with_cache(TOKENS)[1].decompose_resid(1, mlp_input=True)
    with pytest.raises(ValueError, match="attn_only: it has no neurons"):
        variant("attn_only").run_with_cache(TOKENS)[1].stack_neuron_results()
    with pytest.raises(ValueError, match="stack would be empty"):
        cache.stack_head_results(0)
    with pytest.raises(ValueError, match="knows no model"):
        ActivationCache({"a": torch.ones(1)}).decompose_resid()
    with pytest.raises(ValueError, match="no norm reads the stream"):
        variant("olmo2").run_with_cache(TOKENS)[1].decompose_resid(1, apply_ln=True)
    with pytest.raises(ValueError, match=r"mode='heads'; allowed"):
        ActivationCache.decompose_resid.__wrapped__(cache, mode="heads")
    with pytest.raises(ValueError, match="no resid_mid"):
        variant("attn_only").run_with_cache(TOKENS)[1].accumulated_resid(incl_mid=True)
    with pytest.raises(ValueError, match="out of range: d_vocab_out=13"):
        cache.logit_attrs(cache.decompose_resid(), -1)
    with pytest.raises(ValueError, match="give one id"):
        cache.logit_attrs(cache.decompose_resid(), torch.tensor([1.5]))
    _, few = model.run_with_cache(TOKENS, names_filter="hook_embed")
    with pytest.raises(KeyError, match=r"hook_pos_embed.*not in this cache"):
        few.decompose_resid()


def test_save_and_load_keep_everything(model: HookedGPT, tmp_path: Path) -> None:
    file = tmp_path / "run.safetensors"
    with torch.no_grad():
        _, cache = model.run_with_cache(TOKENS, attention_mask=RIGHT, pos_slice=slice(1, 4), dtype=torch.bfloat16)
    cache.save(file)
    loaded = ActivationCache.load(file, model)
    assert list(loaded) == list(cache)
    assert all(torch.equal(loaded[name], cache[name]) for name in cache)
    assert torch.equal(loaded.tokens, TOKENS)
    assert torch.equal(loaded.attention_mask, RIGHT)
    assert (loaded.pos_slice, loaded.has_batch_dim, loaded.cfg) == (slice(1, 4), True, model.cfg)
    assert list(tmp_path.iterdir()) == [file], "no unfinished file is left"
    alone = ActivationCache.load(file)
    assert torch.equal(alone.accumulated_resid(), cache.accumulated_resid())
    with pytest.raises(ValueError, match="needs the model's weights"):
        alone.stack_head_results()
    with pytest.raises(ValueError, match="another model"):
        ActivationCache.load(file, variant("llama"))


@pytest.mark.parametrize("heads", [{"n_heads": 1}, {"n_heads": 2, "n_key_value_heads": 1}])
def test_everything_can_be_saved_also_with_a_single_head(heads: dict[str, int], tmp_path: Path) -> None:
    with torch.no_grad():
        _, cache = variant("gpt2", **heads).run_with_cache(TOKENS, names_filter="*")
    cache.save(tmp_path / "one")
    loaded = ActivationCache.load(tmp_path / "one")
    assert all(torch.equal(loaded[name], cache[name]) for name in cache)


@pytest.mark.parametrize("moved", [False, True])
def test_one_tensor_under_two_names_is_stored_once(cache: ActivationCache, tmp_path: Path, moved: bool) -> None:
    file = tmp_path / "run.safetensors"
    cache = cache.to(torch.float64) if moved else cache
    cache.save(file)
    bytes_of = lambda names: sum(cache[name].nbytes for name in names)
    twice = [name for name in cache if name.endswith("resid_pre") and "blocks.1" in name]
    assert file.stat().st_size < bytes_of(cache) - bytes_of(twice) + 20_000


def test_a_damaged_or_foreign_file_is_one_clear_error(cache: ActivationCache, tmp_path: Path) -> None:
    file = tmp_path / "run.safetensors"
    cache.save(file)
    whole = file.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"not safetensors at all", whole[:8] + b"\0" + whole[9:]):
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match="no complete safetensors file"):
            ActivationCache.load(file)
    from safetensors.torch import save_file

    save_file({"a": torch.ones(1)}, file)
    with pytest.raises(ValueError, match="not written by"):
        ActivationCache.load(file)
    with pytest.raises(FileNotFoundError):
        ActivationCache.load(tmp_path / "absent")


def test_a_failed_save_leaves_the_old_file(
    cache: ActivationCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "run.safetensors"
    cache.save(file)
    before = file.read_bytes()

    def cut_off(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
        path.write_bytes(before[:100])
        raise KeyboardInterrupt

    monkeypatch.setattr("interp.cache.save_file", cut_off)
    with pytest.raises(KeyboardInterrupt):
        cache.save(file)
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]
