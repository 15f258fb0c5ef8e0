"""`python -m interp.zoo RUN NAME`: make a bundled model of a finished run: weights in 16 bits, card, measures."""

import json
from datetime import date
from pathlib import Path
from typing import Any

import torch
import tyro

from interp.corpus import standard_library
from interp.loading import BUNDLED
from interp.model import HookedGPT
from interp.training import FullBatch, Run, TokenFile, evaluate, modular_addition, repeated_tokens
from interp.training.measures import fourier_power, head_scores, repeat_losses


def bundle(run: Path, name: str, about: str) -> None:
    """Store the last checkpoint of a run as a bundled model; `about` is what its card says first.

    The card's figures are measured on the model as it is stored.
    """
    source, folder = Run(run), BUNDLED / name
    for old in folder.glob("*"):
        if old.name != "examples.json":  # written by hand
            old.unlink()
    source.model().save_pretrained(folder, stored_as=torch.float16)
    model = HookedGPT.from_pretrained(folder)
    figures = _on_sums(model) if model.tokenizer is None else _on_text(model)
    rows = [row for row in source.log if "loss" not in row]
    (folder / "measures.json").write_text(json.dumps(_thinned(rows)))
    (folder / "README.md").write_text(_card(name, about, source, model, figures))


def _on_text(model: HookedGPT) -> dict[str, Any]:
    assert model.tokenizer is not None
    end = model.tokenizer.eos_token_id
    ids = [token for text in standard_library("held_out") for token in [*model.tokenizer.encode(text), end]]
    found = evaluate(model, TokenFile(torch.tensor(ids).numpy(), model.cfg.n_ctx, bos=end))
    draw = repeated_tokens(model.cfg.d_vocab, model.cfg.n_ctx, (20, 60), bos=end)
    tokens = draw(torch.Generator().manual_seed(2), 32).tokens
    losses, scores = repeat_losses(model, tokens), head_scores(model, tokens)
    return {
        "loss on held-out files, nats a token": found["loss"],
        "bits a byte of them": found["bits_per_byte"],
        "loss on random tokens, first time": losses["first"],
        "loss on random tokens, when they come again": losses["again"],
        "best induction head": _best(scores["induction"]),
        "best previous-token head": _best(scores["previous"]),
    }


def _on_sums(model: HookedGPT) -> dict[str, Any]:
    p = model.cfg.d_vocab_out
    train, held_out = (evaluate(model, FullBatch(rows), n_rows=4096) for rows in modular_addition(p, 0.3))
    power = fourier_power(model, p)
    strong = (power > 0.02).nonzero().flatten()
    return {
        "accuracy on held-out pairs": held_out["accuracy"],
        "loss on held-out pairs": held_out["loss"],
        "loss on the pairs trained on": train["loss"],
        "frequencies with more than 2 % of the embedding's power": ", ".join(str(int(k) + 1) for k in strong),
        "their share of the power": power[strong].sum().item(),
    }


def _best(scores: torch.Tensor) -> str:
    layer, head = divmod(int(scores.argmax()), scores.shape[1])
    return f"L{layer}H{head}, {scores.max():.3f}"


def _thinned(rows: list[dict[str, Any]]) -> list[Any]:
    """Four digits are enough to draw."""
    short = lambda value: float(f"{value:.4g}") if isinstance(value, float) else value
    walk = lambda value: (
        {k: walk(v) for k, v in value.items()}
        if isinstance(value, dict)
        else [walk(v) for v in value]
        if isinstance(value, list)
        else short(value)
    )
    return [walk(row) for row in rows]


def _card(name: str, about: str, run: Run, model: HookedGPT, figures: dict[str, Any]) -> str:
    cfg, config = model.cfg, run.config
    sizes = (
        f"{cfg.n_layers} layers, d_model {cfg.d_model}, {cfg.n_heads} heads, context {cfg.n_ctx}, {cfg.d_vocab} tokens"
    )
    size = (BUNDLED / name / "model.safetensors").stat().st_size / 1e6
    facts = {
        "model": f"{sizes}; {sum(p.numel() for p in model.parameters()):,} parameters, {size:.1f} MB in float16",
        "made by": f"`{config['about'].get('command', 'interp.training')}`",
        "steps": f"{run.steps[-1]:,} of {config['training']['batch_size']} rows",
        "date, torch": f"{date.today()}, {config['about']['torch']}",
    }
    shown = {key: f"{value:.4g}" if isinstance(value, float) else str(value) for key, value in figures.items()}
    table = "".join(f"| {key} | {value} |\n" for key, value in (facts | shown).items())
    return f"# {name}\n\n{about}\n\n| | |\n|---|---|\n{table}"


if __name__ == "__main__":
    tyro.cli(bundle)
