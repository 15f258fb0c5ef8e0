"""Attention: heads read the stream, look at earlier positions, and write to the stream."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import floor, log2

import torch
import torch.nn.functional as F
from einops import einsum
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from interp.config import GPTConfig
from interp.hooks import Heard, HookPoint, is_heard
from interp.model.kv_cache import Earlier
from interp.model.linear import Linear, product
from interp.model.norms import head_norm
from interp.model.rotary import Rotation, rotate_halves, rotate_pairs

Stream = Float[Tensor, "batch pos d_model"]
Heads = Float[Tensor, "batch pos head d_head"]
KVHeads = Float[Tensor, "batch pos kv_head d_head"]
Queries = Float[Tensor, "batch query_pos head d_head"]  # at every position, or at the last alone
Written = Float[Tensor, "batch query_pos d_model"]
Pattern = Float[Tensor, "batch head query_pos key_pos"]
Distance = Int[Tensor, "#batch 1 query_pos key_pos"]
HeadInputs = tuple[Tensor, Tensor, Tensor]  # what each head reads for its q, k and v: [batch pos head d_model]


@dataclass
class Pass:
    """What all blocks of one pass share."""

    rotations: dict[bool, Rotation] | None = None  # of global layers, and (True) of local ones
    pos_embed: Float[Tensor, "#batch pos d_model"] | None = None  # what queries and keys read beside the stream
    distance: Distance | None = None  # how far a key stands before the query, where scores depend on it
    mask: Bool[Tensor, "#batch 1 query_pos key_pos"] | None = None  # who may look where; None: causal, or everywhere
    local_mask: Bool[Tensor, "#batch 1 query_pos key_pos"] | None = None  # the same for layers with a window
    is_causal: bool = True
    kv_cache: Earlier | None = None
    hooks: Heard | None = None  # who listens to this call; None: nobody
    wanted: slice | Int[Tensor, " wanted"] | None = None  # the positions that ask and are written to; None: all
    look: "Callable[[Attention, Tensor, Tensor, Tensor], Tensor] | None" = None  # in place of the attention's own

    def for_last_query(self) -> "Pass":
        """The same, for a block that only the last position goes on from. It sees all that its mask allows."""
        of_last = {name: getattr(self, name) for name in ("mask", "local_mask", "distance")}
        of_last = {name: each if each is None else each[..., -1:, :] for name, each in of_last.items()}
        return replace(self, **of_last, is_causal=False, wanted=slice(-1, None))

    def allowed(self, attn: "Attention") -> tuple[Bool[Tensor, "#batch 1 query_pos key_pos"] | None, bool]:
        """Who may look where in a layer: a mask; without one, whether at what came before alone, or everywhere."""
        mask = self.local_mask if attn.is_local else self.mask
        return mask, self.is_causal and mask is None

    def goes_on(self, x: Float[Tensor, "#batch pos ..."]) -> Float[Tensor, "#batch query_pos ..."]:
        """What goes on of something that is there at every position."""
        return x if self.wanted is None else x[:, self.wanted]


class Attention(nn.Module):
    """Scores q · k / scale, a softmax over keys, and the mix of values that it weighs."""

    def __init__(self, cfg: GPTConfig, layer: int) -> None:
        super().__init__()
        self.cfg = cfg
        self.layer = layer
        self.is_local = cfg.is_local(layer)
        n_queries, n_keys = cfg.n_heads * cfg.d_head, cfg.n_key_value_heads * cfg.d_head
        self.qkv = Linear(cfg, cfg.d_model, n_queries + 2 * n_keys, cfg.bias_qkv)
        self.out = Linear(cfg, n_queries, cfg.d_model, cfg.bias_attn_out)
        self.q_norm = head_norm(cfg, cfg.n_heads, "head")
        self.k_norm = head_norm(cfg, cfg.n_key_value_heads, "kv_head")
        self.dropout = nn.Dropout(cfg.dropout) if cfg.dropout else nn.Identity()

        self.hook_q = HookPoint("batch pos head d_head", "x W_Q + b_Q, before rotation")
        self.hook_k = HookPoint("batch pos kv_head d_head", "x W_K + b_K, before rotation")
        self.hook_v = HookPoint("batch pos kv_head d_head", "x W_V + b_V")
        self.hook_attn_scores = HookPoint(
            "batch head query_pos key_pos", "q · k / attn_scale, capped, -inf where masked", on_demand=True
        )
        self.hook_pattern = HookPoint(
            "batch head query_pos key_pos", "softmax of attn_scores over keys", on_demand=True
        )
        self.hook_attn_scores.is_cached_by_default = self.hook_pattern.is_cached_by_default = True
        self.hook_z = HookPoint("batch pos head d_head", "sum over keys of pattern * v")
        self.hook_result = HookPoint("batch pos head d_model", "z W_O, what each head writes", on_demand=True)

    def forward(self, x: Stream | HeadInputs, this: Pass) -> Written:
        """`x` is the stream after the norm: one for all heads, or what each head reads for its q, k and v."""
        q, k, v = self.project(x, this) if isinstance(x, Tensor) else self.project_each(*x)
        q, k = self.place(q, k, self.qkv.weight, this)
        q, k, v = self.clipped(q, k, v)
        q, k, v = self.hook_q(q), self.hook_k(k), self.hook_v(v)
        q, k = self.rotate(self.q_norm(q), self.k_norm(k), this)
        z = self.hook_z(self.look(q, k, v, this) if this.look is None else this.look(self, q, k, v))
        return self.dropout(self.write(z))

    def project(self, x: Stream, this: Pass) -> tuple[Queries, KVHeads, KVHeads]:
        heads, n_kv = (-1, self.cfg.d_head), self.cfg.n_key_value_heads
        if this.wanted is None:
            q, k, v = self.qkv(x).unflatten(-1, heads).split((self.cfg.n_heads, n_kv, n_kv), dim=-2)
            return q, k, v
        n_q, weight, bias = self.cfg.n_heads * self.cfg.d_head, self.qkv.weight, self.qkv.bias
        of_q, of_kv = (None, None) if bias is None else (bias[:n_q], bias[n_q:])
        q, kv = product(this.goes_on(x), weight[:n_q], of_q), product(x, weight[n_q:], of_kv)
        k, v = kv.unflatten(-1, heads).chunk(2, dim=-2)
        return q.unflatten(-1, heads), k, v

    def project_each(self, q_in: Tensor, k_in: Tensor, v_in: Tensor) -> tuple[Heads, KVHeads, KVHeads]:
        read = "batch pos head d_model, head d_model d_head -> batch pos head d_head"
        q, k, v = einsum(q_in, self.W_Q, read), einsum(k_in, self.W_K, read), einsum(v_in, self.W_V, read)
        if self.qkv.bias is None:
            return q, k, v
        b_Q, b_K, b_V = self._by_head(self.qkv.bias)
        return q + b_Q, k + b_K, v + b_V

    def place(self, q: Queries, k: KVHeads, weight: Tensor, this: Pass) -> tuple[Queries, KVHeads]:
        """What the fused `weight` made of the stream, with what it makes of positions beside the stream."""
        return q, k

    def clipped(self, q: Queries, k: KVHeads, v: KVHeads) -> tuple[Queries, KVHeads, KVHeads]:
        """The same, within ± qkv_clip where there is one."""
        bound = self.cfg.qkv_clip
        return (q, k, v) if bound is None else (q.clamp(-bound, bound), k.clamp(-bound, bound), v.clamp(-bound, bound))

    def rotate(self, q: Queries, k: KVHeads, this: Pass) -> tuple[Queries, KVHeads]:
        """Nothing turns."""
        return q, k

    def look(self, q: Queries, k: KVHeads, v: KVHeads, this: Pass) -> Queries:
        """Each query's mix of values."""
        keys, values = k.transpose(1, 2), v.transpose(1, 2)
        if this.kv_cache is not None:
            keys, values = this.kv_cache.append(self.layer, k, v)
        queries = q.transpose(1, 2)
        mask, is_causal = this.allowed(self)
        lean = self.lean(this.distance, q.dtype)
        p_drop = self.cfg.dropout if self.training else 0.0
        if self.cfg.attn_scores_soft_cap is None and not is_heard(self.hook_attn_scores, self.hook_pattern):
            z = F.scaled_dot_product_attention(
                queries,
                keys,
                values,
                attn_mask=mask if lean is None else masked(lean, mask, is_causal),
                dropout_p=p_drop,
                is_causal=is_causal and lean is None,
                scale=1 / self.cfg.attn_scale,
                enable_gqa=self.cfg.has_grouped_queries,
            )
            return z.transpose(1, 2)
        group = self.cfg.n_heads // self.cfg.n_key_value_heads
        keys, values = keys.repeat_interleave(group, 1), values.repeat_interleave(group, 1)
        scores = self.scores(queries, keys)
        scores = masked(scores if lean is None else scores + lean, mask, is_causal)
        pattern = self.hook_pattern(softmax(self.hook_attn_scores(scores)))
        return (F.dropout(pattern, p_drop) @ values).transpose(1, 2)

    def scores(
        self, queries: Float[Tensor, "*heads query_pos d_head"], keys: Float[Tensor, "*heads key_pos d_head"]
    ) -> Float[Tensor, "*heads query_pos key_pos"]:
        """q · k / attn_scale, capped where the model does so, of each query with every key."""
        scores = (queries / self.cfg.attn_scale) @ keys.transpose(-1, -2)
        cap = self.cfg.attn_scores_soft_cap
        return scores if cap is None else cap * torch.tanh(scores / cap)

    def lean(
        self, distance: Distance | None, dtype: torch.dtype
    ) -> Float[Tensor, "#batch head query_pos key_pos"] | None:
        """What is added to scores for where their keys stand; None: nothing."""
        return None

    def write(self, z: Queries) -> Written:
        if not is_heard(self.hook_result):
            return self.out(z.flatten(-2))
        result = einsum(z, self.W_O, "batch pos head d_head, head d_head d_model -> batch pos head d_model")
        written = self.hook_result(result).sum(-2)
        return written if self.out.bias is None else written + self.out.bias

    def by_part(self, rows: Float[Tensor, "rows ..."]) -> list[Float[Tensor, "part_rows ..."]]:
        """The rows of the fused matrix or bias that make q, k and v."""
        n_q, n_k = self.cfg.n_heads * self.cfg.d_head, self.cfg.n_key_value_heads * self.cfg.d_head
        return [rows[:n_q], rows[n_q : n_q + n_k], rows[n_q + n_k :]]  # slices: what `split` returns is not writable

    def _by_head(self, rows: Float[Tensor, "rows ..."]) -> list[Float[Tensor, "head d_head ..."]]:
        return [part.unflatten(0, (-1, self.cfg.d_head)) for part in self.by_part(rows)]

    @property
    def W_Q(self) -> Float[Tensor, "head d_model d_head"]:
        return self._by_head(self.qkv.weight)[0].transpose(1, 2)

    @property
    def W_K(self) -> Float[Tensor, "kv_head d_model d_head"]:
        return self._by_head(self.qkv.weight)[1].transpose(1, 2)

    @property
    def W_V(self) -> Float[Tensor, "kv_head d_model d_head"]:
        return self._by_head(self.qkv.weight)[2].transpose(1, 2)

    @property
    def W_O(self) -> Float[Tensor, "head d_head d_model"]:
        return self.out.weight.unflatten(1, (self.cfg.n_heads, self.cfg.d_head)).permute(1, 2, 0)

    @property
    def b_Q(self) -> Float[Tensor, "head d_head"] | None:
        return None if self.qkv.bias is None else self._by_head(self.qkv.bias)[0]

    @property
    def b_K(self) -> Float[Tensor, "kv_head d_head"] | None:
        return None if self.qkv.bias is None else self._by_head(self.qkv.bias)[1]

    @property
    def b_V(self) -> Float[Tensor, "kv_head d_head"] | None:
        return None if self.qkv.bias is None else self._by_head(self.qkv.bias)[2]

    @property
    def b_O(self) -> Float[Tensor, " d_model"] | None:
        return self.out.bias


