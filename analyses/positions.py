"""How does a transformer know where it is, and what happens beyond the length that it was trained on?

1. Models with learned, sinusoidal, rotary and no positions are trained on characters, on rows of `n_ctx`; they have
   room for twice as many, so that the learned positions of the second half are there, and untrained.
2. Loss by position, on held-out rows of twice the length: in the half of the trained length that sees most, and beyond.
3. Heads: attention by distance, of queries at the end of the trained length and as far beyond it; the head that looks
   most at the previous character.
4. Knowledge: how much of the variance of the position a linear probe reads off the stream before each layer and behind
   the last, on held-out rows (R²).

Vaswani et al. 2017, https://arxiv.org/abs/1706.03762; Su et al. 2021, https://arxiv.org/abs/2104.09864; Press et al.
2021, https://arxiv.org/abs/2108.12409; Haviv et al. 2022, https://arxiv.org/abs/2203.16634.

Finding, of Shakespeare's plays (1.1 million characters, 4 layers, d_model 64, trained on 64 characters, 600 steps,
three seeds; 26 November 2026, a thread of an x86-64 CPU), with the losses at 32 to 63, 64 to 95 and 96 to 127, the
attention of one head to the previous character, and what is known of the position before the first layer and behind the
last:

    positions   within       beyond       far beyond   looks back  beyond  known
    learned     2.08 ± 0.01  2.98 ± 0.03  3.01 ± 0.02        0.36    0.01  0.97, 0.85
    sinusoidal  2.12 ± 0.01  3.98 ± 0.48  4.30 ± 0.80        0.31    0.00  1.00, 0.95
    rotary      1.89 ± 0.01  1.90 ± 0.01  2.12 ± 0.07        0.54    0.40  0.00, 0.07
    none        2.27 ± 0.00  2.36 ± 0.00  2.39 ± 0.01        0.08    0.03  0.00, 0.69

Rotary positions are the best within the trained length, and go on for four fifths as much again before they fail, too.
Learned and sinusoidal ones fail at once: their heads lose the previous character. Without any, a causal model predicts
not much worse, and comes to know its position within two layers, as Haviv et al. found; no head looks back by one, and
beyond the trained length its loss rises by a tenth of a nat. In the small setting the order is the same, but rotary
positions fail earlier, and a stream that is told nothing comes to know less, 0.16.
"""

from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
import tyro
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm
from xarray import Dataset

from analyses.output import Found, save, start, table
from analyses.trained import characters, mean_and_error, trained
from interp import GPTConfig, HookedGPT, lens, plots
from interp.config import PositionalEmbedding
from interp.hooks import HookPoint
from interp.training import Batch, Run, TrainingConfig

_KINDS: dict[str, PositionalEmbedding | None] = {
    "learned": "standard",
    "sinusoidal": "sinusoidal",
    "rotary": "rotary",
    "none": None,
}
_PLACES = ("within", "beyond")  # the trained length


@dataclass(frozen=True)
class Setting:
    """What is trained, and asked."""

    text: Path | None = None  # a file to train on; without one, the standard library
    most: int = 300_000  # characters of it that are read
    n_ctx: int = 32  # characters of a row that is trained on
    n_layers: int = 2
    d_model: int = 32
    n_heads: int = 4
    lr: float = 1e-2  # the learning rate
    steps: int = 300  # of training
    batch_size: int = 16  # rows of a step
    rows: int = 200  # of held-out text, at most, of twice the length
    seeds: int = 2  # models of each kind
    seed: int = 0  # the first of them

    def __post_init__(self) -> None:
        if self.n_ctx < 8 or self.n_ctx % 4:
            raise ValueError(f"n_ctx={self.n_ctx}; a multiple of 4, and 8 at least: halves of it are compared")
        if self.seeds < 1 or self.rows < 4:
            raise ValueError(f"seeds={self.seeds}, rows={self.rows}; one seed at least, and four rows")


