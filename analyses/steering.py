"""Does a direction in the stream, added while a model reads and writes, make it say what the direction is of?

1. The direction, for each layer: the mean of the stream at the end of prompts of one kind, less that of another kind
   (contrastive activation addition).
2. Added at every position, so many times, while the model reads prompts of neither kind: the log-odds of the target
   tokens next; and of unrelated text, the loss. Random directions of the same length are the control.
3. What it then writes, and what it wrote before.

Turner et al. 2023, https://arxiv.org/abs/2308.10248; Rimsky et al. 2024, https://arxiv.org/abs/2312.06681.

Finding, of `stdlib-4l`, with bodies of methods against bodies of functions: added once behind any layer, the direction
raises the log-odds of `self`, where nothing speaks for it, by three to four nats, more the more is added, and taken
away lowers them; a random direction of its length raises them by one nat at most. Unrelated text pays for it, as it
does for random directions: its loss rises by half a nat.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from xarray import DataArray, Dataset

from analyses.output import Found, save, start, table
from interp import HookedGPT, lens, metrics, plots
from interp.interventions import Edit, Site, Steer
from interp.loading.files import read_json
from interp.metrics import Metric
from interp.patching import sample, with_edits
from interp.results import as_tokens, labelled

_NAMES = ("read", "write", "close", "update", "parse", "send", "copy", "next")


@dataclass(frozen=True)
class Contrast:
    """Prompts of one kind and of the other, prompts of neither, and the tokens that are to become likelier there."""

    toward: Sequence[str]
    away: Sequence[str]
    prompts: Sequence[str]
    targets: Sequence[str]


METHODS = Contrast(
    toward=[f"class Reader:\n    def {name}(self, item):\n        return" for name in _NAMES],
    away=[f"def {name}(path, item):\n    return" for name in _NAMES],
    prompts=[
        "def check(value):\n    result =",
        "def area(width, height):\n    total =",
        "for name in names:\n    text =",
        "def load(file):\n    data =",
        "if count > 0:\n    size =",
        "def first(items):\n    x =",
    ],
    targets=[" self"],
)


def main(
    model: str = "stdlib-4l",
    contrast: Path | None = None,
    layers: tuple[int, ...] = (),
    coefficients: tuple[float, ...] = (-2.0, -1.0, -0.5, 0.5, 1.0, 2.0),
    draws: int = 3,
    texts: int = 6,
    new_tokens: int = 16,
    seed: int = 0,
    out: Path = Path("runs/steering"),
    png: bool = False,
) -> None:
    r"""Steer a model by the difference of two kinds of prompts, and see what it gains and costs.

    Args:
        model: a bundled name, a folder, or a name on the hub.
        contrast: a JSON file with lists of texts: toward, away, prompts, targets. Without one: methods, and self.
        layers: behind which the direction is added; all, if none is given.
        coefficients: how many times.
        draws: of random directions.
        texts: rows of unrelated text, of Python's standard library.
        new_tokens: that are written.
        seed: of the random directions.
        out: where the results go. A sweep that was stopped goes on there.
        png: draw the figures as PNG, too.
    """
    of, pairs = HookedGPT.from_pretrained(model), METHODS if contrast is None else read_contrast(contrast)
    choices: dict[str, Any] = {"coefficients": coefficients, "draws": draws, "texts": texts, "new_tokens": new_tokens}
    found = study(of, pairs, layers or range(of.cfg.n_layers), **choices, seed=seed, folder=out / "sweeps")
    config = {"model": model, "contrast": asdict(pairs), "layers": layers, **choices, "seed": seed}
    save(found, out, "steering", config=config, models={model: of}, png=png)


def read_contrast(file: Path) -> Contrast:
    """The one that a JSON file holds."""
    content, wanted = read_json(file), ("toward", "away", "prompts", "targets")
    are_texts = lambda x: isinstance(x, list) and x and all(isinstance(each, str) and each for each in x)
    if set(content) != set(wanted) or not all(map(are_texts, content.values())):
        raise ValueError(f"{file} has {sorted(content)}; a contrast has lists of texts: {', '.join(wanted)}")
    return Contrast(**content)


def study(
    model: HookedGPT,
    contrast: Contrast = METHODS,
    layers: Sequence[int] | None = None,
    *,
    coefficients: Sequence[float | int] = (-1.0, 1.0),
    draws: int = 3,
    texts: int = 6,
    new_tokens: int = 16,
    seed: int = 0,
    folder: Path | None = None,
    progress: bool = True,
) -> Found:
    """All of it."""
    if not coefficients or max(coefficients) <= 0 or draws < 1:
        raise ValueError(f"coefficients={list(coefficients)}, draws={draws}; one must be above 0, and one draw made")
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    of_layers = list(range(model.cfg.n_layers) if layers is None else layers)
    directions = {layer: _directions(model, contrast, layer, draws, seed) for layer in of_layers}
    targets = [[model.to_single_token(each) for each in contrast.targets]]
    kinds, doses = ["contrast", *(f"random {i}" for i in range(draws))], sorted({0.0, *map(float, coefficients)})
    axes = {"layer": of_layers, "direction": kinds, "coefficient": doses}

    def measured(name: str, prompts: Any, mask: Tensor | None, metric: Metric) -> DataArray:
        sets: dict[str, list[Edit]] = {
            f"{layer} {kind} {dose}": [Steer(Site("resid_post", layer), direction, scale=dose)]
            for layer in of_layers
            for kind, direction in zip(kinds, directions[layer], strict=True)
            for dose in doses
            if dose
        }
        file = None if folder is None else folder / f"{name}.jsonl"
        found = with_edits(model, prompts, sets, metric, attention_mask=mask, file=file, progress=progress)
        steered = found.to_numpy().reshape(len(of_layers), len(kinds), len(doses) - 1, -1)
        every = np.insert(steered, doses.index(0.0), found.base.to_numpy(), axis=2)
        return labelled(torch.from_numpy(every), axes | {"prompt": range(every.shape[-1])}, name, found.attrs)

    prompts, mask = as_tokens(model, list(contrast.prompts), None)
    unrelated = sample(model, texts, seed=seed)
    odds = measured("log-odds", prompts, mask, metrics.log_odds(model, targets))
    loss = measured("loss", unrelated, None, metrics.loss()).rename(prompt="text")
    norms = [float(directions[layer][0].norm()) for layer in of_layers]
    result = Dataset(
        {"log_odds": odds, "loss": loss, "norm": ("layer", norms)},
        attrs={"method": "steering", "model": model.fingerprint()},
    )
    findings = _findings(result, 1.0 if 1.0 in doses else max(doses))
    written = _written(model, contrast, directions[findings["layer"]][0], findings, new_tokens)
    findings["written"] = written
    return Found(result, _figures(result, findings), _table(result, findings), findings)


def _directions(
    model: HookedGPT, contrast: Contrast, layer: int, n_random: int, seed: int
) -> Float[Tensor, "direction d_model"]:
    """The contrast's, and random ones of its length."""
    found = lens.mean_difference(model, list(contrast.toward), list(contrast.away), layer, pos=-1)
    return torch.cat([found[None], lens.random_directions(found, n_random, seed=seed + layer)])


