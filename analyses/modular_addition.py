"""By what rule does a network add modulo p, and how does the rule come about behind what was learned by heart?

1. Fourier pictures of a model that reads `a b =`: the embedding's power by frequency; how much of a neuron is waves of
   one frequency in a and b; how much of the logits is cos(w(a + b − c)) of a few key frequencies w.
2. Ablation: of the logits over all pairs, the waves cos(w(a + b)), sin(w(a + b)) of the key frequencies are taken away,
   or they alone are kept; as many other frequencies are the control. An untrained model of the same shape is one, too.
3. Along a run: losses on pairs trained on and on others; the restricted loss, on others with the key frequencies of the
   final model alone; the excluded loss, on pairs trained on without them. The first falls as the rule comes, the second
   rises, both before the loss on others falls.

Nanda et al. 2023, https://arxiv.org/abs/2301.05217.

Finding, of the bundled model (p = 113): the embedding has nine tenths of its power at 8 of 56 frequencies, but what the
logits use is 1, 7, 19, and a little of 47. The 8 have the doubles of 1, 7 and 19 among them, which the logits do not
need. 90 % of the logits are the key cosines (the paper: 95 %), and 40 % of the neurons waves of one frequency by more
than 85 % (the paper: 84 %); its run ends sooner after the loss on others has fallen. Without the key frequencies its
answers are far worse than chance, with them alone the loss is two thousand times smaller than with all. A run with
p = 29 has learned its pairs by heart at step 120, where the excluded loss is above chance's already; the restricted one
is low at 200, the loss on others at 380. So it is with two other seeds: 120, 120 to 240, and 420 to 480.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm.auto import tqdm
from xarray import DataArray, Dataset

from analyses.output import Found, save, start, table
from analyses.trained import trained
from interp import GPTConfig, HookedGPT, plots
from interp.training import Batch, FullBatch, Run, TrainingConfig, modular_addition
from interp.training.measures import fourier_power

_DRAWS = 4  # of other frequencies
_LOSSES = ("train", "others", "restricted", "excluded")
Logits = Float[Tensor, "pair c"]


def main(
    model: str = "modular-addition",
    run: Path | None = None,
    share: float | None = None,
    p: int = 29,
    steps: int = 800,
    seed: int = 0,
    out: Path = Path("runs/modular_addition"),
    png: bool = False,
) -> None:
    """Look at the frequencies that a model adds with, and at how they came along a run.

    Args:
        model: the bundled one, or a folder of one that was trained alike.
        run: the folder of a run of the preset modular-addition with its checkpoints: its last model is studied. Without
            one, a small run is made.
        share: of the pairs that are trained on: 0.3 in the preset, 0.6 in the small run.
        p: of the small run.
        steps: of the small run.
        seed: of the small run, of its pairs or the given run's, and of the draws of other frequencies.
        out: where the results go, and the small run.
        png: draw the figures as PNG, too.
    """
    if run is None:
        studied, share = HookedGPT.from_pretrained(model), share or 0.6
        given = small_run(out / "runs" / f"{p}-{share}-{steps}-{seed}", p, share, steps, seed)
    else:
        given, share = Run(run), share or 0.3
        studied = given.model()
    pairs, _ = modular_addition(_modulus(given.model()), share, seed)
    if FullBatch(pairs).identity() != given.config["data"]:
        raise ValueError(
            f"{given.path} was not trained on the pairs of share={share}, seed={seed}: say --share, --seed"
        )
    found = study(studied, pairs, {step: given.model(step) for step in given.steps}, seed=seed)
    config = {"model": model, "run": run, "share": share, "p": p, "steps": steps, "seed": seed}
    models = {model if run is None else str(run): studied, str(given.path): given.model()}
    save(found, out, "modular_addition", config=config, models=models, png=png)


def small_run(folder: Path, p: int = 29, share: float = 0.6, steps: int = 800, seed: int = 0) -> Run:
    """A run that groks within seconds; what the folder has of it is not trained again."""
    sizes: dict[str, Any] = {"n_layers": 1, "d_model": 48, "n_heads": 4, "d_mlp": 192, "n_ctx": 3}
    bare: dict[str, Any] = {"bias_qkv": False, "bias_attn_out": False, "bias_mlp": False, "normalization_type": None}
    words: dict[str, Any] = {"d_vocab": p + 1, "d_vocab_out": p, "default_prepend_bos": False}
    model = HookedGPT(GPTConfig(act_fn="relu", seed=seed, initializer_range=0.115, **sizes, **bare, **words))
    pairs, _ = modular_addition(p, share, seed)
    learning: dict[str, Any] = {"lr": 2e-3, "schedule": "constant", "weight_decay": 2.0, "betas": (0.9, 0.98)}
    exact: dict[str, Any] = {"clip": None, "loss_in_float64": True, "last_only": True}
    kept: dict[str, Any] = {"checkpoint_every": max(1, steps // 40), "keep": steps}
    trained(
        model, FullBatch(pairs), TrainingConfig(steps=steps, batch_size=len(pairs), **learning, **exact, **kept), folder
    )
    return Run(folder)


def study(model: HookedGPT, pairs: Batch, checkpoints: Mapping[int, HookedGPT], *, seed: int = 0) -> Found:
    """All of it; `checkpoints` are of a run that was trained on `pairs`, by their steps."""
    final = checkpoints[max(checkpoints)]
    models = {"model": model, "untrained": HookedGPT(model.cfg), "run": final}
    pictures = {name: picture(each, seed) for name, each in models.items()}
    key = pictures["run"][1]["key_frequencies"]
    curves = along(checkpoints, pairs, key)
    result = pictures["model"][0].merge(curves).assign_attrs(method="modular addition", model=model.fingerprint())
    findings = {name: of for name, (_, of) in pictures.items()} | {"phases": _phases(curves, _modulus(final))}
    return Found(result, _figures(result, findings), _table(findings), findings)


def picture(model: HookedGPT, seed: int = 0) -> tuple[Dataset, dict[str, Any]]:
    """What a model has at each frequency, and what that says in numbers."""
    p = _modulus(model)
    logits, neurons = _over_all_pairs(model)
    embedding = fourier_power(model, p)
    of_neurons, of_logits = neuron_shares(neurons, p), logit_shares(logits, p)
    key, largest = fewest(of_logits, 0.999), of_neurons.max(0).values
    axes = {"frequency": range(1, p // 2 + 1)}
    whole = of_neurons.mean(1)
    shares = torch.stack((embedding.double(), whole.double(), of_logits.double()))
    result = Dataset(
        {"share": (("of", "frequency"), shares.numpy()), "neurons": (("frequency", "neuron"), of_neurons.numpy())},
        coords=axes | {"of": ["embedding", "neurons", "logits"]},
    )
    findings = {
        "p": p,
        "embedding_frequencies": fewest(embedding, 0.9),
        "embedding_gini": gini(embedding),
        "key_frequencies": key,
        "logits_explained": float(of_logits[[k - 1 for k in key]].sum()),
        "neurons_explained": float((largest > 0.85).double().mean()),
        "neurons_explained_median": float(largest.median()),
        "neurons_at_key": float(torch.isin(of_neurons.argmax(0) + 1, torch.tensor(key)).double().mean()),
        "ablated": _ablated(logits, p, key, seed),
    }
    return result, findings


def along(checkpoints: Mapping[int, HookedGPT], pairs: Batch, key: Sequence[int]) -> Dataset:
    """The losses of a run, the Gini coefficient of its embedding's power, and the squares of its weights, [step]."""
    rows = list[list[float]]()
    p, steps = _modulus(checkpoints[min(checkpoints)]), sorted(checkpoints)
    of, is_trained = waves(p, key), torch.zeros(p * p, dtype=torch.bool)
    is_trained[pairs.tokens[:, 0] * p + pairs.tokens[:, 1]] = True
    for step in tqdm(steps, desc="checkpoints", delay=1.0):
        model = checkpoints[step]
        logits, _ = _over_all_pairs(model)
        losses = [_loss(logits, p, is_trained), _loss(logits, p, ~is_trained)]
        losses += [_loss(only(logits, of), p, ~is_trained), _loss(without(logits, of), p, is_trained)]
        weights = sum(float(each.detach().square().sum()) for each in model.parameters())
        rows.append([*losses, gini(fourier_power(model, p)), weights])
    columns = dict(zip([*(f"loss_{name}" for name in _LOSSES), "gini", "weights"], np.array(rows).T, strict=True))
    return Dataset({name: ("step", values) for name, values in columns.items()}, coords={"step": steps})


