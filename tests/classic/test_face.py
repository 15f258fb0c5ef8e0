"""What the package's page names is there."""

import re

import interp
from interp import classic, interventions, lens, metrics, patching, weights


def test_what_is_recommended_natively_exists() -> None:
    places = {"weights": weights, "lens": lens, "patching": patching, "metrics": metrics}
    found = re.findall(r"`(weights|lens|patching)\.(\w+)\(", classic.__doc__ or "")
    assert len(found) >= 4
    for place, name in found:
        assert hasattr(places[place], name) or hasattr(classic.patching, name), f"{place}.{name}"
    for name in ("HookedGPT", "GPTConfig"):
        assert hasattr(interp, name)
    assert hasattr(interventions, "Patch")


def test_what_is_said_to_be_left_out_is() -> None:
    said = (classic.__doc__ or "").partition("Left out on purpose")[2]
    names = set(re.findall(r"`(\w+)`", said.replace("`load_and_process_state_dict`", "").replace("`weights`", "")))
    names -= {"freq_penalty", "generate", "repetition_penalty", "n_devices", "utils", "train", "tokenizer_prepends_bos"}
    assert len(names) > 8
    for name in names:
        for place in (classic, classic.HookedTransformer, classic.utils, classic.evals):
            assert not hasattr(place, name), f"{place}.{name}"
