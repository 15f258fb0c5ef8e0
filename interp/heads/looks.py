"""Where heads look, counted: how much of each query's attention lies where a detector would have it.

Of a row, a measure is the mean over the queries that it asks about; where it asks about none, NaN. Nothing is asked
about a row's first token, which can look at itself alone, or about padding.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.heads.trials import Rows

PerRow = Float[Tensor, "row head"]
Pattern = Float[Tensor, "row head query_pos key_pos"]


@dataclass(frozen=True, eq=False)
class Asked:
    """What is asked about some rows: which keys count for which queries."""

    rows: Rows

    @cached_property
    def first(self) -> Int[Tensor, " row"]:
        """The first real position."""
        return self.rows.real.long().argmax(1)

    @cached_property
    def queries(self) -> Bool[Tensor, "row query_pos"]:
        """All that are asked about, but for the first token."""
        return self.rows.queries & (
            torch.arange(self.rows.real.shape[1], device=self.first.device) > self.first[:, None]
        )

    @cached_property
    def earlier(self) -> Bool[Tensor, "row query_pos key_pos"]:
        """Real keys before a query that is asked about."""
        real = self.rows.real
        return torch.ones(real.shape[1], real.shape[1], dtype=torch.bool, device=real.device).tril(
            -1
        ) & self.queries[..., None] & real[:, None]  # fmt: skip

    @cached_property
    def same(self) -> Bool[Tensor, "row query_pos key_pos"]:
        """Earlier keys with the query's own token."""
        return (self.rows.tokens[:, :, None] == self.rows.tokens[:, None]) & self.earlier

    @cached_property
    def followers(self) -> Bool[Tensor, "row query_pos key_pos"]:
        """Keys right behind an earlier key with the query's token; the last may be the query itself."""
        return _shifted(self.same)

    @cached_property
    def followers_of_another(self) -> Float[Tensor, "row query_pos key_pos"]:
        """The same for another token that stood earlier, in the mean over all of these; 0 where there is none."""
        tokens, real = self.rows.tokens, self.rows.real
        alike = (tokens[:, :, None] == tokens[:, None]) & real[:, None] & real[..., None]
        copies = (alike.float().cumsum(1) - alike.float()) * self.earlier * ~self.same  # of a key, before each query
        n_others = (self.earlier & ~self.same).sum(-1, keepdim=True)
        return _shifted(copies / n_others.clamp(min=1))

    @cached_property
    def offset(self) -> Int[Tensor, "query_pos key_pos"]:
        places = torch.arange(self.rows.tokens.shape[1], device=self.first.device)
        return places[:, None] - places

    @cached_property
    def sets(self) -> "Sets":
        """The keys that each measure counts."""
        places, asked = torch.arange(self.rows.real.shape[1], device=self.first.device), self.queries[..., None]
        return Sets.of(
            {
                "current": (self.offset == 0) & asked,
                "previous": (self.offset == 1) & asked,
                "first": (places == self.first[:, None])[:, None] & asked,
                "duplicate": self.same,
                "induction": self.followers,
            }
        )

    @cached_property
    def sets_in_text(self) -> "Sets":
        """Keys behind earlier copies of the token, and behind copies of others, for queries that have both."""
        both = (self.followers.any(-1) & self.followers_of_another.any(-1))[..., None]
        return Sets.of({"own": self.followers & both, "other": self.followers_of_another * both})

    def at_distance(self, keys: Bool[Tensor, "row query_pos key_pos"]) -> Float[Tensor, "row offset"]:
        """How many of these keys stand so far back, a mean over the queries that have any."""
        counts = torch.stack([keys.diagonal(-offset, 1, 2).sum(-1) for offset in range(keys.shape[1])], -1)
        return counts / keys.any(-1).sum(-1, keepdim=True)


