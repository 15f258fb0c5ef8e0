"""Calls with arguments of the wrong type, as a user makes them: in a process where no test checks the annotations.

Prints a JSON object: for each call, the error's type and message.
"""

import json
from collections.abc import Callable
from typing import Any

import torch

from interp import GPTConfig, HookedGPT
from interp.config import RopeScaling

SIZES: dict[str, Any] = {"n_layers": 2, "d_model": 14, "n_heads": 2, "n_ctx": 11, "d_vocab": 13}


def zero(x: torch.Tensor, hook: object) -> torch.Tensor:
    return x * 0


def main() -> None:
    model: Any = HookedGPT(GPTConfig(**SIZES))
    tokens = torch.zeros(2, 3, dtype=torch.long)
    calls: dict[str, Callable[[], Any]] = {
        "float tokens": lambda: model(torch.randn(2, 3)),
        "bool tokens": lambda: model(tokens.bool()),
        "text": lambda: model("a text"),
        "a list of ids": lambda: model([1, 2]),
        "bos of tokens": lambda: model(tokens, prepend_bos=True),
        "stream without start_at_layer": lambda: model(torch.randn(2, 3, 14)),
        "tokens at start_at_layer": lambda: model(tokens, start_at_layer=1),
        "hook without function": lambda: model.run_with_hooks(tokens, fwd_hooks=["hook_embed"]),
        "hook name of another type": lambda: model.hook_names([3]),
        "hook direction": lambda: model.add_hook("hook_embed", zero, dir="both"),
        "return type": lambda: model(tokens, return_type="logit"),
        "config types": lambda: GPTConfig(**SIZES | {"n_layers": 2.5, "act_fn": "tanh", "gated_mlp": 1, "d_head": "5"}),
        "config layers": lambda: GPTConfig(**SIZES, window_size=3, attn_types=("local", "far")),
        "attention types": lambda: GPTConfig(**SIZES, window_size=3, attn_types=["local", "local"]),
        "rope kind": lambda: RopeScaling(kind="ntk", factor=2.0),  # type: ignore[arg-type]
        "config dtype": lambda: GPTConfig(**SIZES, dtype=torch.int8),
    }
    errors = {}
    for name, call in calls.items():
        try:
            call()
        except Exception as error:
            errors[name] = [type(error).__name__, str(error)]
    print(json.dumps(errors))


if __name__ == "__main__":
    main()