def _findings(result: Dataset, dose: float) -> dict[str, Any]:
    """What one dose does in each layer, beside the random direction that does most, and where it does most."""
    over = {"log_odds": "prompt", "loss": "text"}
    change = {name: (result[name] - result[name].sel(coefficient=0.0)).mean(axis) for name, axis in over.items()}
    by_layer = [_of_layer({name: of.sel(layer=layer) for name, of in change.items()}, dose) for layer in result.layer]
    best = int(np.argmax([each["log_odds"] for each in by_layer]))
    own = change["log_odds"].sel(direction="contrast").isel(layer=best)
    return {
        "dose": dose,
        "layer": int(result.layer[best]),
        "by_layer": {int(layer): each for layer, each in zip(result.layer, by_layer, strict=True)},
        "dose_response": {float(x): float(y) for x, y in zip(own.coefficient, own, strict=True)},
    }


def _of_layer(change: dict[str, DataArray], dose: float) -> dict[str, float]:
    """Of one layer."""
    here = {name: of.sel(coefficient=dose) for name, of in change.items()}
    own = {name: float(of.sel(direction="contrast")) for name, of in here.items()}
    return own | {f"{name}_random": float(of.drop_sel(direction="contrast").max()) for name, of in here.items()}


def _written(
    model: HookedGPT, contrast: Contrast, direction: Tensor, findings: dict[str, Any], n_tokens: int
) -> list[dict[str, str]]:
    """What the likeliest tokens make of each prompt, as it is and steered."""
    steered = Steer(Site("resid_post", findings["layer"]), direction, scale=findings["dose"])
    found = list[dict[str, str]]()
    for prompt in contrast.prompts:
        before = str(model.generate(prompt, n_tokens, temperature=0))
        with model.edit([steered]):
            after = str(model.generate(prompt, n_tokens, temperature=0))
        found.append({"prompt": prompt, "before": before[len(prompt) :], "after": after[len(prompt) :]})
    return found


def _table(result: Dataset, findings: dict[str, Any]) -> str:
    """What is printed."""
    heads = ["layer", "length", "log-odds", "random, at most", "loss", "random, at most"]
    names = ("log_odds", "log_odds_random", "loss", "loss_random")
    rows = [
        [layer, f"{float(result.norm.sel(layer=layer)):.2f}", *(f"{each[name]:+.2f}" for name in names)]
        for layer, each in findings["by_layer"].items()
    ]
    layer, dose = findings["layer"], findings["dose"]
    doses = ", ".join(f"{x:g}: {y:+.2f}" for x, y in findings["dose_response"].items())
    said = [
        f"Changes by the direction, {dose:g} times; layer {layer} by times: {doses}",
        "",
        "What is written, and then:",
    ]
    for each in findings["written"][:3]:
        said += [f"  {json.dumps(each[name], ensure_ascii=False)}" for name in ("prompt", "before", "after")]
    return "\n".join([table(heads, rows), "", *said])


def _figures(result: Dataset, findings: dict[str, Any]) -> dict[str, Any]:
    """By dose, in the layer where most is gained, and in all."""
    layer, figures = findings["layer"], dict[str, Any]()
    titles = {"log_odds": ("gain", "Log-odds of the targets"), "loss": ("cost", "Loss of unrelated text")}
    for name, (short, title) in titles.items():
        of = result[name].rename(title).rename({str(result[name].dims[-1]): "prompt"})
        figures[short] = plots.lines(of.sel(layer=layer), title=f"{title}, by what is added behind layer {layer}")
        change = (of - of.sel(coefficient=0.0)).sel(direction="contrast").rename("change").assign_attrs(of.attrs)
        figures[f"{short}_by_layer"] = plots.heatmap(change, title=f"{title}, change", scale="diverging")
    return figures


if __name__ == "__main__":
    start(main, __doc__)
