"""The classic short names of checkpoints, and what they are called on the hub."""

_PLAIN = {
    "gpt2-small": "gpt2",
    "gpt2-medium": "gpt2-medium",
    "gpt2-large": "gpt2-large",
    "gpt2-xl": "gpt2-xl",
    "distillgpt2": "distilgpt2",
    "distilgpt2": "distilgpt2",
    "gpt-neo-125M": "EleutherAI/gpt-neo-125M",
    "gpt-j-6B": "EleutherAI/gpt-j-6B",
    "gpt-neox-20b": "EleutherAI/gpt-neox-20b",
}
_PYTHIA = ("14m", "31m", "70m", "160m", "410m", "1b", "1.4b", "2.8b", "6.9b", "12b")
_NAMES = _PLAIN | {
    f"pythia-{size}{kind}": f"EleutherAI/pythia-{size}{kind}" for size in _PYTHIA for kind in ("", "-deduped")
}


def official_name(name: str) -> str:
    """The name on the hub that a classic name means; any other name, or folder, as it is."""
    return _NAMES.get(name, name)
