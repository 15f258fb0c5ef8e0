"""Where does a model keep what a name brings with it?

1. Prompts that end where a token must come which their subject decides: `try: table[key]`, and then `except KeyError`.
   Only those are traced of which the model gives that token the highest probability.
2. Noise on the subject's embeddings takes the answer away. One state of the run without noise is put back, at each
   layer and position; then what attention writes, and what the MLP writes, in several layers together.
3. What that gives back of the answer's probability, by where the position stands to the subject.

Meng et al. 2022, https://arxiv.org/abs/2202.05262.

Finding, of `stdlib-4l`: noise on the subject leaves 0.33 of a probability of 0.79. The first layers' attention carries
to the end what counts: behind layer 0 the state at the last position gives back 0.40, behind layer 1 all there is, and
the subject's own states no more than 0.07. What MLPs write, two layers together, gives back 0.05 at most. So nothing is
looked up at the subject, as in large models; what this one knows, it makes at the end of what it has heard there.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from xarray import DataArray, concat

from analyses.output import Found, save, start, table
from interp import HookedGPT, metrics, plots
from interp.loading.files import read_json
from interp.metrics import measured
from interp.patching import causal_tracing
from interp.results import as_tokens, labelled

SITES = {"resid_post": "state", "attn_out": "attention", "mlp_out": "MLP"}
PARTS = ("first of the subject", "inside it", "its last", "next", "between", "the end")


@dataclass(frozen=True)
class Fact:
    """A prompt, what in it decides the next token, and that token."""

    prompt: str
    subject: str
    answer: str


FACTS = (
    Fact("def find(table, key):\n    try:\n        return table[key]\n    except", "table[key]", " KeyError"),
    Fact("def read(path):\n    try:\n        return open(path)\n    except", "open(path)", " OSError"),
    Fact("try:\n    import json\nexcept", "import json", " ImportError"),
    Fact("if not isinstance(name, str):\n    raise", "isinstance(name, str)", " TypeError"),
    Fact("if len(args) != 2:\n    raise", "len(args)", " ValueError"),
    Fact("class A:\n    @classmethod\n    def make(", "classmethod", "cls"),
    Fact("seen = set()\nfor x in names:\n    seen.", "set()", "add"),
    Fact("import os\n\nname = os.environ.", "environ", "get"),
    Fact("import threading\n\nlock = threading.", "threading", "Lock"),
    Fact("import warnings\n\nwarnings.", "warnings", "warn"),
)


def main(
    model: str = "stdlib-4l",
    facts: Path | None = None,
    noise: float = 3.0,
    samples: int = 5,
    window: int = 2,
    seed: int = 0,
    out: Path = Path("runs/causal_tracing"),
    png: bool = False,
) -> None:
    """Trace where a model has what decides the next token.

    Args:
        model: a bundled name, a folder, or a name on the hub.
        facts: a JSON file, {"facts": [{"prompt": …, "subject": …, "answer": …}]}; an answer is one token.
        noise: standard deviations of the subjects' embeddings.
        samples: draws of noise.
        window: layers in which attention, or the MLP, is put back together.
        seed: of the noise.
        out: where the results go.
        png: draw the figures as PNG, too.
    """
    of, listed = HookedGPT.from_pretrained(model), FACTS if facts is None else read_facts(facts)
    choices: dict[str, Any] = {"noise": noise, "samples": samples, "window": window, "seed": seed}
    found = study(of, listed, **choices)
    config = {"model": model, "facts": [asdict(each) for each in listed], **choices}
    save(found, out, "causal_tracing", config=config, models={model: of}, png=png)


def read_facts(file: Path) -> list[Fact]:
    """Those that a JSON file holds."""
    content, wanted = read_json(file), {"prompt", "subject", "answer"}
    listed = content.get("facts")
    if not isinstance(listed, list) or not listed:
        raise ValueError(f"{file} has {sorted(content)}; it must have a list, facts")
    for each in listed:
        if not (
            isinstance(each, dict) and set(each) == wanted and all(isinstance(x, str) and x for x in each.values())
        ):
            raise ValueError(f"{file}: a fact has three texts, {', '.join(sorted(wanted))}; given: {str(each)[:80]}")
    return [Fact(**each) for each in listed]


def study(
    model: HookedGPT,
    facts: Sequence[Fact] = FACTS,
    *,
    noise: float | int = 3.0,
    samples: int = 5,
    window: int = 2,
    seed: int = 0,
    progress: bool = True,
) -> Found:
    """All of it."""
    known = [fact for fact, is_known in zip(facts, _are_known(model, facts), strict=True) if is_known]
    if not known:
        raise ValueError(f"of these {len(facts)} facts the model knows none: no answer is its likeliest token")
    tokens, mask = as_tokens(model, [fact.prompt for fact in known], None)
    metric = metrics.prob(model, [fact.answer for fact in known])
    traced = {
        SITES[site]: causal_tracing(
            model,
            tokens,
            [fact.subject for fact in known],
            metric,
            noise=noise,
            samples=samples,
            site=site,
            window=1 if site == "resid_post" else window,
            seed=seed,
            attention_mask=mask,
            progress=progress,
        )
        for site in SITES
        if site != "mlp_out" or not model.cfg.attn_only
    }
    real = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask
    ends = (real * torch.arange(1, real.shape[1] + 1, device=real.device)).argmax(1).tolist()
    result = concat([_by_part(each, ends) for each in traced.values()], "site").assign_coords(site=list(traced))
    findings = _findings(result, traced, ends, len(facts))
    return Found(result, _figures(result), _table(result, findings), findings)


def _are_known(model: HookedGPT, facts: Sequence[Fact]) -> list[bool]:
    """Of which the answer is the likeliest token."""
    tokens, mask = as_tokens(model, [fact.prompt for fact in facts], None)
    rank = metrics.rank(model, [fact.answer for fact in facts])
    return (measured(model, tokens, rank, mask) == 0).tolist()


def _by_part(traced: DataArray, ends: Sequence[int]) -> DataArray:
    """What is given back, in the mean over the positions of each part of a prompt; NaN where it has none."""
    gain = (traced - traced.base).transpose("layer", "pos", "prompt").to_numpy()
    found = np.full((gain.shape[0], len(PARTS), gain.shape[2]), np.nan)
    for prompt, (first, last, end) in enumerate(_bounds(traced, ends)):
        begins = [first] if first < last else []  # a subject of one token: its last
        places = [begins, range(first + 1, last), [last], [last + 1], range(last + 2, end), [end]]
        for part, listed in enumerate(places):
            if chosen := [pos for pos in listed if pos < end or part == len(PARTS) - 1]:
                found[:, part, prompt] = gain[:, chosen, prompt].mean(1)
    axes = {"layer": traced.layer.to_numpy().tolist(), "part": PARTS, "prompt": range(gain.shape[2])}
    beside = {name: ("prompt", traced[name].to_numpy()) for name in ("base", "clean")}
    return labelled(torch.from_numpy(found), axes, "given back", traced.attrs).assign_coords(beside)


def _bounds(traced: DataArray, ends: Sequence[int]) -> list[tuple[int, int, int]]:
    """Of each prompt: the first and the last position of its subject, and its last."""
    columns = [of.nonzero()[0].tolist() for of in traced.is_subject.transpose("prompt", "pos").to_numpy()]
    return [(of[0], of[-1], end) for of, end in zip(columns, ends, strict=True)]


def _findings(result: DataArray, traced: dict[str, DataArray], ends: Sequence[int], n_facts: int) -> dict[str, Any]:
    """Where each kind of site gives back most, and what that took."""
    found: dict[str, Any] = {
        "facts": n_facts,
        "known": result.sizes["prompt"],
        "clean": float(result.clean.mean()),
        "corrupted": float(result.base.mean()),
    }
    for site in result.site.to_numpy().tolist():
        mean = result.sel(site=site).mean("prompt", skipna=True)
        found[site] = {"peak": _peak(mean), "peak before the end": _peak(mean.sel(part=list(PARTS[:-1])))}
    one = next(iter(traced.values()))
    n_behind = sum(end + 1 - first for first, _, end in _bounds(one, ends))  # before, nothing is lost
    found["runs"] = sum(each.attrs["rows"] for each in traced.values())
    found["runs predicted"] = len(traced) * one.attrs["samples"] * one.sizes["layer"] * n_behind
    found["passes"] = sum(each.attrs["chunks"] for each in traced.values())
    return found


def _peak(mean: DataArray) -> dict[str, Any]:
    values = np.nan_to_num(mean.transpose("layer", "part").to_numpy(), nan=-np.inf)
    layer, part = np.unravel_index(values.argmax(), values.shape)
    return {"layer": int(mean.layer[layer]), "part": str(mean.part[part].item()), "gain": float(values[layer, part])}


def _table(result: DataArray, findings: dict[str, Any]) -> str:
    """What is printed."""
    mean = result.mean("prompt", skipna=True)
    rows = [
        [site, layer, *(f"{float(mean.sel(site=site, layer=layer, part=part)):+.3f}" for part in PARTS)]
        for site in mean.site.to_numpy().tolist()
        for layer in mean.layer.to_numpy().tolist()
    ]
    known = f"The model knows {findings['known']} of {findings['facts']} facts: "
    ends = f"their answers have a probability of {findings['clean']:.3f}, with noise on the subject "
    cost = f"{findings['runs']:,} runs, {findings['runs predicted']:,} predicted, in {findings['passes']:,} passes."
    said = f"{known}{ends}{findings['corrupted']:.3f}. Given back by one state, or by what some layers write:"
    return "\n".join([said, "", table(["put back", "layer", *PARTS], rows), "", cost])


def _figures(result: DataArray) -> dict[str, Any]:
    """A map for each kind of site, all on one scale."""
    end = float(np.nanmax(np.abs(result.mean("prompt", skipna=True))))
    return {
        site.lower(): plots.heatmap(
            result.sel(site=site, drop=True),
            title=f"Probability of the answer given back: {site}",
            scale="diverging",
            limit=end,
        )
        for site in result.site.to_numpy().tolist()
    }


if __name__ == "__main__":
    start(main, __doc__)
