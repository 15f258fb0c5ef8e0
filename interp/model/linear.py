"""A matrix product whose weights the model draws itself."""

from torch import nn

from interp.config import GPTConfig


class Linear(nn.Linear):
    """`nn.Linear` left unfilled: `HookedGPT.init_weights` or a checkpoint fills it.

    Stored as `[out, in]`: from two rows on the faster layout here, and the one most checkpoints have.
    """

    def __init__(self, cfg: GPTConfig, n_in: int, n_out: int, bias: bool) -> None:
        super().__init__(n_in, n_out, bias, device=cfg.device, dtype=cfg.dtype)

    def reset_parameters(self) -> None:
        pass
