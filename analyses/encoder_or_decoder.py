"""What can a transformer predict that sees the future, and what can one that does not?

1. The same network, from the same weights, with the causal mask (a decoder, GPT) and without it (an encoder, BERT).
2. Each learns two tasks: the next token at every position; and, where a share of the tokens is replaced by a mask, the
   token that was there. From several seeds; losses are of held-out text, position by position.
3. An encoder that is asked for the next token has seen it, everywhere but at the end of the row, where nothing can be
   seen, and where a text is written. So it does not write: `generate` refuses.
4. Where heads look: how much to the left, at the token itself, to the right; how far; how evenly.

Radford et al. 2018 (GPT); Devlin et al. 2019 (BERT), https://arxiv.org/abs/1810.04805.

Finding, of the standard library's characters, two layers of 32, a context of 16 and 600 steps: asked for the next
token, the encoder has a loss of 0.001 where it sees it (the decoder 1.99), by a head with 0.9 of its attention there.
At the end of the row it has 2.27, and the decoder 1.92. Asked for masked tokens it has 2.43, the decoder 2.58, and half
of its attention has gone to the right. Both find masked tokens harder than the decoder finds the next: a seventh as
many are asked for, and what is read has holes.

Of Shakespeare's plays (1.1 million characters, 3 layers, d_model 64, a context of 32, 1,000 steps, three seeds; 26
November 2026, a thread of an x86-64 CPU), the losses, and the share of attention to the right:

                      decoder        encoder        right
    next              1.881 ± 0.004  0.000 ± 0.000   0.59
    next, at the end  1.677 ± 0.001  2.119 ± 0.020
    masked            2.456 ± 0.007  2.063 ± 0.030   0.47
"""

from collections.abc import Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm
from xarray import DataArray, Dataset, concat

from analyses.build_a_gpt import Sizes
from analyses.output import Found, save, start, table
from analyses.trained import Characters, characters, mean_and_error, trained
from interp import GPTConfig, HookedGPT, heads, plots
from interp.results import labelled
from interp.training import IGNORED, Batch, FullBatch, Run, Task

KINDS = {"decoder": "causal", "encoder": "bidirectional"}
TASKS = ("next", "masked")
SMALL = Sizes(n_ctx=16, steps=600)
_ASKED, _WRITTEN = 2**14, 160


def main(
    text: Path | None = None,
    most: int = 200_000,
    sizes: Sizes = SMALL,
    share: float = 0.15,
    seeds: tuple[int, ...] = (0, 1, 2),
    device: str = "cpu",
    out: Path = Path("runs/encoder_or_decoder"),
    png: bool = False,
) -> None:
    """Train the same network with the causal mask and without, for the next token and for masked ones.

    Args:
        text: a file to read; without one, the standard library.
        most: characters of it.
        sizes: of the network.
        share: of the tokens that are masked.
        seeds: of the weights, of the order of the text, and of what is masked.
        device: where the networks are trained.
        out: where the results go. What was stopped goes on there.
        png: draw the figures as PNG, too.
    """
    runs = out / "runs"
    found = study(characters(text, most), sizes, share=share, seeds=seeds, device=device, folder=runs)
    config = {"text": text, "most": most, "sizes": asdict(sizes), "share": share, "seeds": seeds}
    names = [f"{kind}, {task}" for kind, task in product(KINDS, TASKS)]
    models = {name: Run(runs / name / f"seed {seeds[0]}").model() for name in names}
    save(found, out, "encoder_or_decoder", config=config, models=models, png=png)


