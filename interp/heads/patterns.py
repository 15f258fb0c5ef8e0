"""Attention patterns of any text, kept as queries and keys: one head's pattern is made again when it is asked for."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.hooks import Span, spanning
from interp.model import HookedGPT
from interp.model.attention import Attention, Pass, masked, softmax
from interp.model.inputs import check_range, checked_mask, checked_tokens, positions
from interp.results import Result, as_tokens, labelled

if TYPE_CHECKING:
    from xarray import Dataset
else:
    Dataset = Any

HeadPattern = Float[Tensor, "batch query_pos key_pos"]


@dataclass(frozen=True, eq=False)
class Patterns:
    """The queries, keys and values of one pass: `found[layer, head]` is a head's pattern."""

    model: HookedGPT
    tokens: Int[Tensor, "batch pos"]
    attention_mask: Bool[Tensor, "batch pos"] | None  # None: nothing is padding
    layers: Sequence[int]
    heads: Sequence[int]
    _kept: dict[int, tuple[Tensor, Tensor, Tensor]]  # of each layer q, and its heads' k and v: [batch pos head d_head]
    _this: Pass

    def __getitem__(self, at: tuple[int, int]) -> HeadPattern:
        """The pattern of a head, given as (layer, head): what hook_pattern has when nobody edits it there."""
        return softmax(self.scores(*at))

    def scores(self, layer: int, head: int) -> HeadPattern:
        """What the pattern is the softmax of, -inf where a query may not look."""
        attn, (q, k, _) = self._of(layer, head)
        mask, is_causal = self._this.allowed(attn)
        lean = self.lean(layer, head)
        scores = attn.scores(q, k) if lean is None else attn.scores(q, k) + lean
        return masked(scores, mask if mask is None else mask[:, 0], is_causal)

    def lean(self, layer: int, head: int) -> Float[Tensor, "#batch query_pos key_pos"] | None:
        """What scores have in them for where their keys stand, beside q · k; None: nothing."""
        attn, (q, _, _) = self._of(layer, head)
        lean = attn.lean(self._this.distance, q.dtype)
        return None if lean is None else lean[:, head % self.model.cfg.n_heads]

    def queries(self, layer: int, head: int) -> Float[Tensor, "batch pos d_head"]:
        """What the head looks with: its queries, normed and turned where the model does so."""
        return self._of(layer, head)[1][0]

    def keys(self, layer: int, head: int) -> Float[Tensor, "batch pos d_head"]:
        """What the head looks at: its keys, normed and turned where the model does so."""
        return self._of(layer, head)[1][1]

    def values(self, layer: int, head: int) -> Float[Tensor, "batch pos d_head"]:
        """What the head reads at each key."""
        return self._of(layer, head)[1][2]

    def steps(
        self, layer: int, head: int, queries: slice = slice(None), keys: slice = slice(None), *, prompt: int = 0
    ) -> Dataset:
        """How a head comes to its weights, for some queries and keys of a prompt: [query_pos key_pos].

        `product` is q · k; `score` is divided by attn_scale, and capped or lower with distance where the model does so;
        `masked` is -inf where a query may not look; `weight` is the softmax over all keys, also over those that are not
        asked for.
        """
        from xarray import Dataset

        attn, (q, k, _) = self._of(layer, head)
        q, k = q[prompt, queries], k[prompt]
        rows, columns = (range(len(k))[part] for part in (queries, keys))
        mask, is_causal = self._this.allowed(attn)
        if mask is not None:
            allowed = mask.expand(len(self.tokens), -1, -1, -1)[prompt, 0, queries]
        else:
            last = torch.tensor(rows, device=k.device) if is_causal else torch.full((len(rows),), len(k) - 1)
            allowed = torch.arange(len(k), device=k.device) <= last[:, None].to(k.device)
        score = attn.scores(q, k)
        if (lean := self.lean(layer, head)) is not None:
            score = score + lean.expand(len(self.tokens), -1, -1)[prompt, queries]
        hidden = score.masked_fill(~allowed, -torch.inf)
        made = {"product": q @ k.T, "score": score, "masked": hidden, "weight": softmax(hidden)}
        return Dataset(
            {name: (("query_pos", "key_pos"), x[:, keys].float().cpu().numpy()) for name, x in made.items()},
            coords={"query_pos": list(rows), "key_pos": list(columns)},
            attrs={"of": f"L{layer}H{head}", "model": self.model.fingerprint()},
        )

    def weighted(self, layer: int, head: int) -> HeadPattern:
        """The pattern times ‖v_j W_O‖, how much each key would write; each query's row made to sum to 1.

        What is written is taken before the biases and before any norm on what attention adds.
        """
        attn, (_, _, v) = self._of(layer, head)
        norms = (v @ attn.W_O[head]).float().norm(dim=-1)
        shares = self[layer, head].float() * norms[:, None]
        return shares / shares.sum(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)

    def terms(self, layer: int, head: int, query: int, key: int) -> Float[Tensor, "batch d_head"]:
        """q · k / attn_scale, dimension by dimension after any rotation: they sum to the score before cap and lean."""
        attn, (q, k, _) = self._of(layer, head)
        return q[:, query] * k[:, key] / attn.cfg.attn_scale

    def strongest(self, layer: int, head: int, k: int = 10, *, prompt: int = 0, first: bool = True) -> Dataset:
        """The k pairs of a prompt with the largest weights, along `rank`: `query_pos`, `key_pos` and `weight`.

        Without `first`, of pairs whose key is not the first token.
        """
        from xarray import Dataset

        pattern = self[layer, head][prompt].float().clone()
        if not first:
            pattern[:, 0] = 0
        best = pattern.flatten().topk(min(k, pattern.numel()))
        best_values = best.values[best.values > 0].cpu().numpy()
        places = best.indices[: len(best_values)].cpu().numpy()
        columns = {"query_pos": places // pattern.shape[1], "key_pos": places % pattern.shape[1], "weight": best_values}
        return Dataset({name: ("rank", of) for name, of in columns.items()})

    def group(self, head: int) -> int:
        """Which of the layer's keys and values a head reads: its own, or those that it shares."""
        return _groups(self.model, [head % self.model.cfg.n_heads])[0]

    def nbytes(self) -> int:
        """The memory that is held."""
        return sum(x.nbytes for kept in self._kept.values() for x in kept)

    def _of(self, layer: int, head: int) -> tuple[Attention, tuple[Tensor, Tensor, Tensor]]:
        n_layers, n_heads = self.model.cfg.n_layers, self.model.cfg.n_heads
        if not -n_layers <= layer < n_layers or layer % n_layers not in self._kept:
            raise KeyError(f"no patterns of layer {layer}: layers {list(self.layers)} are kept")
        if not -n_heads <= head < n_heads or head % n_heads not in self.heads:
            raise KeyError(f"no patterns of head {head}: heads {list(self.heads)} are kept")
        q, k, v = self._kept[layer % n_layers]
        at = self.heads.index(head % n_heads)
        groups = _groups(self.model, self.heads)
        of_keys = list(dict.fromkeys(groups)).index(groups[at])
        return self.model.blocks[layer].attn, (q[:, :, at], k[:, :, of_keys], v[:, :, of_keys])


@torch.no_grad()
def patterns(
    model: HookedGPT,
    input: str | Sequence[str] | Tensor,
    layers: Iterable[int] | None = None,
    heads: Iterable[int] | None = None,
    attention_mask: Tensor | None = None,
) -> Patterns:
    """The patterns of these layers and heads, or of all, on a text, texts or tokens [batch pos].

    One pass, no further than the last of these layers; its memory is that of queries, keys and values alone. Edits in
    force around the call act on them; edits of patterns and scores act on what the pass writes.
    """
    tokens, mask = as_tokens(model, input, attention_mask)
    tokens = checked_tokens(tokens, model.device)
    check_range(tokens, model.cfg)
    mask = checked_mask(mask, tokens.shape[0], tokens.shape[1], None, model.device)
    chosen = _chosen("layers", layers, model.cfg.n_layers)
    of_heads = _chosen("heads", heads, model.cfg.n_heads)
    groups = list(dict.fromkeys(_groups(model, of_heads)))
    kept: dict[int, tuple[Tensor, Tensor, Tensor]] = {}

    def look(attn: Attention, q: Tensor, k: Tensor, v: Tensor, this: Pass) -> Tensor:
        if attn.layer in chosen:
            kept[attn.layer] = q[:, :, of_heads], k[:, :, groups], v[:, :, groups]
        return attn.look(q, k, v, this)

    this = run(model, tokens, mask, look, n_layers=max(chosen) + 1)
    return Patterns(model, tokens, mask, chosen, of_heads, kept, replace(this, look=None, rotations=None, hooks=None))


def attention_between(
    found: Patterns, pairs: Mapping[str, tuple[Int[Tensor, " batch"], Int[Tensor, " batch"]]]
) -> Result:
    """How much every head attends from one place to another, which each prompt has elsewhere: [pair layer head prompt].

    A pair is the queries' positions and the keys'; a key that stands behind its query is not seen, and has 0.
    """
    every, n_prompts = torch.arange(len(found.tokens)), len(found.tokens)
    for name, (queries, keys) in pairs.items():
        if queries.shape != (n_prompts,) or keys.shape != (n_prompts,):
            raise ValueError(f"{name}: positions {list(queries.shape)}, {list(keys.shape)}; give one for each prompt")
    values = torch.empty(len(pairs), len(found.layers), len(found.heads), n_prompts)
    for i, layer in enumerate(found.layers):
        for j, head in enumerate(found.heads):
            pattern = found[layer, head].float().cpu()
            for n, (queries, keys) in enumerate(pairs.values()):
                values[n, i, j] = pattern[every, queries, keys]
    axes = {"pair": list(pairs), "layer": list(found.layers), "head": list(found.heads), "prompt": range(n_prompts)}
    return labelled(values, axes, "attention", {"method": "attention", "model": found.model.fingerprint()})


def run(
    model: HookedGPT,
    tokens: Int[Tensor, "batch pos"],
    mask: Bool[Tensor, "batch pos"] | None,
    look: Callable[[Attention, Tensor, Tensor, Tensor, Pass], Tensor],
    n_layers: int,
) -> Pass:
    """Run the first blocks with `look(attn, q, k, v, this)` in place of each attention's own; `this` is returned."""
    where = positions(mask, 0, tokens.shape[1], model.device)
    with spanning(Span(0, mask)):
        this = model.pass_over(where, mask, n_rows=len(tokens))
        this.look = lambda attn, q, k, v: look(attn, q, k, v, this)
        resid = model.into_stream(tokens, where)
        for block in islice(model.blocks, n_layers):
            resid = block(resid, this)
    return this


def _groups(model: HookedGPT, heads: Sequence[int]) -> list[int]:
    """Whose keys and values each head reads."""
    size = model.cfg.n_heads // model.cfg.n_key_value_heads
    return [head // size for head in heads]


def _chosen(what: str, given: Iterable[int] | None, n: int) -> list[int]:
    wanted = list(range(n) if given is None else given)
    if not wanted or not all(isinstance(i, int) and -n <= i < n for i in wanted):
        raise ValueError(f"{what}={wanted}; allowed: some of {-n} to {n - 1}")
    return sorted({i % n for i in wanted})
