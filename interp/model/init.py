"""How the weights of a new model are drawn."""

from math import sqrt

import torch
from torch import Tensor, nn

from interp.config import GPTConfig
from interp.model.embed import Embed, LearnedPositions, Unembed
from interp.model.linear import Linear
from interp.model.norms import GainFromOne, HeadGainFromOne, HeadNorm, LayerNorm


def init_weights(model: nn.Module, cfg: GPTConfig) -> None:
    """Fill every parameter, from `cfg.seed` if there is one. Biases are 0, gains 1; r is `cfg.initializer_range`.

    - gpt2: N(0, r²); what writes to the stream is scaled down by sqrt(number of writers), so that blocks begin nearly
      silent (Radford et al., 2019).
    - xavier: U(±r sqrt(6 / (in + out))) (Glorot & Bengio, 2010); embeddings N(0, r² / d_model).
    - kaiming: U(±r sqrt(3 / in)) (He et al., 2015); embeddings N(0, r² / d_model).
    - mup: N(0, r² / in), W_U N(0, r² / in²), embeddings N(0, r²) (Yang et al., 2022); the learning rates that belong
      to it are the optimiser's.
    """
    parameters = list(model.parameters())
    if not parameters or parameters[0].is_meta:
        return
    generator = None if cfg.seed is None else torch.Generator(parameters[0].device).manual_seed(cfg.seed)
    n_writers = cfg.n_layers * (1 if cfg.attn_only else 2)
    silenced = 1 / sqrt(n_writers) if cfg.init_mode == "gpt2" else 1.0
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, GainFromOne | HeadGainFromOne):
                _fill(module.excess, 0.0)
            elif isinstance(module, LayerNorm):
                _fill(module.w, 1.0)
                _fill(module.b, 0.0)
            elif isinstance(module, HeadNorm):
                _fill(module.w, 1.0)
            elif isinstance(module, Embed | LearnedPositions):
                table = module.W_E if isinstance(module, Embed) else module.W_pos
                std = 1.0 if cfg.init_mode in ("gpt2", "mup") else 1 / sqrt(cfg.d_model)
                table.normal_(0, std * cfg.initializer_range, generator=generator)
            elif isinstance(module, Linear | Unembed):
                _fill(module.bias, 0.0)
                if module.weight is not None:
                    is_qkv = name.endswith(".attn.qkv")
                    n_keys = cfg.n_key_value_heads * cfg.d_head
                    parts = [cfg.n_heads * cfg.d_head, n_keys, n_keys] if is_qkv else [len(module.weight)]
                    for part in module.weight.split(parts):  # q, k and v are matrices of their own
                        _draw(part, cfg, generator, is_unembed=isinstance(module, Unembed))
                    if name.endswith((".attn.out", ".mlp.down")):
                        module.weight.mul_(silenced)


def _fill(parameter: Tensor | None, value: float) -> None:
    if parameter is not None:
        parameter.fill_(value)


def _draw(weight: Tensor, cfg: GPTConfig, generator: torch.Generator | None, is_unembed: bool) -> None:
    n_out, n_in = weight.shape
    gain = cfg.initializer_range
    if cfg.init_mode == "gpt2":
        weight.normal_(0, gain, generator=generator)
    elif cfg.init_mode == "xavier":
        bound = gain * sqrt(6 / (n_in + n_out))
        weight.uniform_(-bound, bound, generator=generator)
    elif cfg.init_mode == "kaiming":
        bound = gain * sqrt(3 / n_in)
        weight.uniform_(-bound, bound, generator=generator)
    else:
        weight.normal_(0, gain / n_in if is_unembed else gain / sqrt(n_in), generator=generator)
