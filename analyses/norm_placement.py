"""Why did transformers move the norm before the sublayer, and when does the older order need a warm-up?

1. Depth: at initialisation (`init_mode="xavier"`), the gradient that the loss of one prediction sends to the last
   feed-forward matrix, W_out: its norm, for models of several depths, and the slope of its logarithm in that of the
   depth. In theory 0 where norms stand behind the sum ("post", 2017), and -1/2 where they stand before the sublayer.
2. Layers: the same for the W_out of every layer of the deepest.
3. Warm-up: models of one depth are trained on characters, with Adam, at several learning rates, each there from the
   first step, or risen to over `warmup` steps. Their loss on held-out text.

Xiong et al. 2020, https://arxiv.org/abs/2002.04745.

Finding, of Shakespeare's plays (1.1 million characters, 8 layers, d_model 64, 300 steps, warm-up over 150, three seeds;
26 November 2026, a thread of an x86-64 CPU), with the gradient's slope, that of the last of 24 layers over the first,
and the losses:

    norm    slope         last / first  lr     no warm-up   warm-up
    pre     -0.54 ± 0.03          0.17  0.001  2.46 ± 0.01  2.49 ± 0.00
                                        0.003  2.40 ± 0.01  2.40 ± 0.00
    post    0.07 ± 0.01           1.23  0.001  2.67 ± 0.04  2.50 ± 0.00
                                        0.003  3.34 ± 0.00  2.76 ± 0.11
    output  -0.49 ± 0.03          0.10  0.001  2.48 ± 0.00  2.52 ± 0.01
                                        0.003  2.54 ± 0.02  2.50 ± 0.02
    both    -0.48 ± 0.01          0.19  0.001  2.46 ± 0.00  2.50 ± 0.01
                                        0.003  2.39 ± 0.01  2.40 ± 0.00

The slopes are those of the theory; norms on what a sublayer wrote ("output", "both") behave as those before it. Behind
the sum, at a rate that suits all others, a model without a warm-up learns no more than how frequent characters are.
Two things are other than in the paper. There gradients grow toward the output behind the sum, and are level before
sublayers; here they are level behind the sum, and before sublayers they fall, from layer to layer. And a warm-up does
not make up for everything: at the rate of 0.003 "post" stays behind.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm
from xarray import Dataset

from analyses.output import Found, save, start, table
from analyses.trained import characters, mean_and_error, trained
from interp import GPTConfig, HookedGPT, plots
from interp.config import NormPosition
from interp.training import Run, TrainingConfig

_D_VOCAB = 64  # of the models whose gradients are measured
_BLOCK = 8  # steps whose losses are drawn as one


@dataclass(frozen=True)
class Setting:
    """What is measured and trained."""

    text: Path | None = None  # a file to train on; without one, the standard library
    most: int = 300_000  # characters of it that are read
    placements: tuple[NormPosition, ...] = ("pre", "post")  # where the norm stands
    depths: tuple[int, ...] = (4, 6, 8, 12, 16, 24)  # of the models whose gradients are measured, rising
    predictions: int = 8  # whose gradients are averaged, of each of them
    d_model: int = 32  # the width of all
    n_layers: int = 6  # of the models that are trained
    lrs: tuple[float, ...] = (3e-3,)  # learning rates
    warmup: int = 80  # steps over which the rate rises
    steps: int = 160  # of training
    batch_size: int = 12  # rows of a step
    n_ctx: int = 32  # characters of a row
    seeds: int = 2  # models of each kind
    seed: int = 0  # the first of them

    def __post_init__(self) -> None:
        if len(self.depths) < 2 or list(self.depths) != sorted(set(self.depths)):
            raise ValueError(f"depths={self.depths}; a slope is of two depths at least, the deepest last")
        if not 0 < self.warmup < self.steps:
            raise ValueError(f"warmup={self.warmup}, steps={self.steps}; a warm-up ends before the training")
        if min(self.seeds, self.predictions) < 1:
            raise ValueError(f"seeds={self.seeds}, predictions={self.predictions}; one at least of each")

    def model(self, place: NormPosition, n_layers: int, n_ctx: int, d_vocab: int, seed: int) -> HookedGPT:
        """One of them, as it is at first."""
        sizes = {"n_layers": n_layers, "d_model": self.d_model, "n_ctx": n_ctx, "d_vocab": d_vocab}
        kind: dict[str, Any] = {"act_fn": "relu", "norm_position": place, "init_mode": "xavier", "seed": seed}
        return HookedGPT(GPTConfig(n_heads=max(1, self.d_model // 16), **sizes, **kind))


def main(
    setting: Annotated[Setting, tyro.conf.arg(name="")] = Setting(),
    out: Path = Path("runs/norm_placement"),
    png: bool = False,
) -> None:
    """Measure gradients at initialisation by the norm's place and the depth, and train with and without warm-up.

    Args:
        setting: what is measured and trained.
        out: where the results go. Trainings that were stopped go on there.
        png: draw the figures as PNG, too.
    """
    found = study(setting, out / "runs")
    models = {name: Run(out / "runs" / name).model() for name in found.findings["runs"]}
    save(found, out, "norm_placement", config=vars(setting), models=models, png=png)


def study(setting: Setting, folder: Path | None = None, *, progress: bool = True) -> Found:
    """All of it; trainings are kept in a folder, if one is given."""
    by_depth, by_layer = _gradients(setting, progress)
    losses, held_out, runs = _trainings(setting, folder, progress)
    axes = ("placement", "lr", "warmup", "seed")
    result = Dataset(
        {
            "gradient": (("placement", "seed", "depth"), by_depth),
            "gradient_by_layer": (("placement", "seed", "layer"), by_layer),
            "loss": ((*axes, "step"), losses),
            "held_out_loss": (axes, held_out),
        },
        coords={
            "placement": list(setting.placements),
            "depth": list(setting.depths),
            "lr": list(setting.lrs),
            "warmup": [0, setting.warmup],
            "seed": range(setting.seed, setting.seed + setting.seeds),
        },
        attrs={"method": "norm placement"},
    )
    findings = {**_findings(result), "runs": runs}
    return Found(result, _figures(result), _table(result, findings), findings)


def gradients(model: HookedGPT, n_rows: int, seed: int) -> Float[Tensor, " layer"]:
    """The norm of the gradient by each layer's W_out of the loss of one prediction; the mean over random tokens.

    The first predicts from one token, the second from two, and so on.
    """
    draw = torch.Generator().manual_seed(seed)
    weights = [model.get_parameter(f"blocks.{layer}.mlp.down.weight") for layer in range(model.cfg.n_layers)]
    norms = list[Tensor]()
    for n_read in range(1, n_rows + 1):
        tokens = torch.randint(model.cfg.d_vocab, (1, n_read + 1), generator=draw)
        loss = model(tokens, "loss", loss_per_token=True)[0, -1]
        norms.append(torch.stack([each.norm() for each in torch.autograd.grad(loss, weights)]))
    return torch.stack(norms).mean(0)


def slopes(gradient: Float[np.ndarray, "seed depth"], depths: Sequence[int]) -> list[float]:
    """Of the logarithm of the gradient in that of the depth, for each seed."""
    return np.polyfit(np.log(depths), np.log(gradient.T), 1)[0].tolist()


def _gradients(setting: Setting, progress: bool) -> tuple[np.ndarray, np.ndarray]:
    """Of the last layer of models of all depths, and of all layers of the deepest."""
    shape = (len(setting.placements), setting.seeds, len(setting.depths))
    by_depth, by_layer = np.zeros(shape), np.zeros((*shape[:2], setting.depths[-1]))
    for i, j, k in tqdm(list(np.ndindex(shape)), desc="gradients", delay=1.0, disable=not progress):
        place, seed, depth = setting.placements[i], setting.seed + j, setting.depths[k]
        model = setting.model(place, depth, setting.predictions + 1, _D_VOCAB, seed)
        of_layers = gradients(model, setting.predictions, seed).numpy()
        by_depth[i, j, k] = of_layers[-1]
        by_layer[i, j, :depth] = of_layers  # the deepest comes last
    return by_depth, by_layer


def _trainings(setting: Setting, folder: Path | None, progress: bool) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """The losses of all steps, those of held-out text at the end, and what the runs are called."""
    text, warmups, runs = characters(setting.text, setting.most), (0, setting.warmup), list[str]()
    shape = (len(setting.placements), len(setting.lrs), len(warmups), setting.seeds)
    losses, held_out = np.zeros((*shape, setting.steps)), np.zeros(shape)
    options: dict[str, Any] = {"steps": setting.steps, "batch_size": setting.batch_size, "schedule": "constant"}
    options |= {"weight_decay": 0.0, "clip": None}
    for at in tqdm(list(np.ndindex(shape)), desc="trainings", delay=1.0, disable=not progress):
        place, lr, warmup, seed = setting.placements[at[0]], setting.lrs[at[1]], warmups[at[2]], setting.seed + at[3]
        model = setting.model(place, setting.n_layers, setting.n_ctx, text.tokenizer.d_vocab, seed)
        cfg = TrainingConfig(lr=lr, warmup=warmup, **options)
        runs.append(f"{place}-lr{lr:g}-warmup{warmup}-seed{seed}")
        asked = text.asked(setting.n_ctx, 8_000)
        log = trained(model, text.read(setting.n_ctx, seed), cfg, folder and folder / runs[-1], held_out=asked)
        losses[at] = [row["loss"] for row in log if "loss" in row]
        held_out[at] = log[-1]["held_out_loss"]
    return losses, held_out, runs


def _findings(result: Dataset) -> dict[str, Any]:
    """Slopes and losses, each with its standard error over seeds, by the norm's place."""
    found = dict[str, Any]()
    for place in result.placement.values.tolist():
        here = result.sel(placement=place)
        by_layer = here.gradient_by_layer.mean("seed")
        found[place] = {
            "slope": mean_and_error(slopes(here.gradient.to_numpy(), here.depth.values.tolist())),
            "last_over_first_layer": float(by_layer[-1] / by_layer[0]),
            "loss": {
                f"{lr:g}": {
                    warmup: mean_and_error(here.held_out_loss.sel(lr=lr, warmup=warmup).values.tolist())
                    for warmup in here.warmup.values.tolist()
                }
                for lr in here.lr.values.tolist()
            },
        }
    return found


