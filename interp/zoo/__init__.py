"""Models worth looking at: set by hand with a known mechanism (`planted`), or trained and brought along."""

from interp.zoo import planted
from interp.zoo.examples import Example, examples
from interp.zoo.models import bundled, card, measures, standard_library
from interp.zoo.twins import shuffled

__all__ = ["Example", "bundled", "card", "examples", "measures", "planted", "shuffled", "standard_library"]
