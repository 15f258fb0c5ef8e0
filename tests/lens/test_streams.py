import numpy as np
import pytest
import torch

from interp.lens import stream_statistics
from tests.lens.test_attribution import padding
from tests.variants import EACH, some_tokens, variant


@pytest.mark.parametrize("name", EACH)
def test_each_number_is_its_definition(name: str) -> None:
    model = variant(name, torch.float64)
    _, cache = model.run_with_cache(some_tokens(), attention_mask=padding())
    found, cfg = stream_statistics(model, cache), model.cfg
    final = cache["resid_post", -1].detach().numpy()
    named = [("L1 stream", ("resid_pre", 1), None), ("final stream", ("resid_post", 1), None)]
    named += [("L0 attn", ("attn_out", 0), ("resid_pre", 0))]
    if not cfg.attn_only:
        named += [("L1 mlp", ("mlp_out", 1), ("resid_pre" if cfg.parallel_attn_mlp else "resid_mid", 1))]
    for label, key, before in named:
        x, one = cache[key].detach().numpy(), found.sel(component=label)
        np.testing.assert_allclose(one.norm, np.sqrt((x**2).sum(-1)))
        np.testing.assert_allclose(one.variance, ((x - x.mean(-1, keepdims=True)) ** 2).mean(-1))
        np.testing.assert_allclose(one.cosine, (x * final).sum(-1) / np.sqrt((x**2).sum(-1) * (final**2).sum(-1)))
        if before is None:
            assert one.cosine_before.isnull().all()
        else:
            y = cache[before].detach().numpy()
            wanted = (x * y).sum(-1) / np.sqrt((x**2).sum(-1) * (y**2).sum(-1))
            np.testing.assert_allclose(one.cosine_before, wanted)


@pytest.mark.parametrize("name", EACH)
def test_the_final_scale_of_the_final_stream_is_that_of_the_final_norm(name: str) -> None:
    model = variant(name, torch.float64)
    _, cache = model.run_with_cache(some_tokens())
    found = stream_statistics(model, cache).final_scale
    known = cache["ln_final.hook_scale"][..., 0] if "ln_final.hook_scale" in cache else torch.ones(3, 7)
    np.testing.assert_allclose(found.sel(component="final stream"), known.detach())
    assert (found > 0).all()


def test_components_are_named_in_order_of_computation() -> None:
    model = variant("sinusoidal")
    _, cache = model.run_with_cache(some_tokens())
    found = stream_statistics(model, cache, pos=-1)
    assert list(found.component.values) == [
        "embed", "pos_embed", "L0 stream", "L0 attn", "L0 mlp", "L1 stream", "L1 attn", "L1 mlp", "final stream",
    ]  # fmt: skip
    assert list(found.layer.values) == [-1, -1, 0, 0, 0, 1, 1, 1, 2]
    assert dict(found.sizes) == {"component": 9, "prompt": 3}
