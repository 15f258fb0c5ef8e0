"""Every family that we load, against the logits of `transformers`' own model."""

from pathlib import Path

import numpy as np
import pytest
import torch

from interp import HookedGPT
from interp.lens import direct_logit_attribution, logit_lens
from interp.lens.attribution import By
from interp.weights import fold_norms
from tests.families import FAMILIES, saved_model

pytestmark = pytest.mark.slow
WAYS: list[By] = ["component", "layer", "head", "neuron", "source_position"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", FAMILIES)
def test_the_parts_sum_to_their_logits(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    theirs = saved_model(name, tmp_path).to(dtype)
    model = HookedGPT.from_pretrained(tmp_path, dtype=dtype)
    tokens = torch.randint(0, 31, (3, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = theirs(tokens).logits[:, -1]
        names = [name for name in model.hook_dict if "result" not in name and "input" not in name and "_in" not in name]
        _, cache = model.run_with_cache(tokens, names_filter=names)
    close, small = (2e-4, 1e-4) if dtype == torch.float32 else (1e-5, 1e-10)  # their rotations are in single precision
    right, wrong = [4, 5, 30], [7, 0, 2]
    rows = torch.arange(3)
    for minus, own in ((None, logits[rows, right]), (wrong, logits[rows, right] - logits[rows, wrong])):
        for by in WAYS:
            found = direct_logit_attribution(model, cache, right, minus, by=by)
            np.testing.assert_allclose(found.capped, own, rtol=close, atol=close)
            parts = [axis for axis in found.dims if axis != "prompt"]
            assert (abs(found.remainder) <= small * abs(found).sum(parts)).all()
            np.testing.assert_allclose(found.sum(parts) + found.remainder, found.total, rtol=1e-5, atol=1e-5)
    last = logit_lens(model, cache, k=1, pos=-1, progress=False).isel(layer=-1)
    np.testing.assert_allclose(last.probability[:, 0], logits.softmax(-1).amax(-1), rtol=10 * close)
    assert last.token_id.values[:, 0].tolist() == logits.argmax(-1).tolist()
    if model.cfg.norm_position == "pre" and not (model.cfg.gated_mlp and model.cfg.bias_norm):  # a gate has no bias
        with torch.no_grad():
            np.testing.assert_allclose(fold_norms(model)(tokens)[:, -1], logits, rtol=0, atol=close)
