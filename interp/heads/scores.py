"""Scores of attention heads, each held against a null: heads that read the same streams with shuffled weights.

1. What is read (`trials`): rows of random tokens, each repeated with a period of its own; a text; lists in order.
2. One pass over it. As a layer's patterns are made, each head is measured (`looks`), and so are the layer's heads with
   the entries of their weights in another order (`null`): some 500 of these, in 20 orders at least.
3. A score's threshold lies above the greatest that any shuffled head reached, whatever its layer: 5 standard deviations
   above the mean of them all, or half of the way from the greatest to 1, if that is less.

Patterns tell where a head looks; what it does with what it finds is told by its OV circuit, end to end (`weights`).
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.heads import looks, trials
from interp.heads.looks import Sets
from interp.heads.null import Looking, Null, Score, measured
from interp.heads.trials import Rows
from interp.heads.weights import LayerHeads, Words
from interp.model import HookedGPT
from interp.results import Result, as_tokens, labelled
from interp.weights import stream

SCORES = {
    "current": "attention to the token itself",
    "previous": "attention to the token before",
    "k_back": "attention to the token k before, k from 2 on: of the k at which it is greatest in the median row",
    "first": "attention to the first token",
    "first_moved": "of all that is moved, each value by its length, the share that comes from the first token",
    "duplicate": "attention to earlier occurrences of the token",
    "induction": "attention to what followed earlier occurrences of the token",
    "induction_moved": "the length of what is moved from there, by that of the stream that it is added to",
    "induction_text": "the same in text, less attention to what followed other earlier tokens",
    "copying": "attention to earlier tokens that attending to raises most",
    "negative": "attention to earlier occurrences of what the stream predicts, of tokens that attending to lowers most",
    "successor": "share of items of ordered lists that, attended to, raise the next item above all others",
}


def scores(
    model: HookedGPT,
    tokens: Any = None,
    *,
    text: str | Sequence[str] | None = None,
    lists: Sequence[Sequence[int]] | None = None,
    queries: Bool[Tensor, "row pos"] | None = None,
    attention_mask: Tensor | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Result:
    """How far each head is of each kind, [score layer head]; `SCORES` says what each number is.

    Read are random tokens that repeat, and for the last of them a text: the standard library's, where the model has a
    tokenizer. Give `tokens`, or texts, to have all but the last taken on these, with `queries` on the attention of some
    of their positions alone; `text` for another text; `lists` of token ids for "successor". What cannot be measured is
    NaN.

    Beside each score: `low` and `high`, 1.96 standard errors over rows (for "successor", items) away, and `n` of these;
    `null`, the mean score of heads with shuffled weights, and `threshold`, above them all; `by_distance`, how much of
    "duplicate" and "induction" the head's habit of looking so far back explains; and `k` of "k_back". Induction heads
    are told by "induction"; "induction_moved", which has no upper end, tells which of a layer's matter most.
    """
    if tokens is None and (queries is not None or attention_mask is not None):
        raise ValueError("queries and attention_mask are of the tokens that you give: give tokens=")
    rows = trials.repeats(model, seed=seed) if tokens is None else _given(model, tokens, attention_mask, queries)
    has_text = text is not None or (tokens is None and model.tokenizer is not None)
    if text is not None and model.tokenizer is None:
        raise ValueError("text= needs a tokenizer, and the model has none; give tokens=")
    of_text = trials.text_rows(model, text) if has_text else None
    known = trials.ordered_lists(model) if lists is None else [list(each) for each in lists]
    null = Null(model, seed)
    detectors = _Detectors(model, rows, known)
    tables = measured(null, [rows] if of_text is None else [rows, of_text], detectors, progress)
    each = [Score(tables[name]) if name in tables else Score.unknown(model) for name in SCORES]
    back = Score(tables["k_back"]).choice
    assert back is not None
    n_layers, n_heads = model.cfg.n_layers, model.cfg.n_heads
    by_distance = torch.zeros(len(SCORES), n_layers, n_heads)
    for i, name in enumerate(SCORES):
        if name in detectors.distances:
            by_distance[i] = _told_by_distance(tables[f"habit of {name}"].own, torch.cat(detectors.distances[name]))
    about = {"method": "head scores", "model": model.fingerprint(), "seed": seed, "null_of": str(null)}
    about |= {"rows": f"{len(rows.tokens)} × {rows.tokens.shape[1]} {'random tokens' if tokens is None else 'given'}"}
    axes = {"score": list(SCORES), "layer": range(n_layers), "head": range(n_heads)}
    return labelled(torch.stack([one.value for one in each]), axes, "score", about).assign_coords(
        low=(tuple(axes), torch.stack([one.low for one in each]).numpy()),
        high=(tuple(axes), torch.stack([one.high for one in each]).numpy()),
        threshold=("score", [one.threshold for one in each]),
        null=("score", [one.null for one in each]),
        n=("score", [one.n for one in each]),
        by_distance=(tuple(axes), by_distance.numpy()),
        k=(("layer", "head"), back.numpy() + 2),
    )


def detect_pattern(
    model: HookedGPT,
    prompts: Any,
    target: Float[Tensor, "*prompt query_pos key_pos"] | Bool[Tensor, "*prompt query_pos key_pos"],
    *,
    attention_mask: Tensor | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Result:
    """How much of each head's attention lies where `target` has it, [layer head]: a mean over the queries it asks.

    `target` weighs the keys of each query from 0 to 1, for all prompts alike or for each; a query for which it has
    nothing is not asked. `low`, `high`, `n`, `threshold` and `null` are as in `scores`; one prompt has no interval.
    """
    rows = _given(model, prompts, attention_mask)
    n_rows, n_pos = rows.tokens.shape
    weights = target.to(model.device, stream.dtype_of(model))
    if weights.shape not in ((n_pos, n_pos), (n_rows, n_pos, n_pos)):
        raise ValueError(
            f"target has shape {list(target.shape)}; it weighs [query_pos key_pos], {[n_pos, n_pos]}, for all prompts "
            f"or for each of {n_rows}"
        )
    if not bool(((weights >= 0) & (weights <= 1)).all()) or not bool(weights.any()):
        raise ValueError("target weighs keys from 0 to 1, and some of them above 0")
    each = weights.expand(n_rows, n_pos, n_pos)

    def inside(looking: Looking) -> dict[str, Tensor]:
        part = each[looking.first_row : looking.first_row + len(looking.pattern)]
        asked = looking.asked.rows.real[..., None] & looking.asked.rows.real[:, None]
        return looks.shares(looking.pattern, Sets.of({"target": part * asked}, weights.dtype))

    null = Null(model, seed)
    found = Score(measured(null, [rows], inside, progress)["target"])
    about = {"method": "detect pattern", "model": model.fingerprint(), "seed": seed, "null_of": str(null)}
    axes = {"layer": range(model.cfg.n_layers), "head": range(model.cfg.n_heads)}
    return labelled(found.value, axes, "score", about).assign_coords(
        low=(tuple(axes), found.low.numpy()),
        high=(tuple(axes), found.high.numpy()),
        threshold=found.threshold,
        null=found.null,
        n=found.n,
    )


class _Detectors:
    """All scores, of each layer's heads as they look."""

    def __init__(self, model: HookedGPT, rows: Rows, lists: list[list[int]]) -> None:
        self.model, self.lists = model, lists
        self.distances: dict[str, list[Tensor]] = {"duplicate": [], "induction": []}  # of a score's keys, [row offset]
        predicts_what_it_reads = model.cfg.d_vocab_out == model.cfg.d_vocab
        self.words = Words.of(model, rows.tokens.to(model.device)) if predicts_what_it_reads else None
        self._moved: dict[tuple[int, int | None], tuple[Tensor, Tensor]] = {}
        self._listed = set[tuple[int, int | None]]()
        self._predicted: tuple[Tensor, Tensor] | None = None  # of the stream met last

    def __call__(self, looking: Looking) -> dict[str, Tensor]:
        pattern, asked, found = looking.pattern, looking.asked, dict[str, Tensor]()
        if looking.part == 0:
            found |= looks.shares(pattern, asked.sets)
            found["k_back"] = looks.by_offset(pattern, asked, max(3, pattern.shape[-1] // 2))[..., 2:]
            if looking.shuffle is None:
                found |= self._habits(looking)
            found["first_moved"] = looks.first_of_all_moved(pattern, looking.lengths, asked)
            beside = stream.exact(looking.resid_pre).norm(dim=-1)
            found["induction_moved"] = looks.moved(pattern, looking.lengths, asked.followers, beside)
            if self.words is not None:
                found |= self._of_words(looking, self.words)
        else:
            found["induction_text"] = looks.induction_beyond_chance(pattern, asked)
        place = looking.heads.layer, looking.shuffle
        if self.lists and place not in self._listed:
            self._listed.add(place)
            found["successor"] = successors(looking.heads, self.lists)
        return found

    def _habits(self, looking: Looking) -> dict[str, Tensor]:
        """How far back heads look where there is something to find, and in the first layer, how far back that is."""
        asked, found = looking.asked, dict[str, Tensor]()
        for name, keys in (("duplicate", asked.same), ("induction", asked.followers)):
            found[f"habit of {name}"] = looks.by_offset(looking.pattern, asked, keys.shape[1], keys.any(-1))
            if looking.heads.layer == 0:
                self.distances[name].append(asked.at_distance(keys).double().cpu())
        return found

    def _of_words(self, looking: Looking, words: Words) -> dict[str, Tensor]:
        place, asked = (looking.heads.layer, looking.shuffle), looking.asked
        if place not in self._moved:
            self._moved[place] = words.moved(looking.heads)
        if self._predicted is None or self._predicted[0] is not looking.resid_pre:
            self._predicted = looking.resid_pre, words.predicted(self.model, looking.resid_pre)
        copies, lowers = (
            words.of_tokens(each, asked.rows.tokens).to(looking.pattern.dtype) for each in self._moved[place]
        )
        return {
            "copying": looks.copying(looking.pattern, copies, asked),
            "negative": looks.suppression(looking.pattern, lowers, self._predicted[1], asked),
        }


def _told_by_distance(
    habit: Float[Tensor, "layer head row offset"], distances: Float[Tensor, "row offset"]
) -> Float[Tensor, "layer head"]:
    """What of a score the mean attention by distance explains, each row held against the mean of all others."""
    is_known = habit.isfinite()
    total, own = habit.nansum(2, keepdim=True), habit.nan_to_num()
    others = (total - own) / (is_known.sum(2, keepdim=True) - is_known.long()).clamp(min=1)
    return (others * distances).sum(-1).nanmean(-1)


def successors(heads: LayerHeads, lists: Sequence[Sequence[int]]) -> Float[Tensor, "item head"]:
    """Whether attending to an item raises the next one of its list above all others of it; 1 where it does."""
    model, found = heads.model, []
    for items in lists:
        if len(items) < 3:
            raise ValueError(f"lists: {list(items)} is too short to tell a successor; give 3 items at least")
        ids = torch.tensor(items, device=model.device)
        embedded = stream.Embedded.of(model, not model.cfg.attn_only, ids).at(heads.layer)
        logits = embedded[:-1] @ heads.reads @ heads.writes @ stream.W_U(model)[:, ids]  # [head item logit]
        own = logits.diagonal(1, 1, 2)
        others = logits.clone().diagonal_scatter(torch.full_like(own, -torch.inf), 1, 1, 2).amax(-1)
        found.append((own > others).T.to(logits.dtype))
    return torch.cat(found)


def _given(model: HookedGPT, prompts: Any, attention_mask: Tensor | None, queries: Tensor | None = None) -> Rows:
    tokens, mask = as_tokens(model, prompts, attention_mask)
    if tokens.shape[1] < 3:
        raise ValueError(
            f"rows of {tokens.shape[1]} tokens: give 3 at least, so that there is something to look back to"
        )
    if queries is not None and queries.shape != tokens.shape:
        raise ValueError(f"queries has shape {list(queries.shape)}; the tokens are {list(tokens.shape)}")
    return Rows.of(tokens, mask, queries)
