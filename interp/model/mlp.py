"""The feed-forward layer: keys that patterns in the stream fire, and the values that they write."""

from collections.abc import Callable

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from interp.config import GPTConfig
from interp.hooks import HookPoint
from interp.model.linear import Linear

Stream = Float[Tensor, "batch pos d_model"]


def gelu_tanh(x: Tensor) -> Tensor:
    """GELU by its tanh formula (Hendrycks & Gimpel, 2016), as GPT-2 has it."""
    return F.gelu(x, approximate="tanh")


def relu2(x: Tensor) -> Tensor:
    """The square of ReLU (So et al., 2021)."""
    return F.relu(x).square()


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_new": gelu_tanh,
    "gelu_pytorch_tanh": gelu_tanh,
    "relu": F.relu,
    "relu2": relu2,
    "silu": F.silu,
}


class MLP(nn.Module):
    """act(x W_in + b_in) W_out + b_out."""

    def __init__(self, cfg: GPTConfig) -> None:
        super().__init__()
        self.up = Linear(cfg, cfg.d_model, cfg.d_mlp, cfg.bias_mlp)
        self.down = Linear(cfg, cfg.d_mlp, cfg.d_model, cfg.bias_mlp)
        self.act = ACTIVATIONS[cfg.act_fn]
        self.dropout = nn.Dropout(cfg.dropout) if cfg.dropout else nn.Identity()
        self.hook_pre = HookPoint("batch pos d_mlp", "x W_in + b_in")
        self.hook_post = HookPoint("batch pos d_mlp", "act(pre)")

    def forward(self, x: Stream) -> Stream:
        return self.dropout(self.down(self.hook_post(self.act(self.hook_pre(self.up(x))))))

    @property
    def W_in(self) -> Float[Tensor, "d_model d_mlp"]:
        return self.up.weight.T

    @property
    def b_in(self) -> Float[Tensor, " d_mlp"] | None:
        return self.up.bias

    @property
    def W_out(self) -> Float[Tensor, "d_mlp d_model"]:
        return self.down.weight.T

    @property
    def b_out(self) -> Float[Tensor, " d_model"] | None:
        return self.down.bias


class GatedMLP(MLP):
    """(act(x W_gate) * (x W_in + b_in)) W_out + b_out (Shazeer, 2020)."""

    def __init__(self, cfg: GPTConfig) -> None:
        super().__init__(cfg)
        self.gate = Linear(cfg, cfg.d_model, cfg.d_mlp, bias=False)
        self.hook_pre.formula = "x W_gate"
        self.hook_pre_linear = HookPoint("batch pos d_mlp", "x W_in + b_in")
        self.hook_post.formula = "act(pre) * pre_linear"

    def forward(self, x: Stream) -> Stream:
        gate = self.act(self.hook_pre(self.gate(x)))
        return self.dropout(self.down(self.hook_post(gate * self.hook_pre_linear(self.up(x)))))

    @property
    def W_gate(self) -> Float[Tensor, "d_model d_mlp"]:
        return self.gate.weight.T
