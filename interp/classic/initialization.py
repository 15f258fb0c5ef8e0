"""How classic models draw single weights, which are multiplied as `x @ W`."""

from math import sqrt
from typing import Any

from torch import Tensor, nn


def calc_fan_in_and_fan_out(tensor: Tensor) -> tuple[int, int]:
    """How many numbers a weight reads and makes: [in out], [head in out], or a bias."""
    if not 1 <= tensor.ndim <= 3:
        raise ValueError(f"Fan in and fan out can not be computed for shape {list(tensor.shape)} tensors.")
    *heads, n_in, n_out = (1, *tensor.shape) if tensor.ndim == 1 else tensor.shape
    return n_in, n_out * (heads[0] if heads else 1)


def init_xavier_uniform_(param: Tensor, gain: float = 1.0) -> Tensor:
    """Filled from U(±gain sqrt(6 / (in + out)))."""
    bound = gain * sqrt(6 / sum(calc_fan_in_and_fan_out(param)))
    return nn.init.uniform_(param, -bound, bound)


def init_xavier_normal_(param: Tensor, gain: float = 1.0) -> Tensor:
    """Filled from N(0, 2 gain² / (in + out))."""
    return nn.init.normal_(param, 0.0, gain * sqrt(2 / sum(calc_fan_in_and_fan_out(param))))


def init_kaiming_uniform_(
    param: Tensor, a: float = 0, nonlinearity: Any = "relu", gain: float = 1.0, mode: str = "fan_in"
) -> Tensor:
    """Filled from U(±g sqrt(3 / fan)), g the gain of what stands before."""
    bound = _kaiming(param, a, nonlinearity, gain, mode) * sqrt(3)
    return nn.init.uniform_(param, -bound, bound)


def init_kaiming_normal_(
    param: Tensor, a: float = 0, nonlinearity: Any = "relu", gain: float = 1.0, mode: str = "fan_in"
) -> Tensor:
    """Filled from N(0, g² / fan), g the gain of what stands before."""
    return nn.init.normal_(param, 0.0, _kaiming(param, a, nonlinearity, gain, mode))


def _kaiming(param: Tensor, a: float, nonlinearity: Any, gain: float, mode: str) -> float:
    fan_in, fan_out = calc_fan_in_and_fan_out(param)
    return gain * nn.init.calculate_gain(nonlinearity, a) / sqrt(fan_in if mode == "fan_in" else fan_out)
