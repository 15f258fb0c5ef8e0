"""Where a pass first went wrong."""

import torch
from torch import Tensor

from interp.hooks import HookPoint
from interp.model import HookedGPT
from interp.training.data import IGNORED, Batch


def where_it_went_wrong(model: HookedGPT, batch: Batch) -> str | None:
    """The first weight, hook point or gradient, in the order of computation, that is not finite on a batch."""
    for name, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            return f"the weight {name}"
    found: list[str] = []

    def look(x: Tensor, hook: HookPoint) -> None:
        if not found and not x.isfinite().all():
            where = (~x.isfinite()).nonzero()[0].tolist()
            found.append(f"{hook.name}, at {dict(zip(hook.axes.split(), where, strict=True))}")

    # Scores are -inf where they are masked; patterns, which come after them, are not.
    names = [name for name, point in model.hook_dict.items() if not point.on_demand or name.endswith("hook_pattern")]
    with model.hooks([(names, look)]), torch.enable_grad():
        logits = model(batch.tokens)
        if found:
            return found[0]
        exact = logits.float().flatten(0, 1)
        loss = torch.nn.functional.cross_entropy(exact, batch.targets.flatten(), ignore_index=IGNORED)
        if not loss.isfinite():
            return "the loss, though every logit is finite"
        loss.backward()
    for name, parameter in reversed(list(model.named_parameters())):
        if parameter.grad is not None and not parameter.grad.isfinite().all():
            return f"the gradient of {name}"
    return None
