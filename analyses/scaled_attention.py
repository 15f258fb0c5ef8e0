"""Why are attention scores divided by √d_head, and what becomes of a softmax that reads them undivided?

1. Scores: one layer at initialisation (`init_mode="kaiming"`, normed input: queries and keys of variance 1), each query
   with `n_keys` keys. q · k has the variance d_head; divided by √d_head, 1.
2. Softmax, at several d_head: entropy, largest weight, response Σ p (1 - p), which is the sum of ∂p/∂score of each
   weight by its own score, and the gradient of the loss that reaches q. Of n Gaussian scores of deviation s the theory
   has the entropy ln n - s²/2 while s² < 2 ln n; beyond, the softmax freezes onto few keys (Derrida 1981).
3. Training: the same of models trained on characters, both ways, and their loss on held-out text.

Vaswani et al. 2017, https://arxiv.org/abs/1706.03762, section 3.2.1.

Finding, of Shakespeare's plays (1.1 million characters, 4 layers, d_model 64, 500 steps, three seeds; 26 November 2026,
a thread of an x86-64 CPU):

    d_head  divided by  variance  entropy  largest weight  response  loss           entropy in training
        16  √d_head         0.99     3.70            0.10      0.96  2.139 ± 0.018  3.59 → 2.18
        16  1              15.86     1.44            0.57      0.57  2.377 ± 0.005  1.58 → 0.67
        64  √d_head         0.99     3.70            0.10      0.96  2.126 ± 0.022  3.60 → 1.39
        64  1              63.07     0.60            0.79      0.30  2.500 ± 0.020  0.69 → 0.22

Divided, the softmax is the same at every d_head, and its entropy that of the theory, 3.66. Undivided it saturates, the
more the larger d_head, and training does not undo that: it goes on from there. One thing is not as one reads it: the
mean gradient that reaches q does not shrink (0.4 divided; undivided 0.7 at d_head 16, 0.9 at 1024), since what is
not divided is not divided on the way back either. It is the typical gradient, the median, that vanishes: 0.57, 0.43,
0.12, 0.00 at d_head 16, 64, 256, 1024. A few undecided queries get all of it.
"""

from dataclasses import dataclass
from itertools import product
from math import log, sqrt
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
from analyses.trained import Log, characters, mean_and_error, trained
from interp import GPTConfig, HookedGPT, plots
from interp.training import Run, TrainingConfig
from interp.training.measures import of_steps

_SCALES = ("√d_head", "1")  # what scores are divided by
_OF_SOFTMAX = ("entropy", "largest", "response")
_AT_FIRST = ("variance", *_OF_SOFTMAX, "q_gradient", "typical_q_gradient")


@dataclass(frozen=True)
class Setting:
    """What is measured and trained."""

    text: Path | None = None  # a file to train on; without one, the standard library
    most: int = 300_000  # characters of it that are read
    d_heads: tuple[int, ...] = (4, 16, 64, 256)  # at initialisation
    n_keys: int = 64  # of each query there
    rows: int = 4  # of so many tokens each
    trained_d_heads: tuple[int, ...] = (16, 64)  # of the models that are trained
    n_layers: int = 2  # of these
    d_model: int = 32  # the width of all
    n_heads: int = 2
    lr: float = 3e-3  # the learning rate
    steps: int = 200  # of training
    batch_size: int = 16  # rows of a step
    n_ctx: int = 32  # characters of a row
    measures: int = 8  # times that the softmax is looked at in training
    seeds: int = 2  # models of each kind
    seed: int = 0  # the first of them

    def __post_init__(self) -> None:
        if self.measures < 2 or min(self.n_keys, self.n_ctx) < 4:
            said = f"measures={self.measures}, n_keys={self.n_keys}, n_ctx={self.n_ctx}"
            raise ValueError(f"{said}; two measures at least, of the beginning and the end, and four keys")
        if min(self.seeds, self.rows) < 1:
            raise ValueError(f"seeds={self.seeds}, rows={self.rows}; one at least of each")

    def model(self, d_head: int, scale: str, seed: int, **choices: Any) -> HookedGPT:
        """One of them, as it is at first."""
        divided_by = sqrt(d_head) if scale == _SCALES[0] else 1.0
        sizes = {"d_model": self.d_model, "n_heads": self.n_heads, "d_head": d_head, "attn_scale": divided_by}
        return HookedGPT(GPTConfig(**sizes, init_mode="kaiming", seed=seed, **choices))