def _table(result: Dataset, findings: dict[str, Any]) -> str:
    """What is printed."""
    number, told = "{:.2f}".format, lambda pair: "{:.2f} ± {:.2f}".format(*pair)
    gradient, by_place = result.gradient.mean("seed"), [(name, findings[name]) for name in result.placement.values]
    sizes = [
        [
            name,
            *map(number, gradient.sel(placement=name).values),
            told(of["slope"]),
            number(of["last_over_first_layer"]),
        ]
        for name, of in by_place
    ]
    losses = [[name, lr, *map(told, each.values())] for name, of in by_place for lr, each in of["loss"].items()]
    n_steps, warmup = result.sizes["step"], int(result.warmup[-1])
    return "\n".join(
        [
            "Gradient of the last W_out at initialisation by depth, its slope; in the deepest, last layer over first:",
            table(["norm", *map(str, result.depth.values), "slope", "last / first"], sizes),
            f"\nLoss of held-out text after {n_steps} steps:",
            table(["norm", "lr", "no warm-up", f"over {warmup} steps"], losses),
        ]
    )


def _figures(result: Dataset) -> dict[str, Any]:
    """Gradients by depth and by layer, and losses over training at each learning rate."""
    titles = {
        "gradient": "Gradient of the last W_out by depth",
        "gradient_by_layer": f"Gradient of W_out, {result.sizes['layer']} layers",
    }
    figures = dict[str, Any]()
    for name, title in titles.items():
        figures[name] = plots.lines(result[name].mean("seed").rename("gradient at initialisation"), title=title)
        figures[name].update_yaxes(type="log", dtick="D1", tickformat="~g")
    smooth = result.loss.mean("seed").coarsen(step=_BLOCK, boundary="trim").mean()
    steps = (_BLOCK * np.arange(smooth.sizes["step"]) + _BLOCK / 2).tolist()
    for lr in result.lr.values.tolist():
        logs = {
            f"{place}, {f'warm-up {warmup}' if warmup else 'no warm-up'}": [
                {"step": step, "loss": loss}
                for step, loss in zip(steps, smooth.sel(placement=place, lr=lr, warmup=warmup).values, strict=True)
            ]
            for place in result.placement.values.tolist()
            for warmup in result.warmup.values.tolist()
        }
        figures[f"loss_lr{lr:g}"] = plots.training_curves(logs, title=f"Loss, learning rate {lr:g}")
    return figures


if __name__ == "__main__":
    start(main, __doc__)