def main(
    setting: Annotated[Setting, tyro.conf.arg(name="")] = Setting(),
    out: Path = Path("runs/positions"),
    png: bool = False,
) -> None:
    """Train models with four kinds of positions, and ask them about text twice as long.

    Args:
        setting: what is trained, and asked.
        out: where the results go. Trainings that were stopped go on there.
        png: draw the figures as PNG, too.
    """
    found = study(setting, out / "runs")
    models = {name: Run(out / "runs" / name).model() for name in found.findings["runs"]}
    save(found, out, "positions", config=vars(setting), models=models, png=png)


def study(setting: Setting, folder: Path | None = None, *, progress: bool = True) -> Found:
    """All of it; trainings are kept in a folder, if one is given."""
    text, n_ctx = characters(setting.text, setting.most), setting.n_ctx
    longer = text.asked(2 * n_ctx)
    batch = longer.batch(0, min(setting.rows, longer.n_chunks))
    seeds, runs, measured = range(setting.seed, setting.seed + setting.seeds), list[str](), list[dict[str, Tensor]]()
    sizes = {"n_layers": setting.n_layers, "d_model": setting.d_model, "n_heads": setting.n_heads, "n_ctx": 2 * n_ctx}
    options: dict[str, Any] = {"lr": setting.lr, "warmup": setting.steps // 15, "weight_decay": 0.0}
    cfg = TrainingConfig(steps=setting.steps, batch_size=setting.batch_size, **options)
    for kind, seed in tqdm(list(product(_KINDS, seeds)), desc="trainings", delay=1.0, disable=not progress):
        choices: dict[str, Any] = {"positional_embedding_type": _KINDS[kind], "seed": seed}
        model = HookedGPT(GPTConfig(**sizes, d_vocab=text.tokenizer.d_vocab, **choices))
        runs.append(f"{kind}-seed{seed}")
        trained(model, text.read(n_ctx, seed), cfg, folder and folder / runs[-1])
        seen = attention(model, batch.tokens, n_ctx)
        back = seen.flatten(1, 2)[:, seen[0, ..., 1].argmax()]  # of the head that looks most at the previous character
        of_text = {"loss": losses(model, batch), "known": known(model, batch, n_ctx)}
        measured.append({**of_text, "attention": seen, "looks_back": back})
    of_heads = ["place", "layer", "head", "distance"]
    axes = {"loss": ["pos"], "known": ["stream"], "attention": of_heads, "looks_back": ["place", "distance"]}
    stacked = {name: torch.stack([each[name] for each in measured]).numpy() for name in axes}
    result = Dataset(
        {
            name: (("kind", "seed", *of), stacked[name].reshape(len(_KINDS), len(seeds), *stacked[name].shape[1:]))
            for name, of in axes.items()
        },
        coords={"kind": list(_KINDS), "seed": seeds, "place": list(_PLACES), "distance": range(n_ctx // 2)},
        attrs={"method": "positions", "n_ctx": n_ctx},
    )
    findings = {**_findings(result), "runs": runs}
    return Found(result, _figures(result), _table(findings), findings)


@torch.no_grad()
def losses(model: HookedGPT, batch: Batch) -> Float[Tensor, " pos"]:
    """The mean over rows of what each position's prediction loses."""
    logits = model(batch.tokens).transpose(1, 2)
    return F.cross_entropy(logits, batch.targets, reduction="none").mean(0)


@torch.no_grad()
def attention(
    model: HookedGPT, tokens: Int[Tensor, "row pos"], n_ctx: int
) -> Float[Tensor, "place layer head distance"]:
    """The mean attention to each distance: of the last half of the trained length, and of the last half of all."""
    found, half = torch.zeros(len(_PLACES), model.cfg.n_layers, model.cfg.n_heads, n_ctx // 2), n_ctx // 2

    def look(pattern: Tensor, hook: HookPoint) -> None:
        for i, end in enumerate((n_ctx, 2 * n_ctx)):
            for distance in range(half):
                weights = pattern.diagonal(-distance, 2, 3)[..., end - half - distance : end - distance]
                found[i, hook.layer(), :, distance] = weights.mean((0, 2))

    with model.hooks([("blocks.*.attn.hook_pattern", look)]):
        model(tokens, return_type=None)
    return found


@torch.no_grad()
def known(model: HookedGPT, batch: Batch, n_ctx: int) -> Float[Tensor, " stream"]:
    """The share of the position's variance that a linear probe reads off the stream, before each layer, and at the end.

    Of the trained length alone; rows that the probe was not fitted to.
    """
    names = [f"blocks.{layer}.hook_resid_pre" for layer in range(model.cfg.n_layers)]
    names.append(f"blocks.{model.cfg.n_layers - 1}.hook_resid_post")
    tokens = batch.tokens[:, :n_ctx]
    _, cache = model.run_with_cache(tokens, names_filter=names)
    row, pos = (each.flatten() for each in torch.meshgrid(*map(torch.arange, tokens.shape), indexing="ij"))
    probes = [lens.linear_probe(cache[name].flatten(0, 1), pos.double(), groups=row) for name in names]
    return torch.tensor([each.held_out for each in probes])


def _findings(result: Dataset) -> dict[str, Any]:
    """Losses, the most that a head looks back by one, and what is known of the position, by kind."""
    n_ctx = result.attrs["n_ctx"]
    spans = {
        "within": (n_ctx // 2, n_ctx),
        "beyond": (n_ctx, 3 * n_ctx // 2),
        "far beyond": (3 * n_ctx // 2, 2 * n_ctx),
    }
    found = dict[str, Any]()
    for kind in _KINDS:
        here = result.sel(kind=kind)
        loss = {name: here.loss.isel(pos=slice(*span)).mean("pos") for name, span in spans.items()}
        previous = here.looks_back.sel(distance=1)
        found[kind] = {
            "loss": {name: mean_and_error(of.values.tolist()) for name, of in loss.items()},
            "rise": mean_and_error((loss["far beyond"] - loss["within"]).values.tolist()),
            "previous": {place: mean_and_error(previous.sel(place=place).values.tolist()) for place in _PLACES},
            "known": here.known.mean("seed").values.tolist(),
        }
    return found


def _table(findings: dict[str, Any]) -> str:
    """What is printed."""
    told = lambda pair: f"{pair[0]:.2f} ± {pair[1]:.2f}"
    rows = [
        [
            kind,
            *(told(of) for of in findings[kind]["loss"].values()),
            *(f"{findings[kind]['previous'][place][0]:.2f}" for place in _PLACES),
            " → ".join(f"{of:z.2f}" for of in findings[kind]["known"]),
        ]
        for kind in _KINDS
    ]
    heads = ["positions", *findings["none"]["loss"], "previous within", "beyond", "position known"]
    return "\n".join(
        [
            "Loss in the second half of the trained length, and in the halves of as much beyond it; the most that a",
            "head looks at the previous character; R² of a linear probe for the position, before each layer and last:",
            table(heads, rows),
        ]
    )


def _figures(result: Dataset) -> dict[str, Any]:
    """Loss by position, where the head looks that looks back most, and what is known of the position."""
    n_ctx, back = result.attrs["n_ctx"], result.looks_back.mean("seed").rename("attention")
    titles = {"within": f"Attention by distance, up to {n_ctx}", "beyond": f"Attention by distance, beyond {n_ctx}"}
    figures = {"loss": plots.lines(result.loss.mean("seed"), title=f"Loss by position, trained on {n_ctx}")}
    for place, title in titles.items():
        figures[f"attention_{place}"] = plots.lines(back.sel(place=place), title=title)
    known = result.known.mean("seed").rename("R²").rename(stream="layer")
    return figures | {"known": plots.lines(known, title="Position read off the stream")}


if __name__ == "__main__":
    start(main, __doc__)