def waves(p: int, frequencies: Sequence[int]) -> Float[Tensor, "wave pair"]:
    """cos(w(a + b)) and sin(w(a + b)) of each frequency, over all pairs, orthonormal."""
    a, b = torch.meshgrid(torch.arange(p), torch.arange(p), indexing="ij")
    angle = 2 * torch.pi / p * torch.tensor(list(frequencies)).double()[:, None] * (a + b).flatten()
    return torch.cat((angle.cos(), angle.sin())) * 2**0.5 / p


def without(logits: Logits, of: Float[Tensor, "wave pair"]) -> Logits:
    """The logits less these waves."""
    return logits - of.mT @ (of @ logits)


def only(logits: Logits, of: Float[Tensor, "wave pair"]) -> Logits:
    """The logits' mean over all pairs, and these waves."""
    return logits.mean(0) + of.mT @ (of @ logits)


def logit_shares(logits: Logits, p: int) -> Float[Tensor, " frequency"]:
    """How much of the logits, but for their mean over c, is cos(w(a + b − c)), by frequency."""
    centred = logits - logits.mean(1, keepdim=True)
    a, b = torch.meshgrid(torch.arange(p), torch.arange(p), indexing="ij")
    by_rest = centred.gather(1, ((a + b).flatten()[:, None] - torch.arange(p)) % p).mean(0)  # [(a + b - c) % p]
    return (2 * torch.fft.rfft(by_rest).real[1:] / p).square() / 2 / centred.square().mean()