def study(
    text: Characters,
    sizes: Sizes,
    *,
    share: float = 0.15,
    seeds: Sequence[int] = (0, 1, 2),
    device: str = "cpu",
    folder: Path | None = None,
    progress: bool = True,
) -> Found:
    """All of it."""
    if not 0 < share < 1 or len(seeds) < 2 or len(set(seeds)) < len(seeds):
        raise ValueError(f"share={share}, seeds={list(seeds)}; a share is between 0 and 1, and two seeds differ")
    asked = {task: held_out(text, sizes.n_ctx, task, share) for task in TASKS}
    loss, looks, written = list[Tensor](), list[Dataset](), dict[str, str]()
    runs = list(product(KINDS, TASKS, seeds))
    for kind, task, seed in tqdm(runs, desc="training", unit="network", delay=1.0, disable=not progress):
        model = network(text, sizes, kind, seed, device)
        where = None if folder is None else folder / f"{kind}, {task}" / f"seed {seed}"
        trained(model, data(text, sizes.n_ctx, task, share, seed), sizes.training(seed), where)
        loss.append(by_position(model, asked[task]))
        if seed == seeds[0]:
            looks.append(_looks(model, asked[task]))
        if (task, seed) == ("next", seeds[0]):
            written[kind] = _written(model, text)
    places = {"kind": list(KINDS), "task": list(TASKS)}
    of_all = torch.stack(loss).view(len(KINDS), len(TASKS), len(seeds), -1)
    by_model = [looks[i : i + len(TASKS)] for i in range(0, len(looks), len(TASKS))]
    result: Any = concat([concat(of_kind, "task", join="outer") for of_kind in by_model], "kind", join="outer")
    result = result.assign_coords(places)
    result["loss"] = labelled(of_all, places | {"seed": list(seeds), "pos": range(sizes.n_ctx)}, "loss", {})
    result.attrs = {"method": "encoder or decoder"}
    findings = _findings(result) | {"written": written}
    return Found(result, _figures(result), _table(findings), findings)


def network(text: Characters, sizes: Sizes, kind: str, seed: int, device: str = "cpu") -> HookedGPT:
    """The same network for both kinds: what differs is who may look where. Its last token is the mask."""
    own: dict[str, Any] = {
        name: getattr(sizes, name) for name in ("n_layers", "d_model", "n_heads", "n_ctx", "dropout")
    }
    kinds: dict[str, Any] = {"attention_dir": KINDS[kind], "act_fn": "relu"}
    return HookedGPT(
        GPTConfig(d_vocab=text.tokenizer.d_vocab + 1, seed=seed, device=device, **own, **kinds), text.tokenizer
    )


def data(text: Characters, n_ctx: int, task: str, share: float, seed: int) -> Task:
    """Rows of the text, from anywhere, with what is asked of them."""
    source = torch.from_numpy(text.train)

    def draw(generator: torch.Generator, n_rows: int) -> Batch:
        starts = torch.randint(len(source) - n_ctx, (n_rows, 1), generator=generator)
        rows = source[starts + torch.arange(n_ctx + 1)]
        return asking(rows, task, share, text.tokenizer.d_vocab, generator)

    return Task(draw, seed)


def held_out(text: Characters, n_ctx: int, task: str, share: float) -> FullBatch:
    """The same of what is held out, row after row."""
    rows = torch.from_numpy(text.held_out[: _ASKED + 1]).unfold(0, n_ctx + 1, n_ctx)
    return FullBatch(asking(rows, task, share, text.tokenizer.d_vocab, torch.Generator().manual_seed(0)))


def asking(rows: Tensor, task: str, share: float, mask: int, generator: torch.Generator) -> Batch:
    """What is asked of rows that are one token longer than the context."""
    tokens, following = rows[:, :-1], rows[:, 1:]
    if task == "next":
        return Batch(tokens, following)
    hidden = torch.rand(tokens.shape, generator=generator) < share
    hidden[:, 0] |= ~hidden.any(1)  # each row asks for something
    return Batch(tokens.masked_fill(hidden, mask), tokens.masked_fill(~hidden, IGNORED))


@torch.no_grad()
def by_position(model: HookedGPT, asked: FullBatch) -> Float[Tensor, " pos"]:
    """The mean loss at each position."""
    total, n = torch.zeros(2, asked.rows.tokens.shape[1], dtype=torch.float64)
    for batch in asked.whole(256):
        logits = model(batch.tokens).cpu()
        total += F.cross_entropy(logits.transpose(1, 2), batch.targets, ignore_index=IGNORED, reduction="none").sum(0)
        n += (batch.targets != IGNORED).sum(0)
    return total / n


