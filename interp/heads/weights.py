"""A layer's heads by their weights alone: their own, or with the entries of each head's matrices in another order.

The second kind is the null that scores are held against: heads that read the same streams, each with weights as large
as one of these, and no circuit in them.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.hooks import silence
from interp.model import HookedGPT
from interp.model.attention import Pass, masked
from interp.model.linear import product
from interp.weights import stream

Streams = Float[Tensor, "row pos d_model"]


@dataclass(frozen=True, eq=False)
class LayerHeads:
    """The attention weights of a layer, as they are stored."""

    model: HookedGPT
    layer: int
    qkv: Float[Tensor, "rows d_model"]
    qkv_bias: Float[Tensor, " rows"] | None
    out: Float[Tensor, "d_model columns"]

    @classmethod
    def of(cls, model: HookedGPT, layer: int) -> "LayerHeads":
        attn = model.blocks[layer].attn
        return cls(model, layer, attn.qkv.weight, attn.qkv.bias, attn.out.weight)

    def shuffled(self, seed: int) -> "LayerHeads":
        """In each head, the entries of its queries', keys', values' and outputs' weights in a random order."""
        draw, attn, n_heads = (
            torch.Generator().manual_seed(seed),
            self.model.blocks[self.layer].attn,
            self.model.cfg.n_heads,
        )

        def mixed(by_head: Float[Tensor, "head ..."]) -> Tensor:
            flat = by_head.flatten(1)
            order = torch.randperm(flat.shape[1], generator=draw).to(flat.device)
            return flat[:, order].view(by_head.shape)

        def fused(rows: Tensor) -> Tensor:
            each = [part.unflatten(0, (-1, self.model.cfg.d_head)) for part in attn.by_part(rows)]
            return torch.cat([mixed(part).flatten(0, 1) for part in each])

        out = mixed(self.out.unflatten(1, (n_heads, -1)).transpose(0, 1)).transpose(0, 1).flatten(1)
        bias = None if self.qkv_bias is None else fused(self.qkv_bias)
        return LayerHeads(self.model, self.layer, fused(self.qkv), bias, out)

    def look(
        self, resid_pre: Streams, this: Pass
    ) -> tuple[Float[Tensor, "row head query_pos key_pos"], Float[Tensor, "row head key_pos"]]:
        """Their patterns over these streams, and the length of what each key's value would write."""
        block = self.model.blocks[self.layer]
        attn, n_kv = block.attn, block.attn.cfg.n_key_value_heads
        with silence():
            made = product(block.ln1.unheard(resid_pre), self.qkv, self.qkv_bias).unflatten(-1, (-1, attn.cfg.d_head))
            q, k, v = made.split((attn.cfg.n_heads, n_kv, n_kv), -2)
            q, k, v = attn.clipped(*attn.place(q, k, self.qkv, this), v)
            q, k = attn.rotate(attn.q_norm(q), attn.k_norm(k), this)
            keys = k.transpose(1, 2).repeat_interleave(attn.cfg.n_heads // n_kv, 1)
            scores, lean = attn.scores(q.transpose(1, 2), keys), attn.lean(this.distance, q.dtype)
            scores = masked(scores if lean is None else scores + lean, *this.allowed(attn))
            pattern = stream.exact(scores).softmax(-1)
        return pattern, self.lengths(v)

    def lengths(self, v: Float[Tensor, "row pos kv_head d_head"]) -> Float[Tensor, "row head key_pos"]:
        """|v W_O|, of each head's own value at each key."""
        cfg = self.model.cfg
        each = stream.exact(v).transpose(1, 2).repeat_interleave(cfg.n_heads // cfg.n_key_value_heads, 1)
        W_O = stream.exact(self.out.unflatten(1, (cfg.n_heads, cfg.d_head)).permute(1, 2, 0))
        gram = W_O @ W_O.mT
        return ((each @ gram) * each).sum(-1).clamp(min=0).sqrt()

    @property
    def reads(self) -> Float[Tensor, "head d_model d_head"]:
        """W_V as the stream meets it."""
        cfg, block = self.model.cfg, self.model.blocks[self.layer]
        W_V = block.attn.by_part(self.qkv)[2].unflatten(0, (-1, cfg.d_head)).mT
        return stream.for_each_head(self.model, stream.behind(block.ln1, stream.exact(W_V)))

    @property
    def writes(self) -> Float[Tensor, "head d_head d_model"]:
        """W_O as the unembedding reads it."""
        cfg, block = self.model.cfg, self.model.blocks[self.layer]
        W_O = stream.exact(self.out.unflatten(1, (cfg.n_heads, cfg.d_head)).permute(1, 2, 0))
        W_O = W_O if stream.is_post(self.model) else stream.through(block.ln1_post, W_O)
        return stream.read_off(self.model, W_O, self.layer)


@dataclass(frozen=True, eq=False)
class Words:
    """Tokens whose way through OV circuits is followed, and the tokens that they are ranked among."""

    sources: Int[Tensor, " source"]  # ascending
    among: Int[Tensor, " candidate"]
    embedded: stream.Embedded
    W_U: Float[Tensor, "d_model candidate"]
    k: float  # so many of the candidates are as few as 10 of the vocabulary are (in small ones, a hundredth)

    @classmethod
    def of(cls, model: HookedGPT, tokens: Tensor, most: int = 2**12) -> "Words":
        """These tokens, ranked among themselves and, in all, at most so many of the vocabulary."""
        n = model.cfg.d_vocab_out
        sources = tokens.unique()
        sources = sources[sources < n]
        rest = torch.randperm(n, generator=torch.Generator().manual_seed(0)).to(sources.device)
        among = (rest if n <= most else torch.cat((sources, rest[: max(0, most - len(sources))]))).unique()
        effective = model.cfg.tie_word_embeddings and not model.cfg.attn_only
        embedded = stream.Embedded.of(model, effective, sources)
        W_U = stream.W_U(model)[:, among]
        k = max(1.0, min(10.0, n / 100) * len(among) / n)
        return cls(sources, among, embedded, W_U, k)

    def of_tokens(
        self, what: Bool[Tensor, "head source"], tokens: Int[Tensor, "row pos"]
    ) -> Bool[Tensor, "row head pos"]:
        """What is said of each source, at its places in these rows; of other tokens, no."""
        index = torch.searchsorted(self.sources, tokens.contiguous()).clamp(max=len(self.sources) - 1)
        return (what[:, index] & (self.sources[index] == tokens)).transpose(0, 1)

    def predicted(self, model: HookedGPT, resid: Streams) -> Int[Tensor, "row pos"]:
        """Which of the candidates each stream has the highest logit for, read off as the end of the stream is."""
        logits = stream.exact(model.ln_final.unheard(resid)) @ self.W_U
        logits = logits if model.b_U is None else logits + stream.exact(model.b_U)[self.among]
        return self.among[logits.argmax(-1)]

    def moved(self, heads: LayerHeads) -> tuple[Bool[Tensor, "head source"], Bool[Tensor, "head source"]]:
        """Whether a source is among the k tokens that attending to it raises most, and among those it lowers most."""
        tokens, own_place = self.embedded.at(heads.layer), torch.searchsorted(self.among, self.sources)
        mean, copies, lowers = self.W_U.mean(1), [], []
        for read, write in zip(heads.reads, heads.writes, strict=True):
            found = tokens @ read
            logits = found @ (write @ self.W_U)
            own = logits.gather(1, own_place[:, None])
            rises = own[:, 0] - found @ (write @ mean)  # in comparison with the mean logit
            n_above = (logits > own).sum(1)
            n_below = len(self.among) - 1 - n_above
            copies.append((n_above < self.k) & (rises > 0))
            lowers.append((n_below < self.k) & (rises < 0))
        return torch.stack(copies), torch.stack(lowers)
