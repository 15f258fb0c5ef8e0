"""The matrix product, by the fastest kernel there is."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad

from interp.config import GPTConfig

# On a CPU, torch's own product of few rows uses one core. oneDNN's took 1/1.1 (512 rows) to 1/3 (2 rows) of its time on
# GPT-2's matrices in float32; below 2**16 weights its set-up costs more than it saves. It can be neither differentiated
# nor transformed.
_onednn = torch.ops.mkldnn._linear_pointwise.default if torch.backends.mkldnn.is_available() else None
_WORTHWHILE = 2**16
_functorch: Any = torch._C._functorch  # type: ignore[attr-defined]


def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x weightᵀ + bias."""
    if (
        not (torch.is_grad_enabled() and (weight.requires_grad or x.requires_grad or _is_trained(bias)))
        and _onednn is not None
        and weight.numel() >= _WORTHWHILE
        and x.is_cpu
        and x.dtype == weight.dtype == torch.float32
        and forward_ad._current_level < 0
        and _functorch.peek_interpreter_stack() is None
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    ):
        return _onednn(x, weight, bias, "none", [], "")
    return F.linear(x, weight, bias)


def _is_trained(bias: Tensor | None) -> bool:
    return bias is not None and bias.requires_grad


class Linear(nn.Linear):
    """`nn.Linear` left unfilled: `HookedGPT.init_weights` or a checkpoint fills it.

    Stored as `[out, in]`, as most checkpoints are.
    """

    def __init__(self, cfg: GPTConfig, n_in: int, n_out: int, bias: bool) -> None:
        super().__init__(n_in, n_out, bias, device=cfg.device, dtype=cfg.dtype)

    def reset_parameters(self) -> None:
        pass

    def forward(self, input: Tensor) -> Tensor:
        return product(input, self.weight, self.bias)
