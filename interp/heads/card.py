"""All that is known of one head: what it is, what it reads and writes, where it looks, what is lost without it."""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from interp import corpus as corpora
from interp import metrics
from interp.cards import Card, rows, shown
from interp.heads import trials
from interp.heads.roles import detect
from interp.interventions import Site
from interp.model import HookedGPT
from interp.passages import Corpus, Passage, passages
from interp.patching import ablation
from interp.results import Result, token_pieces, token_texts
from interp.weights import composition_scores, ov_circuit, qk_circuit
from interp.weights.stream import checked_index

if TYPE_CHECKING:
    from xarray import Dataset
else:
    Dataset = Any

_N_CTX, _WORDS = 128, 1_000
_BEGINNING = 4_000  # characters of a file, so that there are many


class HeadCard(Card):
    """A head's card; `card["writes"]` is one of its tables (see `head_card`), and `print(card)` shows them all."""

    of = "head"
    parts = ("scores", "reads", "writes", "partners", "contexts", "ablation")

    @property
    def role(self) -> str:
        return str(self.tables.attrs["role"])

    def __str__(self) -> str:
        lines = [f"{self.name}: {self.role}    (model {str(self.tables.attrs['model'])[:12]})", "", "scores"]
        for name in self["scores"].score.values:
            one = self["scores"].sel(score=name)
            if np.isfinite(one.value):
                mark = "*" if one.named else " "
                lines.append(
                    f" {mark} {name:<15}{float(one.value):7.3f}   [{float(one.low):.3f}, {float(one.high):.3f}]   "
                    f"threshold {float(one.threshold):.3f}"
                )
        lines += ["", "looks from (query) at (key), by weights"]
        lines += [
            f"   {shown(q):>16} -> {shown(k):<16}{s:7.2f}"
            for q, k, s in rows(self["reads"], "query_token", "key_token", "value")
        ]
        lines += ["", "attends to most, and what that raises"]
        writes = self["writes"]
        for i, token in enumerate(writes.token.values):
            raised = " ".join(map(shown, writes.raised.values[i]))
            lines.append(f"   {shown(token):>16} -> {raised}")
        lines += ["", f"composition (random heads: {self.tables.attrs['baseline']:.3f})"]
        lines += [f"   {edge:<24}{score:6.3f}" for edge, score in rows(self["partners"], "edge", "value")]
        lines += ["", "looks hardest: from [query] at {key}"]
        lines += [f"   {w:.3f}  {shown(text)}" for w, text in rows(self["contexts"], "weight", "text")]
        lines += ["", "without it (its output the mean): change of the loss"]
        lines += [f"   {on:<10}{change:+.4f} nats a token" for on, change in rows(self["ablation"], "on", "change")]
        return "\n".join(lines)


@torch.no_grad()
def head_card(
    model: HookedGPT,
    layer: int,
    head: int,
    corpus: Corpus | None = None,
    *,
    found: Dataset | None = None,
    k: int = 8,
    max_tokens: int = 20_000,
    progress: bool = True,
) -> HeadCard:
    """A head's card. `found`, what `detect` returned, saves the time to score all heads again.

    Its tables: "scores", with intervals and thresholds; "reads", the k pairs of tokens that its QK circuit scores
    highest, among the commonest of the corpus; "writes", the k tokens that it attends to most in the corpus, and the k
    that its OV circuit then raises most; "partners", the k strongest compositions with other heads; "contexts", where
    in the corpus it looks hardest at something that is not the first token, once in a document; "ablation", the loss
    on the corpus and on random tokens that repeat, with the head and without. The corpus is the standard library's
    text unless one is given; for a model without a tokenizer, random tokens that repeat.
    """
    from xarray import Dataset

    layer, head = checked_index(model, "layer", layer), checked_index(model, "head", head)
    found = detect(model, progress=progress) if found is None else found
    if found.attrs["model"] != model.fingerprint():
        raise ValueError("found is of another model: give what detect(model) returned for this one")
    if corpus is None:
        has_text = model.tokenizer is not None
        beginnings = (text[:_BEGINNING] for text in corpora.standard_library("held_out"))
        corpus = beginnings if has_text else trials.repeats(model, 64).tokens
    seen = _Seen(model, layer, head)
    for passage in passages(model, corpus, min(_N_CTX, model.cfg.n_ctx), max_tokens=max_tokens):
        seen.read(passage)
    partners, baseline = _partners(model, layer, head, k)
    own = found.sel(layer=layer, head=head)
    scores = {name: ("score", own[name].to_numpy()) for name in ("value", "named", "low", "high", "threshold", "null")}
    tables = {
        "scores": Dataset(scores, coords={"score": own.score.to_numpy()}),
        "reads": seen.reads(k),
        "writes": seen.writes(k),
        "partners": partners,
        "contexts": seen.contexts(k),
        "ablation": _ablation(model, layer, head, seen.rows()),
    }
    about = {
        "layer": layer,
        "head": head,
        "role": str(own.role.item()),
        "rests": int(own.rests.item()),
        "model": model.fingerprint(),
        "baseline": baseline,
        "corpus tokens": seen.n_tokens,
    }
    return HeadCard.made(tables, about)


