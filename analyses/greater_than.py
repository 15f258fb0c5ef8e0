"""How does a model know that a war that began in 1732 ended in a later year? Who carries the year, and who compares?

1. Prompts: "The war lasted from the year 1732 to 17", with YY from 02 to 98; in the other run YY is 01. The probability
   of the years above YY less that of the others, and the cutoff: that of YY + 1 less that of YY - 1.
2. Where the year is in the stream, by patching; which heads look at it from the end; and what is lost when a head, or
   an MLP, tells the logits what it says of 01 (path patching): with the MLPs behind it hearing that, or not.
3. What each part writes to the logits of all years, for each YY: whether it raises those above YY (the triangle).
4. The neurons that tell the years just above YY from those just below, and for which YY they are active.

Hanna et al. 2023, https://arxiv.org/abs/2305.00586.

Finding, of a model of one layer that has learned such sentences with all later years equally likely: heads carry YY to
the end, one of them most of it; that it says 01 there instead costs 59 % of the difference, but next to nothing (2 %)
where the MLP does not hear it. For every YY the MLP raises the years above it, by 4.0 on average; attention does by
0.8, and for nine in ten YY. Each of the best neurons is active for a range of YY. With two other seeds it is the same
(65 %, 8 to 9 %; 3.7 to 3.8; 1.0 to 1.1). The paper has it so of GPT-2 small: heads carry, MLPs compare. Three layers
(`--layers 3 --steps 2000`; 26 November 2026, one thread of an x86-64 CPU) do it in the first: its four heads carry, and
without its MLP 68 % are lost; the later MLPs add to it (19 and 4 %).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm
from xarray import DataArray, Dataset

from analyses.output import Found, save, start, table
from analyses.trained import trained
from interp import GPTConfig, HookedGPT, lens, plots
from interp.interventions import Site
from interp.metrics import Logits, Metric, Rows, Values, measured
from interp.patching import activation_patching, path_patching
from interp.results import labelled
from interp.training import IGNORED, Batch, Task, TrainingConfig

Tokens = Int[Tensor, "prompt pos"]
FIRST, LAST = 2, 98  # of YY: years stand on both sides, and 01 is the other run's
_NEAR = 5  # years on each side that neurons are judged by
_TRAINED = "trained"
TEMPLATE = "The {noun} lasted from the year {century}{year} to {century}"
_NOUNS = (
    "war",
    "siege",
    "campaign",
    "trial",
    "reign",
    "project",
    "plague",
    "exile",
    "truce",
    "revolt",
    "crisis",
    "strike",
)
# The sentences of the model that is trained here: noun, from, century, YY, to, century.
_CENTURIES, _NOUN_IDS, _FROM, _TO = (100, 110), (110, 130), 130, 131


@dataclass(frozen=True, eq=False)
class Years:
    """Prompts with a year YY in one column, and those with 01 there; which tokens are the years 00 to 99."""

    tokens: Tokens
    others: Tokens
    mask: Bool[Tensor, "prompt pos"] | None
    year: Int[Tensor, " prompt"]
    ids: Int[Tensor, "100"]
    column: int

    @property
    def above(self) -> Bool[Tensor, "prompt 100"]:
        """Which years are above each prompt's."""
        return torch.arange(100) > self.year[:, None]

    def metric(self) -> Metric:
        """The probability of the years above YY, less that of the others."""
        sign = self.above.double() * 2 - 1

        def read(logits: Logits, rows: Rows) -> Values:
            said = logits[:, 0].double().softmax(-1)[:, self.ids.to(logits.device)]
            return (said * rows.each(sign, "years")).sum(1).to(logits.dtype)

        return Metric("probability difference", read, (-1,))


def main(
    model: str = _TRAINED,
    template: str = TEMPLATE,
    each: int = 1,
    layers: int = 1,
    steps: int = 1000,
    seed: int = 0,
    out: Path = Path("runs/greater_than"),
    png: bool = False,
) -> None:
    """Find who carries the year to the end, and who compares.

    Args:
        model: one that is trained here, or a bundled name, a folder, a name on the hub: its tokenizer must split years
            in two.
        template: of the sentences; it has {noun}, {century} and {year}.
        each: sentences for each YY.
        layers: of the model that is trained here.
        steps: that it is trained.
        seed: of the model, and of the sentences.
        out: where the results go, and the model that is trained.
        png: draw the figures as PNG, too.
    """
    if model == _TRAINED:
        of, years = learned(out / "runs" / f"{layers}-{steps}-{seed}", layers, steps, seed), sentences(each, seed)
    else:
        of = HookedGPT.from_pretrained(model)
        years = written(of, template, each, seed)
    found = study(of, years)
    config = {"model": model, "template": template, "each": each, "layers": layers, "steps": steps, "seed": seed}
    save(found, out, "greater_than", config=config, models={model: of}, png=png)


