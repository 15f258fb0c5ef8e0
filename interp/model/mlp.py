"""The feed-forward layer: keys that patterns in the stream fire, and the values that they write."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from interp.config import GPTConfig
from interp.hooks import HookPoint
from interp.model.linear import Linear
from interp.model.norms import LayerNorm

Stream = Float[Tensor, "batch pos d_model"]


def gelu_tanh(x: Tensor) -> Tensor:
    """GELU by its tanh formula (Hendrycks & Gimpel, 2016), as GPT-2 has it."""
    return F.gelu(x, approximate="tanh")


def relu2(x: Tensor) -> Tensor:
    """The square of ReLU (So et al., 2021)."""
    return F.relu(x).square()


def solu(x: Tensor) -> Tensor:
    """x softmax(x): neurons of a position make each other smaller (Elhage et al., 2022)."""
    return x * x.softmax(-1)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_new": gelu_tanh,
    "gelu_pytorch_tanh": gelu_tanh,
    "relu": F.relu,
    "relu2": relu2,
    "silu": F.silu,
    "solu": solu,
    "solu_ln": solu,
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

    def of_neuron(self, x: Float[Tensor, "... d_model"], neuron: int) -> Float[Tensor, "..."]:
        """What one neuron writes with, of what the MLP reads: its `hook_post`, past the hook points."""
        return self.act(self.linear(x, neuron))

    def linear(self, x: Float[Tensor, "... d_model"], neuron: int) -> Float[Tensor, "..."]:
        product = x @ self.W_in[:, neuron]
        return product if self.b_in is None else product + self.b_in[neuron]

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

    def of_neuron(self, x: Float[Tensor, "... d_model"], neuron: int) -> Float[Tensor, "..."]:
        return self.act(x @ self.W_gate[:, neuron]) * self.linear(x, neuron)

    @property
    def W_gate(self) -> Float[Tensor, "d_model d_mlp"]:
        return self.gate.weight.T


class SoLU(MLP):
    """solu(x W_in + b_in) W_out + b_out: what a neuron fires depends on the others (Elhage et al., 2022)."""

    def of_neuron(self, x: Float[Tensor, "... d_model"], neuron: int) -> Float[Tensor, "..."]:
        rows = x.flatten(0, -2).split(4096)  # all neurons of so many at once
        return torch.cat([self.together(self.up(some))[..., neuron] for some in rows]).view(x.shape[:-1])

    def together(self, pre: Float[Tensor, "... d_mlp"]) -> Float[Tensor, "... d_mlp"]:
        """`hook_post` of `hook_pre`, of all neurons."""
        return self.act(pre)


class NormedSoLU(SoLU):
    """LayerNorm(solu(x W_in + b_in)) W_out + b_out; its gain and bias are there where those of "LN" norms are."""

    def __init__(self, cfg: GPTConfig) -> None:
        super().__init__(cfg)
        self.hook_mid = HookPoint("batch pos d_mlp", "act(pre)")
        self.ln = LayerNorm(cfg, "d_mlp")
        self.hook_post.formula = "ln(mid)"

    def forward(self, x: Stream) -> Stream:
        mid = self.hook_mid(self.act(self.hook_pre(self.up(x))))
        return self.dropout(self.down(self.hook_post(self.ln(mid))))

    def together(self, pre: Float[Tensor, "... d_mlp"]) -> Float[Tensor, "... d_mlp"]:
        return self.ln.unheard(self.act(pre))


def mlp(cfg: GPTConfig) -> MLP:
    """The feed-forward layer that the configuration asks for."""
    if cfg.gated_mlp:
        return GatedMLP(cfg)
    return {"solu": SoLU, "solu_ln": NormedSoLU}.get(cfg.act_fn, MLP)(cfg)