class _Seen:
    """What a head attends to in a corpus, passage by passage."""

    def __init__(self, model: HookedGPT, layer: int, head: int) -> None:
        self.model, self.layer, self.head = model, layer, head
        self.attended = torch.zeros(model.cfg.d_vocab, dtype=torch.float64)
        self.counts = torch.zeros(model.cfg.d_vocab, dtype=torch.long)
        self.hardest: dict[int, tuple[float, list[int], int, int]] = {}  # of each document
        self.kept: list[Passage] = []
        self.n_tokens = 0

    def read(self, passage: Passage) -> None:
        """Take in one batch of rows."""
        model, taken = self.model, list[Tensor]()
        tokens, mask = passage.tokens.to(model.device), passage.mask.to(model.device)
        name = f"blocks.{self.layer}.attn.hook_pattern"
        with model.recording([name], lambda x, point: taken.append(x[:, self.head])):  # noqa: ARG005
            model(tokens, attention_mask=mask, stop_at_layer=self.layer + 1)
        pattern = taken[0].double().cpu() * passage.mask[..., None]
        pattern[..., 0] = 0  # where heads rest that have nothing to do
        self.attended.index_add_(0, passage.tokens.flatten(), pattern.sum(1).flatten())
        self.counts.index_add_(0, passage.tokens[passage.mask], torch.ones(int(passage.mask.sum()), dtype=torch.long))
        self.n_tokens += int(passage.mask.sum())
        weights, places = pattern.flatten(1).max(1)
        for row, document in enumerate(passage.document.tolist()):
            if float(weights[row]) > self.hardest.get(document, (0.0,))[0]:
                query, key = divmod(int(places[row]), pattern.shape[2])
                self.hardest[document] = float(weights[row]), passage.tokens[row].tolist(), query, key
        if len(self.kept) < 2:
            self.kept.append(passage)

    def rows(self) -> trials.Rows:
        """The first rows of the corpus."""
        longest = max(passage.tokens.shape[1] for passage in self.kept)
        grown = [torch.nn.functional.pad(each.tokens, (0, longest - each.tokens.shape[1])) for each in self.kept]
        masks = [torch.nn.functional.pad(each.mask, (0, longest - each.mask.shape[1])) for each in self.kept]
        return trials.Rows.of(torch.cat(grown), torch.cat(masks))

    def reads(self, k: int) -> Dataset:
        """The pairs of tokens that the head's scores are highest for."""
        from xarray import Dataset

        model = self.model
        common = self.counts.topk(min(_WORDS, int((self.counts > 0).sum()))).indices.to(model.device)
        circuit = qk_circuit(model, self.layer, self.head, vocab=True)
        scores = circuit.A[common] @ circuit.B[:, common] / model.cfg.attn_scale
        best = scores.flatten().topk(min(k, scores.numel()))
        query, key = best.indices // len(common), best.indices % len(common)
        columns = {"query_token": token_texts(model, common[query]), "key_token": token_texts(model, common[key])}
        return Dataset(
            {name: ("rank", each) for name, each in (columns | {"value": best.values.cpu().numpy()}).items()}
        )

    def writes(self, k: int) -> Dataset:
        """The tokens most attended to, and what that raises."""
        from xarray import Dataset

        model = self.model
        tokens = self.attended.topk(min(k, int((self.attended > 0).sum()) or 1)).indices.to(model.device)
        circuit = ov_circuit(model, self.layer, self.head, vocab=True)
        best = (circuit.A[tokens] @ circuit.B).topk(min(k, model.cfg.d_vocab_out))
        share = self.attended / self.attended.sum().clamp(min=1e-30)
        return Dataset(
            {
                "token": ("source", token_texts(model, tokens)),
                "share": ("source", share[tokens.cpu()].numpy()),
                "raised": (("source", "rank"), token_texts(model, best.indices)),
                "value": (("source", "rank"), best.values.float().cpu().numpy()),
            }
        )

    def contexts(self, k: int, around: int = 8) -> Dataset:
        """Where the head looks hardest, the hardest first."""
        from xarray import Dataset

        chosen = sorted(self.hardest.items(), key=lambda each: -each[1][0])[:k]
        texts, keys, queries = [], [], []
        for _, (_, ids, query, key) in chosen:
            words = token_texts(self.model, torch.tensor(ids)).tolist()
            keys.append(words[key])
            queries.append(words[query])
            marked = token_pieces(self.model, torch.tensor(ids))
            marked[key] = f"{{{words[key]}}}".encode()
            marked[query] = f"[{words[query]}]".encode()
            first, last = sorted((query, key))
            between = marked[first + 1 : last]
            if len(between) > 2 * around:
                between = [*between[:around], " … ".encode(), *between[-around:]]
            ends = marked[max(0, first - around) : first + 1], marked[last : last + 2] if last > first else []
            texts.append(b"".join([*ends[0], *between, *ends[1]]).decode("utf-8", "backslashreplace"))
        return Dataset(
            {
                "weight": ("rank", [each[0] for _, each in chosen]),
                "text": ("rank", np.array(texts, dtype=object)),
                "query_token": ("rank", np.array(queries, dtype=object)),
                "key_token": ("rank", np.array(keys, dtype=object)),
                "document": ("rank", [document for document, _ in chosen]),
                "query_pos": ("rank", [each[2] for _, each in chosen]),
                "key_pos": ("rank", [each[3] for _, each in chosen]),
            }
        )