def learned(folder: Path | None, layers: int = 1, steps: int = 1000, seed: int = 0) -> HookedGPT:
    """A model that has learned the sentences; what the folder has of it is not trained again."""
    sizes: dict[str, Any] = {"n_layers": layers, "d_model": 48, "n_heads": 4, "n_ctx": 6, "d_vocab": _TO + 1}
    model = HookedGPT(GPTConfig(default_prepend_bos=False, seed=seed, **sizes))

    def draw(generator: torch.Generator, n_rows: int) -> Batch:
        year = torch.randint(0, 99, (n_rows,), generator=generator)
        tokens = _sentences(year, generator)
        targets = torch.full_like(tokens, IGNORED)
        targets[:, -1] = year + 1 + (torch.rand(n_rows, generator=generator) * (99 - year)).long()
        return Batch(tokens, targets)

    cfg = TrainingConfig(steps=steps, batch_size=128, lr=5e-3, warmup=20, last_only=True)
    trained(model, Task(draw, seed), cfg, folder)
    return model


def sentences(each: int, seed: int = 0) -> Years:
    """Sentences as the trained model reads them, so many for each YY."""
    year = torch.arange(FIRST, LAST + 1).repeat_interleave(each)
    tokens = _sentences(year, torch.Generator().manual_seed(seed))
    others = tokens.clone()
    others[:, 3] = 1
    return Years(tokens, others, None, year, torch.arange(100), 3)


def written(model: HookedGPT, template: str = TEMPLATE, each: int = 1, seed: int = 0) -> Years:
    """Sentences in a model's tokens, so many for each YY; its tokenizer must have a token for a year's last two digits.

    Years that it does not split so are left out (1700 is one token to GPT-2).
    """
    if missing := [part for part in ("{noun}", "{century}", "{year}") if part not in template]:
        raise ValueError(f"template={template!r} lacks {', '.join(missing)}")
    if model.tokenizer is None:
        raise ValueError("the model has no tokenizer: no sentences can be written")
    encode, draw = model.tokenizer.encode, torch.Generator().manual_seed(seed)
    ids = [encode(f"{year:02}") for year in range(100)]
    if long := [f"{year:02}" for year, own in enumerate(ids) if len(own) > 1]:
        raise ValueError(f"{len(long)} of 100 years are several tokens of this model, {', '.join(long[:3])} among them")
    known, is_split = [own[0] for own in ids], {}
    for century in range(11, 20):
        before = encode(f" {century}")
        for year in range(1, LAST + 1):
            is_split[century, year] = encode(f" {century}{year:02}") == [*before, known[year]] and len(before) == 1
    centuries = [century for century in range(11, 20) if is_split[century, 1]]
    texts, others, of = list[str](), list[str](), list[int]()
    for year in (year for year in range(FIRST, LAST + 1) for _ in range(each)):
        if able := [century for century in centuries if is_split[century, year]]:
            noun, century = (some[int(torch.randint(len(some), (), generator=draw))] for some in (_NOUNS, able))
            for listed, text in ((texts, f"{year:02}"), (others, "01")):
                listed.append(template.format(noun=noun, century=century, year=text))
            of.append(year)
    if not texts:
        raise ValueError("this tokenizer splits no year from 1102 to 1998 in two, as 17 and 32")
    (tokens, mask), (changed, _) = (model.read(some, padding_side="left") for some in (texts, others))
    columns = (tokens != changed).any(0).nonzero().flatten().tolist() if tokens.shape == changed.shape else []
    if len(columns) != 1:
        raise ValueError(
            f"the year stands in other columns in other sentences, {columns}: it must not be near the noun"
        )
    mask = None if mask is None else mask.cpu().bool()
    return Years(tokens.cpu(), changed.cpu(), mask, torch.tensor(of), torch.tensor(known), columns[0])


