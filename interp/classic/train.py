"""A plain loop over a data set of tokens. (`interp.training` has runs that resume, evaluation, and several GPUs.)"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from tqdm.auto import tqdm


@dataclass
class HookedTransformerTrainConfig:
    """How to train."""

    num_epochs: int
    batch_size: int
    lr: float = 1e-3
    seed: int = 0
    momentum: float = 0.0  # of SGD
    max_grad_norm: float | None = None
    weight_decay: float | None = None
    optimizer_name: str = "Adam"  # or "AdamW", "SGD"
    device: torch.device | str | None = None
    warmup_steps: int = 0
    save_every: int | None = None  # steps
    save_dir: str | None = None
    wandb: bool = False
    wandb_project_name: str | None = None
    print_every: int | None = 50
    max_steps: int | None = None  # of an epoch


def train(model: Any, config: HookedTransformerTrainConfig, dataset: Any) -> Any:
    """Train on rows `{"tokens": [pos]}`; the model, which is trained in place."""
    if config.wandb:
        raise ValueError("wandb=True: nothing is sent anywhere here; read the losses that are printed")
    if (config.save_every is None) != (config.save_dir is None):
        raise ValueError(f"save_every={config.save_every}, save_dir={config.save_dir}: give both, or neither")
    torch.manual_seed(config.seed)
    if config.device is not None:
        model.to(config.device)
    model.train()
    optimizer = _optimizer(model.parameters(), config)
    warmed = LambdaLR(optimizer, lambda step: min(1.0, step / max(1, config.warmup_steps)))
    rows = DataLoader(dataset, batch_size=config.batch_size, shuffle=True)
    for epoch in tqdm(range(1, config.num_epochs + 1), desc="epochs", delay=1.0):
        n_seen = 0
        for step, batch in enumerate(rows):
            tokens = batch["tokens"].to(model.device)
            loss = model(tokens, return_type="loss")
            loss.backward()
            if config.max_grad_norm is not None:
                torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
            optimizer.step()
            if config.warmup_steps:
                warmed.step()
            optimizer.zero_grad()
            n_seen += len(tokens)
            if config.print_every is not None and step % config.print_every == 0:
                print(f"Epoch {epoch} Samples {n_seen} Step {step} Loss {loss.item()}")
            if config.save_every is not None and config.save_dir is not None and step % config.save_every == 0:
                Path(config.save_dir).mkdir(parents=True, exist_ok=True)
                torch.save(model.state_dict(), Path(config.save_dir, f"model_{step}.pt"))
            if config.max_steps is not None and step >= config.max_steps:
                break
    return model


def _optimizer(parameters: Iterable[Any], config: HookedTransformerTrainConfig) -> torch.optim.Optimizer:
    if config.optimizer_name in ("Adam", "AdamW"):
        if config.weight_decay is None:
            return torch.optim.Adam(parameters, lr=config.lr)
        return torch.optim.AdamW(parameters, lr=config.lr, weight_decay=config.weight_decay)
    if config.optimizer_name == "SGD":
        decay = config.weight_decay or 0.0
        return torch.optim.SGD(parameters, lr=config.lr, weight_decay=decay, momentum=config.momentum)
    raise ValueError(f"Optimizer {config.optimizer_name} not supported; allowed: 'Adam', 'AdamW', 'SGD'")