def neuron_shares(neurons: Float[Tensor, "pair neuron"], p: int) -> Float[Tensor, "frequency neuron"]:
    """How much of each neuron, but for its mean, is waves of one frequency in a, in b, and their products."""
    power = torch.fft.fft2(neurons.unflatten(0, (p, p)), dim=(0, 1)).abs().square()
    power[0, 0] = 0
    own = torch.stack([power[[0, k, -k]][:, [0, k, -k]].sum((0, 1)) for k in range(1, p // 2 + 1)])
    return own / power.sum((0, 1)).clamp(min=1e-12)


def fewest(shares: Float[Tensor, " frequency"], most: float) -> list[int]:
    """The fewest frequencies that hold so much of what all hold."""
    values, order = shares.sort(descending=True)
    n = int((values.cumsum(0) < most * values.sum()).sum()) + 1
    return sorted((order[:n] + 1).tolist())


def gini(shares: Float[Tensor, " frequency"]) -> float:
    """0 where all have the same, towards 1 where one has all."""
    lowest_first = shares.double().sort().values
    ranks = torch.arange(1, len(shares) + 1)
    return float(2 * (ranks * lowest_first).sum() / (len(shares) * lowest_first.sum()) - 1 - 1 / len(shares))


@torch.no_grad()
def _over_all_pairs(model: HookedGPT) -> tuple[Logits, Float[Tensor, "pair neuron"]]:
    """The logits and the neurons behind `=`."""
    p, point = _modulus(model), f"blocks.{model.cfg.n_layers - 1}.mlp.hook_post"
    every, _ = modular_addition(p, 1.0)
    order = (every.tokens[:, 0] * p + every.tokens[:, 1]).argsort()
    logits, cache = model.run_with_cache(every.tokens[order], names_filter=[point])
    return logits[:, -1].double(), cache[point][:, -1]


def _modulus(model: HookedGPT) -> int:
    """The p of a model that reads `a b =`."""
    p, cfg = model.cfg.d_vocab_out, model.cfg
    if cfg.d_vocab != p + 1 or cfg.n_ctx < 3 or cfg.attn_only or p % 2 == 0:
        raise ValueError(
            f"a model of {cfg.d_vocab} tokens, {p} of them answers, context {cfg.n_ctx}"
            f"{', without MLPs' if cfg.attn_only else ''}: one that adds modulo an odd p reads p + 1, and has MLPs"
        )
    return p


def _loss(logits: Logits, p: int, rows: Bool[Tensor, " pair"] | slice = slice(None)) -> float:
    """The mean over these pairs."""
    return F.cross_entropy(logits[rows], _sums(p)[rows]).item()


def _sums(p: int) -> Tensor:
    return (torch.arange(p)[:, None] + torch.arange(p)).flatten() % p


def _ablated(logits: Logits, p: int, key: list[int], seed: int) -> dict[str, dict[str, float]]:
    """Loss and accuracy over all pairs, with the logits as they are, without key frequencies, with them alone, and
    without as many others, the worst of some draws."""
    others = torch.tensor([k for k in range(1, p // 2 + 1) if k not in key])
    generator, of = torch.Generator().manual_seed(seed), waves(p, key)
    draws = [others[torch.randperm(len(others), generator=generator)[: len(key)]].tolist() for _ in range(_DRAWS)]
    kinds = {"whole": logits, "without key": without(logits, of), "key only": only(logits, of)}
    if len(others) >= len(key):
        kinds["without others"] = max((without(logits, waves(p, few)) for few in draws), key=lambda x: _loss(x, p))
    right = {name: float((x.argmax(1) == _sums(p)).double().mean()) for name, x in kinds.items()}
    return {name: {"loss": _loss(x, p), "accuracy": right[name]} for name, x in kinds.items()}


def _phases(curves: Dataset, p: int) -> dict[str, int | None]:
    """The first measured step from which each loss stays below a tenth of chance's; where the excluded one, having been
    least, begins to rise, and from which it stays above chance's."""
    steps, chance = curves.step.values.tolist(), float(np.log(p))
    stays = lambda holds: next((steps[i] for i in range(len(steps)) if all(holds[i:])), None)
    falls = {name: stays((curves[f"loss_{name}"] < 0.1 * chance).values.tolist()) for name in _LOSSES[:3]}
    excluded = curves.loss_excluded.values
    rises = {"excluded_least": steps[int(excluded.argmin())], "excluded": stays((excluded > chance).tolist())}
    return falls | rises


def _table(findings: dict[str, Any]) -> str:
    """What is printed."""
    heads = ["", "p", "frequencies of 90 % of W_E", "Gini", "key frequencies", "of logits", "neurons > 85 %"]
    names = [name for name in findings if name != "phases"]
    rows, lost = list[list[object]](), list[list[object]]()
    for name in names:
        of = findings[name]
        listed = [_listed(of[f"{which}_frequencies"]) for which in ("embedding", "key")]
        shares = [f"{of[which]:.1%}" for which in ("logits_explained", "neurons_explained")]
        rows.append([name, of["p"], listed[0], f"{of['embedding_gini']:.2f}", listed[1], *shares])
        lost += [[name, kind, f"{x['loss']:.3g}", f"{x['accuracy']:.1%}"] for kind, x in of["ablated"].items()]
    phases = findings["phases"]
    said = [f"{name} {'never' if phases[name] is None else f'{phases[name]:,}'}" for name in _LOSSES[:3]]
    below = f"Of the run, below a tenth of chance's loss from step: {', '.join(said)}."
    rises = f"Without key frequencies the loss is least at {phases['excluded_least']:,}, above chance's from "
    rises += f"{'never' if phases['excluded'] is None else format(phases['excluded'], ',')}."
    ablated = table(["", "logits", "loss", "accuracy"], [row for row in lost if row[0] != "untrained"])
    return "\n\n".join([table(heads, rows), ablated, f"{below}\n{rises}"])


def _listed(frequencies: Iterable[int]) -> str:
    listed = list(frequencies)
    return " ".join(map(str, listed)) if len(listed) <= 10 else f"{len(listed)} of them"


def _figures(result: Dataset, findings: dict[str, Any]) -> dict[str, Any]:
    """What is at which frequency, neuron by neuron too, and the losses along the run."""
    best, most = result.neurons.argmax("frequency").to_numpy(), result.neurons.max("frequency").to_numpy()
    order = np.lexsort((-most, best))
    neurons: DataArray = result.neurons.isel(neuron=order).rename("share of its variance").assign_attrs(result.attrs)
    share = result.share.assign_attrs(result.attrs).rename("share of power")
    steps = result.step.values.tolist()
    curves = {name: (steps, result[f"loss_{name}"].values.tolist()) for name in _LOSSES}
    phases = findings["phases"]
    marks = {"by heart": phases["train"], "rule": phases["restricted"], "grokked": phases["others"]}
    marks = {name: step for name, step in marks.items() if step is not None}
    weights = {name: (steps, (result[name] / result[name].max()).values.tolist()) for name in ("gini", "weights")}
    losses = plots.training_curves(curves, values="log", phases=marks, title="Losses along the run")
    return {
        "frequencies": plots.lines(share, title="Power by frequency"),
        "neurons": plots.heatmap(neurons, x="neuron", title="Neurons as waves of one frequency", text=False),
        "losses": losses.update_yaxes(title_text="loss (log)"),
        "weights": plots.training_curves(weights, phases=marks, title="Sparsity and weights, by their most"),
    }


if __name__ == "__main__":
    start(main, __doc__)