@torch.no_grad()
def study(model: HookedGPT, years: Years, *, progress: bool = True) -> Found:
    """All of it."""
    if model.cfg.attn_only:
        raise ValueError("the model has no MLPs: nothing in it could compare")
    metric, n_layers = years.metric(), model.cfg.n_layers
    options: dict[str, Any] = {"attention_mask": years.mask, "progress": progress}
    logits, cache = model.run_with_cache(years.tokens, attention_mask=years.mask)
    said = logits[:, -1].double().softmax(-1)[:, years.ids.to(logits.device)].cpu()
    looks = [cache["pattern", layer][:, :, -1, years.column].mean(0).float() for layer in range(n_layers)]
    parts = _parts(model, cache, years, progress)
    result = Dataset(
        {
            "probability": _by_year(said, years, "probability"),
            "stream": _stream(model, years, metric, options),
            "attention": labelled(torch.stack(looks), _heads(model), "attention", {}),
            **_told(model, years, metric, options),
            "written": parts,
            **_neurons(model, cache, years),
        },
        attrs={"method": "greater than", "model": model.fingerprint()},
    )
    base = measured(model, years.tokens, metric, years.mask)
    cutoff = [float(row[y + 1] - row[y - 1]) for row, y in zip(said, years.year.tolist(), strict=True)]
    findings = {
        "probability_difference": float(base.mean()),
        "least_probability_difference": float(base.min()),
        "of_01": float(measured(model, years.others, metric, years.mask).mean()),
        "cutoff": float(np.mean(cutoff)),
        "heads": _of_heads(result),
        "mlps": {f"L{layer}": float(result.mlp_told.sel(layer=layer)) for layer in result.layer.values.tolist()},
        "triangle": {str(part): _triangle(parts.sel(part=part)) for part in parts.part.values},
        "neurons": [str(name) for name in result.neuron.values],
    }
    return Found(result, _figures(result), _table(findings), findings)


def _sentences(year: Int[Tensor, " prompt"], generator: torch.Generator) -> Tokens:
    one_of = lambda span: torch.randint(span[0], span[1], (len(year),), generator=generator)
    noun, century = one_of(_NOUN_IDS), one_of(_CENTURIES)
    middle, to = (torch.full_like(year, word) for word in (_FROM, _TO))
    return torch.stack((noun, middle, century, year, to, century), 1)


def _heads(model: HookedGPT) -> dict[str, Sequence[int]]:
    return {"layer": range(model.cfg.n_layers), "head": range(model.cfg.n_heads)}


def _by_year(values: Float[Tensor, "prompt 100"], years: Years, name: str) -> DataArray:
    """The mean over prompts with the same YY, [YY year]."""
    kinds, of = years.year.unique(return_inverse=True)
    mean = torch.zeros(len(kinds), 100, dtype=torch.double).index_add_(0, of, values.double())
    mean /= torch.bincount(of)[:, None]
    return labelled(mean, {"YY": kinds.tolist(), "year": range(100)}, name, {})


def _stream(model: HookedGPT, years: Years, metric: Metric, options: dict[str, Any]) -> DataArray:
    """The difference with the stream behind a layer put into the run with 01, at YY or at the end, [layer place]."""
    places = {"YY": years.column - years.tokens.shape[1], "END": -1}
    axes = {"layer": range(model.cfg.n_layers), "place": list(places)}
    sites = [Site("resid_post", layer, pos=pos) for layer in axes["layer"] for pos in places.values()]
    found = activation_patching(model, years.tokens, years.others, sites, metric, **options)
    mean = torch.from_numpy(found.mean("prompt").to_numpy()).view(*map(len, axes.values()))
    return labelled(mean, axes, "difference", {"method": "activation patching", "model": model.fingerprint()})


def _told(model: HookedGPT, years: Years, metric: Metric, options: dict[str, Any]) -> dict[str, DataArray]:
    """The share of the difference that is lost when a head or an MLP tells the logits what it says of 01; heads by way
    of MLPs and directly."""

    def lost(
        senders: Literal["heads", "mlps"], mlps: Literal["recomputed", "frozen"], axes: dict[str, Any]
    ) -> DataArray:
        some = path_patching(model, years.tokens, years.others, senders, ["logits"], metric, mlps=mlps, **options)
        share = ((some.base - some).mean("prompt") / float(some.base.mean())).to_numpy()
        shaped = torch.from_numpy(share.reshape(list(map(len, axes.values()))))
        return labelled(shaped, axes, "share lost", {"method": "path patching"})

    layers = {"layer": range(model.cfg.n_layers)}
    return {
        "told": lost("heads", "recomputed", _heads(model)),
        "told_directly": lost("heads", "frozen", _heads(model)),
        "mlp_told": lost("mlps", "recomputed", layers),
    }


def _parts(model: HookedGPT, cache: Any, years: Years, progress: bool) -> DataArray:
    """What attention and MLP of each layer write to each year's logit, less their mean over years, [part YY year]."""
    found = list[DataArray]()
    for token in tqdm(years.ids.tolist(), desc="years", delay=1.0, disable=not progress):
        found.append(lens.direct_logit_attribution(model, cache, token))
    names = [str(name) for name in found[0].component.values if str(name).startswith("L") and " " in str(name)]
    of = torch.stack([torch.from_numpy(one.sel(component=names).to_numpy()) for one in found], 2)  # [part prompt year]
    centred = of - of.mean(2, keepdim=True)
    by_year = [_by_year(part, years, "logit") for part in centred]
    values = torch.from_numpy(np.stack([part.to_numpy() for part in by_year]))
    axes = {"part": names, **{axis: by_year[0][axis].values.tolist() for axis in ("YY", "year")}}
    return labelled(values, axes, "logit", {"method": "direct logit attribution"})