def _looks(model: HookedGPT, asked: FullBatch) -> Dataset:
    """How much of its attention each head has for each offset, and how evenly it is spread."""
    found = heads.corpus_statistics(model, asked.rows.tokens, progress=False)
    attention = found["by_offset"] * found["n_at_offset"] / float(found["n_queries"].sum())
    return Dataset({"attention": attention, "relative_entropy": found["relative_entropy"]})


def _written(model: HookedGPT, text: Characters) -> str:
    """How a model goes on from the beginning of what is held out; or why it does not."""
    try:
        prompt = text.tokenizer.decode(text.held_out[:8].tolist())
        return model.generate(prompt, _WRITTEN, seed=0, prepend_bos=False, on_overflow="slide")
    except ValueError as refused:
        return str(refused)


def _findings(result: Dataset) -> dict[str, Any]:
    """Losses where what is asked for could be seen and where not, and where heads look."""
    following, hidden = (result.loss.sel(task=task) for task in TASKS)
    parts = {"next": following.isel(pos=slice(-1)), "next, at the end": following.isel(pos=[-1]), "masked": hidden}
    loss = {
        kind: {
            name: dict(
                zip(("mean", "error"), mean_and_error(of.sel(kind=kind).mean("pos").values.tolist()), strict=True)
            )
            for name, of in parts.items()
        }
        for kind in KINDS
    }
    gained = (hidden.sel(kind="decoder") - hidden.sel(kind="encoder")).mean("pos").values.tolist()
    looks = {f"{kind}, {task}": _shares(result.sel(kind=kind, task=task)) for kind, task in product(KINDS, TASKS)}
    gain, error = mean_and_error(gained)
    return {"loss": loss, "gain_on_masked": {"mean": gain, "error": error}, "looks": looks}


def _shares(of: Dataset) -> dict[str, float]:
    """The attention of all heads to either side; and that of the head which has most for the next token."""
    attention, offset = of.attention.fillna(0), of.offset
    mean = attention.mean(("layer", "head"))
    return {
        "left": float(mean.sel(offset=offset > 0).sum()),
        "itself": float(mean.sel(offset=0)),
        "right": float(mean.sel(offset=offset < 0).sum()),
        "next": float(attention.sel(offset=-1).max()) if -1 in offset else 0.0,
        "relative_entropy": float(of.relative_entropy.mean()),
    }


def _table(findings: dict[str, Any]) -> str:
    """What is printed."""
    loss = findings["loss"]
    rows = [
        [part, *(f"{loss[k][part]['mean']:.3f} ± {loss[k][part]['error']:.3f}" for k in KINDS)]
        for part in loss["decoder"]
    ]
    looks = [[name, *(f"{x:.2f}" for x in of.values())] for name, of in findings["looks"].items()]
    said = [f"  {kind}: {text!r}" for kind, text in findings["written"].items()]
    return "\n".join(
        [
            table(["held-out loss", *KINDS], rows),
            "",
            table(["attention", "left", "itself", "right", "next, at most", "relative entropy"], looks),
            "",
            "What is written:",
            *said,
        ]
    )


def _figures(result: Dataset) -> dict[str, Any]:
    """Losses by position, and attention by distance."""
    figures, titles = dict[str, Any](), {"next": "Loss on the next token", "masked": "Loss on masked tokens"}
    for task, title in titles.items():
        figures[task] = plots.lines(result.loss.sel(task=task).mean("seed"), title=f"{title}, by position")
    mean = result.attention.fillna(0).mean(("layer", "head")).stack(network=("kind", "task")).transpose("network", ...)
    named = DataArray(
        mean.to_numpy()[:, ::-1],
        {
            "network": [f"{kind}, {task}" for kind, task in mean.network.values],
            "key_pos - query_pos": -result.offset.to_numpy()[::-1],
        },
        name="attention",
    )
    figures["attention"] = plots.lines(named, title="Where heads look, on average")
    return figures


if __name__ == "__main__":
    start(main, __doc__)