def main(
    setting: Annotated[Setting, tyro.conf.arg(name="")] = Setting(),
    out: Path = Path("runs/scaled_attention"),
    png: bool = False,
) -> None:
    """Measure the softmax of scores that are divided by √d_head, and of undivided ones, at first and over training.

    Args:
        setting: what is measured and trained.
        out: where the results go. Trainings that were stopped go on there.
        png: draw the figures as PNG, too.
    """
    found = study(setting, out / "runs")
    models = {name: Run(out / "runs" / name).model() for name in found.findings["runs"]}
    save(found, out, "scaled_attention", config=vars(setting), models=models, png=png)


def study(setting: Setting, folder: Path | None = None, *, progress: bool = True) -> Found:
    """All of it; trainings are kept in a folder, if one is given."""
    seeds = range(setting.seed, setting.seed + setting.seeds)
    kinds = list(product(setting.d_heads, _SCALES, seeds))
    bar = tqdm(kinds, desc="initialisations", delay=1.0, disable=not progress)
    at_first = [initial(setting, *kind) for kind in bar]
    shape = (len(setting.d_heads), len(_SCALES), len(seeds))
    result = Dataset(
        {
            name: (("d_head", "scale", "seed"), np.reshape([each[name] for each in at_first], shape))
            for name in at_first[0]
        },
        coords={"d_head": list(setting.d_heads), "scale": list(_SCALES), "seed": seeds},
        attrs={"method": "scaled attention", "n_keys": setting.n_keys},
    )
    trainings, runs = _trainings(setting, folder, progress)
    result = result.merge(trainings)
    findings = {**_findings(result), "runs": runs}
    return Found(result, _figures(result), _table(result, findings), findings)


def of_softmax(pattern: Float[Tensor, "*rows key_pos"]) -> dict[str, Float[Tensor, "*rows"]]:
    """The entropy in nats, the largest weight, and Σ p (1 - p), of each row."""
    return {
        "entropy": torch.special.entr(pattern).sum(-1),
        "largest": pattern.amax(-1),
        "response": 1 - pattern.square().sum(-1),
    }


def initial(setting: Setting, d_head: int, scale: str, seed: int) -> dict[str, float]:
    """Of a new layer whose queries see all keys: means over queries, and the median of the gradient at q."""
    sizes = {"n_layers": 1, "n_ctx": setting.n_keys, "d_vocab": setting.n_keys, "attn_only": True}
    choices = {"positional_embedding_type": None, "attention_dir": "bidirectional"}
    model = setting.model(d_head, scale, seed, **sizes, **choices)
    draw = torch.Generator().manual_seed(seed)
    tokens = torch.stack([torch.randperm(setting.n_keys, generator=draw) for _ in range(setting.rows)])
    names = [f"blocks.0.attn.hook_{name}" for name in ("q", "attn_scores", "pattern")]
    _, cache = model.run_with_cache(tokens, names_filter=names, incl_bwd=True, return_type="loss")
    found = {name: each.mean() for name, each in of_softmax(cache["pattern", 0].detach()).items()}
    asked = cache["blocks.0.attn.hook_q_grad"][:, :-1].norm(dim=-1)  # the last is asked for nothing
    gradient = asked * asked[..., 0].numel()  # of the query's own prediction, in place of the mean's
    found |= {"variance": cache["attn_scores", 0].detach().var(), "q_gradient": gradient.mean()}
    return {name: float(each) for name, each in (found | {"typical_q_gradient": gradient.median()}).items()}


