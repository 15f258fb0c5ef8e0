"""What heads move and what they look for (Elhage et al., 2021): the OV and QK circuits, factored.

W_OV = W_V W_O carries what stands at a key into the stream at the query; a query x and a key y score x W_QK yᵀ, with
W_QK = W_Q W_Kᵀ. What is done with norms, grouped queries and biases is told in `interp.weights.stream`.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from interp.hooks import silence
from interp.model import HookedGPT
from interp.model.attention import Pass, RotaryAttention
from interp.model.norms import NoNorm
from interp.model.rotary import rotations
from interp.results import Result, labelled
from interp.weights import stream
from interp.weights.factored import FactoredMatrix


def ov_circuit(
    model: HookedGPT,
    layer: int | None = None,
    head: int | None = None,
    *,
    vocab: bool = False,
    effective_embedding: bool = False,
) -> FactoredMatrix:
    """W_V W_O on the stream, [layer head d_model d_model], without the axis whose index is given.

    With `vocab`, end to end: what attending to a token (row) does to each logit (column), but for norms' divisors; with
    `effective_embedding` too, attending to what MLP0 has made of the token. All heads end to end hold
    n_layers · n_heads · d_head · (d_vocab + d_vocab_out) numbers.

    Gains of norms (and LayerNorms' centring) are taken in, biases are left out. For the bare product:
    `FactoredMatrix(model.all_heads(model.W_V), model.W_O)`.
    """
    embedded = _embedded(model, vocab, effective_embedding)
    W_U = stream.W_U(model) if vocab else None

    def factors(at: int, heads: slice) -> tuple[Tensor, Tensor]:
        reads, writes = stream.W_V(model, at)[heads], stream.W_O(model, at)[heads]
        if embedded is None or W_U is None:
            return reads, writes
        return embedded.at(at) @ reads, stream.read_off(model, writes, at) @ W_U

    return _stacked(model, layer, head, factors)


def qk_circuit(
    model: HookedGPT,
    layer: int | None = None,
    head: int | None = None,
    *,
    vocab: bool = False,
    effective_embedding: bool = False,
) -> FactoredMatrix:
    """W_Q W_Kᵀ on the stream, [layer head d_model d_model], without the axis whose index is given: queries by keys.

    With `vocab`, between tokens: the score of each as a query (row) with each as a key (column), but for norms'
    divisors. It is not yet divided by `cfg.attn_scale`, as the model's scores are. Gains of norms are taken in, those
    on queries and keys too; biases and rotation are left out: with rotary positions it is the score at distance 0.
    """
    embedded = _embedded(model, vocab, effective_embedding)

    def factors(at: int, heads: slice) -> tuple[Tensor, Tensor]:
        queries, keys = stream.W_Q(model, at)[heads], stream.W_K(model, at)[heads]
        if embedded is None:
            return queries, keys.mT
        tokens = embedded.at(at)
        return tokens @ queries, (tokens @ keys).mT

    return _stacked(model, layer, head, factors)


@torch.no_grad()
def positional_qk(
    model: HookedGPT,
    layer: int,
    head: int,
    *,
    query: Float[Tensor, " d_head"] | None = None,
    key: Float[Tensor, " d_head"] | None = None,
) -> Result:
    """How a head's scores depend on positions alone, divided by `cfg.attn_scale`.

    Where positions have vectors, [query_pos key_pos]: the score between two of them, through the gains of norms that
    they pass but without divisors and biases. With rotary positions, [distance]: the score of a query that stands so
    far after the key. `query` and `key` are then as they are when they begin to turn; without them, the mean over the
    vocabulary, of tokens whose embedding is all that stands in the stream. For the mean over a text give
    `cache["q", layer][:, :, head].mean((0, 1))`, and the key alike (where they are not normed). With ALiBi, [distance]:
    what is taken off.
    """
    layer, head = stream.checked_index(model, "layer", layer), stream.checked_index(model, "head", head)
    about = {"method": "positional QK", "layer": layer, "head": head, "model": model.fingerprint()}
    attn, places = model.blocks[layer].attn, torch.arange(model.cfg.n_ctx, device=model.device)
    if isinstance(attn, RotaryAttention):
        means = _mean_query_and_key(model, layer, head) if query is None or key is None else (query, key)
        given = {"query": (query, means[0]), "key": (key, means[1])}
        q, k = (_of_head(model, name, mean if vector is None else vector) for name, (vector, mean) in given.items())
        cos, sin = rotations(model.cfg, places[None], q.dtype)[attn.is_local]
        turned = attn.turn(q.expand(1, len(places), 1, -1), cos, sin)
        scores = (turned * k).sum(-1).flatten() / model.cfg.attn_scale
        return labelled(scores, {"distance": range(len(places))}, "score", about)
    if query is not None or key is not None:
        raise ValueError("query and key are for rotary positions; here each position has a query and a key of its own")
    if (lean := attn.lean(places[None, None, :, None], torch.float64)) is not None:
        return labelled(lean[0, head, :, 0], {"distance": range(len(places))}, "score", about)
    if model.pos_embed is None:
        raise ValueError("positional_embedding_type=None: no score depends on positions alone")
    pos, before = stream.exact(model.pos_embed(places[None], model.dtype)[0]), None
    if model.cfg.adds_positions:
        pos = stream.carried(model, pos, 0, layer)
    else:
        before = NoNorm()  # heads read positions beside the stream
    q, k = pos @ stream.W_Q(model, layer, before)[head], pos @ stream.W_K(model, layer, before)[head]
    axes = {"query_pos": range(len(places)), "key_pos": range(len(places))}
    return labelled(q @ k.mT / model.cfg.attn_scale, axes, "score", about)


def _mean_query_and_key(model: HookedGPT, layer: int, head: int) -> tuple[Tensor, Tensor]:
    """Over the vocabulary, of tokens that stand alone in the stream, norms whole."""
    block, group = model.blocks[layer], model.cfg.n_heads // model.cfg.n_key_value_heads
    means = torch.zeros(2, model.cfg.d_head, dtype=torch.float64, device=model.device)
    with silence():
        for tokens in torch.arange(model.cfg.d_vocab, device=model.device).split(4096):
            rows = stream.embeddings(model, tokens).to(model.dtype)
            rows = stream.carried(model, rows, 0, layer, past=lambda norm, x: norm.unheard(x))
            q, k, _ = block.attn.project(block.ln1.unheard(rows)[None], Pass())
            q, k = block.attn.q_norm(q)[0, :, head], block.attn.k_norm(k)[0, :, head // group]
            means += torch.stack((q, k)).double().sum(1) / model.cfg.d_vocab
    q, k = means.to(stream.dtype_of(model))
    return q, k


def _of_head(model: HookedGPT, name: str, vector: Tensor) -> Float[Tensor, "1 1 1 d_head"]:
    if vector.shape != (model.cfg.d_head,):
        raise ValueError(f"{name} has shape {list(vector.shape)}; a head's is [d_head], [{model.cfg.d_head}]")
    return vector.to(model.device, stream.dtype_of(model))[None, None, None]


def _embedded(model: HookedGPT, vocab: bool, effective: bool) -> stream.Embedded | None:
    if effective and not vocab:
        raise ValueError("effective_embedding=True is for circuits between tokens: give vocab=True too")
    return stream.Embedded.of(model, effective) if vocab else None


def _stacked(
    model: HookedGPT,
    layer: int | None,
    head: int | None,
    factors: Callable[[int, slice], tuple[Tensor, Tensor]],
) -> FactoredMatrix:
    """The factors of one layer or all, of one head or all."""
    layers = range(model.cfg.n_layers) if layer is None else [stream.checked_index(model, "layer", layer)]
    first = None if head is None else stream.checked_index(model, "head", head)
    heads = slice(None) if first is None else slice(first, first + 1)
    A, B = (torch.stack(each) for each in zip(*(factors(at, heads) for at in layers), strict=True))
    chosen = (0 if layer is not None else slice(None), 0 if head is not None else slice(None))
    return FactoredMatrix(A[chosen], B[chosen])
