"""What does a model lose without a part of it, without two, and without more and more of them?

1. Rows of text are read as they are: the metric of each, the base.
2. Each part in turn is set to zero, to its mean, or to what it is on another row, and the rows are read again. One
   engine runs all of that exactly, in one process or divided over those that `torchrun` started; each finished chunk is
   on disk, so that the same command goes on where it stood.
3. Pairs are taken away together (do they back each other up?), and more and more, in a given or a greedy order.
4. Each effect is a mean over rows, with its bootstrap interval over them, and a sign-flip test.

What stands in decides what is found: zero is no usual value for most parts, a mean keeps what does not depend on the
token (Chan et al. 2022, https://www.alignmentforum.org/posts/JvZhhzycHu2Yd57RN; Zhang and Nanda 2024,
https://arxiv.org/abs/2309.16042).

Found of stdlib-4l, mean ablation: on code the heads of layer 0 cost most, L0H4 0.41 nats a token, L0H1, its
previous-token head, 0.38, L0H7 0.37, and no MLP more than 0.04. Where random tokens repeat (`--data repeats`), L0H1
alone costs 5.9, the next, L0H4, 2.0; of layer 1 the best induction head, L1H4, costs most, and only 0.23: there are
five of them. Of a planted induction model (`--models planted/induction`) the two planted heads cost 0.5 each, all
others below 0.01.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import tyro
import xarray
from torch import Tensor
from xarray import DataArray, Dataset

from analyses.ablation_study import Opened, Study, metric_of
from analyses.output import Found, save, start, table
from interp import HookedGPT, patching
from interp.loading.files import read_json, replacing
from interp.patching.ablation import Mode
from interp.patching.sites import label
from interp.training.parallel import Ranks

if TYPE_CHECKING:
    import plotly.graph_objects as go

_BEGUN = "study.json"
_LISTED = 10  # parts in the printed table, of each model, metric and kind
_OF = " of "  # between a variable's or an axis' name and its model's, where shapes differ
_SHARED = ("metric", "kind")


def main(
    options: Annotated[Study, tyro.conf.arg(name="")] = Study(),  # noqa: B008 (frozen)
    study: Path | None = None,
    out: Path = Path("runs/ablate"),
    png: bool = False,
) -> None:
    """Take parts of models away, and measure what is lost.

    Args:
        options: the study.
        study: a .toml or .json file that says all of it, in place of options.
        out: the folder for `result.nc`, `summary.json` and figures. A study that was stopped goes on there.
        png: also each figure as a PNG, where chromium is found.
    """
    if study is not None and options != Study():
        raise ValueError(f"--study {study} says all of it: leave out the other options, or the file")
    asked = options if study is None else Study.read(study)
    ranks = Ranks()
    with ranks.joined():
        opened = asked.opened()
        for each in opened.values():
            each.model.to(ranks.device)
        begin(out, asked, {name: each.model for name, each in opened.items()}, ranks)
        result = run(asked, opened, out / "sweeps")
        drawn = figures(result) if ranks.is_first else {}
        found = Found(result, drawn, told(result), findings(result))
        models = {name: each.model for name, each in opened.items()}
        save(found, out, "ablate", config=asdict(asked), models=models, png=png)
        ranks.wait()


def begin(out: Path, study: Study, models: Mapping[str, HookedGPT], ranks: Ranks) -> None:
    """Take the folder for this study; raise if another one was begun there."""
    said = json.loads(json.dumps(asdict(study)))
    about = {"study": said, "models": {name: model.fingerprint() for name, model in models.items()}}
    if (out / _BEGUN).is_file():
        before = read_json(out / _BEGUN)
        others = before.get("study", {})
        differ = [name for name in said if others.get(name) != said[name]]
        differ += ["the models' weights"] if not differ and before.get("models") != about["models"] else []
        if differ:
            raise ValueError(
                f"{out} was begun with another study: not the same {', '.join(differ)}; give what it was begun with, "
                "or another --out"
            )
    ranks.wait()  # all have seen it before it is written
    if ranks.is_first:
        (out / "sweeps").mkdir(parents=True, exist_ok=True)
        with replacing(out / _BEGUN) as file:
            file.write_text(json.dumps(about, indent=1) + "\n")
    ranks.wait()


def run(study: Study, opened: Mapping[str, Opened], folder: Path | None = None, progress: bool = True) -> Dataset:
    """The study's numbers, of all models; chunks that are finished are kept in the folder."""
    of_each = {name: _of_model(study, name, each, folder, progress) for name, each in opened.items()}
    attrs = {
        "models": json.dumps(list(of_each)),
        "level": study.level,
        "n": next(iter(of_each.values())).sizes["prompt"],
    }
    return merged(of_each).assign_attrs(attrs)


