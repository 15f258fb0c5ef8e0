"""What can be watched while a model trains: heads that look back, and losses, on random tokens that repeat."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from interp.hooks import HookPoint
from interp.model import HookedGPT

Scores = Float[Tensor, "layer head"]


def head_scores(model: HookedGPT, tokens: Int[Tensor, "batch pos"]) -> dict[str, Scores]:
    """How much each head attends to the previous token, and, where a token has occurred before, to what followed it.

    The second is the induction score (Olsson et al., 2022), summed over every earlier occurrence, which on random
    tokens repeated with random periods no head reaches by position alone.
    """
    tokens = tokens.to(model.device)
    match = (tokens[:, :, None] == tokens[:, None, :-1]).tril(-1)  # [batch query_pos key_pos - 1]
    follows = F.pad(match, (1, 0)).float()
    repeats = match.any(-1).float()
    scores = {name: torch.zeros(model.cfg.n_layers, model.cfg.n_heads) for name in ("previous", "induction")}

    def score(pattern: Tensor, hook: HookPoint) -> None:
        layer, exact = hook.layer(), pattern.float()
        found = torch.einsum("bhqk,bqk->bhq", exact, follows) * repeats[:, None]
        scores["induction"][layer] = (found.sum((0, 2)) / repeats.sum()).cpu()
        scores["previous"][layer] = exact.diagonal(-1, 2, 3).mean((0, 2)).cpu()

    with torch.no_grad(), model.hooks([("blocks.*.attn.hook_pattern", score)]):
        model(tokens, return_type=None)
    return scores


def repeat_losses(model: HookedGPT, tokens: Int[Tensor, "batch pos"]) -> dict[str, float]:
    """The mean loss on tokens that occur for the first time, and on those that have occurred before."""
    tokens = tokens.to(model.device)
    is_repeat = (tokens[:, :, None] == tokens[:, None, :]).tril(-1).any(-1)[:, 1:]
    with torch.no_grad():
        loss = model(tokens, "loss", loss_per_token=True).float()
    return {"first": loss[~is_repeat].mean().item(), "again": loss[is_repeat].mean().item()}


def fourier_power(model: HookedGPT, p: int) -> Float[Tensor, " frequency"]:
    """The share of the embedding's power at each frequency 1, 2, … of the first `p` tokens (Nanda et al., 2023)."""
    spectrum = torch.fft.rfft(model.W_E[:p].detach().double(), dim=0)[1:]
    power = spectrum.abs().square().sum(1)
    return (power / power.sum()).float()


def positional_or_induction(
    model: HookedGPT, trained: Int[Tensor, "batch pos"], others: Int[Tensor, "batch pos"]
) -> dict[str, list[str]]:
    """Which heads find the earlier occurrence on repeats as trained on: "induction" if they still do when the periods
    are others, "positional" if they merely look a fixed distance back."""
    here, there = head_scores(model, trained)["induction"], head_scores(model, others)["induction"]
    found: dict[str, list[str]] = {"induction": [], "positional": []}
    for layer, head in (here > 0.4).nonzero().tolist():
        kind = "induction" if there[layer, head] > 0.5 * here[layer, head] else "positional"
        found[kind].append(f"L{layer}H{head}")
    return found
