from inspect import unwrap
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from interp import HookedGPT
from interp.cache import ActivationCache
from interp.lens import direct_logit_attribution
from interp.lens.attribution import By
from tests.variants import EACH, VARIANTS, quick_of, some_tokens, variant

WAYS: list[By] = ["component", "layer", "head", "neuron", "source_position"]


def padding() -> Tensor:
    mask = torch.ones(3, 7, dtype=torch.bool)
    mask[1, :2] = False
    return mask


def cached(model: HookedGPT, mask: Tensor | None = None) -> ActivationCache:
    names = [name for name in model.hook_dict if "result" not in name and "input" not in name and "_in" not in name]
    return model.run_with_cache(some_tokens(), attention_mask=mask, names_filter=names)[1]


def ways(model: HookedGPT) -> list[By]:
    return [by for by in WAYS if by != "neuron" or not model.cfg.attn_only]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", EACH)
def test_the_parts_sum_to_the_models_own_logit(name: str, dtype: torch.dtype) -> None:
    model, mask = variant(name, dtype), padding()
    cache, logits = cached(model, mask), model(some_tokens(), attention_mask=mask).detach()
    tolerance = 1e-4 if dtype == torch.float32 else 1e-10
    right, wrong = torch.tensor([[1, 2], [3, 2], [12, 0]]), torch.tensor([[5], [6], [7]])
    for by in ways(model):
        for chosen in (-1, [2, -3]):
            columns = torch.tensor([chosen]).view(-1)
            columns = columns + 7 * (columns < 0)
            for minus in (None, wrong):
                found = direct_logit_attribution(model, cache, right, minus, by=by, pos=chosen)
                at = logits[:, columns]
                own = at.gather(2, right[:, None].expand(-1, len(columns), -1)).mean(2)
                if minus is not None:
                    own = own - at.gather(2, minus[:, None].expand(-1, len(columns), -1)).mean(2)
                own = own[:, 0] if chosen == -1 else own
                torch.testing.assert_close(torch.from_numpy(found.capped.values), own.double(), rtol=1e-5, atol=1e-5)
                if model.cfg.output_logits_soft_cap is None:
                    np.testing.assert_allclose(found.total, found.capped)
                size = abs(found).sum([d for d in found.dims if d not in ("prompt", "pos")])
                assert (abs(found.remainder) <= tolerance * size).all()
                assert found.attrs["remainder"] == float(abs(found.remainder).max())
                summed = found.sum([d for d in found.dims if d not in ("prompt", "pos")])
                np.testing.assert_allclose(summed + found.remainder, found.total, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "name",
    quick_of(
        [name for name in VARIANTS if VARIANTS[name].get("norm_position") != "post"], "gpt2", "llama", "gptj", "gemma2"
    ),
)
def test_each_part_is_written_out_and_read_through_the_final_norm(name: str) -> None:
    model = variant(name, torch.float64)
    cache = cached(model)
    scale = cache["ln_final.hook_scale"] if "ln_final.hook_scale" in cache else torch.ones(())

    def literal(written: Tensor) -> Tensor:
        if hasattr(model.ln_final, "centred"):
            is_rms = model.cfg.normalization_type.startswith("RMS")
            written = (written if is_rms else written - written.mean(-1, keepdim=True)) / scale
            written = written if model.ln_final.w is None else written * model.ln_final.w
        return (written @ (model.W_U[:, 4] - model.W_U[:, 2]))[:, -2]

    found = {by: direct_logit_attribution(model, cache, 4, 2, by=by, pos=-2) for by in ways(model)}
    for layer in range(model.cfg.n_layers):
        for kind in ("attn",) if model.cfg.attn_only else ("attn", "mlp"):
            each = found["component"].sel(component=f"L{layer} {kind}")
            close(each, literal(cache[f"{kind}_out", layer]))
    embeds = [name for name in ("embed", "pos_embed") if name in found["component"].component]
    for name in embeds:
        close(found["component"].sel(component=name), literal(cache[name]))
    if model.cfg.norm_position == "pre":
        attn, mlp = model.blocks[1].attn, getattr(model.blocks[1], "mlp", None)
        result = torch.einsum("bphd,hdm->bphm", cache["z", 1], attn.W_O)
        values = cache["v", 1].repeat_interleave(model.cfg.n_heads // cache["v", 1].shape[2], 2)
        looked = torch.einsum("bhqk,bkhd,hdm->bkhqm", cache["pattern", 1], values, attn.W_O)
        for head in range(model.cfg.n_heads):
            close(found["head"].sel(component=f"L1H{head}"), literal(result[:, :, head]))
            for key in range(7):
                each = found["source_position"].sel(component=f"L1H{head}", key_pos=key)
                close(each, literal(looked[:, key, head]))
        if mlp is not None:
            for n in (0, 16):
                close(found["neuron"].sel(component=f"L1N{n}"), literal(cache["post", 1][..., n, None] * mlp.W_out[n]))
    assert list(found["layer"].sel(component="L1").layer.values.ravel()) == [1]


def close(found: Any, wanted: Tensor) -> None:
    np.testing.assert_allclose(found.to_numpy(), wanted.detach().numpy(), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", ["post", "encoder", "attn_only_post"])
def test_through_norms_on_the_stream_a_part_goes_with_their_scales_as_they_were(name: str) -> None:
    model = variant(name, torch.float64)
    cache = cached(model)
    found = direct_logit_attribution(model, cache, 4, 2, pos=-2)
    norms = [
        (f"blocks.{layer}.{each}_post", getattr(model.blocks[layer], f"{each}_post"))
        for layer in range(model.cfg.n_layers)
        for each in (("ln1",) if model.cfg.attn_only else ("ln1", "ln2"))
    ]
    parts = [("embed", cache["embed"], 0), ("L0 attn", cache["attn_out", 0], 0)]
    if not model.cfg.attn_only:
        parts += [("L0 mlp", cache["mlp_out", 0], 1), ("L1 mlp", cache["mlp_out", 1], 3)]
    for label, written, first in parts:
        for full, norm in norms[first:]:
            written = (written - written.mean(-1, keepdim=True)) / cache[f"{full}.hook_scale"]
            written = written if norm.w is None else written * norm.w
        close(found.sel(component=label), (written @ (model.W_U[:, 4] - model.W_U[:, 2]))[:, -2])


def test_a_direction_in_the_stream_is_read_without_a_norm() -> None:
    model = variant("gpt2", torch.float64)
    cache, direction = cached(model), torch.randn(3, 14, dtype=torch.float64)
    found = direct_logit_attribution(model, cache, direction, by="head", pos=None)
    assert found.dims == ("component", "prompt", "pos")
    whole = (cache["resid_post", -1] * direction[:, None]).sum(-1)
    close(found.sum("component"), whole)
    close(found.total, whole)
    one = direct_logit_attribution(model, cache, direction[0], by="head", pos=None)
    close(one[:, 0], torch.from_numpy(found[:, 0].to_numpy()))


def test_labels_say_what_each_part_is() -> None:
    model = variant("sinusoidal")
    found = direct_logit_attribution(model, cached(model), 4, by="head")
    assert list(found.component.values) == [
        "embed", "pos_embed", "L0H0", "L0H1", "L0H2", "L0 attn bias", "L0 mlp", "L1H0", "L1H1", "L1H2", "L1 attn bias",
        "L1 mlp", "b_U",
    ]  # fmt: skip
    assert list(found.kind.values[[0, 2, 5, 6, 12]]) == ["embed", "head", "bias", "mlp", "bias"]
    assert list(found.layer.values[[0, 2, 5, 6, 12]]) == [-1, 0, 0, 0, 2]
    assert found.attrs["of"] == "logit"
    assert found.attrs["by"] == "head"
    assert found.attrs["model"] == model.fingerprint()


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(side: str) -> None:
    model = variant("llama", torch.float64)
    tokens, alone = some_tokens(1, 5), []
    pad = torch.zeros(1, 2, dtype=torch.long)
    padded = torch.cat((pad, tokens) if side == "left" else (tokens, pad), 1)
    mask = torch.cat((pad, tokens * 0 + 1) if side == "left" else (tokens * 0 + 1, pad), 1)
    for given, known in ((tokens, None), (padded, mask)):
        _, cache = model.run_with_cache(given, attention_mask=known)
        alone.append(direct_logit_attribution(model, cache, 4, 2, by="head"))
    np.testing.assert_allclose(alone[0], alone[1], atol=1e-10)


def test_a_cache_of_one_prompt_without_its_axis_and_half_precision() -> None:
    model = variant("gpt2", torch.bfloat16)
    _, cache = model.run_with_cache(some_tokens(1))
    found = direct_logit_attribution(model, cache, 4, 2, by="head")
    assert found.dtype == np.float32
    assert found.attrs["remainder"] < 0.1
    alone = direct_logit_attribution(model, cache.remove_batch_dim(), 4, 2, by="head")
    np.testing.assert_array_equal(alone, found)


def test_what_cannot_be_attributed_is_refused() -> None:
    model = variant("gpt2")
    cache = cached(model)
    unchecked: Any = unwrap(direct_logit_attribution)  # without the type checks that are made of annotations in tests
    with pytest.raises(
        ValueError, match="by='heads'; allowed: 'component', 'layer', 'head', 'neuron', 'source_position'"
    ):
        unchecked(model, cache, 4, by="heads")
    with pytest.raises(ValueError, match="answers are tokens 13 to 13; the model knows 0 to 12"):
        direct_logit_attribution(model, cache, 13)
    with pytest.raises(ValueError, match="answers: 2 were given for 3 prompts; give one, or as many"):
        direct_logit_attribution(model, cache, [4, 5])
    with pytest.raises(IndexError, match="out of range: there are 7 positions"):
        direct_logit_attribution(model, cache, 4, pos=7)
    with pytest.raises(ValueError, match=r"a direction has shape \[d_model\] or \[prompt d_model\], d_model=14"):
        direct_logit_attribution(model, cache, torch.zeros(13))
    with pytest.raises(ValueError, match="attn_only, it has no neurons"):
        direct_logit_attribution(variant("attn_only"), cached(variant("attn_only")), 4, by="neuron")
    _, few = model.run_with_cache(some_tokens(), names_filter="*hook_resid_post")
    with pytest.raises(KeyError, match=r"ln_final.hook_scale' is not in this cache"):
        direct_logit_attribution(model, few, 4, by="head")
    _, cut = model.run_with_cache(some_tokens(), pos_slice=-1)
    with pytest.raises(ValueError, match="this cache holds the positions pos_slice=-1 alone; make one of all"):
        direct_logit_attribution(model, cut, 4)