def _triangle(part: DataArray) -> dict[str, float]:
    """By how much a part raises the years above YY over the others, the mean over YY, and for how many YY it does.

    The year 00, with which nothing ends, is left out.
    """
    yy, values = part.YY.to_numpy(), part.to_numpy()
    gap = [row[y + 1 :].mean() - row[1 : y + 1].mean() for y, row in zip(yy, values, strict=True)]
    return {"raised": float(np.mean(gap)), "share_of_YY": float(np.mean(np.array(gap) > 0))}


def _neurons(model: HookedGPT, cache: Any, years: Years, n: int = 8) -> dict[str, DataArray]:
    """The neurons that most raise the years just above YY over those just below, as YY has them; and how active they
    are at the end, [neuron YY]."""
    near = torch.arange(1, _NEAR + 1)
    above, below = (years.ids[(years.year[:, None] + step).clamp(0, 99)] for step in (near, -near))
    told = lens.direct_logit_attribution(model, cache, above, below, by="neuron")
    told = told.sel(component=[name for name in told.component.values if "N" in str(name)]).mean("prompt")
    names = [str(name) for name in told.component.values[np.argsort(-told.to_numpy())[:n]]]
    places = [tuple(map(int, name[1:].split("N"))) for name in names]
    active = torch.stack([cache["post", layer][:, -1, neuron].float().cpu() for layer, neuron in places])
    kinds, of = years.year.unique(return_inverse=True)
    mean = torch.zeros(n, len(kinds)).index_add_(1, of, active) / torch.bincount(of)
    axes = {"neuron": names, "YY": kinds.tolist()}
    return {
        "activation": labelled(mean, axes, "activation", {}),
        "neuron_told": labelled(torch.from_numpy(told.sel(component=names).to_numpy()), {"neuron": names}, "logit", {}),
    }


def _of_heads(result: Dataset) -> dict[str, dict[str, float]]:
    """The heads, those that tell most first."""
    found = {}
    for layer in result.layer.values.tolist():
        for head in result["head"].values.tolist():
            of = {
                name: float(result[name].sel(layer=layer, head=head)) for name in ("told", "told_directly", "attention")
            }
            found[f"L{layer}H{head}"] = of
    return dict(sorted(found.items(), key=lambda item: -item[1]["told"]))


def _table(findings: dict[str, Any]) -> str:
    """What is printed."""
    heads = [
        [name, f"{of['told']:.1%}", f"{of['told_directly']:.1%}", f"{of['attention']:.2f}"]
        for name, of in list(findings["heads"].items())[:10]
    ]
    parts = [[part, f"{of['raised']:+.2f}", f"{of['share_of_YY']:.0%}"] for part, of in findings["triangle"].items()]
    mlps = ", ".join(f"{layer} {lost:.1%}" for layer, lost in findings["mlps"].items())
    said = [
        f"Years above YY less others: {findings['probability_difference']:.3f} (at least "
        f"{findings['least_probability_difference']:.3f}), had it been 01 {findings['of_01']:.3f}; "
        f"cutoff {findings['cutoff']:.4f}",
        f"Lost when an MLP tells of 01: {mlps}",
        f"Neurons that tell the next years from the last: {', '.join(findings['neurons'])}",
    ]
    return "\n\n".join(
        [
            table(["head", "lost, told of 01", "directly", "looks at YY"], heads),
            table(["part", "years above YY raised", "of all YY"], parts),
            "\n".join(said),
        ]
    )


def _figures(result: Dataset) -> dict[str, Any]:
    """What is said, who writes it, who carries it, and the neurons."""
    named = lambda part, name: result[part].rename(name).assign_attrs(result.attrs)
    said, written = named("probability", "probability"), named("written", "logit")
    high = float(f"{4 * float(abs(written).mean()):.1g}")
    return {
        "probabilities": plots.heatmap(said, title="What is said, by YY", text=False, limit=0.1),
        "written": plots.heatmap(written, title="What parts write to years, by YY", text=False, limit=high),
        "stream": plots.heatmap(named("stream", "difference"), title="Where YY is in the stream"),
        "heads": plots.heatmap(named("told", "share lost"), title="Heads that tell of YY", scale="diverging"),
        "neurons": plots.lines(named("activation", "activation"), title="Neurons, by YY"),
    }


if __name__ == "__main__":
    start(main, __doc__)
