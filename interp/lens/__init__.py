"""Reading the stream: what each part says about the output, and what the model would say layer by layer."""

from interp.lens.attribution import direct_logit_attribution

__all__ = ["direct_logit_attribution"]
