"""Code that makes what is on show again."""

from dashboards.parts.state import Chosen


def opening(now: Chosen, *imports: str) -> str:
    """The lines that open the model and read the prompt; `imports` are the parts of `interp` used after them."""
    kind, _, rest = now.name.partition("/")
    made = f"HookedGPT.from_pretrained({now.name!r})"
    if kind == "planted":
        made, imports = f"zoo.planted.{rest}()", (*imports, "zoo")
    elif rest:
        made = f"HookedGPT.from_pretrained({rest!r})  # the folder of the model {now.fingerprint[:12]}"
    lines = [
        "import torch",
        "",
        f"from interp import {', '.join(['HookedGPT', *sorted(set(imports))])}",
        "",
        f"model = {made}",
        *(["model = getattr(model, 'model', model)"] if kind == "planted" else []),
        f"tokens = torch.tensor([{now.tokens[0].tolist()}])",
        f"labels = {now.labels!r}",
    ]
    return "\n".join(lines) + "\n"
