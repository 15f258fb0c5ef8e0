"""How do more features than dimensions fit into a space, and in what shapes?

1. A toy: features that are present with probability p, and then uniform in [0, 1], are written to few dimensions and
   read from there by the same vectors, ReLU(WᵀWx + b). Each error counts by its feature's importance. All sparsities,
   and several starts of each, are trained at once; of the starts, the one with the least loss is kept.
2. What a feature is given: the length of its vector, and its dimensionality ‖Wᵢ‖² / Σⱼ (Ŵᵢ·Wⱼ)², the share of a
   dimension that is its own: 1 alone, 1/2 in a pair that points opposite ways, 2/5 in a pentagon.
3. The same without the ReLU, as control.

Elhage et al. 2022, https://transformer-circuits.pub/2022/toy_model.

Finding, of 5 features in 2 dimensions: dense, the two most important have a dimension each, and the others nothing. At
p = 0.36 and 0.22 four stand in two pairs, from 0.13 on all five in a pentagon. That is the best of six starts: at 0.13
two of them end in pairs, and now and then one does at 0.02 still, with more than twice the loss. A single start would
have shown pairs there. Without the ReLU it is two features, however sparse they are.

Of 80 features alike in 20 dimensions (`--features 80 --hidden 20 --importance 1 --starts 1 --batch 512 --steps 4000
--instances 20`), at p = 0.79 26 stand in triangles, from 0.48 to 0.30 forty in pairs, to three digits. Sparser, the
paper's 2/5 and 3/8 are hardly seen: at 0.11 all 80 are there, each with a quarter, the most that 80 can have alike.
"""

from collections import Counter
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from math import cos, pi
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import plotly.graph_objects as go
import torch
import tyro
from jaxtyping import Float
from plotly.subplots import make_subplots
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm.auto import tqdm
from xarray import DataArray, Dataset

from analyses.output import Found, save, start, table
from interp import plots
from interp.loading.files import replacing
from interp.plots.theme import framed, palette

# What features have where they spread evenly, and how many dimensions that takes: alone, in a tetrahedron, a triangle,
# a pair, a pentagon, a square antiprism.
SHAPES = {Fraction(x): n for x, n in {"1": 1, "3/4": 3, "2/3": 2, "1/2": 1, "2/5": 2, "3/8": 3}.items()}
_KEPT = 0.5  # the length from which on a feature is there
_OUTPUTS = ("linear", "ReLU")


@dataclass(frozen=True)
class Toy:
    """The toy, and how it is trained.

    Args:
        features: how many there are.
        hidden: dimensions that they share.
        importance: of each feature, by that of the one before.
        sparsest: the least p; the others go to 1 by equal ratios.
        instances: so many p.
        starts: of each instance; the best is kept.
        steps: of training.
        batch: rows of a step.
        lr: at first; it falls to 0 by a cosine.
        seed: of the starts and the data.
    """

    features: int = 5
    hidden: int = 2
    importance: float = 0.9
    sparsest: float = 0.01
    instances: int = 10
    starts: int = 6
    steps: int = 2500
    batch: int = 128
    lr: float = 1e-2
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.sparsest < 1 or not self.importance > 0 or self.instances < 2:
            raise ValueError(
                f"sparsest={self.sparsest}, importance={self.importance}, instances={self.instances}; a probability "
                "between 0 and 1, a positive ratio, and two instances at least"
            )
        if min(self.features, self.hidden, self.starts, self.steps, self.batch) < 1:
            raise ValueError(f"{self}: each size is 1 at least")

    @property
    def p(self) -> Float[Tensor, " instance"]:
        """How often a feature is present, in each instance."""
        return self.sparsest ** torch.linspace(0, 1, self.instances)

    def draw(self, n_rows: int, generator: torch.Generator) -> Float[Tensor, "instance 1 row feature"]:
        """Features of each instance, all from the same uniform numbers."""
        u, p = torch.rand(n_rows, self.features, generator=generator), self.p[:, None, None, None]
        return torch.where(u < p, u / p, 0.0)


def main(
    toy: Annotated[Toy, tyro.conf.arg(name="")] = Toy(),
    out: Path = Path("runs/superposition"),
    png: bool = False,
) -> None:
    """Put features into fewer dimensions, and see which are kept, and how they stand to each other.

    Args:
        out: where the results go, and the weights, which are not trained again.
        png: draw the figures as PNG, too.
    """
    save(study(toy, out / "runs"), out, "superposition", config=asdict(toy), models={}, png=png)