def masked(
    scores: Float[Tensor, "*batch query_pos key_pos"],
    mask: Bool[Tensor, "*#batch query_pos key_pos"] | None,
    is_causal: bool,
) -> Float[Tensor, "*batch query_pos key_pos"]:
    """Scores, -inf where a query may not look. (In place: nobody has seen them yet.)"""
    if is_causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    return scores if mask is None else scores.masked_fill_(~mask, -torch.inf)


def softmax(scores: Float[Tensor, "*batch query_pos key_pos"]) -> Float[Tensor, "*batch query_pos key_pos"]:
    """Over keys, in single precision at least."""
    exact = torch.float32 if scores.dtype.itemsize == 2 else scores.dtype
    return scores.softmax(-1, dtype=exact).to(scores.dtype)


class RotaryAttention(Attention):
    """Attention whose queries and keys turn with their position."""

    def __init__(self, cfg: GPTConfig, layer: int) -> None:
        super().__init__(cfg, layer)
        self.turn = rotate_pairs if cfg.rotary_adjacent_pairs else rotate_halves
        self.hook_rot_q = HookPoint("batch pos head d_head", "q turned by its position")
        self.hook_rot_k = HookPoint("batch pos kv_head d_head", "k turned by its position")

    def rotate(self, q: Queries, k: KVHeads, this: Pass) -> tuple[Queries, KVHeads]:
        assert this.rotations is not None
        rotation = this.rotations[self.is_local]
        of_queries = [this.goes_on(each) for each in rotation]
        return self.hook_rot_q(self.turn(q, *of_queries)), self.hook_rot_k(self.turn(k, *rotation))

    def turn_again(
        self, keys: Float[Tensor, "batch kv_head pos d_head"], old: dict[bool, Rotation], new: dict[bool, Rotation]
    ) -> None:
        """Turn keys back, and as they are to turn now, in place."""
        (cos, sin), now = old[self.is_local], new[self.is_local]
        size = cos.square() + sin.square()  # of the factor that turned keys are multiplied by
        keys.copy_(self.turn(self.turn(keys.transpose(1, 2), cos / size, -sin / size), *now).transpose(1, 2))