def merged(of_each: Mapping[str, Dataset]) -> Dataset:
    """One dataset: with an axis `model` where all have the same parts and prompts, or variables for each model."""
    first, *others = of_each.values()
    if all(_are_alike(each, first) for each in others):
        joined = xarray.concat(of_each.values(), "model", combine_attrs="drop")
        return joined.assign_coords(model=list(of_each))
    apart = []
    for name, each in of_each.items():
        own = [axis for axis in each.dims if axis not in _SHARED]
        apart.append(each.drop_attrs().rename({key: f"{key}{_OF}{name}" for key in [*own, *each.data_vars]}))
    found: Any = xarray.merge(apart)
    return found


def of_model(result: Dataset, model: str) -> Dataset:
    """The numbers of one of the models, without its name."""
    if "model" in result.dims:
        return result.sel(model=model, drop=True)
    end = f"{_OF}{model}"
    own = result[[name for name in result.data_vars if str(name).endswith(end)]]
    return own.rename(
        {name: str(name).removesuffix(end) for name in [*own.dims, *own.data_vars] if str(name).endswith(end)}
    )


def models_of(result: Dataset) -> list[str]:
    """The models of a study."""
    return json.loads(result.attrs["models"])


def effects(result: Dataset, model: str, metric: str, kind: str, of: str = "") -> Dataset:
    """What taking away did, as the figures draw it: of each part alone, or `of` steps ("cumulative ")."""
    one = of_model(result, model).sel(metric=metric, kind=kind)
    found = {name: one[f"{of}{name}"] for name in ("mean", "standard_error", "low", "high", "p")}
    attrs = {"metric": metric, "kind": kind, "n": result.attrs["n"], "level": result.attrs["level"]}
    return Dataset(found).drop_vars(["metric", "kind"]).assign_attrs(attrs)


@dataclass(frozen=True, eq=False)
class _Asked:
    """What a model is asked."""

    study: Study
    name: str
    model: HookedGPT
    tokens: Tensor
    mask: Tensor | None
    reference: Tensor | None
    parts: dict[str, Any]
    folder: Path | None
    progress: bool

    def without(self, names: Sequence[str], metric: str, kind: Any, mode: Mode) -> DataArray:
        """The library's ablation of these parts."""
        study, chosen = self.study, [self.parts[name] for name in names]
        file = None if self.folder is None else self.folder / f"{self.name}, {metric}, {kind}, {mode}"
        more: Any = {"order": study.order, "n_steps": study.n_steps} if mode == "cumulative" else {}
        if self.progress and Ranks().is_first:
            said = {"single": "each part", "pairs": "every two parts", "cumulative": "more and more parts"}[mode]
            print(f"{self.name}: {metric} without {said} of {len(names)}, {kind}", file=sys.stderr)
        found = patching.ablation(
            self.model, self.tokens, chosen, metric_of(self.model, metric, study, self.tokens, self.mask),
            kind=kind, reference=self.reference, mode=mode, seed=study.seed, attention_mask=self.mask,
            file=file, progress=self.progress, **more,
        )  # fmt: skip
        if mode == "cumulative":
            named = {" + ".join(map(label, sites)): name for name, sites in zip(names, chosen, strict=True)}
            return found.assign_coords(site=("step", [named[each] for each in found.site.values.tolist()]))
        return found.assign_coords({axis: list(names) for axis in ("site", "other") if axis in found.dims})