def study(toy: Toy = Toy(), folder: Path | None = None, *, progress: bool = True) -> Found:
    """All of it; `folder` keeps the weights."""
    unseen = toy.draw(20_000, torch.Generator().manual_seed(toy.seed + 1)).split(2000, 2)
    best, losses, norms = list[Tensor](), torch.empty(0), torch.empty(0)
    for output, of in zip(_OUTPUTS, (replace(toy, starts=1), toy), strict=True):  # the first has no other minima
        W, b = trained(of, output, None if folder is None else folder / f"{output}.safetensors", progress)
        losses = torch.cat([loss(of, output, W, b, part) for part in unseen], 2).mean(2)
        norms = W.norm(dim=-1)
        best.append(W[torch.arange(toy.instances), losses.argmin(1)])
    W, p = torch.stack(best), [float(f"{x:.3g}") for x in toy.p]
    axes = {"output": list(_OUTPUTS), "p": p, "feature": range(toy.features), "dimension": range(toy.hidden)}
    both = ("output", "p", "feature")
    result = Dataset(
        {
            "W": (tuple(axes), W.numpy()),
            "norm": (both, W.norm(dim=-1).numpy()),
            "dimensionality": (both, dimensionality(W).numpy()),
            "loss": (("p", "start"), losses.numpy()),
            "features": (("p", "start"), (norms > _KEPT).sum(-1).numpy()),
        },
        coords=axes,
        attrs={"method": "superposition"},
    )
    findings = _findings(result, toy)
    return Found(result, _figures(result), _table(findings), findings)


def loss(
    toy: Toy,
    output: str,
    W: Float[Tensor, "instance start feature dimension"],
    b: Float[Tensor, "instance start 1 feature"],
    x: Float[Tensor, "instance 1 row feature"],
) -> Float[Tensor, "instance start row"]:
    """The squared errors of a row, by importance."""
    read = (x @ W) @ W.mT + b
    error = x - (read.relu() if output == "ReLU" else read)
    return (error.square() * toy.importance ** torch.arange(toy.features)).mean(-1)


def trained(toy: Toy, output: str, file: Path | None, progress: bool = True) -> tuple[Tensor, Tensor]:
    """W and b of every instance and start; those that the file has are not trained again."""
    if file is not None and file.is_file():
        with safe_open(file, "pt") as kept:
            if kept.metadata() == {"toy": str(toy)}:
                return kept.get_tensor("W"), kept.get_tensor("b")
    generator = torch.Generator().manual_seed(toy.seed)
    shape = (toy.instances, toy.starts, toy.features, toy.hidden)
    W = torch.randn(shape, generator=generator) * (2 / (toy.features + toy.hidden)) ** 0.5  # Glorot and Bengio's
    W, b = W.requires_grad_(), torch.zeros(*shape[:2], 1, toy.features, requires_grad=True)
    optimiser = torch.optim.AdamW([W, b], fused=True)
    for step in tqdm(range(toy.steps), desc=output, unit=" steps", delay=1.0, disable=not progress):
        optimiser.param_groups[0]["lr"] = toy.lr * (1 + cos(pi * step / toy.steps)) / 2
        loss(toy, output, W, b, toy.draw(toy.batch, generator)).mean(2).sum().backward()
        optimiser.step()
        optimiser.zero_grad()
    W, b = W.detach(), b.detach()
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as whole:
            save_file({"W": W, "b": b}, whole, {"toy": str(toy)})
    return W, b


def dimensionality(W: Float[Tensor, "... feature dimension"]) -> Float[Tensor, "... feature"]:
    """The share of a dimension that each feature has to itself. They sum to the dimensions at most."""
    to_others = torch.nn.functional.normalize(W, dim=-1) @ W.mT
    return W.square().sum(-1) / to_others.square().sum(-1).clamp(min=1e-12)


def _findings(result: Dataset, toy: Toy) -> dict[str, Any]:
    """At each p, of the best start: how many features there are, in what shapes; and how the other starts fare."""
    of, found = result.sel(output="ReLU"), dict[str, Any]()
    for p in result.p.values.tolist():
        here, losses = of.sel(p=p), result.loss.sel(p=p).to_numpy()
        is_kept = here.norm.to_numpy() > _KEPT
        vectors = here.W.to_numpy()[is_kept] / here.norm.to_numpy()[is_kept, None]
        found[str(p)] = {
            "features": int(is_kept.sum()),
            "shapes": Counter(_shape(x, toy.hidden) for x in here.dimensionality.to_numpy()[is_kept].tolist()),
            "least_cosine": float((vectors @ vectors.T).min(initial=1.0)),
            "sum": float(here.dimensionality.sum()),
            "loss": float(losses.min()),
            "starts": Counter(result.features.sel(p=p).values.tolist()),
            "worst_start": float(losses.max() / losses.min()),
            **{
                f"squared_norm_{output}": float((result.norm.sel(output=output, p=p) ** 2).sum()) for output in _OUTPUTS
            },
        }
    return {"by_p": found}


def _shape(dimensionality: float, hidden: int) -> str:
    """The nearest of the shapes that there is room for, if it is near."""
    nearest = min((x for x, n in SHAPES.items() if n <= hidden), key=lambda shape: abs(float(shape) - dimensionality))
    return str(nearest) if abs(float(nearest) - dimensionality) < 0.04 else "other"