class ShortformerAttention(Attention):
    """Attention whose queries and keys read positions beside the stream; values do not (Press et al., 2020)."""

    def place(self, q: Queries, k: KVHeads, weight: Tensor, this: Pass) -> tuple[Queries, KVHeads]:
        assert this.pos_embed is not None
        of_queries, of_keys, _ = self.by_part(weight)
        asked, seen = product(this.goes_on(this.pos_embed), of_queries, None), product(this.pos_embed, of_keys, None)
        return q + asked.unflatten(-1, (-1, self.cfg.d_head)), k + seen.unflatten(-1, (-1, self.cfg.d_head))


class LeaningAttention(Attention):
    """Attention whose scores sink with distance, in each head at a slope of its own (ALiBi; Press et al., 2022)."""

    def lean(
        self, distance: Distance | None, dtype: torch.dtype
    ) -> Float[Tensor, "#batch head query_pos key_pos"] | None:
        assert distance is not None
        exact = torch.promote_types(dtype, torch.float32)
        slopes = torch.tensor(alibi_slopes(self.cfg.n_heads), device=distance.device, dtype=exact)
        return (-slopes[:, None, None] * distance).to(dtype)


def alibi_slopes(n_heads: int) -> list[float]:
    """2^(-8/n), 2^(-16/n) … 2^-8 for n heads; where n is no power of 2, those of the one below, then every other one of
    the one above."""
    below = 2 ** floor(log2(n_heads))
    return [2 ** (-8 * i / below) for i in range(1, below + 1)] + [
        2 ** (-4 * i / below) for i in range(1, 2 * (n_heads - below), 2)
    ]


def attention(cfg: GPTConfig, layer: int) -> Attention:
    """Attention as its positions come in."""
    if cfg.turns(layer):
        return RotaryAttention(cfg, layer)
    others = {"shortformer": ShortformerAttention, "alibi": LeaningAttention}
    return others.get(cfg.positional_embedding_type or "", Attention)(cfg, layer)