def _of_model(study: Study, name: str, opened: Opened, folder: Path | None, progress: bool) -> Dataset:
    model = opened.model
    tokens, mask = opened.prompts(study)
    parts = patching.parts_named(model, study.sites, tokens.shape[1])
    reference = opened.reference(study, tokens)
    asked = _Asked(study, name, model, tokens, mask, reference, parts, folder, progress)
    with model.edit(study.in_force()):
        single = {(m, k): asked.without(list(parts), m, k, "single") for m in study.metrics for k in study.kinds}
        first = _summary(single[study.metrics[0], study.kinds[0]], study)["mean"]  # of it are the strongest
        order = np.argsort(-np.abs(first.to_numpy()), kind="stable")[: study.strongest or None]
        chosen = [str(first.site.values[i]) for i in order] if study.strongest else list(parts)
        modes: list[Mode] = ["pairs", "cumulative"]
        beside = {
            mode: {key: asked.without(chosen, *key, mode) for key in single} for mode in modes if mode in study.modes
        }
    of_each = []
    for key, alone in single.items():
        found = {"single": alone.drop_vars("base"), "base": alone.base.drop_vars("base"), **_summary(alone, study)}
        if "pairs" in beside:
            pairs = beside["pairs"][key].rename(site="one")
            both = patching.interaction(beside["pairs"][key]).rename(site="one")
            known = _summary(both, study)
            found |= {"pairs": pairs.drop_vars("base")}
            found |= {f"interaction {each}": known[each] for each in ("mean", "low", "high", "p")}
        if "cumulative" in beside:
            steps = beside["cumulative"][key]
            known = _summary(steps, study).drop_vars("site")
            found |= {"cumulative": steps.drop_vars(["base", "site"]), "removed": steps.site.drop_vars("site")}
            found |= {f"cumulative {each}": known[each] for each in known.data_vars}
        of_each.append(Dataset({str(each): of.drop_attrs() for each, of in found.items()}))
    n = len(study.kinds)
    rows = [xarray.concat(of_each[i : i + n], "kind") for i in range(0, len(of_each), n)]
    whole = xarray.concat(rows, "metric").assign_coords(metric=list(study.metrics), kind=list(study.kinds))
    return whole.assign(base=whole.base.isel(kind=0))


def _summary(found: DataArray, study: Study) -> Dataset:
    return patching.summary(found, level=study.level, n_resamples=study.resamples, seed=study.seed)


def _are_alike(one: Dataset, other: Dataset) -> bool:
    return set(one.data_vars) == set(other.data_vars) and all(one[name].equals(other[name]) for name in other.coords)


def figures(result: Dataset) -> dict[str, "go.Figure"]:
    """A map and bars for each model, metric and kind; curves and interactions where they were asked for."""
    from interp import plots
    from interp.plots.effects import is_mapped

    found: dict[str, go.Figure] = {}
    for model in models_of(result):
        one = of_model(result, model)
        for metric, kind in [(str(m), str(k)) for m in one.metric.values for k in one.kind.values]:
            alone, name = effects(result, model, metric, kind), f"{model}-{metric}-{kind}".replace(" ", "-")
            if is_mapped(alone.site.values.tolist()):
                found[f"map-{name}"] = plots.effect_map(alone, title=f"{model} without each part")
            found[f"bars-{name}"] = plots.effect_bars(alone, title=f"{model} without each part")
            if "cumulative" in one:
                steps = effects(result, model, metric, kind, "cumulative ")
                removed = one.removed.sel(metric=metric, kind=kind).values.tolist()
                title = f"{model} without more and more parts"
                found[f"steps-{name}"] = plots.effect_curve(steps, removed, title=title)
            if "pairs" in one:
                both = one["interaction mean"].sel(metric=metric, kind=kind, drop=True).rename("interaction")
                about = {"metric": metric, "kind": kind}
                title = f"{model}: beyond the sum of two parts' effects"
                found[f"pairs-{name}"] = plots.heatmap(both.assign_attrs(about), title=title)
    return found


def told(result: Dataset) -> str:
    """The parts that change most, in a table."""
    rows = []
    for model in models_of(result):
        one = of_model(result, model)
        for metric, kind in [(str(m), str(k)) for m in one.metric.values for k in one.kind.values]:
            alone = effects(result, model, metric, kind)
            for i in np.argsort(-np.abs(alone["mean"].to_numpy()), kind="stable")[:_LISTED].tolist():
                mean, low, high, p = (float(alone[name][i]) for name in ("mean", "low", "high", "p"))
                rows.append([model, metric, kind, str(alone.site.values[i]), f"{mean:+.4f}",
                             f"{low:+.4f}", f"{high:+.4f}", f"{p:.4f}"])  # fmt: skip
    level = f"{float(result.attrs['level']):.0%}"
    return table(["model", "metric", "kind", "without", "change", f"{level} from", "to", "p"], rows)


def findings(result: Dataset) -> dict[str, Any]:
    """The parts that change most, and by how much, of each model, metric and kind."""
    found = {}
    for model in models_of(result):
        one = of_model(result, model)
        for metric, kind in [(str(m), str(k)) for m in one.metric.values for k in one.kind.values]:
            alone = effects(result, model, metric, kind)
            order = np.argsort(-np.abs(alone["mean"].to_numpy()), kind="stable")[:_LISTED].tolist()
            found[f"{model}, {metric}, {kind}"] = {
                str(alone.site.values[i]): [float(alone[name][i]) for name in ("mean", "low", "high")] for i in order
            }
    return found


if __name__ == "__main__":
    start(main, __doc__)
