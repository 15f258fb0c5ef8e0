"""Linear probes: whether a property can be read off an activation by a linear map, and whether that means anything.

A probe of many dimensions learns some labels by heart. So it is scored on rows held out, and beside a control task
(Hewitt & Liang, 2019): the same rows, with a label drawn at random for each type of token; what the probe reads better
than that, its `selectivity`, is in the activations.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor

Method = Literal["closed_form", "logistic"]


@dataclass(frozen=True, eq=False)
class Probe:
    """A linear map of activations to a score for each class, or to a number, and how well it does."""

    weight: Float[Tensor, "d_in out"]
    bias: Float[Tensor, " out"]
    classes: Int[Tensor, " out"] | None  # None: it predicts a number
    train: float  # accuracy, or R², on the rows that it was fitted to
    held_out: float  # … and on the others
    control: float | None = None  # the held-out accuracy of the same probe on the control task
    n_train: int = 0
    n_held_out: int = 0

    @property
    def selectivity(self) -> float | None:
        """How much better than on the control task it does."""
        return None if self.control is None else self.held_out - self.control

    def scores(self, activations: Float[Tensor, "*any d_in"]) -> Float[Tensor, "*any out"]:
        """The map itself."""
        return activations.to(self.weight) @ self.weight + self.bias

    def predict(self, activations: Float[Tensor, "*any d_in"]) -> Num[Tensor, "*any"]:
        """The class of each row, or the number."""
        scores = self.scores(activations)
        return scores[..., 0] if self.classes is None else self.classes[scores.argmax(-1)]


def linear_probe(
    activations: Float[Tensor, "row d_in"],
    labels: Num[Tensor, " row"],
    *,
    method: Method = "closed_form",
    l2: float = 1e-3,
    held_out: float = 0.25,
    groups: Int[Tensor, " row"] | None = None,
    types: Int[Tensor, " row"] | None = None,
    seed: int = 0,
) -> Probe:
    """Fit a probe to some rows and score it on the rest.

    Integer labels are classes; floating-point ones are numbers to predict ("closed_form" alone). "closed_form" is ridge
    regression, on classes coded as 1 and 0; "logistic" is multinomial, fitted until its gradient is gone. `l2` weighs
    squared weights per standard deviation of each coordinate. Rows of one of the `groups`, a prompt say, are held out
    together. With `types`, a token's id say, the control task is fitted too.
    """
    labels = labels.long() if labels.dtype == torch.bool else labels
    _check(activations, labels, method, l2, held_out)
    activations, labels = activations.detach().double(), labels.to(activations.device)
    draw = torch.Generator().manual_seed(seed)
    is_test = _held_out(len(labels), groups, held_out, draw).to(activations.device)
    if labels.is_floating_point():
        weight, bias = _fitted(activations[~is_test], labels[~is_test, None].double(), method, l2)
        train, test = (
            _r2(activations[rows] @ weight[:, 0] + bias, labels[rows].double()) for rows in (~is_test, is_test)
        )
        return Probe(weight, bias, None, train, test, None, int((~is_test).sum()), int(is_test.sum()))
    classes, index = labels.unique(return_inverse=True)
    if len(classes) < 2:
        raise ValueError(
            f"labels: all {len(labels)} rows have the label {int(classes[0])}; there is nothing to tell apart"
        )
    weight, bias, train, test = _classifier(activations, index, len(classes), is_test, method, l2)
    control = None
    if types is not None:
        known, of_type = types.to(index.device).unique(return_inverse=True)
        drawn = index[
            torch.randint(len(index), (len(known),), generator=draw).to(index.device)
        ]  # as frequent as labels
        control = _classifier(activations, drawn[of_type], len(classes), is_test, method, l2)[3]
    return Probe(weight, bias, classes, train, test, control, int((~is_test).sum()), int(is_test.sum()))


def _classifier(
    x: Float[Tensor, "row d_in"],
    index: Int[Tensor, " row"],
    n: int,
    is_test: Bool[Tensor, " row"],
    method: Method,
    l2: float,
) -> tuple[Tensor, Tensor, float, float]:
    weight, bias = _fitted(x[~is_test], F.one_hot(index[~is_test], n).double(), method, l2)
    is_right = (x @ weight + bias).argmax(-1) == index
    return weight, bias, is_right[~is_test].double().mean().item(), is_right[is_test].double().mean().item()


def _fitted(
    x: Float[Tensor, "row d_in"], y: Float[Tensor, "row out"], method: Method, l2: float
) -> tuple[Float[Tensor, "d_in out"], Float[Tensor, " out"]]:
    """The weights and biases, of the activations as they are: they are standardised for the fit alone."""
    mean, scale = x.mean(0), x.std(0, unbiased=False)
    scale = scale.where(scale > 1e-12 * (1 + mean.abs()), 1.0)  # a coordinate that never moves says nothing
    z = (x - mean) / scale
    if method == "closed_form":
        gram = z.T @ z / len(z) + l2 * torch.eye(z.shape[1], dtype=z.dtype, device=z.device)
        weight, bias = torch.linalg.solve(gram, z.T @ (y - y.mean(0)) / len(z)), y.mean(0)
    else:
        weight, bias = _logistic(z, y, l2)
    weight = weight / scale[:, None]
    return weight, bias - mean @ weight


def _logistic(
    z: Float[Tensor, "row d_in"], y: Float[Tensor, "row out"], l2: float
) -> tuple[Float[Tensor, "d_in out"], Float[Tensor, " out"]]:
    weight = torch.zeros(z.shape[1], y.shape[1], dtype=z.dtype, device=z.device, requires_grad=True)
    bias = y.mean(0).clamp(min=1e-9).log().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=1000, tolerance_grad=1e-9, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(z @ weight + bias, y) + l2 / 2 * weight.square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(loss)
    return weight.detach(), bias.detach()


def _held_out(
    n_rows: int, groups: Int[Tensor, " row"] | None, share: float, draw: torch.Generator
) -> Bool[Tensor, " row"]:
    """Which rows are not fitted to: whole groups of them."""
    if groups is not None and len(groups) != n_rows:
        raise ValueError(f"groups: {len(groups)} were given for {n_rows} rows")
    known, of_row = (torch.arange(n_rows) if groups is None else groups.cpu()).unique(return_inverse=True)
    n_test = round(share * len(known))
    if not 0 < n_test < len(known):
        raise ValueError(
            f"held_out={share} of {len(known)} {'rows' if groups is None else 'groups'} leaves one side empty"
        )
    is_test = torch.zeros(len(known), dtype=torch.bool)
    is_test[torch.randperm(len(known), generator=draw)[:n_test]] = True
    return is_test[of_row]


def _r2(found: Float[Tensor, " row"], wanted: Float[Tensor, " row"]) -> float:
    return 1 - ((found - wanted).square().sum() / (wanted - wanted.mean()).square().sum()).item()


def _check(activations: Tensor, labels: Tensor, method: str, l2: float, held_out: float) -> None:
    if method not in ("closed_form", "logistic"):
        raise ValueError(f"method={method!r}; allowed: 'closed_form', 'logistic'")
    if activations.ndim != 2 or labels.shape != activations.shape[:1]:
        raise ValueError(
            f"activations: shape {list(activations.shape)} and labels {list(labels.shape)}: not [row d_in] and [row]"
        )
    if l2 < 0 or not 0 < held_out < 1:
        raise ValueError(f"l2={l2}, held_out={held_out}; l2 is at least 0, held_out lies between 0 and 1")
    if labels.is_floating_point() and method == "logistic":
        raise ValueError("method='logistic' tells classes apart: give integer labels, or method='closed_form'")
    if not (activations.isfinite().all() and labels.isfinite().all()):
        raise ValueError("activations or labels are NaN or infinite")
