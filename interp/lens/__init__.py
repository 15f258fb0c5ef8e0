"""Reading the stream: what each part says about the output, and what the model would say layer by layer."""

from interp.lens.attribution import direct_logit_attribution
from interp.lens.directions import mean_difference, random_directions
from interp.lens.layers import logit_lens
from interp.lens.patchscope import patchscope
from interp.lens.probes import Probe, linear_probe
from interp.lens.streams import stream_statistics
from interp.lens.tuned import TunedLens, tuned_lens

__all__ = [
    "Probe",
    "TunedLens",
    "direct_logit_attribution",
    "linear_probe",
    "logit_lens",
    "mean_difference",
    "patchscope",
    "random_directions",
    "stream_statistics",
    "tuned_lens",
]
