"""What must hold of a model on any input: each identity checked, with its error and how much is rounding."""

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from interp.hooks import HookPoint
from interp.model import HookedGPT, KVCache


@dataclass(frozen=True)
class Check:
    """An identity: what was compared, the largest error found, and how much is allowed."""

    name: str
    said: str
    error: float
    allowed: float

    @property
    def holds(self) -> bool:
        return self.error <= self.allowed


@torch.no_grad()
def identities(model: HookedGPT, tokens: Int[Tensor, "1 pos"]) -> list[Check]:
    """The identities that this model claims, on these tokens: those of causal models are left out for others.

    Errors are relative to the largest logit; what is allowed is the rounding of the model's precision.
    """
    logits = model(tokens)
    size = max(float(logits.float().abs().max()), 1e-30)
    rounding = {8: 1e-12, 4: 1e-5}.get(model.dtype.itemsize, 0.05)

    def compared(name: str, said: str, found: Tensor, expected: Tensor) -> Check:
        return Check(name, said, float((found - expected).float().abs().max()) / size, rounding)

    unchanged = [(name, _unchanged) for name in _usual(model)]
    cached, cache = model.run_with_cache(tokens)
    rows = torch.stack([cache["pattern", layer].float().sum(-1) for layer in range(model.cfg.n_layers)])
    checks = [
        Check(
            "Rows sum to 1", "the attention of every position, in every head", float((rows - 1).abs().max()), rounding
        ),
        compared(
            "Hooks that change nothing",
            "logits with a hook on every point",
            model.run_with_hooks(tokens, fwd_hooks=unchanged),
            logits,
        ),
        compared("A cache changes nothing", "logits with all activations kept", cached, logits),
    ]
    n_pos = tokens.shape[1]
    if model.cfg.attention_dir == "causal" and n_pos > 1:
        half = n_pos // 2
        other = tokens.clone()
        other[:, half:] = (tokens[:, half:] + 1) % model.cfg.d_vocab
        said = f"logits up to position {half - 1} when every later token is another"
        checks.append(compared("The future moves no past", said, model(other)[:, :half], logits[:, :half]))
        past = KVCache(n_pos)
        parts = [model(tokens[:, :half], past_kv_cache=past), model(tokens[:, half:], past_kv_cache=past)]
        checks.append(compared("In pieces as in one", "logits over the KV cache", torch.cat(parts, 1), logits))
    return checks


def _unchanged(tensor: Tensor, hook: HookPoint) -> Tensor:  # noqa: ARG001
    return tensor


def _usual(model: HookedGPT) -> list[str]:
    """The points that are always computed, with scores and patterns: inputs split by head exclude some of them."""
    return [name for name, point in model.hook_dict.items() if point.is_cached_by_default]
