"""Composition (Elhage et al., 2021): how much of what one head writes a later one reads, from the weights alone.

With row vectors, sender 1 and receiver 2:

    Q: ‖W_OV1 W_QK2‖ / (‖W_OV1‖ ‖W_QK2‖)
    K: ‖W_OV1 W_QK2ᵀ‖ / (‖W_OV1‖ ‖W_QK2‖)
    V: ‖W_OV1 W_OV2‖ / (‖W_OV1‖ ‖W_OV2‖)

in Frobenius norms. Each is ‖L R‖ / (‖L‖ ‖R‖) with a thin L [d_head, d_model] of the sender and R [d_model, d_head] of
the receiver: the outer factors are replaced by their triangles of a QR decomposition, which have the same norms. Heads
with random weights score about 1 / sqrt(d_model), whatever their rank. Two ways lead to ‖L R‖²:

1. directly, by the product of two thin matrices for each pair;
2. as ⟨LᵀL, R Rᵀ⟩: the two symmetric [d_model, d_model] matrices cost a product for each head, and a pair only the inner
   product of their upper triangles, so that all pairs are one matrix product. It is the cheaper way where there are
   many pairs for each head and heads are not tiny. Of an inner product that is small beside the two matrices, rounding
   leaves nothing: such pairs are taken directly, so that what is exactly 0 stays so.
"""

import re
from itertools import pairwise
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor
from torch.linalg import matrix_norm
from tqdm.auto import tqdm

from interp.model import HookedGPT
from interp.model.linear import product
from interp.results import Result, labelled
from interp.weights import stream
from interp.weights.circuits import ov_circuit, qk_circuit
from interp.weights.factored import FactoredMatrix

Kind = Literal["Q", "K", "V"]
Writes = Float[Tensor, "sender rank d_model"]
Reads = Float[Tensor, "layer receiver rank2 d_model"]  # Rᵀ
Pairs = Float[Tensor, "_ receiver"]
_HELD = 2**28  # bytes held of the receivers of several layers, and of rows of the senders' Gram matrices
_ROWS = 64  # of Gram matrices at once: 26 MB of the senders' at GPT-2 small's size, which caches may hold
_SENDERS = 16  # at once, of direct products
_LOST = 1e-3  # of the most that an inner product can be
_PATH = re.compile(r"L\d+H\d+(?:->L\d+H\d+)+(?:\.([qkv]))?")


