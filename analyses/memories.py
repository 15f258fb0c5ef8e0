"""Are the feed-forward layers of a model key-value memories, as Geva et al. (2021) found of theirs?

1. What fires each key, in one scan of a corpus; how often keys fire.
2. Whether the value promotes what follows the key's strongest trigger; which token of a trigger the key needs.
3. Whether what a layer predicts is what one of its memories predicts, and what becomes of the stream's prediction.
4. The trends that the paper reports, each beside ours: it holds, or it does not. All of it in `report.md`.

Geva et al. 2021, https://arxiv.org/abs/2012.14913.

Finding, of `stdlib-4l`: the loss of a trigger's last token costs a key most, and what a layer predicts is mostly not
what any single memory of it does, as reported. That values of upper layers agree more often with what follows their
keys' triggers takes more text to see than the default reads: `--max-tokens 40000 --beginning None` is enough.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from xarray import Dataset

from analyses.output import Found, save, start
from interp import HookedGPT, memories, plots
from interp.corpus import standard_library
from interp.memories import Triggers
from interp.passages import Corpus

_PROMOTED = 10
_LEAST_TRIGGERS = 10
_COMPOSED = 100_000  # tokens that layers' predictions are counted on: shares within 0.2 %
_READABLE = f"""\
Chosen, among keys with at least {_LEAST_TRIGGERS} triggers that something follows, by the product of two shares: of the
triggers that end with the same two tokens (the commonest), and of those whose next token is among the {_PROMOTED} that
the value promotes most. Of equals, the one that gives its first token the larger probability; of those with the same
ending, one."""


@dataclass(frozen=True, eq=False)
class Study:
    """What was measured of a model's memories."""

    found: Triggers
    keys: Dataset
    agreement: Dataset
    removal: Dataset
    composition: Dataset


@dataclass(frozen=True)
class Trend:
    """What the paper reports, what was found here, and whether that is the same."""

    reported: str
    ours: str
    holds: bool


def main(
    model: str = "stdlib-4l",
    max_tokens: int | None = 16_000,
    beginning: int | None = 400,
    keys: int = 32,
    seed: int = 0,
    out: Path = Path("runs/memories"),
    png: bool = False,
) -> None:
    """Read the standard library with a model, and report on its feed-forward layers.

    Args:
        model: a bundled name, a folder, or a name on the hub.
        max_tokens: how much is read; all, if None.
        beginning: how many characters of each file are read, so that there are many files; all, if None.
        keys: of each layer, that the removal of tokens from triggers is tested on.
        seed: of these keys, and of the tokens that are removed at random.
        out: where the results, `report.md` and the folder `triggers` go. A scan that was stopped goes on there.
        png: draw the figures as PNG, too.
    """
    studied, texts = HookedGPT.from_pretrained(model), [text[:beginning] for text in standard_library()]
    of = study(studied, texts, max_tokens, folder=out / "triggers", n_keys=keys, seed=seed)
    (out / "report.md").write_text(report(of, model))
    config = {"model": model, "max_tokens": max_tokens, "beginning": beginning, "keys": keys, "seed": seed}
    save(found(of), out, "memories", config=config, models={model: studied}, png=png)


def study(
    model: HookedGPT,
    corpus: Corpus,
    max_tokens: int | None = None,
    *,
    folder: Path | None = None,
    n_keys: int = 64,
    seed: int = 0,
    progress: bool = True,
) -> Study:
    """Measure all layers on a corpus; its first tokens are read twice."""
    composed = min(max_tokens or _COMPOSED, _COMPOSED)
    triggers = memories.triggers(model, corpus, folder=folder, max_tokens=max_tokens, progress=progress)
    return Study(
        triggers,
        memories.key_statistics(model, triggers),
        memories.agreement(model, triggers),
        memories.removal_test(model, triggers, n_keys=n_keys, seed=seed, progress=progress),
        memories.composition(model, corpus, found=triggers, max_tokens=composed, progress=progress),
    )


