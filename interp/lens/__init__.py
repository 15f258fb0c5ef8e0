"""Reading the stream: what each part says about the output, and what the model would say layer by layer."""

from interp.lens.attribution import direct_logit_attribution
from interp.lens.layers import logit_lens

__all__ = ["direct_logit_attribution", "logit_lens"]