@torch.no_grad()
def composition_scores(model: HookedGPT, kind: Kind | Literal["all"] = "all", *, progress: bool = True) -> Result:
    """The scores of all pairs of heads, [sender_layer sender receiver_layer receiver]; "all" has an axis `kind` first.

    NaN where the sender is not in an earlier layer; 0 where a head reads or writes nothing. `attrs["baseline"]` is what
    random heads score (`random_composition` has their spread). Gains of norms are taken in.
    """
    if kind not in (*get_args(Kind), "all"):
        raise ValueError(f"kind={kind!r}; allowed: 'Q', 'K', 'V', 'all'")
    kinds: tuple[Kind, ...] = get_args(Kind) if kind == "all" else (kind,)
    n_layers, n_heads = model.cfg.n_layers, model.cfg.n_heads
    writes = [_sent(model, layer) for layer in range(n_layers)]
    scores = torch.full((len(kinds), n_layers, n_heads, n_layers, n_heads), torch.nan, dtype=writes[0].dtype)
    # What senders wrote is normed on its way in a "post" model: each receiving layer has another.
    at_once = 1 if stream.is_post(model) else max(1, _HELD // (len(kinds) * writes[0].nbytes))
    pairs = n_layers * (n_layers - 1) // 2
    with tqdm(total=pairs, desc="composition", unit=" pairs of layers", delay=1.0, disable=not progress) as bar:
        for first in range(1, n_layers, at_once):
            receivers = range(first, min(first + at_once, n_layers))
            reads = torch.cat([_received(model, layer, kind) for layer in receivers for kind in kinds])
            written = [stream.carried(model, writes[layer], layer, first) for layer in range(receivers[-1])]
            n_senders = [n_heads * layer for layer in receivers]
            found = _scores(torch.cat(written), reads.unflatten(0, (len(receivers), -1)), n_senders)
            for layer, scored in zip(receivers, found, strict=True):
                parted = scored.cpu().reshape(layer, n_heads, len(kinds), n_heads)
                scores[:, :layer, :, layer] = parted.movedim(2, 0)
                bar.update(layer)
    each_head = {"sender_layer": range(n_layers), "sender": range(n_heads)}
    axes = {**each_head, "receiver_layer": range(n_layers), "receiver": range(n_heads)}
    about = {"method": "composition", "baseline": model.cfg.d_model**-0.5, "model": model.fingerprint()}
    if kind == "all":
        return labelled(scores, {"kind": kinds, **axes}, "composition", about)
    return labelled(scores[0], axes, "composition", about | {"kind": kind})


def random_composition(d_model: int, d_head: int, n: int = 100, *, seed: int = 0) -> Float[Tensor, " sample"]:
    """Scores of n pairs of heads with random normal weights: the spread that a real score is to be held against.

    All kinds have the same.
    """
    if min(d_model, d_head, n) < 1:
        raise ValueError(f"d_model={d_model}, d_head={d_head}, n={n}; all must be positive")
    draw = torch.Generator().manual_seed(seed)
    scores = []
    for _ in range(n):
        V, O, Q, K = torch.randn(4, d_model, d_head, generator=draw, dtype=torch.float64)  # noqa: E741
        sent, received = _triangle(V[None]) @ O.mT, _triangle(K[None]) @ Q.mT
        scores.append(_scores(sent, received[None], [1])[0].item())
    return torch.tensor(scores)


def virtual_weights(model: HookedGPT, path: str) -> FactoredMatrix:
    """What heads in a row do together, factored: `virtual_weights(model, "L0H3->L1H2")` is W_OV1 W_OV2.

    A path that ends in `.q` or `.k`, as in "L0H3->L1H2.k", gives W_OV1 W_QK2 or W_OV1 W_QK2ᵀ: what the first head reads
    (row) against what stands at the other end of the last one's look (column). Gains of norms are taken in.
    """
    match = _PATH.fullmatch(path)
    if match is None:
        raise ValueError(f"path={path!r}; it must look like 'L0H3->L1H2' or 'L0H3->L1H2->L3H0.k'")
    nodes, end = path.removesuffix(f".{match[1]}").split("->"), match[1] or "v"
    places = [(int(layer), int(head)) for layer, head in (node[1:].split("H") for node in nodes)]
    layers = [stream.checked_index(model, "layer", layer) for layer, _ in places]
    heads = [stream.checked_index(model, "head", head) for _, head in places]
    if any(later <= earlier for earlier, later in pairwise(layers)):
        raise ValueError(f"path={path!r}: each head must be in a later layer than the one before it")
    product = ov_circuit(model, layers[0], heads[0])
    for i in range(1, len(layers)):
        arriving = FactoredMatrix(product.A, stream.carried(model, product.B, layers[i - 1], layers[i]))
        is_last = i == len(layers) - 1
        product = arriving.times(_circuit(model, layers[i], heads[i], end if is_last else "v"))
    return product


def _circuit(model: HookedGPT, layer: int, head: int, end: str) -> FactoredMatrix:
    if end == "v":
        return ov_circuit(model, layer, head)
    W_QK = qk_circuit(model, layer, head)
    return W_QK if end == "q" else W_QK.T


def _sent(model: HookedGPT, layer: int) -> Float[Tensor, "head d_head d_model"]:
    """What heads write, with what they read turned into d_head coordinates."""
    return _triangle(stream.W_V(model, layer)) @ stream.W_O(model, layer)


def _received(model: HookedGPT, layer: int, kind: Kind) -> Float[Tensor, "head d_head d_model"]:
    """What heads read, with the other end of their circuit turned into d_head coordinates."""
    if kind == "V":
        return _triangle(stream.W_O(model, layer).mT) @ stream.W_V(model, layer).mT
    W_Q, W_K = stream.W_Q(model, layer), stream.W_K(model, layer)
    return _triangle(W_K) @ W_Q.mT if kind == "Q" else _triangle(W_Q) @ W_K.mT


def _triangle(W: Float[Tensor, "head d_model d_head"]) -> Float[Tensor, "head rank d_head"]:
    """R of W = Q R: for any X, ‖W X‖ = ‖R X‖."""
    return torch.linalg.qr(W, mode="r").R


def _scores(writes: Writes, reads: Reads, n_senders: list[int]) -> list[Pairs]:
    """‖L R‖ / (‖L‖ ‖R‖) of each layer's receivers with so many senders, the first ones."""
    if _is_cheaper_by_grams(writes, reads, n_senders):
        squares = _squares_by_grams(writes, reads, n_senders)
    else:
        squares = [_direct(writes[:n], read) for n, read in zip(n_senders, reads, strict=True)]
    scores = []
    for found, read in zip(squares, reads, strict=True):
        norms = matrix_norm(writes[: len(found)])[:, None] * matrix_norm(read)
        scores.append(torch.where(norms > 0, found.sqrt() / norms, 0))
    return scores


def _is_cheaper_by_grams(writes: Writes, reads: Reads, n_senders: list[int]) -> bool:
    """By the multiplications of either way."""
    n_pairs = sum(n_senders) * reads.shape[1]
    n_rows = writes.shape[:2].numel() + reads.shape[:3].numel()
    return (n_rows + n_pairs) * writes.shape[2] / 2 < n_pairs * writes.shape[1] * reads.shape[2]


def _direct(writes: Writes, reads: Float[Tensor, "receiver rank2 d_model"]) -> Pairs:
    """‖L R‖² by the products L R, of some senders at a time."""
    squares = []
    for some in writes.split(_SENDERS):
        together = product(some.flatten(0, 1), reads.flatten(0, 1), None).square()
        squares.append(together.unflatten(1, reads.shape[:2]).sum(-1).unflatten(0, some.shape[:2]).sum(1))
    return torch.cat(squares)


def _squares_by_grams(writes: Writes, reads: Reads, n_senders: list[int]) -> list[Pairs]:
    """‖L R‖² as ⟨LᵀL, R Rᵀ⟩, some rows of both at a time; directly, where that is too small to be known."""
    squares = [writes.new_zeros(n, len(read)) for n, read in zip(n_senders, reads, strict=True)]
    d_model = writes.shape[2]
    n_rows = max(1, min(_ROWS, _HELD // writes[:, 0].nbytes))
    for start in range(0, d_model, n_rows):
        rows = slice(start, start + n_rows)
        sent = writes[..., rows].mT @ writes[..., start:]
        sent[..., n_rows:] *= 2  # for what lies below the diagonal
        for total, read in zip(squares, reads, strict=True):
            total += product(sent[: len(total)].flatten(1), (read[..., rows].mT @ read[..., start:]).flatten(1), None)
    sent_norms, read_norms = (matrix_norm(thin @ thin.mT) for thin in (writes, reads))
    for total, read, read_norm in zip(squares, reads, read_norms, strict=True):
        is_lost = total < _LOST * sent_norms[: len(total), None] * read_norm
        for receiver in is_lost.any(0).nonzero()[:, 0].tolist():
            senders = is_lost[:, receiver]
            total[senders, receiver] = _direct(writes[: len(total)][senders], read[receiver, None])[:, 0]
    return squares
