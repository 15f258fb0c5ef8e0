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