@dataclass(frozen=True, eq=False)
class Sets:
    """Sets of keys, or weights of them, one for each name."""

    names: list[str]
    weights: Float[Tensor, "row query_pos key_pos set"]
    n_asked: Int[Tensor, "row set"]  # queries for which there are any keys

    @classmethod
    def of(cls, sets: Mapping[str, Tensor], dtype: torch.dtype = torch.float32) -> "Sets":
        weights = torch.stack([each.to(dtype) for each in sets.values()], -1)
        return cls(list(sets), weights, weights.any(2).sum(1))


def shares(pattern: Pattern, sets: Sets) -> dict[str, PerRow]:
    """The attention that lies in each set, a mean over queries for which it has any keys."""
    weights = sets.weights.to(pattern.dtype).flatten(1, 2)
    means = (pattern.flatten(2) @ weights) / sets.n_asked[:, None]  # [row head set]; 0 / 0 where nothing is asked
    return {name: means[..., i] for i, name in enumerate(sets.names)}


def induction_beyond_chance(pattern: Pattern, asked: Asked) -> PerRow:
    """What lies behind earlier copies of the token, less what lies behind copies of another earlier one."""
    found = shares(pattern, asked.sets_in_text)
    return found["own"] - found["other"]


def by_offset(
    pattern: Pattern, asked: Asked, n_offsets: int, queries: Bool[Tensor, "row query_pos"] | None = None
) -> Float[Tensor, "row head offset"]:
    """Attention to the key so far back, a mean over the queries (all that are asked about) that have one."""
    found, queries = [], asked.queries if queries is None else queries
    for offset in range(n_offsets):
        has_key = queries[:, offset:] & asked.rows.real[:, : asked.rows.real.shape[1] - offset]
        there = pattern.diagonal(-offset, 2, 3) * has_key[:, None]
        found.append(there.sum(-1) / has_key.sum(-1)[:, None])
    return torch.stack(found, -1)


def first_of_all_moved(pattern: Pattern, lengths: Float[Tensor, "row head key_pos"], asked: Asked) -> PerRow:
    """Of all that is moved, each value by its length, the share that comes from the first token."""
    every = (pattern @ lengths[..., None])[..., 0]
    first = asked.first[:, None, None, None]
    from_first = pattern.take_along_dim(first, 3)[..., 0] * lengths.take_along_dim(first[..., 0], 2)
    share = torch.where(every > 0, from_first / every, 0) * asked.queries[:, None]
    return share.sum(-1) / asked.queries.sum(-1)[:, None]


def moved(
    pattern: Pattern,
    lengths: Float[Tensor, "row head key_pos"],
    keys: Bool[Tensor, "row query_pos key_pos"],
    beside: Float[Tensor, "row query_pos"],
) -> PerRow:
    """The length of what comes from these keys, each value by its own, by that of the stream that it is added to."""
    weights = (keys / beside[..., None])[:, None].to(pattern.dtype)
    return ((pattern * weights).sum(2) * lengths).sum(-1) / keys.any(-1).sum(-1)[:, None]


def copying(pattern: Pattern, copies: Float[Tensor, "row head key_pos"], asked: Asked) -> PerRow:
    """Attention to earlier tokens that the head's OV circuit copies."""
    elsewhere = pattern * asked.earlier[:, None]
    return (elsewhere.sum(2) * copies).sum(-1) / asked.queries.sum(-1)[:, None]


def suppression(
    pattern: Pattern,
    lowers: Float[Tensor, "row head key_pos"],
    predicted: Int[Tensor, "row query_pos"],
    asked: Asked,
) -> PerRow:
    """Attention to earlier occurrences of what the stream predicts, where the OV circuit lowers that token."""
    there = (asked.rows.tokens[:, None] == predicted[..., None]) & asked.earlier
    n_asked = there.any(-1).sum(-1)[:, None]
    return (pattern * there[:, None] * lowers[:, :, None]).sum((2, 3)) / n_asked


def _shifted(keys: Tensor) -> Tensor:
    """The keys one further on."""
    return F.pad(keys[..., :-1], (1, 0))