def found(of: Study) -> Found:
    """All numbers, each with the name of the measurement that it is of; the trends, and what is easy to read."""
    parts = {"key": of.keys, "agreement": of.agreement, "removal": of.removal, "composition": of.composition}
    renamed = [part.rename({name: f"{kind}_{name}" for name in part.data_vars}) for kind, part in parts.items()]
    renamed[2] = renamed[2].rename(neuron="removal_neuron")
    result, told, best = Dataset(), trends(of), [f"L{layer}N{neuron}" for layer, neuron in readable(of)]
    for part in renamed:
        result = result.assign(part.variables)
    marks = ["holds" if each.holds else "does not hold" for each in told]
    lines = [f"{mark}: {each.reported}.\n  Here {each.ours}." for mark, each in zip(marks, told, strict=True)]
    said = "\n".join([*lines, f"\nEasiest to read: {', '.join(best) or 'none, their keys have too few triggers'}"])
    figure = plots.layer_trends(of.agreement, of.removal, of.composition)
    about = {"tokens": of.found.about["tokens"], "documents": of.found.about["documents"]}
    findings = {"trends": told, "to_read": best, "read": about}
    result.attrs = {"method": "memories", "model": str(of.found.about["model"]), **about}
    return Found(result, {"trends": figure}, said, findings)


