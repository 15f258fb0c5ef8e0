"""Against `transformers`: a random GPT-2 and a random Llama with grouped queries."""

from typing import Any

import pytest
import torch
from torch import Tensor

from interp import HookedGPT
from tests.huggingface import (
    from_gpt2,
    from_llama,
    hf_gpt2,
    hf_llama,
    paired_with_gpt2,
    paired_with_llama,
    random_weights,
)

TOKENS = torch.randint(0, 31, (3, 13), generator=torch.Generator().manual_seed(4))
MASK = torch.ones(3, 13, dtype=torch.long)
MASK[0, :5] = 0
MASK[2, :2] = 0
FAMILIES = {"gpt2": (hf_gpt2, from_gpt2, paired_with_gpt2), "llama": (hf_llama, from_llama, paired_with_llama)}


def pair(family: str, dtype: torch.dtype = torch.float32, attention: str = "eager") -> tuple[Any, HookedGPT]:
    make, translate, _ = FAMILIES[family]
    theirs = random_weights(make(attn_implementation=attention)).to(dtype)
    return theirs, translate(theirs)  # type: ignore[operator]


def close(ours: Tensor, theirs: Tensor, tolerance: float = 1e-5) -> None:
    assert ours.shape == theirs.shape
    assert (ours - theirs).norm() <= tolerance * theirs.norm()


@pytest.mark.parametrize("is_padded", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_streams_and_patterns_equal(family: str, is_padded: bool) -> None:
    theirs, ours = pair(family)
    mask = MASK if is_padded else torch.ones_like(MASK)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    reference = theirs(
        TOKENS, attention_mask=mask, position_ids=positions, output_hidden_states=True, output_attentions=True
    )
    logits, cache = ours.run_with_cache(TOKENS, attention_mask=mask)
    real = mask.bool()
    close(logits[real], reference.logits[real])
    close(ours(TOKENS, attention_mask=mask)[real], reference.logits[real])
    for layer in range(3):
        close(cache["resid_pre", layer][real], reference.hidden_states[layer][real])
        theirs_rows = reference.attentions[layer].transpose(1, 2)[real]
        close(cache["pattern", layer].transpose(1, 2)[real], theirs_rows)
    final = ours.ln_final(cache["resid_post", -1])
    close(final[real], reference.hidden_states[-1][real])


@pytest.mark.parametrize("is_observed", [False, True], ids=["unobserved", "observed"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_and_every_parameters_gradient_equal(family: str, is_observed: bool) -> None:
    theirs, ours = pair(family)
    reference = theirs(TOKENS, labels=TOKENS).loss
    reference.backward()
    loss = ours.run_with_cache(TOKENS, "loss")[0] if is_observed else ours(TOKENS, "loss")
    close(loss, reference)
    loss.backward()
    pairs = FAMILIES[family][2](ours, theirs)
    gradients = {p: p.grad for p in theirs.parameters()}
    whole = sum(g.norm() ** 2 for g in gradients.values()) ** 0.5
    with torch.no_grad():  # carry the gradients through the same pairing as the weights
        for p in (*theirs.parameters(), *ours.parameters()):
            p.copy_(p.grad)
    assert len(pairs) >= len(gradients)
    for mine, other in pairs:
        assert (mine - other).norm() <= 1e-4 * other.norm() + 1e-6 * whole


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", FAMILIES)
def test_half_precision_is_as_close_to_float32_as_theirs(family: str, dtype: torch.dtype) -> None:
    exact = pair(family)[0](TOKENS).logits
    theirs, ours = pair(family, dtype, attention="sdpa")
    their_error = (theirs(TOKENS).logits.float() - exact).norm()
    for logits in (ours(TOKENS), ours.run_with_cache(TOKENS)[0]):
        assert logits.dtype == dtype
        assert (logits.float() - exact).norm() <= 2 * their_error


@pytest.mark.parametrize("family", FAMILIES)
def test_the_kv_cache_steps_equal_theirs(family: str) -> None:
    from interp import KVCache

    theirs, ours = pair(family)
    past = KVCache()
    with torch.no_grad():
        steps = [ours(TOKENS[:, :6], past_kv_cache=past)]
        steps += [ours(TOKENS[:, i : i + 1], past_kv_cache=past) for i in range(6, 13)]
    close(torch.cat(steps, 1), theirs(TOKENS).logits)