def _table(findings: dict[str, Any]) -> str:
    """What is printed."""
    heads, rows = ["p", "features", "dimensionality", "sum", "loss", "worst start", "starts", "‖W‖²", "if linear"], []
    for p, each in findings["by_p"].items():
        shapes = ", ".join(f"{n} × {shape}" for shape, n in sorted(each["shapes"].items(), key=lambda x: -x[1]))
        starts = ", ".join(f"{n} × {count}" for count, n in sorted(each["starts"].items()))
        losses = [f"{each['sum']:.2f}", f"{each['loss']:.2e}", f"{each['worst_start']:.2f}", starts]
        numbers = [*losses, *(f"{each[f'squared_norm_{output}']:.2f}" for output in reversed(_OUTPUTS))]
        rows.append([p, each["features"], shapes, *numbers])
    return table(heads, rows) + "\n\nOf all starts: the worst loss by the best, and how many have how many features."


def _figures(result: Dataset) -> dict[str, go.Figure]:
    """The vectors, their products, and what each feature has of a dimension."""
    of = result.sel(output="ReLU")
    products = of.W.dot(of.W.rename(feature="other"), dim="dimension").rename("product")
    figures = {"dimensionality": _dimensionalities(of.dimensionality, result.sizes["dimension"])}
    if result.sizes["dimension"] == 2:
        figures["geometry"] = _geometry(of.W)
    figures["products"] = plots.heatmap(products, x="other", title="Products of the features' vectors", text=False)
    return figures


def _geometry(W: DataArray) -> go.Figure:
    """An arrow for each feature, a plane for each p."""
    colours, n_columns = palette("light"), 5
    n_rows = -(-W.sizes["p"] // n_columns)
    titles = [f"p = {p:g}" for p in W.p.values]
    figure = make_subplots(n_rows, n_columns, subplot_titles=titles, horizontal_spacing=0.02, vertical_spacing=0.1)
    angles = np.linspace(0, 2 * pi, 90)
    for i, p in enumerate(W.p.values):
        at = {"row": i // n_columns + 1, "col": i % n_columns + 1}
        circle = {"x": np.cos(angles), "y": np.sin(angles), "line": {"color": colours.grid, "width": 1}}
        figure.add_scatter(**circle, mode="lines", hoverinfo="skip", showlegend=False, **at)
        for feature, (x, y) in enumerate(W.sel(p=p).to_numpy().tolist()):
            figure.add_scatter(
                x=[0, x],
                y=[0, y],
                mode="lines+markers",
                name=f"feature {feature}",
                line={"color": colours.categories[feature % len(colours.categories)], "width": 2.5},
                marker={"size": [0, 7]},
                hovertemplate=f"feature {feature}<br>(%{{x:.2f}}, %{{y:.2f}})<extra></extra>",
                showlegend=i == 0,
                legendgroup=feature,
                **at,
            )
    figure.update_xaxes(visible=False, range=[-1.3, 1.3])
    figure.update_yaxes(visible=False, range=[-1.3, 1.3])
    for i, axis in enumerate(figure.select_yaxes()):
        axis.update(scaleanchor=f"x{i + 1 if i else ''}")
    figure.update_annotations(font_size=12)
    figure.update_layout(height=150 + 190 * n_rows, legend={"orientation": "h", "x": 0, "y": -0.02})
    return framed(figure, "light", "Features, by how often they occur", "circle: length 1", room=16)


def _dimensionalities(of: DataArray, hidden: int) -> go.Figure:
    """A point for each feature, over p."""
    colours, figure = palette("light"), go.Figure()
    for shape in (x for x, n in SHAPES.items() if n <= hidden):
        side = "bottom right" if shape == Fraction(3, 8) else "top right"
        line = {"color": colours.missing, "width": 1, "dash": "dot"}
        figure.add_hline(float(shape), line=line, layer="below", annotation_text=str(shape), annotation_position=side)
    for feature in of.feature.values.tolist():
        many = of.sizes["feature"] > len(colours.categories)
        colour = colours.categories[0 if many else feature]
        figure.add_scatter(
            x=of.p.values,
            y=of.sel(feature=feature).to_numpy(),
            mode="markers",
            marker={"color": colour, "size": 6 if many else 9, "opacity": 0.5 if many else 0.9},
            name=f"feature {feature}",
            hovertemplate=f"feature {feature}<br>p = %{{x}}: %{{y:.3f}}<extra></extra>",
            showlegend=not many,
        )
    at = [float(f"{x}e-{power}") for power in range(1, 7) for x in (10, 5, 2)]
    figure.update_xaxes(type="log", autorange="reversed", title_text="p, how often a feature is present", tickvals=at)
    figure.update_yaxes(title_text="dimensionality", range=[-0.04, 1.08], showgrid=False)
    return framed(figure, "light", "What a feature has of a dimension", "lines: shapes that spread evenly")


if __name__ == "__main__":
    start(main, __doc__)