def _trainings(setting: Setting, folder: Path | None, progress: bool) -> tuple[Dataset, list[str]]:
    """The softmax over training, the losses of held-out text at its end, and what the runs are called."""
    text, seeds = characters(setting.text, setting.most), range(setting.seed, setting.seed + setting.seeds)
    asked = text.asked(setting.n_ctx, 8_000)
    tokens = asked.batch(0, min(16, asked.n_chunks)).tokens

    @torch.no_grad()
    def look(model: HookedGPT) -> dict[str, list[float]]:
        """By layer, of the queries that have at least half of the context to look at."""
        _, cache = model.run_with_cache(tokens, names_filter="blocks.*.attn.hook_pattern")
        layers = [of_softmax(cache["pattern", i][:, :, setting.n_ctx // 2 :]) for i in range(model.cfg.n_layers)]
        return {name: [float(layer[name].mean()) for layer in layers] for name in _OF_SOFTMAX}

    options: dict[str, Any] = {"schedule": "constant", "weight_decay": 0.0, "measures": setting.measures}
    cfg = TrainingConfig(steps=setting.steps, batch_size=setting.batch_size, lr=setting.lr, **options)
    sizes = {"n_layers": setting.n_layers, "n_ctx": setting.n_ctx, "d_vocab": text.tokenizer.d_vocab}
    kinds, logs = list(product(setting.trained_d_heads, _SCALES, seeds)), dict[str, Log]()
    for d_head, scale, seed in tqdm(kinds, desc="trainings", delay=1.0, disable=not progress):
        run = f"d_head{d_head}-{'divided' if scale == _SCALES[0] else 'undivided'}-seed{seed}"
        model, where = setting.model(d_head, scale, seed, **sizes), folder and folder / run
        data = text.read(setting.n_ctx, seed)
        logs[run] = trained(model, data, cfg, where, held_out=asked, measures={"softmax": look})
    shape, axes = (len(setting.trained_d_heads), len(_SCALES), len(seeds)), ("trained_d_head", "scale", "seed")
    losses = np.reshape([float(of_steps(log, "held_out_loss")[-1]) for log in logs.values()], shape)
    found: dict[str, Any] = {"held_out_loss": (axes, losses)}
    for name in _OF_SOFTMAX:
        of_runs = [of_steps(log, f"softmax.{name}", "layer") for log in logs.values()]
        values = np.stack([each.to_numpy() for each in of_runs])
        found[f"trained_{name}"] = (*axes, "step", "layer"), values.reshape(*shape, *values.shape[1:])
        found["step"] = of_runs[0].step.values
    places = {"trained_d_head": list(setting.trained_d_heads), "scale": list(_SCALES), "seed": seeds}
    return Dataset(found, places), list(logs)


def _findings(result: Dataset) -> dict[str, Any]:
    """Means over seeds, each with its standard error: by d_head and scale, at first and of what is trained."""
    told = lambda of: mean_and_error(of.values.tolist())
    at_first = {
        scale: {
            d_head: {name: told(result[name].sel(d_head=d_head, scale=scale)) for name in _AT_FIRST}
            for d_head in result.d_head.values.tolist()
        }
        for scale in _SCALES
    }
    trained_as = lambda here: {
        "loss": told(here.held_out_loss),
        **{name: here[f"trained_{name}"].mean(["seed", "layer"]).values[[0, -1]].tolist() for name in _OF_SOFTMAX},
    }
    after = {
        scale: {
            d_head: trained_as(result.sel(scale=scale, trained_d_head=d_head))
            for d_head in result.trained_d_head.values.tolist()
        }
        for scale in _SCALES
    }
    uniform = log(result.attrs["n_keys"])
    return {"entropy_in_theory": uniform - 1 / 2, "uniform": uniform, "at_first": at_first, "trained": after}


def _table(result: Dataset, findings: dict[str, Any]) -> str:
    """What is printed."""
    at_first = [
        [d_head, scale, *(f"{of[name][0]:.2f}" for name in _AT_FIRST)]
        for d_head in result.d_head.values.tolist()
        for scale, by_d_head in findings["at_first"].items()
        for of in [by_d_head[d_head]]
    ]
    after = [
        [d_head, scale, "{:.3f} ± {:.3f}".format(*of["loss"]), *("{:.2f} → {:.2f}".format(*of[n]) for n in _OF_SOFTMAX)]
        for d_head in result.trained_d_head.values.tolist()
        for scale, by_d_head in findings["trained"].items()
        for of in [by_d_head[d_head]]
    ]
    return "\n".join(
        [
            f"At initialisation, of {result.attrs['n_keys']} keys; the entropy of scores of variance 1 is "
            f"{findings['entropy_in_theory']:.2f} in theory, of equal weights {findings['uniform']:.2f}:",
            table(["d_head", "divided by", *(name.replace("_", " ") for name in _AT_FIRST)], at_first),
            "\nTrained: the loss of held-out text; the softmax at first, and then:",
            table(["d_head", "divided by", "loss", *_OF_SOFTMAX], after),
        ]
    )


def _figures(result: Dataset) -> dict[str, Any]:
    """The softmax by d_head, and over training."""
    titles = {"entropy": "Entropy of attention", "largest": "Largest weight", "response": "Σ p (1 - p)"}
    figures = dict[str, Any]()
    for name, title in titles.items():
        of_scale = result[name].mean("seed").transpose("scale", "d_head").rename(name)
        named = of_scale.assign_coords(scale=[f"divided by {scale}" for scale in _SCALES])
        figures[name] = plots.lines(named, title=f"{title} at first")
        over = result[f"trained_{name}"].mean(["seed", "layer"])
        logs = {
            f"d_head {d_head}, by {scale}": [
                {"step": step, name: float(over.sel(trained_d_head=d_head, scale=scale, step=step))}
                for step in over.step.values.tolist()
            ]
            for d_head, scale in product(over.trained_d_head.values.tolist(), _SCALES)
        }
        figures[f"trained_{name}"] = plots.training_curves(logs, steps="log", title=f"{title} in training")
    return figures


if __name__ == "__main__":
    start(main, __doc__)