def trends(of: Study) -> list[Trend]:
    """What the paper reports of its model, of 16 layers, beside what was measured here."""
    rate, error = of.agreement.rate.to_numpy(), of.agreement.error.to_numpy()
    half = max(1, len(rate) // 2)
    low, high = rate[:half].mean(), rate[-half:].mean()
    apart = 2 * np.hypot(*(np.sqrt((part**2).sum()) / half for part in (error[:half], error[-half:])))
    lost = of.removal.change.median(("key", "trigger"))
    is_worst = (lost.sel(removed="last") < lost.drop_sel(removed="last").min("removed")).to_numpy()
    other = 1 - of.composition.single.to_numpy() / of.composition.attrs["positions"]
    return [
        Trend(
            "values of upper layers promote what follows their keys' triggers more often than those of lower layers",
            f"{high:.2%} in the upper half of the layers, {low:.2%} in the lower (two standard errors of the "
            f"difference: {apart:.2%})",
            bool(high - low > apart),
        ),
        Trend(
            "of a trigger, the loss of the last token lowers a key's coefficient most",
            f"so by the median in {is_worst.sum()} of {len(is_worst)} layers",
            bool(is_worst.all()),
        ),
        Trend(
            "what a layer predicts is mostly not what any single memory of it predicts",
            f"at {other.min():.0%} to {other.max():.0%} of positions it is not, by layer",
            bool((other > 0.5).all()),
        ),
    ]


def readable(of: Study, n: int = 10) -> list[tuple[int, int]]:
    """The memories, layer and neuron, that are easiest to read by the rule that the report states."""
    found, model = of.found, _model(of)
    last, before, after = (found.tokens(offset) for offset in (0, -1, 1))
    has_next = (after >= 0) & (before >= 0)
    ending = torch.where(has_next, before * model.cfg.d_vocab + last, -1)
    is_same = (ending[..., :, None] == ending[..., None, :]) & has_next[..., None, :]
    alike = is_same.sum(-1).masked_fill(~has_next, 0)
    best = [memories.promoted(model, layer, k=_PROMOTED) for layer in found.layers]
    raised = torch.from_numpy(np.stack([each.token_id.to_numpy() for each in best]))
    sure = torch.from_numpy(np.stack([each.probability.to_numpy()[:, 0] for each in best])).double()
    follows = (after[..., None] == raised[..., None, :]).any(-1) & has_next
    count = has_next.sum(-1)
    score = alike.amax(-1) * follows.sum(-1) / count.clamp(min=1).double() ** 2
    score = score.masked_fill(count < _LEAST_TRIGGERS, -1)
    common = ending.gather(-1, alike.argmax(-1, keepdim=True))[..., 0].flatten().tolist()
    order = np.lexsort((-sure.flatten().numpy(), -score.flatten().numpy())).tolist()
    chosen: dict[int, int] = {}
    for key in order:
        if float(score.flatten()[key]) <= 0 or len(chosen) == n:
            break
        chosen.setdefault(common[key], key)
    return [(found.layers[key // score.shape[1]], key % score.shape[1]) for key in chosen.values()]


def report(of: Study, name: str) -> str:
    """All of it in Markdown."""
    about = of.found.about
    read = f"{about['tokens']:,} tokens of {about['documents']:,} documents"
    parts = [
        f"# Memories of `{name}`",
        f"{read}; {of.found.value.shape[1]:,} memories in each of {len(of.found.layers)} layers. Model "
        f"{about['model'][:12]}.",
        "## Trends reported by Geva et al. (2021)",
        *(f"- Reported by Geva et al. 2021: {each.reported}. Here: {each.ours}. "
          f"**{'Holds' if each.holds else 'Does not hold'}.**" for each in trends(of)),
        "## Agreement: is the token that a value promotes most the one after its key's strongest trigger?",
        _agreement(of.agreement),
        "## Removal of a token from a trigger: what becomes of the coefficient (median)",
        _removal(of.removal),
        "## Composition: what becomes of the stream's prediction in a layer",
        _composition(of.composition),
        "## Keys: how often they fire",
        _keys(of.keys),
        "## Ten memories to read",
        _READABLE,
        *([_memory(of, *key) for key in readable(of)] or ["None: the keys have too few triggers."]),
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def _agreement(found: Dataset) -> str:
    heads = ["layer", "agree", "standard error", "dealt at random", "median rank of the next token", "keys"]
    rows = [
        [int(each.layer), f"{float(each.rate):.2%}", f"{float(each.error):.2%}", f"{float(each.chance):.2%}",
         f"{float(each.median_rank):,.0f}", f"{int(each.n_keys):,}"]
        for each in _by_layer(found)
    ]  # fmt: skip
    return _table(heads, rows)


def _removal(found: Dataset) -> str:
    kinds = found.removed.values.tolist()
    worst = found.change.argmin("removed", skipna=False)
    is_known = found.change.notnull().all("removed")
    rows = []
    for each in _by_layer(found):
        known = is_known.sel(layer=each.layer)
        of_last = (worst.sel(layer=each.layer) == kinds.index("last")).where(known).mean()
        medians = [f"{float(each.change.sel(removed=kind).median()):+.0%}" for kind in kinds]
        rows.append([int(each.layer), *medians, f"{float(of_last):.0%}", int(known.sum())])
    return _table(["layer", *(f"{kind} token" for kind in kinds), "the last costs most", "triggers"], rows)


def _composition(found: Dataset) -> str:
    kinds, n = ["residual", "ffn", "agreement", "composition"], found.attrs["positions"]
    heads = ["layer", "kept, not the MLP's", "now the MLP's", "all agree", "a third", "MLP's is one memory's", "active"]
    rows = [
        [int(each.layer), *(f"{int(each[kind]) / n:.1%}" for kind in [*kinds, "single"]), f"{float(each.active):,.0f}"]
        for each in _by_layer(found)
    ]
    return _table(heads, rows) + f"\n\nThe first {n:,} positions; `active`: memories at a position, in the mean."


def _keys(found: Dataset) -> str:
    heads = ["layer", "never above 0", "active at most positions", "active keys at a position", "… of them below 0"]
    rows = []
    for each in _by_layer(found):
        above, below = float(each.active.mean()), float(each.active_negative.mean())
        shares = [float(each.is_dead.mean()), float(each.is_dense.mean()), above + below]
        rows.append(
            [int(each.layer), *(f"{share:.1%}" for share in shares), f"{below / max(above + below, 1e-30):.1%}"]
        )
    rule = f"Active: a size above {found.attrs['share']:.0%} of the key's largest (with ReLU, above 0)."
    return _table(heads, rows) + f"\n\n{rule}"


def _memory(of: Study, layer: int, neuron: int) -> str:
    """A memory in a few lines."""
    own, model = of.found[layer, neuron], _model(of)
    best = memories.promoted(model, layer, neuron, k=_PROMOTED)
    grams = memories.shared_patterns(of.found, layer, neuron).isel(pattern=slice(3))
    shared = [f"{_shown(text)} {share:.0%}" for text, share in zip(grams.text.values, grams.share.values, strict=True)]
    lines = [
        f"promotes  {'  '.join(_shown(str(token)) for token in best.token.values)}",
        f"shared    {'  '.join(shared)}",
        *(
            f"{float(own.value[i]):8.2f}  {_shown(str(own.before.values[i]))[-56:]}[{_shown(str(own.token.values[i]))}]"
            f" -> {_shown(str(own.next_token.values[i]))}"
            for i in range(min(5, own.sizes["rank"]))
        ),
    ]
    return "\n".join([f"### L{layer}N{neuron}", "", "~~~", *lines, "~~~"])


def _by_layer(found: Dataset) -> list[Dataset]:
    return [found.sel(layer=layer) for layer in found.layer.values]


def _table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    cells = [[str(cell) for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in [heads, ["---"] * len(heads), *cells])


def _shown(text: str) -> str:
    return str(text).replace("\n", "⏎").replace("\t", "⇥").replace(" ", "·")


def _model(of: Study) -> HookedGPT:
    assert of.found.model is not None
    return of.found.model


if __name__ == "__main__":
    start(main, __doc__)
