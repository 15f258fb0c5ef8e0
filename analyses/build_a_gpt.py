"""What does each part of a transformer buy, from a table of pairs of characters to a GPT?

1. A network a step, each with one part more than the one before: bigram (embedding, unembedding), one head, several
   heads of the same width in all, the feed-forward, more layers without the residual stream (each part reads what the
   one before wrote, and nothing else), the stream, the norm, and scale: wider, and with a longer context.
2. All are trained in the same way, on the same text, from several seeds. Each is judged by its loss on held-out text:
   by how much does it fall from the step before? Paired by seed, with the standard error.
3. The norm is judged by the learning rate: doubled, with the norm and without, until training fails, which is to end
   with a loss above that of the frequencies of single characters, or with none that is finite.
4. What each writes, and how far back its heads look.

After Karpathy's lecture "Let's build GPT" (2023), https://github.com/karpathy/ng-video-lecture, in whose first networks
there is no path around the head: here there is, but for the step without the stream.

Finding, of the standard library's characters, with the sizes that are set: each part buys something but two. More
layers without the stream cost 0.28 (2.248 to 2.525), and with it are a little better than one (2.229). The norm changes
nothing in so shallow a network (2.240); what it buys is room: without it training fails at 0.16, with it not at the
largest rate that is tried, 0.64, though beyond 0.02 it only learns worse. Scale buys most, 0.18 (2.060), with three
heads of eight that look at the token before.

At 5,000 steps, on tiny Shakespeare, every part buys something, the norm too (`--sizes.n-layers 3 --sizes.steps 5000
--sizes.lr 1e-3`; 26 November 2026, a thread of an x86-64 CPU). No rate up to 0.064 fails there, with the norm or not.

network            held-out loss  change
─────────────────  ─────────────  ──────────────
bigram             2.514 ± 0.002
one head           2.405 ± 0.006  -0.109 ± 0.005
several heads      2.335 ± 0.001  -0.069 ± 0.005
feed-forward       2.272 ± 0.002  -0.063 ± 0.002
layers, no stream  2.607 ± 0.018  +0.335 ± 0.019
residual stream    2.138 ± 0.002  -0.469 ± 0.016
norm               2.037 ± 0.004  -0.102 ± 0.004
scale              1.748 ± 0.001  -0.289 ± 0.005

At the lecture's size (`--lecture --device cuda`, products in bfloat16; 26 November 2026, an H100, 95 seconds a seed),
the others as set, the last step comes to 1.374 ± 0.001 from the norm's 2.350 ± 0.007, on the first 16,384 characters
held out; of its 36 heads 15 look most at the token before, and 15 at the one before that.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import xarray
from torch import Tensor
from tqdm.auto import tqdm
from xarray import DataArray, Dataset

from analyses.output import Found, save, start, table
from analyses.trained import Characters, characters, mean_and_error, trained
from interp import GPTConfig, HookedGPT, heads, plots
from interp.hooks import HookPoint
from interp.training import Run, TrainingConfig

_ASKED, _DOUBLINGS, _OFFSETS = 2**14, 6, 8
_WRITTEN = 80  # characters
Hooks = list[tuple[str, Callable[[Tensor, HookPoint], Tensor | None]]]


@dataclass(frozen=True)
class Sizes:
    """Of a network, and of its training."""

    n_layers: int = 2  # once there is more than one
    d_model: int = 32
    n_heads: int = 4
    n_ctx: int = 8
    batch_size: int = 32
    steps: int = 300
    lr: float = 1e-2
    dropout: float = 0.0
    precision: Literal["float32", "bfloat16"] = "float32"  # of products

    def scaled(self) -> "Sizes":
        """Twice as wide, with twice the context."""
        return replace(self, d_model=2 * self.d_model, n_ctx=2 * self.n_ctx)

    def training(self, seed: int) -> TrainingConfig:
        """The way in which all are trained."""
        way: dict[str, Any] = {"warmup": self.steps // 20, "final_lr": 0.0, "log_every": -(-self.steps // 100)}
        way |= {name: getattr(self, name) for name in ("steps", "batch_size", "lr", "precision")}
        return TrainingConfig(seed=seed, keep=0, **way)


LECTURE = Sizes(6, 384, 6, n_ctx=256, batch_size=64, steps=5000, lr=1e-3, dropout=0.2, precision="bfloat16")


@dataclass(frozen=True)
class Network:
    """A step of the ladder: its sizes, what it has of a GPT, and how its parts are kept apart."""

    sizes: Sizes
    parts: dict[str, Any]
    hooks: Callable[[], Hooks] = list

    def model(self, text: Characters, seed: int, device: str) -> HookedGPT:
        """The network, with the weights that it begins with."""
        own = {name: getattr(self.sizes, name) for name in ("n_layers", "d_model", "n_heads", "n_ctx", "dropout")}
        cfg = GPTConfig(d_vocab=text.tokenizer.d_vocab, seed=seed, device=device, **own | self.parts)
        return HookedGPT(cfg, text.tokenizer)


def main(
    text: Path | None = None,
    most: int = 200_000,
    sizes: Sizes = Sizes(),
    lecture: bool = False,
    seeds: tuple[int, ...] = (0, 1, 2),
    device: str = "cpu",
    out: Path = Path("runs/build_a_gpt"),
    png: bool = False,
) -> None:
    """Build a GPT part by part, and see what each part buys.

    Args:
        text: a file to read; without one, the standard library.
        most: characters of it.
        sizes: of all networks but the last, which is twice as wide, with twice the context.
        lecture: the last as in the lecture: 6 layers of 384, a context of 256, 5,000 steps. A GPU needs minutes.
        seeds: of the weights and of the order of the text.
        device: where the networks are trained.
        out: where the results go. What was stopped goes on there.
        png: draw the figures as PNG, too.
    """
    last, runs = LECTURE if lecture else sizes.scaled(), out / "runs"
    found = study(characters(text, most), sizes, last, seeds=seeds, device=device, folder=runs)
    config = {"text": text, "most": most, "sizes": asdict(sizes), "last": asdict(last), "seeds": seeds}
    models = {name: Run(runs / name / f"seed {seeds[0]}").model() for name in networks(sizes, last)}
    save(found, out, "build_a_gpt", config=config, models=models, png=png)


def networks(small: Sizes, large: Sizes) -> dict[str, Network]:
    """The ladder: all steps are `small` but the last."""
    whole: dict[str, Any] = {"act_fn": "relu"}
    bare = whole | {"normalization_type": None}
    attention: dict[str, Any] = {"n_layers": 1, "attn_only": True, "normalization_type": None}
    one_head = attention | {"n_heads": 1}
    return {
        "bigram": Network(small, one_head | {"positional_embedding_type": None}, without_attention),
        "one head": Network(small, one_head),
        "several heads": Network(small, attention),
        "feed-forward": Network(small, bare | {"n_layers": 1}),
        "layers, no stream": Network(small, bare, without_stream),
        "residual stream": Network(small, bare),
        "norm": Network(small, whole),
        "scale": Network(large, whole),
    }


def without_attention() -> Hooks:
    """Heads write nothing: the logits follow from the last token alone."""
    return [("blocks.*.hook_attn_out", lambda x, hook: torch.zeros_like(x))]  # noqa: ARG005


def without_stream() -> Hooks:
    """Each part reads what the one before it wrote, and nothing else."""
    written = list[Tensor]()
    keep: Any = lambda x, hook: written.append(x)  # noqa: ARG005
    put: Any = lambda x, hook: written.pop()  # noqa: ARG005
    names = ("hook_attn_out", "hook_resid_mid", "hook_mlp_out", "hook_resid_post")
    return [(f"blocks.*.{name}", fn) for name, fn in zip(names, (keep, put) * 2, strict=True)]


def study(
    text: Characters,
    small: Sizes,
    large: Sizes,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    device: str = "cpu",
    folder: Path | None = None,
    progress: bool = True,
) -> Found:
    """All of it."""
    if len(seeds) < 2 or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds={list(seeds)}; two at least, all different: the error is that over seeds")
    ladder = networks(small, large)
    loss = np.full((len(ladder), len(seeds)), np.nan)
    looks, samples = dict[str, DataArray](), dict[str, str]()
    runs = [(i, j, name, seed) for i, name in enumerate(ladder) for j, seed in enumerate(seeds)]
    for i, j, name, seed in tqdm(runs, desc="training", unit="network", delay=1.0, disable=not progress):
        network = ladder[name]
        model, hooks = network.model(text, seed, device), network.hooks()
        with model.hooks(hooks):
            loss[i, j] = _learned(model, text, network.sizes, seed, None if folder is None else folder / name)
            if j == 0:
                samples[name] = _written(model, text)
            if j == 0 and name != "bigram":
                looks[name] = _looks(model, text)
    rates = [_rates(name, ladder[name], text, seeds[0], device, folder) for name in ("residual stream", "norm")]
    tried = [small.lr * 2**i for i in range(_DOUBLINGS + 1)]
    result = Dataset(
        {
            "loss": DataArray(loss, {"network": list(ladder), "seed": list(seeds)}),
            "tried": DataArray(np.array(rates), {"norm": ["without", "with"], "rate": tried}),
            "looks": xarray.concat(looks.values(), "looking", join="outer").assign_coords(looking=list(looks)),
        },
        attrs={"method": "build a GPT", "frequencies": _of_frequencies(text)},
    )
    findings = _findings(result) | {"samples": samples}
    return Found(result, _figures(result), _table(findings), findings)


def _learned(model: HookedGPT, text: Characters, sizes: Sizes, seed: int, folder: Path | None) -> float:
    """Train a network, and return its loss on what is held out."""
    where = None if folder is None else folder / f"seed {seed}"
    read, asked = text.read(sizes.n_ctx, seed), text.asked(sizes.n_ctx, _ASKED)
    return trained(model, read, sizes.training(seed), where, held_out=asked)[-1]["held_out_loss"]


def _written(model: HookedGPT, text: Characters) -> str:
    """How it goes on from the beginning of what is held out."""
    prompt = text.tokenizer.decode(text.held_out[:8].tolist())
    return model.generate(prompt, _WRITTEN, seed=0, prepend_bos=False, on_overflow="slide")


def _looks(model: HookedGPT, text: Characters) -> DataArray:
    """How much each head looks how far back: [layer head offset]."""
    n_ctx, tokens = model.cfg.n_ctx, torch.from_numpy(text.held_out[:_ASKED])
    rows = tokens[: len(tokens) // n_ctx * n_ctx].view(-1, n_ctx)
    return heads.corpus_statistics(model, rows, progress=False)["by_offset"].sel(offset=slice(0, _OFFSETS - 1))


def _rates(name: str, network: Network, text: Characters, seed: int, device: str, folder: Path | None) -> list[float]:
    """The loss at each learning rate, doubled until training fails; what is not finite, or was not tried, is nan."""
    found, bound = [float("nan")] * (_DOUBLINGS + 1), _of_frequencies(text)
    for i in range(len(found)):
        sizes = replace(network.sizes, lr=network.sizes.lr * 2**i, steps=-(-network.sizes.steps // 4))
        with suppress(FloatingPointError):
            where = None if folder is None else folder / "rates" / f"{name}, {2**i} times"
            found[i] = _learned(network.model(text, seed, device), text, sizes, seed, where)
        if not found[i] < bound:
            break
    return found


def _of_frequencies(text: Characters) -> float:
    """The loss of one who knows how frequent each character is, and nothing else."""
    counts = np.bincount(text.train, minlength=text.tokenizer.d_vocab) + 1
    return float(-np.log(counts / counts.sum())[text.held_out[1 : _ASKED + 1]].mean())


def _findings(result: Dataset) -> dict[str, Any]:
    """Losses, what each step gains on the one before, the largest rate with and without norm, where heads look."""
    names = [str(name) for name in result.network.values]
    loss = {name: result.loss.sel(network=name).values for name in names}
    falls = {
        name: dict(zip(("mean", "error"), mean_and_error((loss[before] - loss[name]).tolist()), strict=True))
        for before, name in pairwise(names)
    }
    bound, largest = result.attrs["frequencies"], dict[str, float]()
    for of_norm in result.tried:
        learned = [float(rate) for rate, found in zip(result.rate, of_norm.values, strict=True) if found < bound]
        largest[str(of_norm.norm.values)] = max(learned, default=float("nan"))
    return {
        "loss": {
            name: dict(zip(("mean", "error"), mean_and_error(of.tolist()), strict=True)) for name, of in loss.items()
        },
        "falls": falls,
        "largest_rate": largest,
        "frequencies": bound,
        "looking": {str(each["looking"].values): _most(each) for each in result.looks},
    }


def _most(looks: DataArray) -> dict[str, int]:
    """How many heads look most at so many tokens back, the most frequent first."""
    of_heads = looks.stack(at=("layer", "head")).transpose("at", "offset").to_numpy()
    there = of_heads[np.isfinite(of_heads).any(1)]
    return {str(back): n for back, n in Counter(np.nanargmax(there, 1).tolist()).most_common()}


def _table(findings: dict[str, Any]) -> str:
    """What is printed."""
    rows = []
    for name, loss in findings["loss"].items():
        fall = findings["falls"].get(name)
        gain = "" if fall is None else f"{-fall['mean']:+.3f} ± {fall['error']:.3f}"
        looks = ", ".join(f"{n} × {back}" for back, n in findings["looking"].get(name, {}).items())
        rows.append([name, f"{loss['mean']:.3f} ± {loss['error']:.3f}", gain, looks])
    largest = findings["largest_rate"]
    said = [f"  {name}: {text!r}" for name, text in findings["samples"].items()]
    return "\n".join(
        [
            table(["network", "held-out loss", "change", "heads × how far back they look most"], rows),
            f"Frequencies alone: {findings['frequencies']:.3f}",
            f"The largest rate at which it learns: {largest['without']:g} without the norm, {largest['with']:g} with it"
            f" ({2**_DOUBLINGS} times the first is the last that is tried)",
            "",
            "What is written:",
            *said,
        ]
    )


def _figures(result: Dataset) -> dict[str, Any]:
    """The ladder, the learning rates, and how far back heads of the first layer look."""
    loss = result.loss.transpose("seed", "network").rename("held-out loss")
    named = loss.assign_coords(seed=[f"seed {seed}" for seed in loss.seed.values])
    first = (
        result.looks.sel(layer=0)
        .stack(place=("looking", "head"))
        .transpose("place", "offset")
        .dropna("place", how="all")
    )
    places = [f"{network} H{head}" for network, head in first["place"].values]
    looks = DataArray(first.to_numpy(), {"head": places, "offset": first["offset"]}, name="attention")
    failed = result.attrs["frequencies"]
    rates = result.tried.fillna(failed).clip(max=failed).rename("held-out loss").rename(rate="learning rate")
    return {
        "ladder": plots.lines(named, title="Held-out loss as parts are added"),
        "rates": plots.lines(rates, title="Loss by learning rate, the worst where training fails"),
        "heads": plots.heatmap(looks, title="How far back heads of layer 0 look", max_labels=(24, 40)),
    }


if __name__ == "__main__":
    start(main, __doc__)