def _partners(model: HookedGPT, layer: int, head: int, k: int) -> tuple[Dataset, float]:
    """The heads with which this one composes most, and what random ones reach."""
    from xarray import Dataset

    scores: Result = composition_scores(model, progress=False)
    name, edges = f"L{layer}H{head}", list[tuple[str, float]]()
    for kind in scores.kind.values:
        of_kind = scores.sel(kind=kind)
        into, out = of_kind[:, :, layer, head].to_numpy(), of_kind[layer, head].to_numpy()
        end = str(kind).lower()
        edges += [(f"L{i}H{j}->{name}.{end}", float(x)) for (i, j), x in np.ndenumerate(into) if np.isfinite(x)]
        edges += [(f"{name}->L{i}H{j}.{end}", float(x)) for (i, j), x in np.ndenumerate(out) if np.isfinite(x)]
    best = sorted(edges, key=lambda edge: -edge[1])[:k]
    columns = {"edge": np.array([edge for edge, _ in best], dtype=object), "value": [score for _, score in best]}
    return Dataset({key: ("rank", each) for key, each in columns.items()}), float(scores.attrs["baseline"])


def _ablation(model: HookedGPT, layer: int, head: int, rows: trials.Rows) -> Dataset:
    """The mean loss with the head and without, on the corpus and on random tokens that repeat."""
    from xarray import Dataset

    found = {}
    for on, some in (("corpus", rows), ("repeats", trials.repeats(model))):
        site, choice = [Site("z", layer, head=head)], {"kind": "mean", "attention_mask": some.mask, "progress": False}
        without = ablation(model, some.tokens, site, metrics.loss(), **choice)  # type: ignore[arg-type]
        found[on] = float(without.base.mean()), float((without - without.base).mean())
    return Dataset(
        {"loss": ("on", [loss for loss, _ in found.values()]), "change": ("on", [each for _, each in found.values()])},
        coords={"on": list(found)},
    )
